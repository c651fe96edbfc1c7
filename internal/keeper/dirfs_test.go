package keeper_test

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A dirFS shows the files of one directory. A node is the inode number of the
// file, so another process's dirFS means the same by it. What is sent again and
// was done is recognised by its result, as nobody else does the like.
type dirFS struct {
	fuse.RawFileSystem
	dir   string
	again *os.File // a byte for each request that was sent again

	mu    sync.Mutex
	files map[uint64]*os.File
}

func newDirFS(dir, again string) (*dirFS, error) {
	f, err := os.OpenFile(again, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	return &dirFS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), dir: dir, again: f,
		files: make(map[uint64]*os.File),
	}, err
}

func (fs *dirFS) repeated(h *fuse.InHeader) bool {
	if h.Unique>>63 == 0 {
		return false
	}
	fs.again.Write([]byte{'.'})
	return true
}

func (fs *dirFS) path(name string) string { return filepath.Join(fs.dir, name) }

// file returns the node's file, open.
func (fs *dirFS) file(node uint64) (*os.File, fuse.Status) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.files[node]; f != nil {
		return f, fuse.OK
	}
	if node == fuse.FUSE_ROOT_ID {
		f, err := os.Open(fs.dir)
		fs.files[node] = f
		return f, fuse.ToStatus(err)
	}
	entries, err := os.ReadDir(fs.dir)
	if err != nil {
		return nil, fuse.ToStatus(err)
	}
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Lstat(fs.path(e.Name()), &st) == nil && st.Ino == node {
			f, err := os.OpenFile(fs.path(e.Name()), os.O_RDWR, 0)
			if err == nil {
				fs.files[node] = f
			}
			return f, fuse.ToStatus(err)
		}
	}
	return nil, fuse.Status(syscall.ESTALE)
}

func (fs *dirFS) attr(node uint64, out *fuse.Attr) fuse.Status {
	f, status := fs.file(node)
	if !status.Ok() {
		return status
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		return fuse.ToStatus(err)
	}
	out.FromStat(&st)
	out.Ino = node
	return fuse.OK
}

func (fs *dirFS) entry(name string, out *fuse.EntryOut) fuse.Status {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, fs.path(name), 0, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return fuse.ToStatus(err)
	}
	out.NodeId, out.Generation = st.Ino, uint64(st.Btime.Sec)<<32|uint64(st.Btime.Nsec)
	out.SetEntryTimeout(time.Second)
	out.SetAttrTimeout(time.Second)
	return fs.attr(st.Ino, &out.Attr)
}

func (fs *dirFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	fs.repeated(h)
	return fs.entry(name, out)
}

func (fs *dirFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	fs.repeated(&in.InHeader)
	out.SetTimeout(time.Second)
	return fs.attr(in.NodeId, &out.Attr)
}

func (fs *dirFS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	fs.repeated(&in.InHeader)
	f, status := fs.file(in.NodeId)
	if !status.Ok() {
		return status
	}
	if size, ok := in.GetSize(); ok {
		if err := f.Truncate(int64(size)); err != nil {
			return fuse.ToStatus(err)
		}
	}
	return fs.attr(in.NodeId, &out.Attr)
}

func (fs *dirFS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	flags := os.O_CREATE | os.O_RDWR | os.O_EXCL
	if fs.repeated(&in.InHeader) {
		flags &^= os.O_EXCL
	}
	f, err := os.OpenFile(fs.path(name), flags, os.FileMode(in.Mode&0o777))
	if err != nil {
		return fuse.ToStatus(err)
	}
	f.Close()
	return fs.entry(name, &out.EntryOut)
}

func (fs *dirFS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	again := fs.repeated(h)
	err := unix.Unlink(fs.path(name))
	if err == unix.ENOENT && again {
		return fuse.OK
	}
	return fuse.ToStatus(err)
}

func (fs *dirFS) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, name2 string) fuse.Status {
	again := fs.repeated(&in.InHeader)
	err := unix.Rename(fs.path(name), fs.path(name2))
	if err == unix.ENOENT && again {
		return fuse.OK
	}
	return fuse.ToStatus(err)
}

func (fs *dirFS) Open(_ <-chan struct{}, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	fs.repeated(&in.InHeader)
	f, status := fs.file(in.NodeId)
	if status.Ok() && in.Flags&unix.O_TRUNC != 0 {
		status = fuse.ToStatus(f.Truncate(0))
	}
	return status
}

func (fs *dirFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	fs.repeated(&in.InHeader)
	f, status := fs.file(in.NodeId)
	if !status.Ok() {
		return nil, status
	}
	n, err := unix.Pread(int(f.Fd()), buf, int64(in.Offset))
	if err != nil {
		return nil, fuse.ToStatus(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (fs *dirFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	fs.repeated(&in.InHeader)
	f, status := fs.file(in.NodeId)
	if !status.Ok() {
		return 0, status
	}
	n, err := f.WriteAt(data, int64(in.Offset))
	return uint32(n), fuse.ToStatus(err)
}

func (fs *dirFS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	fs.repeated(&in.InHeader)
	return fuse.OK
}

func (fs *dirFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }
func (fs *dirFS) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// Forget may be of a file that is known by its number again; then it is opened
// once more.
func (fs *dirFS) Forget(node, _ uint64) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	delete(fs.files, node) // a finalizer closes it, when nobody uses it
}

func (fs *dirFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, _ *fuse.StatfsOut) fuse.Status {
	return fuse.OK
}
