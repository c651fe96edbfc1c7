package store

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// viewer knows some inodes, as a kernel does, and wants their nodes switched.
type viewer struct {
	t       testing.TB
	mount   MountID
	mu      sync.Mutex
	knows   map[crdt.Ino]bool
	all     bool
	told    []*Changes
	nodes   map[NodeID]bool // that are open
	pending *Changes
	aborted int
}

func (w *viewer) Prepare(c *Changes) (switched []crdt.Ino) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pending != nil {
		w.t.Error("prepared twice")
	}
	w.pending = c
	for _, i := range c.Inodes {
		if i.Content && i.Before != nil && c.By == 0 && (w.all || w.knows[i.Ino]) {
			switched = append(switched, i.Ino)
		}
	}
	return switched
}

func (w *viewer) Committed(c *Changes) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pending != c {
		w.t.Error("committed what was not prepared")
	}
	w.pending, w.told = nil, append(w.told, c)
}

func (w *viewer) Aborted(*Changes) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending = nil
	w.aborted++
}

func (w *viewer) Shows(crdt.Ino) bool { return false }

func (w *viewer) Knows(node NodeID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[node]
}

// forget closes a node.
func (w *viewer) forget(v *Volume, node NodeID) {
	w.mu.Lock()
	delete(w.nodes, node)
	w.mu.Unlock()
	v.LetGo(node)
}

func watch(t testing.TB, v *Volume, inos ...crdt.Ino) *viewer {
	return watchBy(t, v, 1, inos...)
}

func watchBy(t testing.TB, v *Volume, mount MountID, inos ...crdt.Ino) *viewer {
	w := &viewer{t: t, mount: mount, knows: map[crdt.Ino]bool{}, nodes: map[NodeID]bool{}}
	for _, i := range inos {
		w.knows[i], w.nodes[v.Node(i)] = true, true
	}
	v.AddViewer(mount, w)
	return w
}

func TestP2SwitchedNodeKeepsTheOldVersion(t *testing.T) {
	for _, size := range []int{5, 60_000, 2_500_000} {
		a, b := pair(t, Options{})
		old, text := noise(1, size), noise(2, size)
		node := write(t, a, root, "f", old)
		_, err := a.Link(Request{}, node, root, "hard")
		check(t, err, nil)
		give(t, a, b)
		w := watch(t, b, crdt.Ino(node))
		write(t, a, root, "f", text)
		give(t, a, b)
		if got := readNode(t, b, node); got != old {
			t.Fatalf("the old node reads %d other bytes", len(got))
		}
		for _, name := range []string{"f", "hard"} {
			now, _, err := b.Lookup(root, name)
			check(t, err, nil)
			if now.Node == node || now.Ino != crdt.Ino(node) || readNode(t, b, now.Node) != text {
				t.Fatalf("%s: node %x, inode %x", name, uint64(now.Node), now.Ino)
			}
		}
		if n := b.Node(crdt.Ino(node)); n == node {
			t.Error("the present node is the old one")
		}
		if at, err := b.Attr(node); err != nil || at.Size != int64(size) || at.Ino != crdt.Ino(node) {
			t.Errorf("%+v %v", at, err)
		}
		w.forget(b, node)
		if got := readNode(t, b, node); got != text { // the inode number means what it says again
			t.Errorf("after the forget: %d bytes", len(got))
		}
		check(t, b.read(func(tr *tree) error {
			return tr.t.scan(tr.keys.key('n', uint64(node)), nil, func(k, _ []byte) (bool, error) {
				t.Errorf("record %x is left", k)
				return true, nil
			})
		}), nil)
		same(t, a, b)
	}
}

// TestP2SwitchOverManyVersions: of the versions between the one that the kernel
// shows and the newest only the history stays, but that one always.
func TestP2SwitchOverManyVersions(t *testing.T) {
	a, b := pair(t, Options{})
	node := write(t, a, root, "f", "version 0")
	give(t, a, b)
	w := watch(t, b, crdt.Ino(node))
	for _, batch := range [][2]int{{1, 30}, {30, 60}} {
		for n := batch[0]; n < batch[1]; n++ {
			write(t, a, root, "f", fmt.Sprint("version ", n))
		}
		give(t, a, b)
	}
	if got := readNode(t, b, node); got != "version 0" {
		t.Errorf("the first node reads %q", got)
	}
	if got := read(t, b, root, "f"); got != "version 59" {
		t.Errorf("the name leads to %q", got)
	}
	if len(w.told) == 0 || w.aborted > 0 {
		t.Errorf("told %d times, %d aborted", len(w.told), w.aborted)
	}
	check(t, b.pruneQueued(), nil)
	if got := readNode(t, b, node); got != "version 0" {
		t.Errorf("after pruning the first node reads %q", got)
	}
	w.forget(b, node)
	write(t, a, root, "f", "version 60")
	give(t, a, b)
	check(t, b.pruneQueued(), nil)
	n := 0
	check(t, b.read(func(tr *tree) error {
		return tr.t.scan(tr.keys.key('c', uint64(node)), nil, func(k, _ []byte) (bool, error) { n++; return true, nil })
	}), nil)
	if frozen := len(b.nodes) - 1; n > 1+10+frozen {
		t.Errorf("%d versions kept for %d frozen nodes and a history of 10", n, frozen)
	}
}

