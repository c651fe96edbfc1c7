package store

import (
	"container/heap"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// ReadDir calls fn for each name that shows in a directory, in the order of
// cookies, beginning after the given one (0 is the start), until fn returns
// false.
func (v *Volume) ReadDir(dir NodeID, after uint64, fn func(DirEntry) bool) error {
	return v.inode(dir, func(t *tree, i *crdt.Inode) error {
		if i.Kind != crdt.KindDir {
			return crdt.ErrNotDir
		}
		head, err := t.Head(i.Ino)
		if err != nil {
			return err
		}
		return t.list(head, after, fn)
	})
}

// list is ReadDir of the directory set with that head.
func (t *tree) list(head crdt.Ino, after uint64, fn func(DirEntry) bool) error {
	members, err := t.Members(head)
	if err != nil {
		return err
	}
	if len(members) == 1 {
		return t.readOne(head, after, fn)
	}
	return t.readSet(members, after, fn)
}

// readOne lists a directory that shares its name with no other.
func (t *tree) readOne(dir crdt.Ino, after uint64, fn func(DirEntry) bool) error {
	prefix := t.keys.key('e', uint64(dir))
	return t.t.scan(prefix, t.keys.key('e', uint64(dir), after+1), func(key, value []byte) (bool, error) {
		name := t.keys.nameIn(key)
		cs, err := t.claims(dir, name, value)
		if err != nil {
			return false, err
		}
		c, ok := crdt.Shown(cs)
		if !ok {
			return true, nil
		}
		return fn(DirEntry{Name: name, Cookie: t.keys.tail(key, 1), Entry: crdt.Entry{Ino: c.Ino, Link: c.Link, Kind: c.Kind}}), nil
	})
}

// names is a heap of names by cookie.
type names []DirEntry

func (n names) Len() int { return len(n) }
func (n names) Less(i, j int) bool {
	return n[i].Cookie < n[j].Cookie || n[i].Cookie == n[j].Cookie && n[i].Name < n[j].Name
}
func (n names) Swap(i, j int) { n[i], n[j] = n[j], n[i] }
func (n *names) Push(x any)   { *n = append(*n, x.(DirEntry)) }
func (n *names) Pop() any {
	x := (*n)[len(*n)-1]
	*n = (*n)[:len(*n)-1]
	return x
}

// readSet lists directories that show as one; there are few, so their names
// are gathered first.
func (t *tree) readSet(members []crdt.Ino, after uint64, fn func(DirEntry) bool) error {
	all := map[string][]crdt.Claim{}
	for _, m := range members {
		if err := t.EachName(m, func(name string, cs []crdt.Claim) error {
			all[name] = append(all[name], cs...)
			return nil
		}); err != nil {
			return err
		}
	}
	h := make(names, 0, len(all))
	for name, cs := range all {
		if c, ok := crdt.Shown(cs); ok && CookieOf(name) > after {
			h = append(h, DirEntry{Name: name, Cookie: CookieOf(name), Entry: crdt.Entry{Ino: c.Ino, Link: c.Link, Kind: c.Kind}})
		}
	}
	heap.Init(&h)
	for len(h) > 0 {
		if !fn(heap.Pop(&h).(DirEntry)) {
			return nil
		}
	}
	return nil
}
