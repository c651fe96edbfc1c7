package crdt

// A Claim is a live link as seen from the name it stands at.
type Claim struct {
	Ino  Ino
	Link LinkID
	Kind Kind
	At   VersionID // the place shown
}

// Dir reports whether the claim is a directory's.
func (c Claim) Dir() bool { return c.Kind == KindDir }

// A Move is one entry of the log of directory moves, from which the places of
// directories are folded.
type Move struct {
	ID      VersionID
	Ino     Ino
	Parent  Ino
	Name    string
	Prev    Place // where the directory stood before, for undoing
	Skipped bool  // it would have put the directory under itself
}

// State is what the merge rules read and write: a store transaction, or a map.
// Inode records and slices handed over in either direction are not changed
// afterwards by the giver.
type State interface {
	// Inode returns nil if the inode is not known.
	Inode(Ino) (*Inode, error)
	PutInode(*Inode) error
	DeleteInode(Ino) error

	// Claims are the live links at one name of one directory, in no
	// particular order. PutClaims of none deletes the name.
	Claims(dir Ino, name string) ([]Claim, error)
	PutClaims(dir Ino, name string, claims []Claim) error
	// EachName calls fn for each name with claims in one directory.
	EachName(dir Ino, fn func(name string, claims []Claim) error) error

	// Head is the head of the directory set that dir belongs to; Members
	// are that set's directories, oldest first. A directory that shares its
	// name with no other is its own set.
	Head(dir Ino) (Ino, error)
	Members(head Ino) ([]Ino, error)
	// PutSet replaces the set of head; one or no member deletes it.
	PutSet(head Ino, members []Ino) error

	// MovesAfter returns the log's entries of ops newer than id's, oldest first.
	MovesAfter(id VersionID) ([]Move, error)
	PutMove(Move) error

	// PutInline keeps the bytes of a version.
	PutInline(ino Ino, id VersionID, bytes []byte) error

	Past
	Contests
}
