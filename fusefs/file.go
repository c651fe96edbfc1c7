package fusefs

import (
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// Open flags of replies. Pages stay cached across opens; who only reads need
// not FLUSH.
const (
	openWriter = fuse.FOPEN_KEEP_CACHE
	openReader = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
)

func writes(flags uint32) bool { return flags&syscall.O_ACCMODE != syscall.O_RDONLY }

// Open opens a file. Readers have no handle, writers a record in the store.
func (fs *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if fs.sealed.Load() {
		return fuse.ENOSYS // the kernel opens by itself from now on, and keeps the pages
	}
	node := store.NodeID(in.NodeId)
	if fs.helpers.is(&in.InHeader) {
		return fs.enterHelper(node, out) // it writes nothing
	}
	trunc := in.Flags&syscall.O_TRUNC != 0
	if !writes(in.Flags) && !trunc {
		return fs.status("open", fs.enter(node, openReader, out, nil))
	}
	if s, ro := fs.refuse(); ro {
		return s
	}
	if in.Mode&fuse.OPEN_KILL_SUIDGID != 0 && trunc {
		if err := fs.killSetID(&in.InHeader, node); err != nil {
			return fs.status("open", err)
		}
	}
	return fs.status("open", fs.openWrite(&in.InHeader, node, in.Flags, out))
}

// writing says how a file that is opened so may be written.
func writing(flags uint32) store.Writing {
	switch {
	case flags&syscall.O_ACCMODE != syscall.O_WRONLY:
		return store.WritesAnywhere
	case flags&syscall.O_APPEND != 0:
		return store.WritesAtEnd
	}
	return store.WritesByCall
}

func (fs *FS) openWrite(h *fuse.InHeader, node store.NodeID, flags uint32, out *fuse.OpenOut) error {
	ino, ok := fs.vol.Inode(node)
	if !ok {
		return store.ErrStale
	}
	// Counted first: from the first moment on its publications are our own.
	fs.shown.opened(ino)
	defer fs.shown.closed(ino)
	return fs.enter(node, openWriter, out, func() (store.Handle, store.Writing, error) {
		handle, err := fs.vol.OpenWrite(fs.request(h), node, flags&syscall.O_TRUNC != 0)
		if err == nil {
			fs.keepHandle(handle, node, ino)
		}
		return handle, writing(flags), err
	})
}

// killSetID clears what a write by somebody else must clear.
func (fs *FS) killSetID(h *fuse.InHeader, node store.NodeID) error {
	a, err := fs.vol.Attr(node)
	if err != nil {
		return err
	}
	if mode := withoutSetID(a.Mode); mode != a.Mode {
		if _, err := fs.vol.SetAttr(store.Request{Mount: fs.mount}, node, store.SetAttr{Mode: &mode}); err != nil {
			return err
		}
	}
	return fs.dropCapability(fs.request(h), node)
}

// Create makes a file and opens it.
func (fs *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if fs.helpers.is(&in.InHeader) {
		if s := fs.answerNew(&in.InHeader, name, &out.EntryOut); s != fuse.OK {
			return s
		}
		return fs.enterHelper(store.NodeID(out.NodeId), &out.OpenOut)
	}
	if s, ro := fs.refuse(); ro {
		return s
	}
	return fs.status("create", fs.create(in, name, out))
}

func (fs *FS) create(in *fuse.CreateIn, name string, out *fuse.CreateOut) error {
	dir := fs.shown.target(in.NodeId)
	key := nameKey{crdt.Ino(dir), name}
	if p, ok := fs.shown.get(key); ok && in.Unique&resent == 0 {
		return fs.createMerged(in, key, p, out)
	}
	defer fs.shown.begin(key)()
	gen := fs.shown.generation()
	a, h, err := fs.vol.Create(fs.request(&in.InHeader), dir, name, fs.newNode(&in.InHeader, store.NewNode{Mode: in.Mode, Umask: in.Umask}))
	if errors.Is(err, crdt.ErrExist) {
		if p, ok := fs.shown.get(key); ok {
			return fs.createMerged(in, key, p, out)
		}
	}
	if err != nil {
		return err
	}
	return fs.enterMade(gen, a, h, in, out)
}

// enterMade is the reply to an open that made its file.
func (fs *FS) enterMade(gen uint64, a store.Attr, h store.Handle, in *fuse.CreateIn, out *fuse.CreateOut) error {
	fs.keepHandle(h, a.Node, a.Ino)
	err := fs.enter(a.Node, openWriter, &out.OpenOut, func() (store.Handle, store.Writing, error) { return h, writing(in.Flags), nil })
	if err != nil {
		return err
	}
	if err = fs.replyMade(gen, a, &out.EntryOut); err != nil {
		fs.leave(a.Node)
		fs.release(store.Request{Mount: fs.mount}, h)
	}
	return err
}

// createMerged answers the creation of a name that the caller does not see
// and that exists already.
func (fs *FS) createMerged(in *fuse.CreateIn, key nameKey, p pendingName, out *fuse.CreateOut) error {
	switch {
	case p.shown.Ino == 0 && p.merged.Ino != 0 && in.Flags&syscall.O_EXCL != 0:
		return crdt.ErrExist
	case p.shown.Ino == 0 && p.merged.Kind == crdt.KindDir:
		return crdt.ErrIsDir
	case p.shown.Ino != 0 || p.merged.Kind != crdt.KindFile:
		return fs.shown.giveWay(key)
	}
	a, err := fs.vol.AttrOf(p.merged)
	if err != nil {
		return err
	}
	if in.Uid != 0 && in.Uid != a.UID {
		return fs.shown.giveWay(key) // the kernel has to check the permission first
	}
	fs.shown.drop(key)
	if writes(in.Flags) {
		if err := fs.openWrite(&in.InHeader, a.Node, in.Flags, &out.OpenOut); err != nil {
			return err
		}
	} else if err := fs.enter(a.Node, openReader, &out.OpenOut, nil); err != nil {
		return err
	}
	return fs.replyNew(a, &out.EntryOut)
}

// Tmpfile makes a file without a name and opens it.
func (fs *FS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if s, ro := fs.refuse(); ro {
		return s
	}
	return fs.status("tmpfile", fs.tmpfile(in, out))
}

func (fs *FS) tmpfile(in *fuse.CreateIn, out *fuse.CreateOut) error {
	gen := fs.shown.generation()
	a, h, err := fs.vol.CreateUnnamed(fs.request(&in.InHeader), fs.shown.target(in.NodeId), fs.newNode(&in.InHeader, store.NewNode{Mode: in.Mode, Umask: in.Umask}))
	if err != nil {
		return err
	}
	return fs.enterMade(gen, a, h, in, out)
}

// Read fills the kernel's buffer.
func (fs *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	node := store.NodeID(in.NodeId)
	n := 0
	err := fs.shown.steady(node, func() (err error) {
		n, err = fs.vol.ReadAt(node, buf[:min(len(buf), int(in.Size))], int64(in.Offset))
		return err
	})
	if err != nil {
		return nil, fs.status("read", err)
	}
	fs.accessed(node)
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// accessed renews an atime. What is read from the kernel's cache does not come
// here: but the first read after a change does, and that is what counts.
func (fs *FS) accessed(node store.NodeID) {
	if fs.readOnly.Load() || fs.noAtime.Load() {
		return
	}
	if err := fs.vol.Accessed(node); err != nil {
		fs.log.Debug("access time", "node", uint64(node), "err", err)
	}
}

// Write goes to the draft that all handles of the file share. One of dirty
// pages of a mapping may carry any handle.
func (fs *FS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if s, ro := fs.refuse(); ro { // somebody has made a sealed mount writable
		return 0, s
	}
	node := store.NodeID(in.NodeId)
	kill := in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0
	n, err := fs.vol.WriteAt(node, store.Handle(in.Fh), data, int64(in.Offset), kill)
	if err == nil && kill {
		err = fs.dropCapability(store.Request{Mount: fs.mount}, node)
	}
	return uint32(n), fs.status("write", err)
}

// Flush is called at each close of a descriptor, Release at the last.
func (fs *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if fs.sealed.Load() {
		return fuse.ENOSYS // never asked again
	}
	if in.Fh == 0 {
		return fuse.OK
	}
	return fs.status("flush", fs.vol.Flush(store.NodeID(in.NodeId), store.Handle(in.Fh)))
}

// Release publishes the file if this was its last write handle.
func (fs *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	fs.leave(store.NodeID(in.NodeId))
	if in.Fh != 0 {
		fs.release(fs.request(&in.InHeader), store.Handle(in.Fh))
	}
}

func (fs *FS) release(r store.Request, h store.Handle) {
	o, ok := fs.takeHandle(h)
	if !ok {
		return // sent again
	}
	fs.vol.AwaitClosedBefore(o.node)
	err := fs.vol.Release(r, o.node, h)
	fs.shown.closed(o.ino)
	if err != nil {
		fs.log.Error("release", "node", uint64(o.node), "err", err) // nobody to return it to
	}
}

// Fsync returns when the file is on disk.
func (fs *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return fs.status("fsync", fs.vol.Fsync(store.NodeID(in.NodeId)))
}

// Fallocate reserves, punches or zeroes.
func (fs *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if s, ro := fs.refuse(); ro {
		return s
	}
	err := fs.vol.Allocate(store.NodeID(in.NodeId), store.Handle(in.Fh), in.Mode, int64(in.Offset), int64(in.Length))
	return fs.status("fallocate", err)
}

// Lseek finds data and holes.
func (fs *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	n, err := fs.vol.Seek(fs.shown.target(in.NodeId), int64(in.Offset), int(in.Whence))
	out.Offset = uint64(n)
	return fs.status("lseek", err)
}

// CopyFileRange leaves copying to the kernel.
func (fs *FS) CopyFileRange(<-chan struct{}, *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, fuse.Status(syscall.EOPNOTSUPP)
}
