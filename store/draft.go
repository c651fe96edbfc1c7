package store

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// draftRecord is what is kept of a draft besides its file.
type draftRecord struct {
	Ino       crdt.Ino
	Created   bool           // the inode itself is not published
	Truncated bool           // begun by O_TRUNC: published only at the end
	Base      crdt.VersionID // what the draft began from
	Manifest  *crdt.Hash     `json:",omitempty"` // of the base, if it is large
	BaseLimit int64          // the base shows below it
	Dirty     bool           // holds bytes that are not published
	Flushed   bool           // closed after its last write (P8)
	Mtime     crdt.Time      // as of the flush
	MtimeSet  bool           // by utimensat after the last write
}

// draftFile is where a draft's bytes are: content.SmallDraft, or content.Draft.
type draftFile interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Truncate(size int64) error
	Size() int64
	BaseLimit() int64
	Extent(off int64) (content.ExtentKind, int64, error)
	Sync() error
	Close() error
	Remove() error
	Publish(final bool, inlineLimit int) (content.Published, error)
}

// draft is the bytes of a file while somebody has it open for writing. All
// handles of one node share it.
//
// mu is held while the draft begins or is published; rw for reading while its
// bytes are read or written in place, so that a publication waits for writes.
type draft struct {
	node NodeID
	name string

	mu   sync.Mutex
	dead bool // published or dropped: look up again

	io    sync.RWMutex // guards what follows; taken after mu
	rec   draftRecord
	file  draftFile // nil until the first write
	mtime crdt.Time // of the last write

	stat atomic.Pointer[draftStat] // what attr shows, so that it waits for no publication
	by   atomic.Uint64             // the MountID that opened it last

	handles int         // guarded by Volume.draftsMu
	timer   *time.Timer // of the next publication while open; guarded by mu
}

// draftStat is what of a draft shows in attributes.
type draftStat struct {
	shown bool // the draft shows instead of the published version
	size  int64
	mtime crdt.Time
}

// note takes over what attributes show. The caller holds io for writing.
func (d *draft) note() {
	d.stat.Store(&draftStat{shown: d.shown(), size: d.size(), mtime: d.time()})
}

// overshadows reports whether the node shows a draft and not what is published.
func (v *Volume) overshadows(node NodeID) bool {
	d := v.draftOf(node)
	if d == nil {
		return false
	}
	st := d.stat.Load()
	return st != nil && st.shown
}

func (v *Volume) draftName(node NodeID) string { return fmt.Sprintf("%v-%016x", v.id, uint64(node)) }

// draftOf returns the node's draft, or nil.
func (v *Volume) draftOf(node NodeID) *draft {
	v.draftsMu.Lock()
	defer v.draftsMu.Unlock()
	return v.drafts[node]
}

// shown reports whether the draft's bytes and times show instead of the
// published ones. The caller holds io.
func (d *draft) shown() bool { return d.rec.Created || d.rec.Dirty }

func (d *draft) size() int64 {
	if d.file == nil {
		return 0
	}
	return d.file.Size()
}

// time is the mtime that the draft shows. The caller holds io.
func (d *draft) time() crdt.Time {
	if d.rec.MtimeSet {
		return d.rec.Mtime
	}
	return d.mtime
}

func (v *Volume) putDraft(t txn, d *draft) error {
	return putJSON(t, v.keys.key('d', uint64(d.node)), &d.rec)
}

// saveDraft writes the draft's record. The caller holds io.
func (v *Volume) saveDraft(d *draft) error {
	return v.db.kv.update(func(t txn) error { return v.putDraft(t, d) })
}

// lockDraft returns the node's draft with mu held, and one more handle; it
// makes an empty one if there is none.
func (v *Volume) lockDraft(node NodeID, ino crdt.Ino) *draft {
	for {
		v.draftsMu.Lock()
		d := v.drafts[node]
		if d == nil {
			d = &draft{node: node, name: v.draftName(node), rec: draftRecord{Ino: ino}}
			v.drafts[node] = d
		}
		d.handles++
		v.draftsMu.Unlock()
		d.mu.Lock()
		if !d.dead {
			return d
		}
		d.mu.Unlock() // its handles count no more
	}
}

