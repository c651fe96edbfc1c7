package store

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// VolumeID names a volume for ever; its name may be used again by another.
type VolumeID [16]byte

// CatalogueID is the volume that lists all volumes; every node holds it.
var CatalogueID = VolumeID{15: 1}

// NewVolumeID returns a random id.
func NewVolumeID() (id VolumeID) {
	rand.Read(id[:]) // never fails: crypto/rand aborts the process instead
	return id
}

func (id VolumeID) String() string { return hex.EncodeToString(id[:]) }

// LogValue is for package log/slog, whose JSON would list the bytes.
func (id VolumeID) LogValue() slog.Value { return slog.StringValue(id.String()) }

// ParseVolumeID reads what String wrote.
func ParseVolumeID(s string) (id VolumeID, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("volume id %q: want 32 hexadecimal digits", s)
	}
	return VolumeID(b), nil
}

// NodeID is the kernel's name of a file: the inode number, until the content
// is changed by a peer while the kernel knows the file. Then the new version
// gets a new node id, and the old one keeps the old version whole for those
// who have it open or mapped.
type NodeID uint64

// switchedNode marks node ids that are no inode numbers.
const switchedNode NodeID = 1 << 63

// Handle names an open file description that may write.
type Handle uint64

// MountID names one mount of a volume on this node; 0 is no mount.
type MountID uint64

// Request identifies a kernel request, so that one that is sent again after a
// crash of the daemon is not done twice. The zero Request is never repeated.
type Request struct {
	Mount  MountID
	Epoch  uint64 // of the mount's connection
	Unique uint64 // the kernel's number of the request
	Resent bool   // the kernel says it may have been done already
}

// Errors beyond those of crdt (which are returned as they are).
var (
	ErrNoAttr      = errors.New("no such attribute")
	ErrNoSpace     = errors.New("no space left on device")
	ErrClosed      = errors.New("volume is closed")
	ErrStale       = errors.New("stale file handle")
	ErrNotRegular  = errors.New("not a regular file")
	ErrReadOnly    = errors.New("read-only file system")
	ErrTooBig      = errors.New("file too large")
	ErrNotReady    = errors.New("replica has not caught up with a ready one yet")
	ErrNoVolume    = errors.New("no such volume")
	ErrNotNext     = errors.New("batch is not the next of its origin, or what it depends on is missing")
	ErrNoContent   = errors.New("content is not here yet")
	ErrBadBatch    = errors.New("bad batch")
	ErrStamp       = errors.New("it is from beyond the year 2200, and nothing is that it could build on: the clock of its host is wrong, or it means harm")
	ErrJournalGone = errors.New("the journal no longer goes back that far")
	ErrLocked      = errors.New("state directory is in use by another daemon")
	ErrNewerFormat = errors.New("state directory has a newer format")
	ErrDamaged     = errors.New("state is damaged")
)

// Attr is what stat shows.
type Attr struct {
	Ino                 crdt.Ino
	Node                NodeID
	Kind                crdt.Kind
	Mode                uint32 // permission bits with setuid, setgid, sticky
	UID, GID            uint32
	Nlink               uint32
	Rdev                uint32
	Size                int64
	Blocks              int64 // of 512 bytes
	Mtime, Ctime, Atime crdt.Time
}

// Statfs is what df shows.
type Statfs struct {
	BlockSize               uint32
	Blocks, Free, Available uint64
	Files, FilesFree        uint64
}

// Changes is what one commit or merge changed in the view.
type Changes struct {
	Names  []crdt.NameChange // each (Dir, Name) once, in an order in which they can be shown
	Inodes []crdt.InodeChange
	By     MountID // the mount through which it was made; 0 if remote
	// Passed is where things were made that one of Names has now: names at
	// which nothing was before and nothing is any more.
	Passed map[crdt.LinkID]PlacedName
}

// A Viewer shows a volume to programs on this node: a mount. Its methods are
// called with the volume's lock held, in commit order: they must not block,
// take a lock that is held during a call of the volume, or call the volume:
// but Volume.Node and Volume.Kept, which take leaf locks only.
type Viewer interface {
	// Prepare is called before the changes can be seen by any reader. It
	// returns the files whose new content must get a new node id because
	// the kernel knows the present one.
	Prepare(c *Changes) (switched []crdt.Ino)
	// Committed says that readers see the changes now.
	Committed(c *Changes)
	// Aborted takes Prepare back: the changes were not made.
	Aborted(c *Changes)
	// Knows reports whether the mount's kernel knows a node. Who stops
	// knowing one that is Kept calls Volume.LetGo.
	Knows(node NodeID) bool
	// Shows reports whether the mount shows a name of the inode that is
	// merged as changed and not shown yet.
	Shows(ino crdt.Ino) bool
}

// NewNode says what a create, mkdir, mknod or symlink makes.
type NewNode struct {
	Kind     crdt.Kind
	Mode     uint32
	Umask    uint32 // applied unless the directory has a default ACL
	UID, GID uint32
	Rdev     uint32
	Target   string
}

// SetAttr is a change of attributes; nil fields stay.
type SetAttr struct {
	Mode     *uint32
	UID, GID *uint32
	Size     *int64
	Mtime    *crdt.Time
	Atime    *crdt.Time
	Handle   Handle // the handle it came through, or 0
}

// DirEntry is one name of a listing. Cookie is stable: a listing continues
// after it whatever has changed meanwhile.
type DirEntry struct {
	Name   string
	Cookie uint64 // from 3 up to 1<<63-1
	Entry  crdt.Entry
}
