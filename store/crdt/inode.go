package crdt

import (
	"slices"

	"github.com/synapsefs/synapsefs/internal/mutation"
)

// A Register holds the value written last, by op order.
type Register[T any] struct {
	At    VersionID
	Value T
}

func (r *Register[T]) set(at VersionID, v T) bool {
	if r.At.CompareOp(at) > 0 {
		return false
	}
	r.At, r.Value = at, v
	return true
}

// Owner is a file's user and group.
type Owner struct{ UID, GID uint32 }

// Xattr is one extended attribute; a removed one stays as a tombstone.
type Xattr struct {
	Name  string
	At    VersionID
	Value []byte
	Gone  bool
}

// Place is a leaf of a link's place set.
type Place struct {
	ID     VersionID
	Parent Ino
	Name   string
	Closed []VersionID // the removals that name it
	// Dismissed says that somebody has seen that it lost and wants no record
	// of it. No rule of the view reads it.
	Dismissed bool
}

// Link is one name of an inode.
type Link struct {
	ID     LinkID
	Places []Place
}

// Closure is a removal that names a content leaf, on behalf of one link.
type Closure struct {
	Link    LinkID
	Removal VersionID
}

// Version is a leaf of a file's content set.
type Version struct {
	ID   VersionID
	Via  LinkID
	Base VersionID
	Content
	Closed    []Closure
	Dismissed bool // as of a place
}

// Inode is the state of one inode: the leaves of its version sets and its
// registers. Records returned by a State belong to the caller.
type Inode struct {
	Ino    Ino
	Kind   Kind
	Target string
	Rdev   uint32

	Mode    Register[uint32]
	Owner   Register[Owner]
	Mtime   Register[Time] // explicit; a file's mtime is in its content
	Named   Register[Time] // a directory's latest name change
	Changed Register[Time] // ctime
	Xattrs  []Xattr        // by name

	Links    []Link
	Contents []Version

	// Standing is where a directory is by the fold of all moves; Origin, if
	// the log has moves of it, where it stood before the first.
	Standing, Origin Place
}

// Link returns the link with the id, or nil.
func (i *Inode) Link(id LinkID) *Link {
	for n := range i.Links {
		if i.Links[n].ID == id {
			return &i.Links[n]
		}
	}
	return nil
}

// First is where a directory stood before all moves of it in the log.
func (i *Inode) First() *Place {
	if i.moved() {
		return &i.Origin
	}
	return &i.Standing
}

// Version returns the content leaf with the id, or nil.
func (i *Inode) Version(id VersionID) *Version {
	for n := range i.Contents {
		if i.Contents[n].ID == id {
			return &i.Contents[n]
		}
	}
	return nil
}

// Unpublished reports whether peers do not know the inode yet.
func (i *Inode) Unpublished() bool { return i.Mode.At.Local() && !i.Ino.fixed() }

// Xattr returns the value of an extended attribute and whether it exists.
func (i *Inode) Xattr(name string) ([]byte, bool) {
	n, ok := i.xattrIndex(name)
	if !ok || i.Xattrs[n].Gone {
		return nil, false
	}
	return i.Xattrs[n].Value, true
}

func (i *Inode) xattrIndex(name string) (int, bool) {
	return slices.BinarySearchFunc(i.Xattrs, name, func(x Xattr, name string) int {
		if x.Name < name {
			return -1
		} else if x.Name > name {
			return 1
		}
		return 0
	})
}

// openPlace reports whether the link has a place that no removal names.
func (l *Link) openPlace() bool {
	return slices.ContainsFunc(l.Places, func(p Place) bool { return len(p.Closed) == 0 })
}

// shownPlace is the newest open place, else the newest.
func (l *Link) shownPlace() *Place {
	var best *Place
	for n := range l.Places {
		p := &l.Places[n]
		switch {
		case best == nil,
			len(p.Closed) == 0 && len(best.Closed) > 0,
			(len(p.Closed) == 0) == (len(best.Closed) == 0) && p.ID.newer(best.ID):
			best = p
		}
	}
	return best
}

// open reports whether no removal of the link names the version.
func (v *Version) open(link LinkID) bool {
	return !slices.ContainsFunc(v.Closed, func(c Closure) bool { return c.Link == link })
}

// hasOpenPlace reports whether some link of the inode has an open place.
func (i *Inode) hasOpenPlace() bool {
	return slices.ContainsFunc(i.Links, func(l Link) bool { return l.openPlace() })
}

// Shown is the content users see: the newest leaf if some link has an open
// place, else the newest that is open for the link it was published through.
// Nil if there is none.
func (i *Inode) Shown() *Version {
	any := i.hasOpenPlace()
	var best *Version
	for n := range i.Contents {
		v := &i.Contents[n]
		if (any || v.open(v.Via)) && (best == nil || v.ID.newer(best.ID)) {
			best = v
		}
	}
	return best
}

// newestLeaf is the newest content leaf, open or not.
func (i *Inode) newestLeaf() *Version {
	var best *Version
	for n := range i.Contents {
		if v := &i.Contents[n]; best == nil || v.ID.newer(best.ID) {
			best = v
		}
	}
	return best
}

// liveBySelf reports whether the link is live without looking at children.
func (i *Inode) liveBySelf(l *Link) bool {
	if l.openPlace() {
		return true
	}
	return slices.ContainsFunc(i.Contents, func(v Version) bool {
		return (v.Via == l.ID || mutation.Off(mutation.Via)) && v.open(l.ID)
	})
}

// DirMtime is the mtime of a directory: the newer of an explicit set and the
// latest name change.
func (i *Inode) DirMtime() Time {
	if i.Named.At.CompareOp(i.Mtime.At) > 0 {
		return i.Named.Value
	}
	return i.Mtime.Value
}

func (i *Inode) clone() *Inode {
	c := *i
	c.Xattrs = slices.Clone(i.Xattrs)
	c.Contents = slices.Clone(i.Contents)
	for n := range c.Contents {
		c.Contents[n].Closed = slices.Clone(c.Contents[n].Closed)
	}
	c.Links = slices.Clone(i.Links)
	for n := range c.Links {
		c.Links[n].Places = slices.Clone(c.Links[n].Places)
		for m := range c.Links[n].Places {
			c.Links[n].Places[m].Closed = slices.Clone(c.Links[n].Places[m].Closed)
		}
	}
	return &c
}

// RemovedBy reports whether a removal of one of the inode's links was made by
// the replica.
func (i *Inode) RemovedBy(r ReplicaID) bool {
	for n := range i.Links {
		for _, removal := range i.removalsOf(&i.Links[n]) {
			if removal.Replica == r {
				return true
			}
		}
	}
	return false
}

// Latest is the newest content leaf, shown or not; nil if there is none. It is
// what those see who have the file open after it was removed.
func (i *Inode) Latest() *Version { return i.newestLeaf() }

// TimeSetAfter reports whether a directory's time was set explicitly, and
// stands, since the given moment of the setter's clock.
func (i *Inode) TimeSetAfter(t Time) bool {
	return i.Mtime.At.CompareOp(i.Named.At) >= 0 && t.Before(TimeOf(int64(i.Mtime.At.Stamp)))
}