// OpenWrite opens a node for writing. With trunc the draft begins empty.
func (v *Volume) OpenWrite(r Request, node NodeID, trunc bool) (Handle, error) {
	ino, rec, err := v.node(node)
	if err != nil {
		return 0, err
	}
	d := v.lockDraft(node, ino)
	defer d.mu.Unlock()
	h, err := v.openWrite(r, d, ino, rec, trunc)
	if err != nil {
		v.draftsMu.Lock()
		d.handles--
		last := d.handles == 0
		if last {
			delete(v.drafts, node)
			d.dead = true
		}
		v.draftsMu.Unlock()
	}
	return h, err
}

func (v *Volume) openWrite(r Request, d *draft, ino crdt.Ino, rec *nodeRecord, trunc bool) (Handle, error) {
	if trunc {
		if err := v.db.room(); err != nil {
			return 0, err
		}
	}
	h := Handle(randomID())
	err := v.change(r.Mount, func(c *change) error {
		i, err := c.Inode(ino)
		if err != nil {
			return err
		}
		if i == nil {
			return ErrStale
		}
		if i.Kind != crdt.KindFile {
			return ErrNotRegular
		}
		if _, was, ok, err := c.done(r); err != nil {
			return err
		} else if ok {
			h = was
		}
		if err := c.t.set(c.keys.key('w', uint64(h)), fmt.Appendf(nil, "%d", uint64(d.node))); err != nil {
			return err
		}
		return c.setDone(r, ino, h)
	})
	if err != nil {
		return 0, err
	}
	if trunc {
		if err := v.truncateDraft(d, 0, true); err != nil {
			return 0, err
		}
	}
	d.by.Store(uint64(r.Mount))
	v.draftsMu.Lock()
	v.handles[h] = d.node
	v.draftsMu.Unlock()
	return h, nil
}

// begin makes the draft's file over the content that its node shows, unless it
// is there. Only the first keep bytes of the base are needed. The caller holds
// mu, and io for writing.
func (v *Volume) begin(d *draft, keep int64) error {
	if d.file != nil {
		return nil
	}
	var base content.Base
	var size int64
	rec := d.rec
	if !rec.Created {
		version, inline, err := v.contentOf(d.node)
		if err != nil {
			return err
		}
		if version != nil {
			rec.Base = version.ID
			size = min(version.Size, keep)
			if version.Manifest && size > 0 {
				m, err := v.db.manifest(version.Hash)
				if err != nil {
					return err
				}
				base.Manifest, rec.Manifest = m, &version.Hash
			} else {
				base.Inline = inline[:min(int64(len(inline)), size)]
			}
		}
	}
	f, err := v.createDraftFile(d.name, base, size)
	if err != nil {
		return diskError(err)
	}
	rec.BaseLimit = f.BaseLimit()
	d.rec, d.file = rec, f
	return nil
}

func (v *Volume) createDraftFile(name string, base content.Base, size int64) (draftFile, error) {
	if base.Manifest == nil && size <= v.smallLimit() {
		if small, ok, err := v.db.content.CreateSmallDraft(name, base.Inline); err != nil || ok {
			return small, err
		}
	}
	return v.db.content.CreateDraft(name, base, size, size)
}

// smallLimit is the largest draft that need not be a file of its own.
func (v *Volume) smallLimit() int64 {
	return min(content.SmallLimit, int64(v.db.opts.InlineLimit))
}

// grow makes a small draft a file of its own before it gets larger than small
// ones may be. The caller holds io for writing.
func (v *Volume) grow(d *draft, size int64) error {
	small, ok := d.file.(*content.SmallDraft)
	if !ok || size <= v.smallLimit() {
		return nil
	}
	big, err := small.Grow()
	if err != nil {
		return diskError(err)
	}
	d.file = big
	return nil
}

