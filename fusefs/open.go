package fusefs

import (
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/synapsefs/synapsefs/store"
)

// An openFile is a node that the kernel has open, and how. From the first open
// to the last release the kernel takes one way: by its page cache, or by a file
// of ours that it reads and writes itself (passthrough). Any other way is EIO.
type openFile struct {
	opens  int  // guarded by FS.mu
	before bool // so is this: opened before this daemon, who knows how often

	mu      sync.Mutex // guards what follows; no FS.mu within
	decided bool
	backing *store.Backing // nil: by the page cache
	id      int32          // of backing, to the kernel
}

// backer is what gives our files to the kernel: kernel.Conn.
type backer interface {
	RegisterBacking(fd int) (int32, error)
	UnregisterBacking(id int32) error
}

// enter counts an open that the kernel will release, and lets open, which may be
// nil, do its part: how the node is open stays as it is meanwhile. Then it fills
// in the reply. flags are those of an open by the page cache.
func (fs *FS) enter(node store.NodeID, flags uint32, out *fuse.OpenOut, open func() (store.Handle, store.Writing, error)) error {
	fs.mu.Lock()
	o := fs.opens[node]
	if o == nil {
		o = &openFile{}
		fs.opens[node] = o
	}
	o.opens++
	fs.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	var h store.Handle
	var w store.Writing
	var err error
	if open != nil {
		h, w, err = open()
	}
	byUs := false
	switch {
	case err != nil:
	case !o.decided:
		o.backing, o.id, byUs, err = fs.back(node, h, w)
		o.decided = err == nil
	case o.backing != nil && h != 0:
		byUs, err = fs.backWriter(node, h, w)
	}
	if err != nil {
		fs.leave(node)
		fs.release(store.Request{Mount: fs.mount}, h)
		return err
	}
	out.Fh, out.OpenFlags = uint64(h), flags
	if o.backing != nil {
		out.OpenFlags = flags&^fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_PASSTHROUGH
		out.BackingID = o.id
	}
	if byUs { // calls come to us, mappings are of the file
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	}
	return nil
}

// enterHelper is enter for the helper, who has no use for the file.
func (fs *FS) enterHelper(node store.NodeID, out *fuse.OpenOut) fuse.Status {
	fs.mu.Lock()
	o := fs.opens[node]
	if o == nil {
		o = &openFile{decided: true}
		fs.opens[node] = o
	}
	fs.mu.Unlock()
	return fs.status("open", fs.enter(node, openReader, out, nil))
}

// leave is the kernel's release of an open.
func (fs *FS) leave(node store.NodeID) {
	fs.mu.Lock()
	o := fs.opens[node]
	last := false
	if o != nil { // else it was opened before
		o.opens = max(o.opens-1, 0)
		last = o.opens == 0 && !o.before
	}
	if last {
		delete(fs.opens, node)
	}
	fs.mu.Unlock()
	if last && o.backing != nil { // nobody else has it any more
		fs.unback(o)
	}
}

// resumeOpens takes over what the kernel has open by files of ours. What it
// knows stays open until it forgets the node.
func (fs *FS) resumeOpens() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, h := range fs.vol.Held(fs.mount) {
		// If it is not known the open was not answered, and comes again.
		fs.opens[h.Node] = &openFile{before: fs.shown.knownBefore(h.Node), decided: true, backing: h.Backing, id: h.ID}
	}
}

// forgotten ends what was open of a node that the kernel has forgotten.
func (fs *FS) forgotten(node store.NodeID) {
	fs.mu.Lock()
	o := fs.opens[node]
	last := o != nil && o.before && o.opens == 0
	if o != nil {
		o.before = false
	}
	if last {
		delete(fs.opens, node)
	}
	fs.mu.Unlock()
	if last && o.backing != nil {
		fs.unback(o)
	}
}

// back finds the file that the kernel is to have for a node.
func (fs *FS) back(node store.NodeID, h store.Handle, w store.Writing) (b *store.Backing, id int32, byUs bool, err error) {
	if fs.backer == nil || fs.noBacking.Load() || fs.shown.knownBefore(node) {
		return nil, 0, false, nil
	}
	// Small files are opened all the time, for them the store is not asked.
	if h == 0 && fs.shown.toldSize(node) < store.BackedFrom {
		return nil, 0, false, nil
	}
	b, byUs, err = fs.vol.OpenBacking(node, h, w)
	if err != nil && h == 0 { // reading will say so, if it is of any matter
		fs.log.Debug("open", "err", err)
		return nil, 0, false, nil
	}
	if err != nil || b == nil {
		return nil, 0, false, err
	}
	id, err = fs.backer.RegisterBacking(int(b.File().Fd()))
	if err != nil { // it will not do the next time either
		fs.noBacking.Store(true)
		fs.log.Info("large files are read and written through the daemon", "err", err)
		return nil, 0, false, fs.vol.CloseBacking(b)
	}
	if err := fs.vol.Hold(b, fs.mount, id); err != nil {
		return nil, 0, false, errors.Join(err, fs.backer.UnregisterBacking(id), fs.vol.CloseBacking(b))
	}
	return b, id, byUs, nil
}

// backWriter makes the file that the kernel has for a node the draft's own.
func (fs *FS) backWriter(node store.NodeID, h store.Handle, w store.Writing) (byUs bool, err error) {
	b, byUs, err := fs.vol.OpenBacking(node, h, w)
	if err != nil || b == nil {
		return false, err
	}
	return byUs, fs.vol.CloseBacking(b)
}

func (fs *FS) unback(o *openFile) {
	if err := errors.Join(fs.backer.UnregisterBacking(o.id), fs.vol.Unhold(o.backing, fs.mount), fs.vol.CloseBacking(o.backing)); err != nil {
		fs.log.Warn("release", "err", err)
	}
}

// leaveAll gives back what a connection that has ended had open.
func (fs *FS) leaveAll() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, o := range fs.opens {
		if o.backing != nil {
			if err := errors.Join(fs.vol.Unhold(o.backing, fs.mount), fs.vol.CloseBacking(o.backing)); err != nil {
				fs.log.Warn("release", "err", err)
			}
		}
	}
	clear(fs.opens)
}

// direct counts the open files that the kernel has a backing of.
func (fs *FS) direct() (n int) {
	fs.mu.Lock()
	all := slices.Collect(maps.Values(fs.opens))
	fs.mu.Unlock()
	for _, o := range all {
		o.mu.Lock()
		if o.backing != nil {
			n++
		}
		o.mu.Unlock()
	}
	return n
}
