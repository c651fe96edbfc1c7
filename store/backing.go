package store

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// BackedFrom is the least size in bytes of a published file that is read past
// us. To open a smaller one so costs more than it saves.
const BackedFrom = content.BlockSize

const (
	// backedFree is how much disk must be free for a file to be opened to be
	// written past us: nobody counts what is written then. See DB.room.
	backedFree = 4 << 30
)

// Writing is how somebody who opened a file may write it.
type Writing = content.Writing

// See package content.
const (
	WritesAnywhere = content.WritesAnywhere
	WritesByCall   = content.WritesByCall
	WritesAtEnd    = content.WritesAtEnd
)

// A Backing is a file of the machine that holds what a node shows, as long as
// the Backing is open: kernels may read and write it without asking (FUSE's
// passthrough). All mounts of a volume are given the same one for a node, and
// whoever begins to change the node while there is one changes its file.
//
// An immutable file may be a Backing for reading. Who opens the node for writing
// then is to write by WriteAt, if he cannot map the file: so an immutable file
// just gets longer, and it is known what of it is new. Before it is changed
// otherwise, the immutable file gets a copy in its place, so that what kernels
// have is the draft's own. See [content.Store.AdoptDraft].
type Backing struct {
	// Fixed by OpenBacking.
	node NodeID
	file *os.File // for reading

	// Guarded by DB.backingMu.
	users int
	held  map[MountID]int // slots of the records of which mounts have it
	link  *content.FileID // the immutable file that it is
	named bool            // it has the name of the node's draft, without being one
}

// File is what kernels are to be given.
func (b *Backing) File() *os.File { return b.file }

// OpenBacking returns the file that backs a node, nil if it is better served by
// ReadAt and WriteAt. h is a write handle of the node, or 0, and w how it writes.
// byUs says that it is to read and write by ReadAt and WriteAt all the same; its
// mappings are of the file. Every call is to be followed by CloseBacking. What
// may be written past us is published only when nobody has it open or mapped for
// writing.
func (v *Volume) OpenBacking(node NodeID, h Handle, w Writing) (b *Backing, byUs bool, err error) {
	b, byUs, err = v.openBacking(node, h, w)
	if err != nil {
		return nil, false, fmt.Errorf("back node %x: %w", uint64(node), err)
	}
	return b, byUs, nil
}

func (v *Volume) openBacking(node NodeID, h Handle, w Writing) (b *Backing, byUs bool, err error) {
	if h == 0 {
		if b := v.useBacking(node); b != nil {
			return b, false, nil
		}
	}
	d := v.draftOf(node)
	switch {
	case d == nil && h != 0:
		return nil, false, nil // released meanwhile
	case d == nil:
		b, err = v.backVersion(node)
		return b, false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.dead:
		return nil, false, nil
	case h != 0:
		d.io.Lock()
		byUs, err = v.direct(d, w)
		d.io.Unlock()
		if err != nil {
			return nil, false, err
		}
	}
	if dd, ok := d.file.(*content.DirectDraft); ok {
		b, err = v.backDraft(node, dd)
		return b, byUs, err
	}
	if h != 0 || d.file != nil || d.shown() {
		return nil, false, nil // an immutable file is nobody's to write
	}
	b, err = v.backVersion(node)
	return b, false, err
}

// useBacking returns the backing that a node has, with one more user.
func (v *Volume) useBacking(node NodeID) *Backing {
	v.db.backingMu.Lock()
	defer v.db.backingMu.Unlock()
	b := v.backings[node]
	if b != nil {
		b.users++
	}
	return b
}

// direct makes a draft that nobody has written yet one that may be written past
// us, if no base shows of it, or if it is to be appended to and a copy of its
// base costs no more than the first write would. The caller holds mu, and io
// for writing.
func (v *Volume) direct(d *draft, w Writing) (byUs bool, err error) {
	low := v.db.free.Load() < backedFree
	if d.directly.Load() == nil {
		if err := v.makeDirect(d, w, low); err != nil {
			return false, err
		}
	}
	dd := d.directly.Load()
	if dd == nil {
		return false, nil
	}
	byUs, err = dd.Writer(w)
	return byUs || low, diskError(err)
}