// diskError makes a full disk ErrNoSpace.
func diskError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// dirty records, before the bytes change, that the draft holds unpublished
// ones. The caller holds io for writing.
func (v *Volume) dirty(d *draft, trunc bool) error {
	now := crdt.TimeOf(v.db.opts.Now().UnixNano())
	d.mtime = now
	if d.rec.Dirty && !d.rec.Flushed && !d.rec.MtimeSet && (d.rec.Truncated || !trunc) {
		return nil
	}
	d.rec.Dirty, d.rec.Flushed, d.rec.MtimeSet = true, false, false
	d.rec.Truncated = d.rec.Truncated || trunc
	return v.saveDraft(d)
}

// writable reports whether bytes up to end can be written as the draft is: its
// record says already that it is dirty. The caller holds io.
func (v *Volume) writable(d *draft, end int64) bool {
	if d.file == nil || !d.rec.Dirty || d.rec.Flushed || d.rec.MtimeSet {
		return false
	}
	_, small := d.file.(*content.SmallDraft)
	return !small || end <= v.smallLimit()
}

// WriteAt writes to the draft that the handle's node shares. killSUID clears
// setuid and setgid, as the kernel asks.
func (v *Volume) WriteAt(node NodeID, h Handle, p []byte, off int64, killSUID bool) (int, error) {
	if err := v.db.room(); err != nil {
		return 0, err
	}
	d := v.draftOf(node)
	if d == nil {
		return 0, fmt.Errorf("%w: node %x has no write handle", ErrStale, uint64(node))
	}
	if killSUID {
		if err := v.killSUID(node); err != nil {
			return 0, err
		}
	}
	d.io.RLock()
	if v.writable(d, off+int64(len(p))) {
		n, err := d.file.WriteAt(p, off)
		d.io.RUnlock()
		d.io.Lock()
		d.mtime = crdt.TimeOf(v.db.opts.Now().UnixNano())
		d.note()
		d.io.Unlock()
		return n, diskError(err)
	}
	d.io.RUnlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.io.Lock()
	defer d.io.Unlock()
	defer d.note()
	if err := v.begin(d, 1<<62); err != nil {
		return 0, err
	}
	if err := v.dirty(d, false); err != nil {
		return 0, err
	}
	if err := v.grow(d, off+int64(len(p))); err != nil {
		return 0, err
	}
	n, err := d.file.WriteAt(p, off)
	v.publishLater(d)
	return n, diskError(err)
}

// truncateDraft sets the draft's size. The caller holds mu.
func (v *Volume) truncateDraft(d *draft, size int64, open bool) error {
	d.io.Lock()
	defer d.io.Unlock()
	defer d.note()
	if err := v.begin(d, size); err != nil {
		return err
	}
	if err := v.dirty(d, open && size == 0); err != nil {
		return err
	}
	if err := v.grow(d, size); err != nil {
		return err
	}
	if err := d.file.Truncate(size); err != nil {
		return diskError(err)
	}
	if limit := d.file.BaseLimit(); limit != d.rec.BaseLimit {
		d.rec.BaseLimit = limit
		if err := v.saveDraft(d); err != nil {
			return err
		}
	}
	v.publishLater(d)
	return nil
}

// Allocate does fallocate on the draft of an open file.
func (v *Volume) Allocate(node NodeID, h Handle, mode uint32, off, length int64) error {
	if err := v.db.room(); err != nil {
		return err
	}
	d := v.draftOf(node)
	if d == nil {
		return fmt.Errorf("%w: node %x has no write handle", ErrStale, uint64(node))
	}
	if off < 0 || length <= 0 {
		return crdt.ErrInvalid
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.io.Lock()
	defer d.io.Unlock()
	defer d.note()
	if err := v.begin(d, 1<<62); err != nil {
		return err
	}
	if err := v.dirty(d, false); err != nil {
		return err
	}
	v.publishLater(d)
	if err := v.grow(d, 1<<62); err != nil {
		return err
	}
	file, ok := d.file.(*content.Draft)
	if !ok {
		return unix.EOPNOTSUPP
	}
	keep := mode&unix.FALLOC_FL_KEEP_SIZE != 0
	switch mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0:
		return diskError(file.Allocate(off, length, keep))
	case unix.FALLOC_FL_PUNCH_HOLE:
		return diskError(file.PunchHole(off, length))
	case unix.FALLOC_FL_ZERO_RANGE:
		return diskError(file.ZeroRange(off, length, keep))
	}
	return unix.EOPNOTSUPP
}

