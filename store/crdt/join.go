package crdt

import "slices"

// Join merges a peer's inode record from a snapshot into the state. mine and
// theirs are the version vectors of the two states. A leaf that one side lacks
// though its vector covers it has been replaced there, and goes; one that the
// vector does not cover is new, and stays (the optimised OR-set: Bieniusa et
// al., "An optimized conflict-free replicated set", 2012). A new directory
// stands at its origin until [FoldMoves] has put it where it belongs, after all
// records; one that is known stays where it is until then.
func Join(s State, remote *Inode, mine, theirs Vector) (*Effects, error) {
	a := newApplier(s)
	i, err := a.touch(remote.Ino)
	if err != nil {
		return nil, err
	}
	if i == nil {
		i = remote.clone()
		if i.moved() {
			i.Standing, i.Origin = i.Origin, Place{}
		}
		a.inodes[i.Ino] = i
		a.order = append(a.order, i.Ino)
	} else {
		joinInode(i, remote, mine, theirs)
	}
	for n := range i.Links {
		k := linkKey{i.Ino, i.Links[n].ID}
		if _, ok := a.stood[k]; !ok {
			a.stood[k] = standing{}
			a.links = append(a.links, k)
		}
	}
	return a.settle()
}

func joinInode(i, r *Inode, mine, theirs Vector) {
	i.Mode.set(r.Mode.At, r.Mode.Value)
	i.Owner.set(r.Owner.At, r.Owner.Value)
	i.Mtime.set(r.Mtime.At, r.Mtime.Value)
	i.Named.set(r.Named.At, r.Named.Value)
	i.Changed.set(r.Changed.At, r.Changed.Value)
	for _, x := range r.Xattrs {
		i.setXattr(x)
	}
	for _, l := range r.Links {
		if own := i.Link(l.ID); own != nil {
			own.Places = joinLeaves(own.Places, l.Places, mine, theirs,
				func(p Place) VersionID { return p.ID },
				func(p, q Place) Place {
					p.Dismissed = p.Dismissed || q.Dismissed
					p.Closed = joinLeaves(p.Closed, q.Closed, mine, theirs, self, first)
					return p
				})
		} else {
			i.Links = append(i.Links, l)
		}
	}
	for n := range i.Links {
		if r.Link(i.Links[n].ID) == nil {
			i.Links[n].Places = joinLeaves(i.Links[n].Places, nil, mine, theirs,
				func(p Place) VersionID { return p.ID }, func(p, _ Place) Place { return p })
		}
	}
	i.Contents = joinLeaves(i.Contents, r.Contents, mine, theirs,
		func(v Version) VersionID { return v.ID },
		func(v, w Version) Version {
			v.Dismissed = v.Dismissed || w.Dismissed
			v.Closed = joinLeaves(v.Closed, w.Closed, mine, theirs,
				func(c Closure) Removal { return c.Removal },
				func(c, _ Closure) Closure { return c })
			return v
		})
}

// Removal is the id of a removal.
type Removal = VersionID

func self(v VersionID) VersionID     { return v }
func first(v, _ VersionID) VersionID { return v }

// joinLeaves joins two sides' leaf sets by their vectors.
func joinLeaves[T any](own, other []T, mine, theirs Vector, id func(T) VersionID, both func(T, T) T) []T {
	var out []T
	for _, x := range own {
		n := slices.IndexFunc(other, func(y T) bool { return id(y) == id(x) })
		switch {
		case n >= 0:
			out = append(out, both(x, other[n]))
		case id(x).Local() || !theirs.Covers(id(x)):
			out = append(out, x)
		}
	}
	for _, y := range other {
		if !mine.Covers(id(y)) && !slices.ContainsFunc(own, func(x T) bool { return id(x) == id(y) }) {
			out = append(out, y)
		}
	}
	return out
}
