package fusefs

import (
	"errors"
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// errNotYet says that a name is absent that may have come while it was looked up.
var errNotYet = fmt.Errorf("%w, in a directory that changes", crdt.ErrNotExist)

// Lookup answers what a name is, or for how long (ever) it is nothing.
func (fs *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId == uint64(staging) {
		return fs.lookupStaging(h, name, out)
	}
	if fs.isStaging(h, name) {
		fs.fillStaging(out)
		return fuse.OK
	}
	var err error
	switch name {
	case ".": // asked when a file handle is opened (CAP_EXPORT_SUPPORT)
		err = fs.lookupNode(func() (store.NodeID, error) {
			node := fs.shown.target(h.NodeId)
			return node, fs.linked(node)
		}, out)
	case "..":
		err = fs.lookupNode(func() (store.NodeID, error) { return fs.parent(fs.shown.target(h.NodeId)) }, out)
	default:
		err = fs.lookup(h.NodeId, name, out)
	}
	if errors.Is(err, crdt.ErrNotExist) {
		*out = fuse.EntryOut{}
		if !errors.Is(err, errNotYet) {
			out.SetEntryTimeout(forever)
		}
		return fuse.OK // node id 0: a negative entry that may be kept
	}
	return fs.status("lookup", err)
}

// maxSteady bounds how often a name is looked up for one answer in a directory
// that changes all the time.
const maxSteady = 3

func (fs *FS) lookup(node uint64, name string, out *fuse.EntryOut) error {
	dir := fs.shown.target(node)
	key := nameKey{crdt.Ino(dir), name}
	for try := 1; ; try++ {
		gen := fs.shown.generation()
		a, _, err := fs.vol.Lookup(dir, name)
		// A change that the lookup has seen is pending by now; one that is
		// shown by now waits in the kernel for this lookup's end.
		e, ok := fs.shown.entry(key)
		if !ok && errors.Is(err, crdt.ErrNotExist) && fs.shown.changedSince(key.dir, gen) {
			if try < maxSteady {
				continue // a second change may have taken back what the lookup has seen
			}
			err = errNotYet
		}
		if ok {
			if e.Ino == 0 {
				return crdt.ErrNotExist
			}
			a, err = fs.shownAttr(e)
		}
		if err != nil {
			return err
		}
		if fs.shown.know(gen, &a, out) {
			fs.fillEntry(out, &a)
			return nil
		}
	}
}

// linked says ErrStale of a file that has no name any more. The kernel asks for
// none that somebody has open. Directories whose removal is yet to be shown are
// the helper's.
func (fs *FS) linked(node store.NodeID) error {
	a, err := fs.vol.Attr(node)
	if err == nil && a.Nlink == 0 && a.Kind != crdt.KindDir {
		err = store.ErrStale
	}
	return err
}

func (fs *FS) parent(dir store.NodeID) (store.NodeID, error) {
	if p, ok := fs.shown.parent(crdt.Ino(dir)); ok {
		return store.NodeID(p), nil
	}
	return fs.vol.Parent(dir)
}

// shownAttr is what stat shows of a name that is removed already and still
// shown.
func (fs *FS) shownAttr(e crdt.Entry) (store.Attr, error) {
	a, err := fs.vol.AttrOf(e)
	return fs.asShown(e, a, err)
}

// asShown is shownAttr, given what stat shows of what is merged.
func (fs *FS) asShown(e crdt.Entry, a store.Attr, err error) (store.Attr, error) {
	if err == nil && a.Nlink == 0 && a.Kind != crdt.KindDir {
		if node, ok := fs.shown.lastOf(e.Ino); ok {
			a, err = fs.vol.Attr(node)
		}
	}
	a.Nlink = max(a.Nlink, 1)
	return a, err
}

// lookupNode tells the kernel a directory that it asked for without a name.
func (fs *FS) lookupNode(node func() (store.NodeID, error), out *fuse.EntryOut) error {
	return fs.tell(node, fs.shown.knowNode, out)
}

func (fs *FS) tell(node func() (store.NodeID, error), know func(uint64, *store.Attr, *fuse.EntryOut) bool, out *fuse.EntryOut) error {
	for {
		gen := fs.shown.generation()
		n, err := node()
		if err != nil {
			return err
		}
		a, err := fs.vol.Attr(n)
		if err != nil {
			return err
		}
		if know(gen, &a, out) {
			fs.fillEntry(out, &a)
			return nil
		}
	}
}

// replyMade fills in the reply to a call that made a file, with its attributes
// as they were then: gen is of before the call.
func (fs *FS) replyMade(gen uint64, a store.Attr, out *fuse.EntryOut) error {
	fs.shown.replied(a.Ino)
	if !fs.shown.know(gen, &a, out) {
		return fs.replyNew(a, out)
	}
	defer fs.shown.replied(a.Ino)
	fs.fillEntry(out, &a)
	return nil
}

// replyNew fills in the reply to a call that made or opened a file. a may be
// out of date.
func (fs *FS) replyNew(a store.Attr, out *fuse.EntryOut) error {
	fs.shown.replied(a.Ino)
	defer fs.shown.replied(a.Ino)
	return fs.tell(func() (store.NodeID, error) { return a.Node, nil }, fs.shown.know, out)
}

// Forget takes back lookups that the kernel no longer needs.
func (fs *FS) Forget(node, n uint64) { fs.shown.forget(node, n) }