// publishLater publishes a file that is held open for in-place change after
// the publish interval. The caller holds mu.
func (v *Volume) publishLater(d *draft) {
	if d.rec.Created || d.rec.Truncated || d.timer != nil {
		return
	}
	d.timer = time.AfterFunc(v.db.opts.PublishInterval, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.timer = nil
		if d.dead || v.closed.Load() {
			return
		}
		if err := v.publish(d, false); err != nil {
			v.db.opts.Log.Warn("publish open file", "volume", v.Name(), "inode", uint64(d.rec.Ino), "err", err)
			v.publishLater(d)
		}
	})
}

// Flush marks the draft as closed after its last write: should the daemon die
// before the kernel releases the handle, the restarted one publishes it.
func (v *Volume) Flush(node NodeID, h Handle) error {
	d := v.draftOf(node)
	if d == nil {
		return nil
	}
	d.io.Lock()
	defer d.io.Unlock()
	if !d.shown() || d.rec.Flushed {
		return nil
	}
	d.rec.Mtime = d.time() // the restarted daemon would not know the last write's
	d.rec.Flushed = true
	return v.saveDraft(d)
}

// Release closes a handle; the last one of a node publishes its draft. A
// release that is sent again finds no handle.
func (v *Volume) Release(r Request, node NodeID, h Handle) error {
	v.draftsMu.Lock()
	_, ok := v.handles[h]
	delete(v.handles, h)
	d := v.drafts[node]
	v.draftsMu.Unlock()
	if !ok || d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	v.draftsMu.Lock()
	d.handles--
	last := d.handles == 0
	v.draftsMu.Unlock()
	if !last {
		return v.db.kv.update(func(t txn) error { return t.del(v.keys.key('w', uint64(h))) })
	}
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	return v.finish(d, h)
}

// finish publishes a draft that nobody has open, and drops it. A draft that
// cannot be published now (no room) is kept and tried again. The caller holds mu.
func (v *Volume) finish(d *draft, h Handle) error {
	err := v.publish(d, true, h)
	if err != nil {
		v.db.opts.Log.Warn("publish closed file", "volume", v.Name(), "inode", uint64(d.rec.Ino), "err", err)
		d.timer = time.AfterFunc(time.Second, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.timer = nil
			v.draftsMu.Lock()
			open := d.handles > 0
			v.draftsMu.Unlock()
			if !d.dead && !open && !v.closed.Load() {
				v.finish(d, h) // logs and tries again
			}
		})
		return err
	}
	v.draftsMu.Lock()
	if d.handles == 0 {
		d.dead = true
		delete(v.drafts, d.node)
	}
	v.draftsMu.Unlock()
	return nil
}

// Fsync returns when the file's draft, and everything committed before, is on
// disk. Held ops leave at once.
func (v *Volume) Fsync(node NodeID) error {
	if d := v.draftOf(node); d != nil {
		d.io.RLock()
		file := d.file
		d.io.RUnlock()
		if file != nil {
			if err := file.Sync(); err != nil && !errors.Is(err, os.ErrClosed) {
				return diskError(err)
			}
		}
	}
	return v.Sync()
}

// Sync returns when everything committed before is on disk. One sync of the
// disk serves all callers that wait for one.
func (v *Volume) Sync() error {
	v.flushHolds()
	return v.db.syncs.wait()
}

// closeDrafts closes the files; the records stay for the next start.
func (v *Volume) closeDrafts() {
	v.draftsMu.Lock()
	defer v.draftsMu.Unlock()
	for _, d := range v.drafts {
		if d.timer != nil {
			d.timer.Stop()
		}
		if d.file != nil {
			if err := d.file.Close(); err != nil {
				v.db.opts.Log.Warn("close draft", "draft", d.name, "err", err)
			}
		}
	}
}
