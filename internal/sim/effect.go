package sim

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// paths is the tree as the node's users see it: inode numbers by path.
func (n *node) paths() map[string]crdt.Ino {
	out := map[string]crdt.Ino{}
	var walk func(dir store.NodeID, prefix string)
	walk = func(dir store.NodeID, prefix string) {
		var below []store.DirEntry
		if err := n.vol.ReadDir(dir, 0, func(e store.DirEntry) bool { below = append(below, e); return true }); err != nil {
			n.w.fail("%s: list %q: %w", n.name, prefix, err)
		}
		for _, e := range below {
			if len(out) > 10_000 {
				n.w.fail("%s: the tree has no end: %.200s", n.name, prefix)
				return
			}
			out[prefix+e.Name] = e.Entry.Ino
			if e.Entry.Kind == crdt.KindDir {
				walk(n.vol.Node(e.Entry.Ino), prefix+e.Name+"/")
			}
		}
	}
	walk(store.NodeID(crdt.RootIno), "")
	return out
}

// take removes what is at and below a path, and returns it by the rest of the path.
func take(tree map[string]crdt.Ino, path string) map[string]crdt.Ino {
	out := map[string]crdt.Ino{}
	for p, ino := range tree {
		if p == path || strings.HasPrefix(p, path+"/") {
			out[p[len(path):]] = ino
			delete(tree, p)
		}
	}
	return out
}

func put(tree map[string]crdt.Ino, path string, sub map[string]crdt.Ino) {
	for p, ino := range sub {
		tree[path+p] = ino
	}
}

// checkEffect compares the names before and after a call that succeeded: it
// changes those that it is about, and no other.
func (n *node) checkEffect(s step, before, after map[string]crdt.Ino) {
	want := maps.Clone(before)
	switch s.verb {
	case "append", "close", "flush":
		return // a file that was removed elsewhere may come back
	case "recover", "undelete":
		return // in which way depends on what was lost
	case "unlink", "rmdir", "removeall":
		take(want, s.path)
	case "rename":
		if before[s.path] == before[s.to] {
			break
		}
		moved := take(want, s.path)
		take(want, s.to)
		put(want, s.to, moved)
	case "exchange":
		if s.path == s.to {
			break
		}
		a, b := take(want, s.path), take(want, s.to)
		put(want, s.to, a)
		put(want, s.path, b)
	case "link":
		want[s.to] = before[s.path]
	case "replace", "write", "open", "overwrite", "mkdir", "symlink":
		want[s.path] = after[s.path]
		if s.verb == "replace" {
			delete(want, s.path[:strings.LastIndexByte(s.path, '/')+1]+"tmp")
		}
	}
	if maps.Equal(want, after) {
		return
	}
	var diff []string
	for _, p := range slices.Sorted(maps.Keys(want)) {
		if want[p] != after[p] {
			diff = append(diff, fmt.Sprintf("%s is %x, want %x", p, uint64(after[p]), uint64(want[p])))
		}
	}
	for _, p := range slices.Sorted(maps.Keys(after)) {
		if _, ok := want[p]; !ok {
			diff = append(diff, p+" is there")
		}
	}
	n.w.fail("%s: %v: %s", n.name, s, strings.Join(diff, ", "))
}
