package store

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// draftRecord is what is kept of a draft besides its file.
type draftRecord struct {
	Ino       crdt.Ino
	Created   bool           // the inode itself is not published
	Dir       crdt.Ino       `json:",omitempty"` // of such an inode: where it was made
	Truncated bool           // begun by O_TRUNC: published only at the end
	Unlinked  bool           `json:",omitempty"` // begun when the file was seen to be removed
	Base      crdt.VersionID // what the draft began from
	Manifest  *crdt.Hash     `json:",omitempty"` // of the base, if it is large
	BaseLimit int64          // the base shows below it
	Dirty     bool           // holds bytes that are not published
	Flushed   bool           // closed after its last write (P8)
	Synced    bool           // an fsync since it began, or was published, has returned
	Mtime     crdt.Time      // as of the flush
	MtimeSet  bool           // by utimensat after the last write
	Abandoned bool           // its writer died before closing it: kept aside
	Direct    *crdt.Time     `json:",omitempty"` // of the flush: its file's mtime; written past us since if that is another
}

// draftFile is where a draft's bytes are: content.SmallDraft, content.Draft, or
// content.DirectDraft.
type draftFile interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Truncate(size int64) error
	Size() int64
	Allocated() (int64, error)
	GiveBack() error
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
	ctime crdt.Time // of the last write or setting of the mtime; zero after a restart

	stat atomic.Pointer[draftStat] // what attr shows, so that it waits for no publication
	// directly is file if it may be written past us.
	directly atomic.Pointer[content.DirectDraft]
	began    bool          // file is, or is about to be, set; guarded by DB.backingMu
	mapped   time.Duration // how long to wait for its mappings to go; guarded by mu
	taken    atomic.Int64  // bytes of disk, as attr found last
	by       atomic.Uint64 // the MountID that opened it last
	// published is the manifest that it was last published as, nil if that is not
	// known or none. It names blocks that the next one takes for given.
	published atomic.Pointer[crdt.Hash]

	dir     crdt.Ino    // of an inode that is not published: where it was made; guarded by mu
	flushed atomic.Bool // closed after its last write, not yet released
	// Since when it is flushed, in Unix nanoseconds, and whether nobody has it open
	// any more.
	flushedAt atomic.Int64
	released  atomic.Bool
	kept      atomic.Bool // released, has no name, and some kernel knows the file

	handles int   // guarded by Volume.draftsMu
	timer   Timer // of the next publication while open; guarded by mu
}

// draftStat is what of a draft shows in attributes.
type draftStat struct {
	shown bool // the draft shows instead of the published version
	size  int64
	mtime crdt.Time
	ctime crdt.Time
}

// note takes over what attributes show. The caller holds io for writing.
func (d *draft) note() {
	mtime := d.time()
	if d.directly.Load() != nil && d.shown() {
		d.touched(mtime)
	}
	d.stat.Store(&draftStat{shown: d.shown(), size: d.size(), mtime: mtime, ctime: d.ctime})
}

// wrote takes a change of the bytes over: what a close promised is past.
func (d *draft) wrote() {
	d.flushed.Store(false)
	d.note()
}

// birth is when the last unpublished inode was made in a directory, whose
// times show it as they would on a local disk.
type birth struct {
	at crdt.Time
	n  int // drafts that began in the directory and are open still
}

// bornLocked notes an inode made in dir. The caller holds draftsMu.
func (v *Volume) bornLocked(dir crdt.Ino, at crdt.Time) {
	v.births[dir] = birth{at: at, n: v.births[dir].n + 1}
}

// unborn notes that such a draft is finished: if it was published, the time is
// the directory's own now.
func (v *Volume) unborn(d *draft) {
	v.draftsMu.Lock()
	defer v.draftsMu.Unlock()
	b, ok := v.births[d.dir]
	if !ok || d.dir == 0 {
		return
	}
	b.n--
	v.births[d.dir] = b
	if b.n == 0 {
		delete(v.births, d.dir)
	}
	d.dir = 0
}