func (v *Volume) makeDirect(d *draft, w Writing, low bool) error {
	if v.hasBacking(d.node) {
		err := v.begin(d, 1<<62)
		v.publishLater(d) // nobody will say when it is written
		return err
	}
	if low {
		return nil
	}
	var dd *content.DirectDraft
	var err error
	switch f := d.file.(type) {
	case nil:
		if !d.rec.Created {
			if w == WritesAtEnd {
				return v.beginAppends(d)
			}
			return nil
		}
		dd, err = v.db.content.CreateDirectDraft(d.name, d.mtime)
	case *content.SmallDraft:
		if !d.rec.Truncated || f.Size() > 0 {
			return nil
		}
		dd, err = v.db.content.CreateDirectDraft(d.name, d.mtime)
		if err == nil {
			err = f.Remove()
		}
	case *content.Draft:
		if !d.rec.Truncated || f.Size() > 0 {
			return nil
		}
		dd, err = f.Direct(d.mtime)
	default:
		return nil
	}
	if err != nil {
		return diskError(err)
	}
	v.setDirect(d, dd)
	return nil
}

func (v *Volume) setDirect(d *draft, dd *content.DirectDraft) {
	d.file = dd
	v.db.backingMu.Lock()
	d.began = true
	v.db.backingMu.Unlock()
	d.directly.Store(dd)
}

// beginAppends begins a draft with a copy of what its node shows.
func (v *Volume) beginAppends(d *draft) error {
	version, inline, err := v.contentOf(d.node)
	if err != nil || version == nil || version.Size > content.BlockSize {
		return err
	}
	b := inline
	if version.Manifest {
		m, err := v.db.manifests.get(version.Hash, v.db.manifest)
		if err != nil {
			return err
		}
		b = make([]byte, version.Size)
		if _, err := v.db.content.ReadAt(m, b, 0); err != nil && err != io.EOF {
			return unreadable(err)
		}
	}
	dd, err := v.db.content.CreateDirectDraft(d.name, version.Mtime)
	if err != nil {
		return diskError(err)
	}
	if _, err = dd.WriteAt(b, 0); err == nil {
		err = dd.MarkClean(version.Mtime)
	}
	if err != nil {
		return diskError(errors.Join(err, dd.Remove()))
	}
	d.rec.Base = version.ID
	v.setDirect(d, dd)
	v.publishLater(d) // nobody will say when it is written
	return nil
}

func (v *Volume) hasBacking(node NodeID) bool {
	v.db.backingMu.Lock()
	defer v.db.backingMu.Unlock()
	return v.backings[node] != nil
}

// backDraft makes a draft's file the node's backing.
func (v *Volume) backDraft(node NodeID, d *content.DirectDraft) (*Backing, error) {
	if b := v.useBacking(node); b != nil {
		return b, nil
	}
	f, err := d.Open()
	if err != nil {
		return nil, err
	}
	return v.putBacking(&Backing{node: node, file: f, link: d.Link()})
}

// backVersion makes the file that holds the node's published version its backing.
func (v *Volume) backVersion(node NodeID) (*Backing, error) {
	version, err := v.versionOf(node)
	if err != nil || version == nil || !version.Manifest || version.Size < BackedFrom {
		return nil, err
	}
	m, err := v.db.manifests.get(version.Hash, v.db.manifest)
	if err != nil {
		return nil, err
	}
	f, id, ok, err := v.db.content.Whole(m)
	if err != nil || !ok {
		return nil, err
	}
	return v.putBacking(&Backing{node: node, file: f, link: &id})
}

