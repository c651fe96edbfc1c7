package fusefs

import (
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// newNode says what to create. The store gives what is made in a directory with
// the set-group-id bit the directory's group, and applies default ACL or umask.
func (fs *FS) newNode(h *fuse.InHeader, n store.NewNode) store.NewNode {
	n.Mode, n.UID, n.GID = n.Mode&0o7777, h.Uid, h.Gid
	if fs.group != nil {
		n.GID = uint32(*fs.group)
		if n.Kind != crdt.KindDir && n.Mode&syscall.S_ISGID != 0 {
			dir, err := fs.attrOf(fs.shown.target(h.NodeId))
			if err != nil || dir.Mode&syscall.S_ISGID != 0 {
				n.Mode = fs.group.limit(n.Mode, h, dir.GID)
			}
		}
	}
	return n
}

// Mknod makes regular files, FIFOs, sockets and devices.
func (fs *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	kind, ok := kindOf(in.Mode)
	if !ok || kind == crdt.KindDir || kind == crdt.KindSymlink {
		return fuse.EINVAL
	}
	return fs.mknod("mknod", &in.InHeader, name, store.NewNode{Kind: kind, Mode: in.Mode, Umask: in.Umask, Rdev: in.Rdev}, out)
}

// Mkdir makes a directory.
func (fs *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return fs.mknod("mkdir", &in.InHeader, name, store.NewNode{Kind: crdt.KindDir, Mode: in.Mode, Umask: in.Umask}, out)
}

// Symlink makes a symbolic link.
func (fs *FS) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return fs.mknod("symlink", h, name, store.NewNode{Kind: crdt.KindSymlink, Mode: 0o777, Target: target}, out)
}

func (fs *FS) mknod(what string, h *fuse.InHeader, name string, n store.NewNode, out *fuse.EntryOut) fuse.Status {
	if fs.helpers.is(h) {
		return fs.answerNew(h, name, out)
	}
	if s, ro := fs.refuse(); ro {
		return s
	}
	return fs.status(what, fs.makeNode(h, name, n, out))
}

func (fs *FS) makeNode(h *fuse.InHeader, name string, n store.NewNode, out *fuse.EntryOut) error {
	dir := fs.shown.target(h.NodeId)
	key := nameKey{crdt.Ino(dir), name}
	defer fs.shown.begin(key)()
	gen := fs.shown.generation()
	a, err := fs.vol.Mknod(fs.afterCloses(h), dir, name, fs.newNode(h, n))
	if p, ok := fs.shown.get(key); ok && errors.Is(err, crdt.ErrExist) && p.shown.Ino == 0 {
		// Concurrent mkdirs of one name are one directory.
		if n.Kind != crdt.KindDir || p.merged.Kind != crdt.KindDir {
			return err
		}
		if a, err = fs.vol.AttrOf(p.merged); err == nil {
			fs.shown.drop(key)
		}
	}
	if err != nil {
		return err
	}
	return fs.replyMade(gen, a, out)
}

// Link gives a file a further name.
func (fs *FS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if fs.helpers.is(&in.InHeader) {
		return fs.answerNew(&in.InHeader, name, out)
	}
	if s, ro := fs.refuse(); ro {
		return s
	}
	dir, node := fs.shown.target(in.NodeId), store.NodeID(in.Oldnodeid)
	key := nameKey{crdt.Ino(dir), name}
	defer fs.shown.begin(key)()
	a, err := fs.vol.Link(fs.afterCloses(&in.InHeader), node, dir, name)
	if err != nil {
		return fs.status("link", err)
	}
	a.Node = fs.vol.Node(a.Ino) // not that of an old version
	return fs.status("link", fs.replyNew(a, out))
}

// Unlink removes a name that is no directory's.
func (fs *FS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if fs.helpers.is(h) {
		return fs.answerGone(h, name)
	}
	return fs.remove("unlink", h, name, fs.vol.Unlink)
}

// Rmdir removes an empty directory.
func (fs *FS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	if fs.helpers.is(h) {
		return fs.answerGone(h, name)
	}
	return fs.remove("rmdir", h, name, fs.vol.Rmdir)
}

func (fs *FS) remove(what string, h *fuse.InHeader, name string, do func(store.Request, store.NodeID, string) error) fuse.Status {
	if s, ro := fs.refuse(); ro {
		return s
	}
	dir := fs.shown.target(h.NodeId)
	key := nameKey{crdt.Ino(dir), name}
	if h.Unique&resent == 0 && fs.shown.removedHere(key) {
		return fuse.OK
	}
	defer fs.shown.begin(key)()
	entry := fs.entryAt(dir, name)
	err := do(fs.afterCloses(h), dir, name)
	switch {
	case err == nil && entry.Kind == crdt.KindDir:
		fs.shown.buried(entry.Ino)
	case errors.Is(err, crdt.ErrNotExist) && fs.shown.removedHere(key):
		err = nil
	}
	return fs.status(what, err)
}

// entryAt is what is at a name and about to be removed.
func (fs *FS) entryAt(dir store.NodeID, name string) crdt.Entry {
	_, e, err := fs.vol.Lookup(dir, name)
	if err != nil {
		return crdt.Entry{} // the removal will say so
	}
	return e
}

// Readlink returns a symlink's target.
func (fs *FS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	target, err := fs.vol.Readlink(store.NodeID(h.NodeId))
	if err == nil {
		fs.accessed(store.NodeID(h.NodeId))
	}
	return []byte(target), fs.status("readlink", err)
}
