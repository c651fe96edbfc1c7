package kernel

import (
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// memGeneration is what each node but the root has; the helper must send it.
const memGeneration = 7

// memFS is a tree in memory that records who called what.
type memFS struct {
	fuse.RawFileSystem
	helper *Helper

	mu      sync.Mutex
	nodes   map[uint64]*memNode
	last    uint64
	calls   []memCall
	again   int                      // requests that were sent again
	forgot  map[uint64]chan struct{} // closed at the node's first FORGET
	backing int32
}

type memNode struct {
	attr     fuse.Attr
	parent   uint64
	children map[string]uint64
	data     []byte
	target   string
}

// A memCall is one request: which method, on which name, from whom.
type memCall struct {
	op, name string
	helper   bool
}

func newMemFS() *memFS {
	fs := &memFS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), helper: NewHelper(),
		nodes: make(map[uint64]*memNode), forgot: make(map[uint64]chan struct{}), last: rootNode,
	}
	fs.nodes[rootNode] = fs.makeNode(rootNode, rootNode, fuse.S_IFDIR|0o777)
	return fs
}

func (fs *memFS) makeNode(ino, parent uint64, mode uint32) *memNode {
	n := &memNode{parent: parent, children: make(map[string]uint64)}
	n.attr = fuse.Attr{Ino: ino, Mode: mode, Nlink: 1}
	n.attr.Owner = fuse.Owner{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}
	now := time.Now()
	n.attr.SetTimes(&now, &now, &now)
	return n
}

// enter locks and records; what it returns is to be deferred.
func (fs *memFS) enter(op, name string, h *fuse.InHeader) func() {
	fs.mu.Lock()
	fs.calls = append(fs.calls, memCall{op, name, fs.helper.Is(h)})
	if h.Unique>>63 == 1 {
		fs.again++
	}
	return fs.mu.Unlock
}

// took returns what was recorded and forgets it.
func (fs *memFS) took() []memCall {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	calls := fs.calls
	fs.calls = nil
	return calls
}

// forgets returns a channel that is closed at the node's next FORGET.
func (fs *memFS) forgets(node uint64) <-chan struct{} {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.forgot[node] = make(chan struct{})
	return fs.forgot[node]
}

func (fs *memFS) fill(out *fuse.EntryOut, ino uint64) fuse.Status {
	n := fs.nodes[ino]
	out.NodeId, out.Attr = ino, n.attr
	if ino != rootNode {
		out.Generation = memGeneration
	}
	out.SetEntryTimeout(time.Hour)
	out.SetAttrTimeout(time.Hour)
	return fuse.OK
}

// addLocked makes a child. The caller holds mu.
func (fs *memFS) addLocked(parent uint64, name string, mode uint32, out *fuse.EntryOut) (*memNode, fuse.Status) {
	p := fs.nodes[parent]
	if p == nil {
		return nil, fuse.Status(syscall.ESTALE)
	}
	if _, taken := p.children[name]; taken {
		return nil, fuse.Status(syscall.EEXIST)
	}
	fs.last++
	n := fs.makeNode(fs.last, parent, mode)
	fs.nodes[fs.last], p.children[name] = n, fs.last
	return n, fs.fill(out, fs.last)
}

func (fs *memFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	defer fs.enter("LOOKUP", name, h)()
	n := fs.nodes[h.NodeId]
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	switch name {
	case ".":
		return fs.fill(out, h.NodeId)
	case "..":
		return fs.fill(out, n.parent)
	}
	if ino, ok := n.children[name]; ok {
		return fs.fill(out, ino)
	}
	return fuse.ENOENT
}

func (fs *memFS) Forget(node, _ uint64) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if ch := fs.forgot[node]; ch != nil {
		close(ch)
		delete(fs.forgot, node)
	}
}

func (fs *memFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer fs.enter("GETATTR", "", &in.InHeader)()
	n := fs.nodes[in.NodeId]
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	out.Attr = n.attr
	out.SetTimeout(time.Hour)
	return fuse.OK
}

func (fs *memFS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer fs.enter("SETATTR", "", &in.InHeader)()
	n := fs.nodes[in.NodeId]
	if mode, ok := in.GetMode(); ok {
		n.attr.Mode = n.attr.Mode&syscall.S_IFMT | mode&0o7777
	}
	out.Attr = n.attr
	out.SetTimeout(time.Hour)
	return fuse.OK
}

func (fs *memFS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	defer fs.enter("CREATE", name, &in.InHeader)()
	_, status := fs.addLocked(in.NodeId, name, in.Mode, &out.EntryOut)
	return status
}

