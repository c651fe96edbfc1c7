package crdt

import "slices"

// Revives reports whether the publication of a file that is open, at the
// replica self, would bring back something that another replica removed: the
// file itself, or, if it is new, a directory above it.
func Revives(s State, i *Inode, self ReplicaID) (bool, error) {
	if !i.Unpublished() {
		links, err := LiveLinks(s, i)
		return err == nil && len(links) == 0 && !i.RemovedBy(self), err
	}
	for n := range i.Links {
		p := i.Links[n].shownPlace()
		if p == nil {
			continue
		}
		for dir := p.Parent; !dir.fixed(); {
			d, err := s.Inode(dir)
			if err != nil || d == nil {
				return false, err
			}
			if !d.hasOpenPlace() {
				return true, nil
			}
			dir = d.Standing.Parent
		}
	}
	return false, nil
}

// A Horizon is what may be collected: what all replicas that count have
// applied, if it is older than the retention.
type Horizon struct {
	Stable Vector
	Before Stamp
}

// Covers reports whether no op to come can be older than, or not know, the
// version.
func (h *Horizon) Covers(id VersionID) bool {
	return !id.Local() && id.Stamp < h.Before && h.Stable.Covers(id)
}

func (h *Horizon) all(ids []VersionID) bool {
	return !slices.ContainsFunc(ids, func(id VersionID) bool { return !h.Covers(id) })
}

// Tombstones reports whether the record holds something that can be collected
// one day: a removed link or attribute. A directory that lives only by its
// children has them too.
func (i *Inode) Tombstones() bool {
	if slices.ContainsFunc(i.Xattrs, func(x Xattr) bool { return x.Gone }) {
		return true
	}
	return !i.Ino.fixed() && slices.ContainsFunc(i.Links, func(l Link) bool { return !l.openPlace() })
}

// Above are the directories that hold, or held, one of the inode's removed
// links: as long as the link can come back, so can they.
func (i *Inode) Above() (dirs []Ino) {
	for _, l := range i.Links {
		if l.openPlace() {
			continue
		}
		for _, p := range l.Places {
			dirs = append(dirs, p.Parent)
		}
	}
	if i.Kind == KindDir && len(dirs) > 0 {
		dirs = append(dirs, i.Standing.Parent)
	}
	return dirs
}

// Collect returns the record without what is removed and behind the horizon:
// no op that is still to come can name it. It returns the record itself if
// there is nothing to collect, and nil if the whole inode goes. The view is the
// same before and after. That no directory goes before what was in it is for
// the caller to see to; see [Inode.Above].
func Collect(s State, i *Inode, h *Horizon) (*Inode, error) {
	if i.Unpublished() || i.Ino.fixed() {
		return i, nil
	}
	c := i.clone()
	c.Xattrs = slices.DeleteFunc(c.Xattrs, func(x Xattr) bool { return x.Gone && h.Covers(x.At) })
	changed := len(c.Xattrs) != len(i.Xattrs)
	live := 0
	var gone []LinkID
	for n := range i.Links {
		l := &i.Links[n]
		if alive, err := Live(s, i, l); err != nil {
			return nil, err
		} else if alive {
			live++
		} else if h.all(l.leaves()) && h.all(i.removalsOf(l)) {
			gone = append(gone, l.ID)
		}
	}
	if live == 0 && len(gone) == len(i.Links) && h.all(i.contentLeaves()) && h.Covers(i.Changed.At) {
		return nil, nil
	}
	for _, id := range gone {
		if i.Kind != KindDir && c.dropLink(id) {
			changed = true
		}
	}
	if !changed {
		return i, nil
	}
	return c, nil
}

// dropLink forgets a dead link and the removals in its name, unless a version
// was published through it: what shows may depend on those.
func (i *Inode) dropLink(id LinkID) bool {
	if slices.ContainsFunc(i.Contents, func(v Version) bool { return v.Via == id }) {
		return false
	}
	for n := range i.Contents {
		v := &i.Contents[n]
		v.Closed = slices.DeleteFunc(v.Closed, func(c Closure) bool { return c.Link == id })
	}
	i.Links = slices.DeleteFunc(i.Links, func(l Link) bool { return l.ID == id })
	return true
}

// CollectAll collects, of the inodes given, what it may, all but those that are
// kept, and takes care that no directory goes before what was in it: all inodes
// with tombstones must be among them. remove forgets an inode.
func CollectAll(s State, inodes []Ino, h *Horizon, keep func(Ino) bool, remove func(Ino) error) error {
	held := map[Ino]bool{} // directories that something is, or may come back, in
	dirs := map[Ino]*Inode{}
	for _, ino := range inodes {
		i, err := s.Inode(ino)
		if err != nil {
			return err
		}
		if i == nil {
			continue
		}
		now, err := Collect(s, i, h)
		switch {
		case err != nil:
			return err
		case keep(ino):
			now = i
		case now == nil && i.Kind == KindDir:
			dirs[ino] = i
			continue
		case now == nil:
			if err := remove(ino); err != nil {
				return err
			}
			continue
		case now != i:
			if err := s.PutInode(now); err != nil {
				return err
			}
		}
		hold(held, now)
	}
	for more := true; more; {
		more = false
		for ino, d := range dirs {
			if held[ino] {
				delete(dirs, ino)
				hold(held, d)
				more = true
			}
		}
	}
	for ino := range dirs {
		if err := remove(ino); err != nil {
			return err
		}
	}
	return nil
}

func hold(held map[Ino]bool, i *Inode) {
	for _, dir := range i.Above() {
		held[dir] = true
	}
}

// Trimmable are the oldest of the moves of a log that are behind the horizon: all
// of an op, or none.
func Trimmable(moves []Move, h *Horizon) []Move {
	n := 0
	for ops := range opsOf(moves) {
		if !h.Covers(ops[0].ID) {
			break
		}
		n += len(ops)
	}
	return moves[:n]
}

// TrimMoves has the directories begin where the oldest moves of the log, which
// are about to go from it, left them. later is the rest of the log.
func TrimMoves(s State, moves, later []Move) error {
	in := map[Ino]bool{}
	for n := range later {
		in[later[n].Ino] = true
	}
	for n := range moves {
		m := &moves[n]
		i, err := s.Inode(m.Ino)
		if err != nil {
			return err
		}
		if i == nil || !i.moved() {
			continue // it was collected, or has no later move
		}
		i = i.clone()
		switch {
		case !in[m.Ino]:
			i.Origin = Place{}
		case !m.Skipped:
			i.Origin = Place{ID: m.ID, Parent: m.Parent, Name: m.Name}
		}
		if err := s.PutInode(i); err != nil {
			return err
		}
	}
	return nil
}
