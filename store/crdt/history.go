package crdt

import "slices"

// Past is the part of a [State] that keeps what was: the versions that others
// replaced, and the links that died. No rule reads it to decide the view, and
// a store may forget of it what it likes.
type Past interface {
	// PutHistory keeps a version that is no leaf any more. Its bytes stay
	// where [State].PutInline put them.
	PutHistory(ino Ino, v *Version) error
	// History returns such a version, nil if it is not known.
	History(ino Ino, id VersionID) (*Version, error)
	// PutGone keeps, or forgets, that a link died at a name.
	PutGone(g Gone, keep bool) error
}

// Gone is a link that is live no more, and where it stood last.
type Gone struct {
	Dir  Ino
	Name string
	Ino  Ino
	Link LinkID
	Kind Kind
}

// retire keeps the versions of an inode that the op made history.
func (a *applier) retire(ino Ino) error {
	before, after := a.before[ino], a.inodes[ino]
	if before == nil || before.Unpublished() {
		return nil
	}
	for n := range before.Contents {
		v := &before.Contents[n]
		if after.Version(v.ID) != nil {
			continue
		}
		if err := a.s.PutHistory(ino, v.past()); err != nil {
			return err
		}
	}
	return nil
}

// past is the version without what only matters to a leaf: whether removals
// and dismissals came before it was replaced depends on the order of arrival.
func (v *Version) past() *Version {
	p := *v
	p.Closed, p.Dismissed = nil, false
	return &p
}

// mourn keeps where a link died, as long as it is dead.
func (a *applier) mourn(i *Inode, link LinkID, was, now standing) error {
	if i.Unpublished() {
		return nil
	}
	dead := func(s standing) bool { return !s.live && !s.place.ID.IsZero() }
	gone := func(p Place) Gone { return Gone{p.Parent, p.Name, i.Ino, link, i.Kind} }
	if dead(was) == dead(now) && (!dead(now) || gone(was.place) == gone(now.place)) {
		return nil
	}
	if dead(was) {
		if err := a.s.PutGone(gone(was.place), false); err != nil {
			return err
		}
	}
	if dead(now) {
		return a.s.PutGone(gone(now.place), true)
	}
	return nil
}

// JoinHistory takes a version of a peer's history from a snapshot, after the
// inode's record was joined.
func JoinHistory(s State, ino Ino, v *Version) error {
	i, err := s.Inode(ino)
	if err != nil || i != nil && i.Version(v.ID) != nil {
		return err
	}
	return s.PutHistory(ino, v.past())
}

// AppendVersion appends the binary form of a version of history.
func AppendVersion(b []byte, v *Version) []byte {
	e := newEncoder(b)
	e.relativeTo(v.ID.Stamp)
	e.leaf(v.past())
	return e.b
}

// DecodeVersion reads a version of history.
func DecodeVersion(b []byte) (*Version, error) {
	d := newDecoder(b)
	ahead := d // the id comes first
	d.relativeTo(ahead.version().Stamp)
	v := d.leaf()
	if d.err == nil && len(v.Closed) > 0 {
		d.fail("history with removals")
	}
	if err := d.finish("version"); err != nil {
		return nil, err
	}
	return &v, nil
}

// Died is when a link died: the newest removal of it.
func (i *Inode) Died(link LinkID) (at VersionID) {
	if l := i.Link(link); l != nil {
		if rs := i.removalsOf(l); len(rs) > 0 {
			return slices.MaxFunc(rs, VersionID.compare)
		}
	}
	return at
}
