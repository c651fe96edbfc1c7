package content

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// Truncate sets the draft's size in bytes. Making it shorter may lower
// [Draft.BaseLimit], which the caller then has to record.
func (d *Draft) Truncate(size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.truncateLocked(size); err != nil {
		return fmt.Errorf("truncate draft %q to %d: %w", d.name, size, err)
	}
	return nil
}

func (d *Draft) truncateLocked(size int64) error {
	if size < 0 {
		return unix.EINVAL
	}
	if size == d.size && d.f != nil {
		return nil
	}
	if err := d.beginChangeLocked(); err != nil {
		return err
	}
	if err := d.f.Truncate(size); err != nil {
		return err
	}
	if size > d.size {
		d.grownLocked(size)
		return nil
	}
	d.forgetLocked(size, d.size)
	d.size = size
	d.baseLimit = min(d.baseLimit, size)
	return nil
}

// forgetLocked notes that the draft file holds nothing any more from off to
// end, where nothing of the base shows either.
func (d *Draft) forgetLocked(off, end int64) {
	for index, b := range d.blocks {
		start := index * BlockSize
		stop := start + int64(blockLength(d.size, index))
		switch {
		case stop <= off || start >= end:
		case start >= off && stop <= end:
			delete(d.blocks, index)
		default:
			b.changed = true
		}
	}
}

// clipRange checks a range of fallocate(2) and returns its end.
func clipRange(off, length int64) (end int64, err error) {
	switch {
	case off < 0 || length <= 0:
		return 0, unix.EINVAL
	case length > math.MaxInt64-off:
		return 0, unix.EFBIG
	}
	return off + length, nil
}

// PunchHole makes length bytes from off read as zeros, freeing disk where
// nothing of the base shows. The size stays as it is. Over a base it writes
// zeros, which takes time and disk in proportion.
func (d *Draft) PunchHole(off, length int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	end, err := clipRange(off, length)
	if err == nil {
		err = d.zeroLocked(off, min(end, d.size))
	}
	if err != nil {
		return fmt.Errorf("punch %d bytes at %d of draft %q: %w", length, off, d.name, err)
	}
	return nil
}

// ZeroRange makes length bytes from off read as zeros and reserves disk for
// them as Allocate does. The draft grows to hold them unless keepSize.
func (d *Draft) ZeroRange(off, length int64, keepSize bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	end, err := clipRange(off, length)
	if err == nil {
		err = d.zeroLocked(off, min(end, d.size))
	}
	if err == nil {
		err = d.allocateLocked(off, end, keepSize)
	}
	if err != nil {
		return fmt.Errorf("zero %d bytes at %d of draft %q: %w", length, off, d.name, err)
	}
	return nil
}

// Allocate reserves disk for length bytes from off. The draft grows to hold
// them unless keepSize. Where the base shows it reserves nothing: to do so
// would copy the base.
func (d *Draft) Allocate(off, length int64, keepSize bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	end, err := clipRange(off, length)
	if err == nil {
		err = d.allocateLocked(off, end, keepSize)
	}
	if err != nil {
		return fmt.Errorf("allocate %d bytes at %d of draft %q: %w", length, off, d.name, err)
	}
	return nil
}

// GiveBack frees the disk that is allocated and was not written. No version has
// it; it is given back in any case when the draft ends.
func (d *Draft) GiveBack() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.f == nil {
		return nil
	}
	if err := freeUnwritten(d.f); err != nil {
		return fmt.Errorf("give back disk of draft %q: %w", d.name, err)
	}
	return nil
}

// freeUnwritten frees what is allocated of a file and is a hole all the same.
func freeUnwritten(f *os.File) error {
	size := fileSize(f)
	for at := int64(0); at < size; {
		start, end, err := nextData(f, at, size)
		if err == nil && at < start {
			err = punch(f, at, start-at)
		}
		if err != nil {
			return err
		}
		at = end
	}
	return f.Truncate(size) // and behind the end
}