func (v *Volume) birthIn(dir crdt.Ino) birth {
	v.draftsMu.Lock()
	defer v.draftsMu.Unlock()
	return v.births[dir]
}

// dirTimes are those that a directory shows.
type dirTimes struct{ mtime, ctime crdt.Time }

// dirTimesOf are a directory's times, with what was made in it and is not
// published yet.
func dirTimesOf(i *crdt.Inode, b birth) dirTimes {
	t := dirTimes{mtime: i.DirMtime(), ctime: i.Changed.Value}
	if b.n == 0 || i.TimeSetAfter(b.at) {
		return t
	}
	if t.mtime.Before(b.at) {
		t.mtime = b.at
	}
	if t.ctime.Before(b.at) {
		t.ctime = b.at
	}
	return t
}

// overshadows reports whether the node shows a draft and not what is published.
func (v *Volume) overshadows(node NodeID) bool {
	d := v.draftOf(node)
	if d == nil {
		return false
	}
	st := d.seen()
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
	if dd := d.directly.Load(); dd != nil {
		if _, mtime, _, err := dd.Stat(); err == nil {
			return mtime
		}
	}
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
	ino, _, err := v.node(node)
	if err != nil {
		return 0, err
	}
	d := v.lockDraft(node, ino)
	defer d.mu.Unlock()
	unused := d.file == nil && !d.shown() // else it is of others, or waits for its publication
	h, again, err := v.openWrite(r, d, ino, trunc)
	if err == nil && !again {
		return h, nil
	}
	v.draftsMu.Lock()
	d.handles--
	drop := unused && d.handles == 0
	if drop {
		d.dead = true
		delete(v.drafts, node)
	}
	v.draftsMu.Unlock()
	if drop && d.file != nil {
		err = errors.Join(err, v.dropDraft(d, nil))
	}
	return h, err
}

// openWrite records a handle and truncates the draft; again says that the
// request was done before and the handle is counted already.
func (v *Volume) openWrite(r Request, d *draft, ino crdt.Ino, trunc bool) (h Handle, again bool, err error) {
	if trunc {
		if err := v.db.room(); err != nil {
			return 0, false, err
		}
	}
	h = Handle(v.db.randomID())
	unlinked := false
	err = v.change(r.Mount, func(c *change) error {
		i, err := c.Inode(ino)
		switch {
		case err != nil:
			return err
		case i == nil:
			return ErrStale
		case i.Kind != crdt.KindFile:
			return ErrNotRegular
		}
		links, err := crdt.LiveLinks(c.tree, i)
		if err != nil {
			return err
		}
		unlinked = len(links) == 0 && !i.Unpublished() && !v.showsLocked(ino)
		if _, was, ok, err := v.done(c.tree, r); err != nil {
			return err
		} else if ok {
			h, again = was, v.handleOf(was) == d.node
		}
		if err := v.putHandle(c.t, h, writeHandle{d.node, r.Mount}); err != nil {
			return err
		}
		return c.setDone(r, ino, h)
	})
	if err != nil || again {
		return h, again, err
	}
	if unlinked {
		d.io.Lock()
		d.rec.Unlinked = d.rec.Unlinked || d.file == nil && !d.shown()
		d.io.Unlock()
	}
	if trunc {
		if err := v.truncateDraft(d, 0, true); err != nil {
			return 0, false, err
		}
	}
	d.by.Store(uint64(r.Mount))
	d.kept.Store(false)
	v.draftsMu.Lock()
	v.handles[h] = d.node
	v.draftsMu.Unlock()
	return h, false, nil
}

// handleOf returns the node that a handle is open on, 0 if none.
func (v *Volume) handleOf(h Handle) NodeID {
	v.draftsMu.Lock()
	defer v.draftsMu.Unlock()
	return v.handles[h]
}