func (fs *memFS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	defer fs.enter("MKNOD", name, &in.InHeader)()
	_, status := fs.addLocked(in.NodeId, name, in.Mode, out)
	return status
}

func (fs *memFS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	defer fs.enter("MKDIR", name, &in.InHeader)()
	_, status := fs.addLocked(in.NodeId, name, fuse.S_IFDIR|in.Mode, out)
	return status
}

func (fs *memFS) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	defer fs.enter("SYMLINK", name, h)()
	n, status := fs.addLocked(h.NodeId, name, fuse.S_IFLNK|0o777, out)
	if n != nil {
		n.target = target
	}
	return status
}

func (fs *memFS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	defer fs.enter("READLINK", "", h)()
	return []byte(fs.nodes[h.NodeId].target), fuse.OK
}

func (fs *memFS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	defer fs.enter("LINK", name, &in.InHeader)()
	fs.nodes[in.NodeId].children[name] = in.Oldnodeid
	fs.nodes[in.Oldnodeid].attr.Nlink++
	return fs.fill(out, in.Oldnodeid)
}

func (fs *memFS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	defer fs.enter("UNLINK", name, h)()
	return fs.removeLocked(h.NodeId, name)
}

func (fs *memFS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	defer fs.enter("RMDIR", name, h)()
	return fs.removeLocked(h.NodeId, name)
}

func (fs *memFS) removeLocked(parent uint64, name string) fuse.Status {
	p := fs.nodes[parent]
	ino, ok := p.children[name]
	if !ok {
		return fuse.ENOENT
	}
	fs.nodes[ino].attr.Nlink--
	delete(p.children, name)
	return fuse.OK
}

func (fs *memFS) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, name2 string) fuse.Status {
	defer fs.enter("RENAME", name, &in.InHeader)()
	from, to := fs.nodes[in.NodeId], fs.nodes[in.Newdir]
	ino, ok := from.children[name]
	if !ok {
		return fuse.ENOENT
	}
	delete(from.children, name)
	to.children[name2] = ino
	fs.nodes[ino].parent = in.Newdir
	return fuse.OK
}

func (fs *memFS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	defer fs.enter("OPEN", "", &in.InHeader)()
	if fs.backing != 0 {
		out.OpenFlags, out.BackingID = fuse.FOPEN_PASSTHROUGH, fs.backing
	}
	return fuse.OK
}

func (fs *memFS) Read(_ <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	defer fs.enter("READ", "", &in.InHeader)()
	data := fs.nodes[in.NodeId].data
	start := min(in.Offset, uint64(len(data)))
	end := min(start+uint64(in.Size), uint64(len(data)))
	return fuse.ReadResultData(data[start:end]), fuse.OK
}

func (fs *memFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	defer fs.enter("WRITE", "", &in.InHeader)()
	n := fs.nodes[in.NodeId]
	if end := int(in.Offset) + len(data); end > len(n.data) {
		n.data = append(n.data, make([]byte, end-len(n.data))...)
	}
	copy(n.data[in.Offset:], data)
	n.attr.Size = uint64(len(n.data))
	return uint32(len(data)), fuse.OK
}

func (fs *memFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

func (fs *memFS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	defer fs.enter("OPENDIR", "", &in.InHeader)()
	return fuse.OK
}

func (fs *memFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	defer fs.enter("READDIR", "", &in.InHeader)()
	if in.Offset > 0 {
		return fuse.OK // all fits into one answer here
	}
	for name, ino := range fs.nodes[in.NodeId].children {
		out.AddDirEntry(fuse.DirEntry{Name: name, Ino: ino, Mode: fs.nodes[ino].attr.Mode})
	}
	return fuse.OK
}

func (fs *memFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	defer fs.enter("READDIRPLUS", "", &in.InHeader)()
	if in.Offset > 0 {
		return fuse.OK
	}
	for name, ino := range fs.nodes[in.NodeId].children {
		e := out.AddDirLookupEntry(fuse.DirEntry{Name: name, Ino: ino, Mode: fs.nodes[ino].attr.Mode})
		if e != nil {
			fs.fill(e, ino)
		}
	}
	return fuse.OK
}

func (fs *memFS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string, _ []byte) (uint32, fuse.Status) {
	fs.helper.Handshake(h, attr)
	defer fs.enter("GETXATTR", attr, h)()
	return 0, fuse.ENOATTR
}

func (fs *memFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, _ *fuse.StatfsOut) fuse.Status {
	return fuse.OK
}