// Taken returns how many bytes of disk the draft has for itself.
func (d *Draft) Taken() (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.f == nil {
		return 0, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(d.f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat draft %q: %w", d.name, err)
	}
	return st.Blocks * 512, nil
}

func (d *Draft) allocateLocked(off, end int64, keepSize bool) error {
	if err := d.beginChangeLocked(); err != nil {
		return err
	}
	if err := d.store.failing("allocate"); err != nil {
		return err
	}
	for at := off; at < end; {
		next := d.stepEnd(at, end)
		// Reserved extents count as holes, so they would show a base; and
		// some file systems turn short ones into zeros on their own.
		if !d.baseUnder(at / BlockSize) {
			if err := unix.Fallocate(int(d.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, at, next-at); err != nil {
				return err
			}
		}
		at = next
	}
	if keepSize || end <= d.size {
		return nil
	}
	return d.truncateLocked(end)
}

// stepEnd returns up to where, at most end, what begins at off can be treated
// as one: the rest of a block that may have base bytes under it, or
// everything.
func (d *Draft) stepEnd(off, end int64) int64 {
	if off >= d.baseEnd() {
		return end
	}
	return min(end, (off/BlockSize+1)*BlockSize)
}

// zeroLocked makes [off, end), which lies inside the draft, read as zeros.
func (d *Draft) zeroLocked(off, end int64) error {
	if err := d.beginChangeLocked(); err != nil {
		return err
	}
	for at := off; at < end; {
		next := d.stepEnd(at, end)
		if d.baseUnder(at / BlockSize) {
			if _, err := d.writeBlockLocked(zeroBlock[:next-at], at); err != nil {
				return err
			}
		} else if at >= d.baseEnd() || d.blocks[at/BlockSize] != nil {
			if err := punch(d.f, at, next-at); err != nil {
				return err
			}
			d.forgetLocked(at, next)
		}
		at = next
	}
	return nil
}

// punch frees a range of f's bytes, which then read as zeros.
func punch(f *os.File, off, length int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
}

// Extent tells what is at off and up to which offset that holds, at most the
// draft's size. At or past the end of the draft it returns (Hole, off).
// Neighbouring extents may be of the same kind.
func (d *Draft) Extent(off int64) (kind ExtentKind, end int64, err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.f == nil {
		return Hole, off, fmt.Errorf("find extent of draft %q: %w", d.name, ErrClosed)
	}
	if off < 0 || off >= d.size {
		return Hole, off, nil
	}
	kind, end, err = d.step(off)
	for err == nil && end < d.size {
		nextKind, nextEnd, nextErr := d.step(end)
		if nextErr != nil || nextKind != kind {
			err = nextErr
			break
		}
		end = nextEnd
	}
	if err != nil {
		return Hole, off, fmt.Errorf("find extent of draft %q at %d: %w", d.name, off, err)
	}
	return kind, end, nil
}

// step is Extent, but may end early. mu is held at least for reading.
func (d *Draft) step(off int64) (ExtentKind, int64, error) {
	index := off / BlockSize
	limit := d.stepEnd(off, d.size)
	if off < d.baseEnd() && d.blocks[index] == nil {
		if d.baseUnder(index) && off < d.baseLimit {
			return Data, min(limit, d.baseLimit), nil
		}
		return Hole, limit, nil
	}
	start, end, err := nextData(d.f, off, limit)
	if start > off {
		return Hole, start, err
	}
	return Data, end, err
}

// nextData returns the first extent of data in f from off on, clipped to
// limit; (limit, limit) if there is none.
func nextData(f *os.File, off, limit int64) (start, end int64, err error) {
	start, err = f.Seek(off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) || err == nil && start >= limit {
		return limit, limit, nil
	}
	if err == nil {
		end, err = f.Seek(start, unix.SEEK_HOLE)
	}
	if err != nil {
		return 0, 0, err
	}
	return start, min(end, limit), nil
}

var _ interface {
	io.ReaderAt
	io.WriterAt
} = (*Draft)(nil)
