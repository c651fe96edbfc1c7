package store

import (
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// begin makes the draft's file over the content that its node shows, unless it
// is there. Only the first keep bytes of the base are needed. The caller holds
// mu, and io for writing.
func (v *Volume) begin(d *draft, keep int64) error {
	if d.file != nil {
		return nil
	}
	b := v.beginning(d)
	if b != nil {
		defer v.CloseBacking(b) //nolint:errcheck // it has other users
	}
	var base content.Base
	var size int64
	var shows *crdt.Version
	rec := d.rec
	if !rec.Created {
		version, inline, err := v.contentOf(d.node)
		if err != nil {
			return err
		}
		if shows = version; version != nil {
			rec.Base = version.ID
			size = min(version.Size, keep)
			if version.Manifest && size > 0 && b == nil {
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
	var f draftFile
	var err error
	if b != nil {
		f, err = v.adopt(d, b, shows)
	} else {
		f, err = v.createDraftFile(d.name, base, size)
	}
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
	d.mtime, d.ctime = now, now
	synced := d.rec.Synced && !trunc // what a sync has promised is thrown away then
	if d.rec.Dirty && !d.rec.Flushed && !d.rec.MtimeSet && (d.rec.Truncated || !trunc) && d.rec.Synced == synced {
		return nil
	}
	d.rec.Dirty, d.rec.Flushed, d.rec.MtimeSet, d.rec.Synced = true, false, false, synced
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
	if err := v.db.roomFor(len(p)); err != nil {
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
		d.ctime = d.mtime
		d.wrote()
		d.io.Unlock()
		return n, diskError(err)
	}
	d.io.RUnlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := v.alive(d); err != nil {
		return 0, err
	}
	d.io.Lock()
	defer d.io.Unlock()
	defer d.wrote()
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

// alive says whether a draft can still be written. The caller holds mu.
func (v *Volume) alive(d *draft) error {
	if v.closed.Load() {
		return ErrClosed
	}
	if d.dead {
		return fmt.Errorf("%w: node %x has no write handle", ErrStale, uint64(d.node))
	}
	return nil
}

// truncateDraft sets the draft's size. The caller holds mu.
func (v *Volume) truncateDraft(d *draft, size int64, open bool) error {
	d.io.Lock()
	defer d.io.Unlock()
	defer d.wrote()
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
	if err := v.alive(d); err != nil {
		return err
	}
	d.io.Lock()
	defer d.io.Unlock()
	defer d.wrote()
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
	file, ok := d.file.(allocator)
	if !ok {
		return unix.EOPNOTSUPP
	}
	keep := mode&unix.FALLOC_FL_KEEP_SIZE != 0
	switch mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0:
		return diskError(v.allocate(file, off, length, func() error { return file.Allocate(off, length, keep) }))
	case unix.FALLOC_FL_PUNCH_HOLE:
		return diskError(file.PunchHole(off, length))
	case unix.FALLOC_FL_ZERO_RANGE:
		return diskError(v.allocate(file, off, length, func() error { return file.ZeroRange(off, length, keep) }))
	}
	return unix.EOPNOTSUPP
}

// An allocator is a draft in a file of its own.
type allocator interface {
	Taken() (int64, error)
	Allocate(off, length int64, keepSize bool) error
	PunchHole(off, length int64) error
	ZeroRange(off, length int64, keepSize bool) error
}

// allocateStep is how much disk is taken before it is looked at again.
const allocateStep = 16 << 20

// allocate takes disk step by step, one caller at a time, and then does do: all
// at once could be what the database needs. What cannot be had is refused before
// any is taken.
func (v *Volume) allocate(file allocator, off, length int64, do func() error) error {
	if length > math.MaxInt64-off {
		return unix.EFBIG
	}
	has, err := file.Taken()
	if err != nil {
		return err
	}
	if err := v.db.roomAhead(length - has); err != nil {
		return err
	}
	for done := int64(0); done < length; done += allocateStep {
		if err := v.allocateSome(file, off+done, min(allocateStep, length-done)); err != nil {
			return err
		}
	}
	return do()
}

func (v *Volume) allocateSome(file allocator, off, length int64) error {
	v.db.allocating.Lock()
	defer v.db.allocating.Unlock()
	if err := v.db.checkSpace(); err != nil {
		return err
	}
	if err := v.db.room(); err != nil {
		return err
	}
	return file.Allocate(off, length, true)
}