// after runs fn with d.mu held when the time is over, unless the draft is done
// or the volume closed by then. A draft waits for one thing at a time. The
// caller holds mu.
func (v *Volume) after(d *draft, wait time.Duration, fn func()) {
	if d.timer != nil || v.closed.Load() {
		return
	}
	v.timers.Add(1)
	var timer Timer
	timer = v.db.opts.Scheduler.After(wait, func() {
		defer v.timers.Done()
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.timer != timer { // stopped too late
			return
		}
		d.timer = nil
		if !d.dead && !v.closed.Load() {
			fn()
		}
	})
	d.timer = timer
}

// stopTimer ends the wait that after began. The caller holds mu.
func (v *Volume) stopTimer(d *draft) {
	if d.timer != nil && d.timer.Stop() {
		v.timers.Done()
	}
	d.timer = nil
}

// publishLater publishes a file that is held open for in-place change after
// the publish interval. The caller holds mu.
func (v *Volume) publishLater(d *draft) {
	if d.rec.Created || d.rec.Truncated {
		return
	}
	v.after(d, v.db.opts.PublishInterval, func() {
		if d.rec.Truncated { // meanwhile: half of it is not to be seen
			return
		}
		if err := v.publish(d, false); errors.Is(err, content.ErrBusy) {
			v.publishLater(d)
		} else if err != nil {
			v.db.opts.Log.Warn("publish open file", "volume", v.Name(), "inode", uint64(d.rec.Ino), "err", err)
			v.publishLater(d)
		}
	})
}

// Flush marks the draft as closed after its last write: should the daemon die
// before the kernel releases the handle, the restarted one publishes it.
func (v *Volume) Flush(node NodeID, h Handle) error {
	d := v.draftOf(node)
	if d == nil || v.handleOf(h) != node {
		return nil // released already: what others write since is not closed
	}
	d.io.Lock()
	defer d.io.Unlock()
	if err := d.lookDirect(); err != nil || !d.shown() {
		return err
	}
	if !d.flushed.Swap(true) {
		d.flushedAt.Store(v.db.opts.Now().UnixNano())
	}
	if dd := d.directly.Load(); dd != nil {
		at, err := dd.FileMtime()
		if err != nil || d.rec.Flushed && d.rec.Direct != nil && *d.rec.Direct == at {
			return err
		}
		d.rec.Direct, d.rec.Flushed = &at, false
	}
	if d.rec.Flushed {
		return nil
	}
	if small, ok := d.file.(*content.SmallDraft); ok && !d.rec.MtimeSet {
		return diskError(small.MarkClosed(d.mtime))
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
		d.released.Store(false)
		return v.db.kv.update(func(t txn) error { return t.del(v.keys.key('w', uint64(h))) })
	}
	v.stopTimer(d)
	d.released.Store(true)
	return v.finish(d, h)
}

// finishRetry is how long a publication that failed waits to be tried again.
const finishRetry = time.Second

// finish publishes a draft that nobody has open, and drops it. A draft that
// cannot be published now (no room) is kept and tried again. The caller holds mu.
func (v *Volume) finish(d *draft, h Handle) error {
	err := v.publish(d, true, h)
	if err != nil && h != 0 { // it is closed all the same
		if err := v.forgetHandles([]Handle{h}); err != nil {
			v.db.opts.Log.Warn("close file", "volume", v.Name(), "inode", uint64(d.rec.Ino), "err", err)
		}
	}
	if errors.Is(err, errMapped) {
		if err := v.recordMapped(d); err != nil {
			v.db.opts.Log.Warn("close file that is mapped", "volume", v.Name(), "inode", uint64(d.rec.Ino), "err", err)
		}
		d.flushed.Store(d.mapped < settleLimit)
		d.mapped = min(max(2*d.mapped, mappedRetry), maxMappedRetry)
		v.after(d, d.mapped, func() { v.finishUnlessOpen(d) })
		return nil
	}
	d.mapped = 0
	if errors.Is(err, errKept) {
		d.flushed.Store(false) // Settle need not wait for it
		return nil
	}
	if errors.Is(err, ErrNoSpace) && d.file != nil {
		// It may be what fills the disk.
		err = errors.Join(err, d.file.GiveBack())
	}
	if err != nil {
		v.db.opts.Log.Warn("publish closed file", "volume", v.Name(), "inode", uint64(d.rec.Ino), "err", err)
		v.after(d, finishRetry, func() { v.finishUnlessOpen(d) })
		return err
	}
	v.draftsMu.Lock()
	if d.handles == 0 {
		d.dead = true
		delete(v.drafts, d.node)
	}
	close(v.published)
	v.published = make(chan struct{})
	v.draftsMu.Unlock()
	return nil
}

