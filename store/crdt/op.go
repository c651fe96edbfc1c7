package crdt

// Kind is the kind of an inode, fixed at creation.
type Kind uint8

// The kinds of inode.
const (
	KindFile Kind = iota + 1
	KindDir
	KindSymlink
	KindFifo
	KindSocket
	KindChar
	KindBlock
)

// Time is a file time, to the nanosecond. Sec may be negative.
type Time struct {
	Sec  int64
	Nsec uint32
}

// TimeOf converts Unix nanoseconds.
func TimeOf(ns int64) Time {
	sec, nsec := ns/1e9, ns%1e9
	if nsec < 0 {
		sec, nsec = sec-1, nsec+1e9
	}
	return Time{Sec: sec, Nsec: uint32(nsec)}
}

// Before reports whether t is earlier than u.
func (t Time) Before(u Time) bool {
	return t.Sec < u.Sec || t.Sec == u.Sec && t.Nsec < u.Nsec
}

// Hash is a BLAKE3-256 hash.
type Hash [32]byte

// Content is the bytes and mtime of one version of a file.
type Content struct {
	Size  int64
	Mtime Time
	// Hash is that of the bytes if they are inline, else that of the
	// manifest, which lists the blocks.
	Hash     Hash
	Manifest bool
	// Inline holds the bytes in an op. In the state they are kept apart
	// from the inode record, under the version's id.
	Inline []byte
}

// SameBytes reports whether two versions hold the same bytes.
func (c *Content) SameBytes(d *Content) bool {
	return c.Size == d.Size && c.Hash == d.Hash && c.Manifest == d.Manifest
}

// An Op is one atomic change, the unit of journaling.
type Op struct {
	Dot    Dot
	Stamp  Stamp
	Wall   int64 // the writer's wall clock, Unix nanoseconds: what ctime shows
	Deps   []Dot // what was applied at the origin since its previous op
	Writes []Write
}

// ID names write n of the op.
func (o *Op) ID(n int) VersionID {
	return VersionID{Stamp: o.Stamp, Replica: o.Dot.Replica, N: uint32(n)}
}

// WriteKind says which fields of a Write count.
type WriteKind uint8

// The kinds of write.
const (
	WriteInode   WriteKind = iota + 1 // Ino, Kind, Target, Rdev, Mode, UID, GID, Time: a new inode
	WritePlace                        // Ino, Link, From, Parent, Name, Base: a link stands at (Parent, Name); Time, if the name came to be before the op
	WriteContent                      // Ino, Link (published through), Base (at most one), Content
	WriteRemove                       // Ino, Link, From, Base (place leaves), Closes (content leaves)
	WriteVoid                         // Ino, Base: the removals named no longer count
	WriteMode                         // Ino, Mode
	WriteOwner                        // Ino, UID, GID
	WriteTime                         // Ino, Time: explicit mtime of what is not a file
	WriteXattr                        // Ino, Name, Value, or Gone
	WriteDismiss                      // Ino, Base: no record of these leaves (content or place) is wanted any more
)

// attribute reports whether the write cannot bring back what was removed.
func (k WriteKind) attribute() bool {
	return k == WriteMode || k == WriteOwner || k == WriteTime || k == WriteXattr || k == WriteDismiss
}

// A Write is one element of an op; Kind says which fields count.
type Write struct {
	Kind   WriteKind
	Ino    Ino
	Link   LinkID
	From   Ino // the directory that loses a name, 0 if none: its mtime changes
	Parent Ino
	Name   string
	Base   []VersionID
	Closes []VersionID

	Content Content

	InodeKind Kind
	Target    string
	Rdev      uint32
	Mode      uint32 // permission bits, with setuid, setgid, sticky
	UID, GID  uint32
	Time      Time

	Value []byte
	Gone  bool
}
