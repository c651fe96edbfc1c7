package crdt

import (
	"bytes"
	"cmp"
	"slices"
)

// Diff is what a viewer of one state has to show to be one of another: as if an
// op had led from old to now. each calls its argument for each inode of either
// state.
func Diff(old, now State, each func(func(Ino) error) error) (*Effects, error) {
	d := &differ{old: old, now: now, seen: map[nameKey]bool{}}
	if err := each(d.inode); err != nil {
		return nil, err
	}
	return &d.e, d.sort()
}

type differ struct {
	old, now State
	e        Effects
	seen     map[nameKey]bool // of names that changed
}

func (d *differ) inode(ino Ino) error {
	was, err := d.old.Inode(ino)
	if err != nil {
		return err
	}
	is, err := d.now.Inode(ino)
	if err != nil {
		return err
	}
	if was != nil && is != nil && !bytes.Equal(AppendInode(nil, was), AppendInode(nil, is)) {
		c := InodeChange{Ino: ino}
		before, after := was.Shown(), is.Shown()
		switch {
		case before == nil:
			c.Content = after != nil
		case after == nil || !before.SameBytes(&after.Content) || before.Mtime != after.Mtime:
			c.Content, c.Before = true, before
		}
		d.e.Inodes = append(d.e.Inodes, c)
	}
	for _, s := range []State{d.old, d.now} {
		head, err := s.Head(ino)
		if err != nil {
			return err
		}
		if err := s.EachName(ino, func(name string, _ []Claim) error {
			return d.name(nameKey{head, name})
		}); err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) name(k nameKey) error {
	if d.seen[k] {
		return nil
	}
	before, err := shownAt(d.old, k)
	if err != nil {
		return err
	}
	after, err := shownAt(d.now, k)
	if err != nil {
		return err
	}
	if before != after {
		d.seen[k] = true
		d.e.Names = append(d.e.Names, NameChange{Dir: k.dir, Name: k.name, Before: before, After: after})
	}
	return nil
}

// shownAt is what shows at a name of a set, if there is one with that head.
func shownAt(s State, k nameKey) (Entry, error) {
	head, err := s.Head(k.dir)
	if err != nil || head != k.dir {
		return Entry{}, err
	}
	c, _, err := Lookup(s, k.dir, k.name)
	return Entry{c.Ino, c.Link, c.Kind}, err
}

// sort puts first what there is now, from the root down, then what is gone, from
// below.
func (d *differ) sort() error {
	depths := map[Ino]int{}
	for _, c := range d.e.Names {
		s := d.now
		if c.After == (Entry{}) {
			s = d.old
		}
		n, err := depth(s, c.Dir)
		if err != nil {
			return err
		}
		depths[c.Dir] = max(depths[c.Dir], n)
	}
	slices.SortStableFunc(d.e.Names, func(a, b NameChange) int {
		goneA, goneB := a.After == (Entry{}), b.After == (Entry{})
		switch {
		case goneA != goneB && goneA:
			return 1
		case goneA != goneB:
			return -1
		case goneA:
			a, b = b, a
		}
		return cmp.Compare(depths[a.Dir], depths[b.Dir])
	})
	return nil
}

func depth(s State, dir Ino) (n int, err error) {
	for !dir.fixed() {
		i, err := s.Inode(dir)
		if err != nil || i == nil {
			return n, err
		}
		dir = i.Standing.Parent
		n++
	}
	return n, nil
}
