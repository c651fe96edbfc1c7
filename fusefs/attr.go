package fusefs

import (
	"errors"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// capability is what setcap sets; it ends with a change of owner or content.
const capability = "security.capability"

// GetAttr answers stat.
func (fs *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if fs.shown.isDead(in.NodeId) {
		return fuse.Status(syscall.ESTALE)
	}
	if in.NodeId == uint64(staging) {
		fs.fillAttrOut(out, stagingAttr())
		return fuse.OK
	}
	a, err := fs.attrOf(fs.shown.target(in.NodeId))
	if err != nil {
		return fs.status("getattr", err)
	}
	fs.shown.told(in.NodeId, &a)
	fs.fillAttrOut(out, &a)
	return fuse.OK
}

func (fs *FS) attrOf(node store.NodeID) (a store.Attr, err error) {
	err = fs.shown.steady(node, func() (err error) {
		a, err = fs.vol.Attr(node)
		return err
	})
	return a, err
}

// SetAttr answers chmod, chown, truncate and utimensat. The helper's calls
// change nothing: they are there for their events.
func (fs *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	node := fs.shown.target(in.NodeId)
	a, err := fs.attrOf(node)
	if err == nil && !fs.helpers.is(&in.InHeader) {
		if s, ro := fs.refuse(); ro {
			return s
		}
		// The helper's replies are awaited by who sends the invalidations.
		defer fs.shown.replied(a.Ino)
		fs.shown.replied(a.Ino)
		a, err = fs.setAttr(in, node, &a)
	}
	if err != nil {
		return fs.status("setattr", err)
	}
	fs.shown.told(in.NodeId, &a)
	fs.fillAttrOut(out, &a)
	return fuse.OK
}

func (fs *FS) setAttr(in *fuse.SetAttrIn, node store.NodeID, was *store.Attr) (store.Attr, error) {
	if !fs.group.asks(in, was) {
		return *was, nil
	}
	r := fs.request(&in.InHeader)
	s := setAttrOf(in, was)
	if s.Mode != nil && was.Kind != crdt.KindDir {
		*s.Mode = fs.group.limit(*s.Mode, &in.InHeader, was.GID)
	}
	if s.Size != nil {
		if was.Kind != crdt.KindFile {
			return store.Attr{}, store.ErrNotRegular
		}
		fs.shown.opened(was.Ino)
		defer fs.shown.closed(was.Ino)
	}
	_, err := fs.vol.SetAttr(r, node, s)
	if err == nil && was.Kind == crdt.KindFile && (s.UID != nil || s.GID != nil || s.Size != nil || in.Valid == 0) {
		err = fs.dropCapability(r, node)
	}
	if err != nil {
		return store.Attr{}, err
	}
	return fs.attrOf(node)
}

// setAttrOf is what the kernel asks for, with the set-id bits that it leaves
// to us to clear (CAP_HANDLE_KILLPRIV_V2).
func setAttrOf(in *fuse.SetAttrIn, was *store.Attr) (s store.SetAttr) {
	now := crdt.TimeOf(time.Now().UnixNano())
	mode := was.Mode & 0o7777
	if m, ok := in.GetMode(); ok {
		mode = m
	}
	if uid, ok := in.GetUID(); ok {
		s.UID = &uid
	}
	if gid, ok := in.GetGID(); ok {
		s.GID = &gid
	}
	chown := (s.UID != nil || s.GID != nil) && in.Valid&fuse.FATTR_MODE == 0 && was.Kind != crdt.KindDir
	// Valid is 0 when a write by passthrough asks to clear the bits.
	if chown || in.Valid&fuse.FATTR_KILL_SUIDGID != 0 || in.Valid == 0 {
		mode = withoutSetID(mode)
	}
	if mode != was.Mode&0o7777 || in.Valid&fuse.FATTR_MODE != 0 {
		s.Mode = &mode
	}
	if size, ok := in.GetSize(); ok {
		n := int64(size)
		s.Size = &n
	}
	if in.Valid&fuse.FATTR_MTIME != 0 {
		s.Mtime = &now
		if in.Valid&fuse.FATTR_MTIME_NOW == 0 {
			s.Mtime = &crdt.Time{Sec: int64(in.Mtime), Nsec: in.Mtimensec}
		}
	}
	if in.Valid&fuse.FATTR_ATIME != 0 {
		s.Atime = &now
		if in.Valid&fuse.FATTR_ATIME_NOW == 0 {
			s.Atime = &crdt.Time{Sec: int64(in.Atime), Nsec: in.Atimensec}
		}
	}
	if fh, ok := in.GetFh(); ok {
		s.Handle = store.Handle(fh)
	}
	return s
}

func withoutSetID(mode uint32) uint32 {
	mode &^= syscall.S_ISUID
	if mode&syscall.S_IXGRP != 0 { // else it marks mandatory locking
		mode &^= syscall.S_ISGID
	}
	return mode
}

func (fs *FS) dropCapability(r store.Request, node store.NodeID) error {
	if _, err := fs.vol.GetXattr(node, capability); errors.Is(err, store.ErrNoAttr) {
		return nil
	}
	err := fs.vol.RemoveXattr(store.Request{Mount: r.Mount}, node, capability)
	if errors.Is(err, store.ErrNoAttr) {
		return nil
	}
	return err
}