// TestP2SwitchOfManyFiles must fit in one transaction.
func TestP2SwitchOfManyFiles(t *testing.T) {
	a, b := pair(t, Options{})
	b.AddViewer(1, &viewer{t: t, all: true})
	const files, size = 100, 60_000
	for n := range files {
		write(t, a, root, fmt.Sprint("f", n), strings.Repeat(fmt.Sprint(n%10), size))
	}
	give(t, a, b)
	nodes := map[int]NodeID{}
	for n := range files {
		at, _, err := b.Lookup(root, fmt.Sprint("f", n))
		check(t, err, nil)
		nodes[n] = at.Node
		write(t, a, root, fmt.Sprint("f", n), "short")
	}
	give(t, a, b)
	for n, node := range nodes {
		if got := readNode(t, b, node); got != strings.Repeat(fmt.Sprint(n%10), size) {
			t.Fatalf("file %d: the old node reads %d bytes", n, len(got))
		}
	}
	same(t, a, b)
}

// TestP5SwitchedWhileOpen: a file that is open for writing, not yet written, is
// replaced by a peer; what is written then stands beside it.
func TestP5SwitchedWhileOpen(t *testing.T) {
	a, b := pair(t, Options{})
	node := write(t, a, root, "f", "base")
	give(t, a, b)
	watch(t, b, crdt.Ino(node))
	w := open(t, b, root, "f", false)
	write(t, a, root, "f", "remote")
	give(t, a, b)
	if got := w.read(); got != "base" {
		t.Fatalf("the handle reads %q", got)
	}
	w.write("BA", 0)
	if got := w.read(); got != "BAse" {
		t.Fatalf("the handle reads %q after its write", got)
	}
	if got := read(t, b, root, "f"); got != "remote" {
		t.Fatalf("the name leads to %q", got)
	}
	w.close()
	exchange(t, a, b)
	same(t, a, b)
	if got := read(t, a, root, "f"); got != "BAse" { // the later
		t.Errorf("shown: %q", got)
	}
	wantLeaves(t, a, crdt.Ino(node), "BAse", "remote")
	wantLeaves(t, b, crdt.Ino(node), "BAse", "remote")
}

// TestP5MergedWhileOpen: the base is fixed when the draft begins.
func TestP5MergedWhileOpen(t *testing.T) {
	for _, trunc := range []bool{true, false} {
		a, b := pair(t, Options{})
		node := write(t, a, root, "f", "base")
		give(t, a, b)
		w := open(t, b, root, "f", trunc).write("local", 0)
		write(t, a, root, "f", "remote")
		give(t, a, b)
		if got := w.read(); got != "local" {
			t.Fatalf("the writer reads %q", got)
		}
		if got := read(t, b, root, "f"); got != "local" {
			t.Fatalf("the name leads to %q while written here", got)
		}
		w.close()
		exchange(t, a, b)
		same(t, a, b)
		wantLeaves(t, a, crdt.Ino(node), "local", "remote")
		wantLeaves(t, b, crdt.Ino(node), "local", "remote")
		// The next overwrite replaces only what its writer saw.
		write(t, a, root, "f", "next")
		exchange(t, a, b)
		wantLeaves(t, b, crdt.Ino(node), "next", "remote")
	}
}

// wantLeaves checks which versions of an inode are kept as leaves.
func wantLeaves(t testing.TB, v *Volume, ino crdt.Ino, want ...string) {
	t.Helper()
	got := map[string]bool{}
	check(t, v.read(func(tr *tree) error {
		i, err := tr.Inode(ino)
		if err != nil {
			return err
		}
		for _, c := range i.Contents {
			b, err := tr.inline(ino, c.ID)
			if err != nil {
				return err
			}
			got[string(b)] = true
		}
		return nil
	}), nil)
	for _, text := range want {
		if !got[text] {
			t.Errorf("%q is lost; kept: %v", text, got)
		}
	}
	if len(got) != len(want) {
		t.Errorf("kept %v, want %q", got, want)
	}
}