func (v *Volume) finishUnlessOpen(d *draft) {
	v.draftsMu.Lock()
	open := d.handles > 0
	v.draftsMu.Unlock()
	if open {
		v.publishLater(d)
	} else {
		v.finish(d, 0) //nolint:errcheck // logs and tries again
	}
}

// Fsync returns when the file's draft, and everything committed before, is on
// disk. Held ops leave at once.
func (v *Volume) Fsync(node NodeID) error {
	if d := v.draftOf(node); d != nil {
		if err := v.syncDraft(d); err != nil {
			return diskError(err)
		}
	}
	return v.Sync()
}

// syncDraft brings a draft's bytes to the disk, and notes that they are there:
// a draft is then kept whatever becomes of its writer.
func (v *Volume) syncDraft(d *draft) error {
	d.io.RLock()
	file := d.file
	d.io.RUnlock()
	if file != nil {
		if err := file.Sync(); err != nil && !errors.Is(err, os.ErrClosed) { // published meanwhile
			return err
		}
	}
	d.io.Lock()
	defer d.io.Unlock()
	if err := d.lookDirect(); err != nil || d.file != file || d.rec.Synced || !d.shown() {
		return err
	}
	d.rec.Mtime, d.rec.Synced = d.time(), true
	return v.saveDraft(d)
}

// Sync returns when everything committed before is on disk. One sync of the
// disk serves all callers that wait for one.
func (v *Volume) Sync() error {
	v.flushHolds()
	return v.db.syncs.wait()
}

// settleLimit bounds how long Settle waits: a description that was duplicated
// and closed once is flushed and stays open.
const settleLimit = 100 * time.Millisecond

// Settle returns when the files that were closed before have been published,
// and all own ops have left: close returns before the kernel releases the
// handle. A file that stays open is waited for a tenth of a second.
func (v *Volume) Settle() error {
	limit := time.After(settleLimit)
	for {
		changed, flushed := v.flushedDrafts()
		if !flushed {
			return v.sealNow()
		}
		select {
		case <-changed:
		case <-limit:
			return v.sealNow()
		}
	}
}

// flushedDrafts reports whether some draft was closed and is not released yet,
// and returns a channel that is closed when the next one is published.
func (v *Volume) flushedDrafts() (<-chan struct{}, bool) {
	v.draftsMu.Lock()
	defer v.draftsMu.Unlock()
	for _, d := range v.drafts {
		if d.flushed.Load() {
			return v.published, true
		}
	}
	return v.published, false
}

// closeDrafts closes the files; the records stay for the next start. The
// volume is closed already: no draft begins a wait any more.
func (v *Volume) closeDrafts() (err error) {
	v.draftsMu.Lock()
	drafts := slices.Collect(maps.Values(v.drafts))
	v.draftsMu.Unlock()
	for _, d := range drafts {
		d.mu.Lock()
		v.stopTimer(d)
		d.io.Lock()
		if d.file != nil {
			err = errors.Join(err, d.file.Close())
		}
		d.io.Unlock()
		d.mu.Unlock()
	}
	v.timers.Wait()
	return err
}