// putBacking enters a backing, unless there is one by now, or the draft began
// without one, or another node has the same file: what is written to the one
// must not show in the other.
func (v *Volume) putBacking(b *Backing) (*Backing, error) {
	v.db.backingMu.Lock()
	defer v.db.backingMu.Unlock()
	if have := v.backings[b.node]; have != nil {
		have.users++
		return have, b.file.Close()
	}
	if d := v.draftOf(b.node); d != nil && d.began && d.directly.Load() == nil {
		return nil, b.file.Close()
	}
	if b.link != nil {
		if v.db.backed[*b.link] {
			return nil, b.file.Close()
		}
		v.db.backed[*b.link] = true
	}
	b.users = 1
	v.backings[b.node] = b
	return b, nil
}

// CloseBacking ends one use of a backing.
func (v *Volume) CloseBacking(b *Backing) error {
	v.db.backingMu.Lock()
	defer v.db.backingMu.Unlock()
	if b.users--; b.users > 0 {
		return nil
	}
	delete(v.backings, b.node)
	v.unlinkLocked(b)
	err := b.file.Close()
	for _, slot := range b.held {
		err = errors.Join(err, v.db.content.LetGo(slot))
	}
	if b.named {
		err = errors.Join(err, v.db.content.RemoveDraft(v.draftName(b.node)))
	}
	if err != nil {
		return fmt.Errorf("end backing of node %x: %w", uint64(b.node), err)
	}
	return nil
}

// unlinkLocked notes that a backing is no immutable file. The caller holds
// DB.backingMu.
func (v *Volume) unlinkLocked(b *Backing) {
	if b.link != nil {
		delete(v.db.backed, *b.link)
		b.link = nil
	}
}

// beginning marks a draft as begun, and returns the backing that it has to
// adopt, with one more user.
func (v *Volume) beginning(d *draft) *Backing {
	v.db.backingMu.Lock()
	defer v.db.backingMu.Unlock()
	d.began = true
	b := v.backings[d.node]
	if b != nil {
		b.users++
	}
	return b
}

// adopt makes a node's backing the file of its draft, which holds what the node
// shows. The caller holds mu, and io for writing.
func (v *Volume) adopt(d *draft, b *Backing, shows *crdt.Version) (*content.DirectDraft, error) {
	v.db.backingMu.Lock()
	link := b.link
	v.db.backingMu.Unlock()
	dd, err := v.db.content.AdoptDraft(d.name, b.file, link)
	if err != nil {
		return nil, err
	}
	if err := v.marked(dd, shows); err != nil {
		return nil, errors.Join(err, dd.Close())
	}
	v.db.backingMu.Lock()
	defer v.db.backingMu.Unlock()
	b.named = false
	d.directly.Store(dd)
	return dd, nil
}

// marked notes that a draft holds what is published.
func (v *Volume) marked(dd *content.DirectDraft, shows *crdt.Version) error {
	if shows == nil {
		return dd.MarkClean(crdt.Time{})
	}
	err := dd.MarkClean(shows.Mtime)
	if err != nil || !shows.Manifest {
		return err
	}
	m, err := v.db.manifests.get(shows.Hash, v.db.manifest)
	if err != nil {
		return err
	}
	return dd.Track(m)
}

// dropDirect ends a draft that was written past us and is published. If kernels
// have its file still, it stays, for the next draft to adopt. The caller holds
// mu, and io for writing.
func (v *Volume) dropDirect(d *draft, dd *content.DirectDraft) error {
	d.note() // nothing shows any more, and what was noted is old
	if v.keepBacking(d, dd.Link()) {
		return dd.Close()
	}
	return dd.Remove()
}

// keepBacking ends that a draft is written past us, and reports whether kernels
// have its file, which link names if it is an immutable one now.
func (v *Volume) keepBacking(d *draft, link *content.FileID) bool {
	v.db.backingMu.Lock()
	defer v.db.backingMu.Unlock()
	d.directly.Store(nil)
	d.began = false
	b := v.backings[d.node]
	if b == nil {
		return false
	}
	b.named = true
	v.unlinkLocked(b)
	if b.link = link; link != nil {
		v.db.backed[*link] = true
	}
	return true
}