// TestP3OpenFileDelaysNobody: a file held open does not keep others' ops back.
func TestP3OpenFileDelaysNobody(t *testing.T) {
	a, b := pair(t, Options{})
	slow := create(t, a, root, "slow").write("begun", 0)
	over := write(t, a, root, "over", "old")
	w := open(t, a, root, "over", true).write("begun", 0)
	write(t, a, root, "quick", "done")
	give(t, a, b)
	if got := read(t, b, root, "quick"); got != "done" {
		t.Errorf("%q", got)
	}
	absent(t, b, root, "slow")
	if got := readNode(t, b, over); got != "old" {
		t.Errorf("%q", got)
	}
	slow.close()
	w.close()
	give(t, a, b)
	same(t, a, b)
}

// TestDirectoryTimesThatChangeAreTold: a kernel that asks again only when it is
// told, or has itself changed a name, has a directory's times right after each
// call; and it is told nothing by files that are made one after another.
func TestDirectoryTimesThatChangeAreTold(t *testing.T) {
	for _, calls := range []string{ // a creation or, the second time, a close
		"a a b b", "a b a b", "a b b a", "a b c b a c", "a mtime a", "a b mtime b a", "a b b mtime a",
	} {
		v := testVolume(t, NewVolumeID())
		dir := mkdir(t, v, root, "d")
		w := watch(t, v)
		files := map[string]writing{}
		var cached Attr
		toldOf := 0
		for call := range strings.FieldsSeq(calls) {
			w.told = nil
			f, open := files[call]
			asks := true
			switch {
			case call == "mtime":
				_, err := v.SetAttr(Request{Mount: 1}, dir, SetAttr{Mtime: &crdt.Time{Sec: 7}})
				check(t, err, nil)
			case !open:
				files[call] = create(t, v, dir, call)
			default:
				f.write("x", 0).flush().close()
				asks = false
			}
			for _, c := range w.told {
				for _, i := range c.Inodes {
					if i.Ino == crdt.Ino(dir) && !asks {
						toldOf++
						asks = true
					}
				}
			}
			now, err := v.Attr(dir)
			check(t, err, nil)
			if asks {
				cached = now
			}
			if cached != now {
				t.Errorf("%s: after %s the directory shows %+v, and the kernel has %+v", calls, call, now, cached)
			}
		}
		if calls == "a a b b" && toldOf > 0 {
			t.Errorf("%s: told of the directory %d times", calls, toldOf)
		}
	}
}

// TestDirectoryTimesNeverGoBack: a file made in a directory is published later,
// when the directory may have changed since; only who sets the times takes them
// back.
func TestDirectoryTimesNeverGoBack(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		clock := &testClock{now: time.Unix(1_700_000_000, 0)}
		o := longHold
		o.Scheduler, o.Memory, o.Now = still{}, NewMemory(), clock.Now
		v := volumeWith(t, NewVolumeID(), o)
		dir := mkdir(t, v, root, "d")
		var open []writing
		names := 0
		name := func() string { names++; return fmt.Sprint("n", names) }
		last, err := v.Attr(dir)
		check(t, err, nil)
		rt.Repeat(map[string]func(*rapid.T){
			"create": func(*rapid.T) { open = append(open, create(t, v, dir, name()).write("x", 0)) },
			"make":   func(*rapid.T) { mkdir(t, v, dir, name()) },
			"attributes": func(*rapid.T) {
				mode := uint32(0o700 + names%8)
				_, err := v.SetAttr(Request{}, dir, SetAttr{Mode: &mode})
				check(t, err, nil)
			},
			"close": func(*rapid.T) {
				if len(open) > 0 {
					open[0].close()
					open = open[1:]
				}
			},
			"replace": func(rt *rapid.T) {
				if names > 1 {
					from, to := rapid.IntRange(1, names).Draw(rt, "from"), rapid.IntRange(1, names).Draw(rt, "to")
					_ = v.Rename(Request{}, dir, fmt.Sprint("n", from), dir, fmt.Sprint("n", to), 0)
				}
			},
			"": func(rt *rapid.T) {
				now, err := v.Attr(dir)
				check(t, err, nil)
				if now.Mtime.Before(last.Mtime) || now.Ctime.Before(last.Ctime) {
					rt.Fatalf("mtime %v, ctime %v after mtime %v, ctime %v", now.Mtime, now.Ctime, last.Mtime, last.Ctime)
				}
				last = now
			},
		})
		for _, w := range open {
			w.close()
		}
	})
}
