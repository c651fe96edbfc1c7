package fusefs

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// forever is the timeout of all that the kernel caches. It fits the kernel's
// jiffies, and is longer than anybody stays mounted.
const forever = 10 * 365 * 24 * time.Hour

// resent is the bit of a request's number that says it may have been done.
const resent = 1 << 63

// FS answers the kernel's requests for one mount of a volume.
type FS struct {
	fuse.RawFileSystem // ENOSYS for what is not here

	// Fixed by newFS.
	vol     *store.Volume
	mount   store.MountID
	helpers *helpers
	shown   *shown
	staging string // name of the staging directory
	log     *slog.Logger

	// Changed by Mounted.Remount.
	readOnly, noAtime atomic.Bool

	group *group // all files show as of it, if not nil; fixed before the first request
	epoch uint64 // of the connection; fixed before the first request

	// sealed: the kernel refuses writers, so that it need not ask for opens.
	sealed atomic.Bool

	backer    backer      // nil in tests; fixed before the first request
	noBacking atomic.Bool // no passthrough: it is not wanted, or the kernel has refused

	mu      sync.Mutex // guards what follows
	handles map[store.Handle]openHandle
	opens   map[store.NodeID]*openFile
}

// openHandle is an open file description that may write.
type openHandle struct {
	node store.NodeID
	ino  crdt.Ino
}

func newFS(v *store.Volume, id store.MountID, opts *Options, queue *workQueue) *FS {
	fs := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		vol:           v,
		mount:         id,
		helpers:       newHelpers(),
		shown:         newShown(id, queue, v),
		staging:       newStagingName(),
		log:           opts.Log,
		handles:       make(map[store.Handle]openHandle),
		opens:         make(map[store.NodeID]*openFile),
	}
	if opts.Group != nil {
		fs.group = (*group)(opts.Group)
	}
	fs.readOnly.Store(opts.ReadOnly)
	fs.noAtime.Store(opts.Flags.NoAtime)
	return fs
}

// String names the filesystem in go-fuse's debug output.
func (fs *FS) String() string { return "synapsefs" }

// request identifies a kernel request to the store.
func (fs *FS) request(h *fuse.InHeader) store.Request {
	return store.Request{
		Mount:  fs.mount,
		Epoch:  fs.epoch,
		Unique: h.Unique &^ resent,
		Resent: h.Unique&resent != 0,
	}
}

// afterCloses is request for what changes names: it comes after the closes before
// it, of which the kernel's RELEASE may be in the hands of another goroutine yet.
func (fs *FS) afterCloses(h *fuse.InHeader) store.Request {
	fs.vol.AwaitClosed()
	return fs.request(h)
}

// refuse answers mutating requests of a read-only mount. The superblock stays
// writable, as the helper could not reveal anything otherwise.
func (fs *FS) refuse() (fuse.Status, bool) { return fuse.EROFS, fs.readOnly.Load() }

// StatFs gives the statistics of the machine's file system below the store.
func (fs *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	s, err := fs.vol.Statfs()
	if err != nil {
		return fs.status("statfs", err)
	}
	*out = fuse.StatfsOut{
		Blocks: s.Blocks, Bfree: s.Free, Bavail: s.Available,
		Files: s.Files, Ffree: s.FilesFree,
		Bsize: s.BlockSize, Frsize: s.BlockSize, NameLen: crdt.MaxName,
	}
	return fuse.OK
}

// keepHandle remembers a write handle, so that the draft does not stay open
// when the connection ends without a RELEASE.
func (fs *FS) keepHandle(h store.Handle, node store.NodeID, ino crdt.Ino) {
	fs.mu.Lock()
	_, again := fs.handles[h] // by an open that was sent again
	fs.handles[h] = openHandle{node, ino}
	fs.mu.Unlock()
	if !again {
		fs.shown.opened(ino)
	}
}

func (fs *FS) takeHandle(h store.Handle) (openHandle, bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	o, ok := fs.handles[h]
	delete(fs.handles, h)
	return o, ok
}

// releaseAll closes what a dead connection has left open.
func (fs *FS) releaseAll() {
	fs.mu.Lock()
	left := slices.Collect(maps.Keys(fs.handles))
	fs.mu.Unlock()
	for _, h := range left {
		fs.release(store.Request{Mount: fs.mount}, h)
	}
}

// modes are the type bits of each kind.
var modes = [...]uint32{
	crdt.KindFile:    syscall.S_IFREG,
	crdt.KindDir:     syscall.S_IFDIR,
	crdt.KindSymlink: syscall.S_IFLNK,
	crdt.KindFifo:    syscall.S_IFIFO,
	crdt.KindSocket:  syscall.S_IFSOCK,
	crdt.KindChar:    syscall.S_IFCHR,
	crdt.KindBlock:   syscall.S_IFBLK,
}

// kindOf is the kind that mknod's mode asks for.
func kindOf(mode uint32) (crdt.Kind, bool) {
	if mode&syscall.S_IFMT == 0 {
		return crdt.KindFile, true
	}
	for kind, bits := range modes {
		if bits != 0 && mode&syscall.S_IFMT == bits {
			return crdt.Kind(kind), true
		}
	}
	return 0, false
}

func fillAttr(out *fuse.Attr, a *store.Attr) {
	*out = fuse.Attr{
		Ino:    uint64(a.Ino),
		Size:   uint64(a.Size),
		Blocks: uint64(a.Blocks),
		Atime:  uint64(a.Atime.Sec), Atimensec: a.Atime.Nsec,
		Mtime: uint64(a.Mtime.Sec), Mtimensec: a.Mtime.Nsec,
		Ctime: uint64(a.Ctime.Sec), Ctimensec: a.Ctime.Nsec,
		Mode:    modes[a.Kind] | a.Mode&0o7777,
		Nlink:   a.Nlink,
		Owner:   fuse.Owner{Uid: a.UID, Gid: a.GID},
		Rdev:    a.Rdev,
		Blksize: 4096,
	}
}

func (fs *FS) fillEntry(out *fuse.EntryOut, a *store.Attr) {
	fillAttr(&out.Attr, a)
	fs.group.show(&out.Attr)
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
}

func (fs *FS) fillAttrOut(out *fuse.AttrOut, a *store.Attr) {
	fillAttr(&out.Attr, a)
	fs.group.show(&out.Attr)
	out.SetTimeout(forever)
}
