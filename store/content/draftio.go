package content

import (
	"fmt"
	"io"
	"math"
	"sync"

	"golang.org/x/sys/unix"
)

// blockBuffers holds *[]byte of BlockSize bytes.
var blockBuffers = sync.Pool{New: func() any {
	b := make([]byte, BlockSize)
	return &b
}}

// zeroBlock is what a hole reads as.
var zeroBlock = make([]byte, BlockSize)

// ReadAt reads from the draft, as io.ReaderAt does.
func (d *Draft) ReadAt(p []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	n, err := d.readAt(p, off)
	if err != nil && err != io.EOF {
		return n, fmt.Errorf("read draft %q at %d: %w", d.name, off, err)
	}
	return n, err
}

// readAt reads from the draft; mu is held at least for reading.
func (d *Draft) readAt(p []byte, off int64) (int, error) {
	switch {
	case d.f == nil:
		return 0, ErrClosed
	case off < 0:
		return 0, unix.EINVAL
	case off >= d.size:
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > d.size-off {
		p, eof = p[:d.size-off], io.EOF
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		step := min(len(p)-n, int(BlockSize-at%BlockSize))
		if err := d.readInBlock(p[n:n+step], at); err != nil {
			return n, err
		}
		n += step
	}
	return len(p), eof
}

// readInBlock fills p, which lies in one block and inside the draft.
func (d *Draft) readInBlock(p []byte, off int64) error {
	index := off / BlockSize
	if d.blocks[index] != nil {
		_, err := d.f.ReadAt(p, off)
		if err == io.EOF { // somebody else made the file shorter
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	h := d.baseHash(index)
	based := p[:max(0, min(int64(len(p)), d.baseLimit-off))]
	clear(p[len(based):])
	return d.store.readInBlock(h, based, off%BlockSize)
}

// WriteAt writes to the draft, as io.WriterAt does, and makes it longer if
// need be. If the disk is full it reports how much was written.
func (d *Draft) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.writeLocked(p, off)
	if err != nil {
		return n, fmt.Errorf("write draft %q at %d: %w", d.name, off, err)
	}
	return n, nil
}

func (d *Draft) writeLocked(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, unix.EINVAL
	}
	if int64(len(p)) > math.MaxInt64-off {
		return 0, unix.EFBIG
	}
	if err := d.beginChangeLocked(); err != nil {
		return 0, err
	}
	for n < len(p) {
		at := off + int64(n)
		step := min(len(p)-n, int(BlockSize-at%BlockSize))
		wrote, err := d.writeBlockLocked(p[n:n+step], at)
		n += wrote
		if wrote > 0 {
			d.grownLocked(off + int64(n))
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// writeBlockLocked writes p, which lies in one block. It does not adjust size.
func (d *Draft) writeBlockLocked(p []byte, off int64) (int, error) {
	index := off / BlockSize
	if d.blocks[index] != nil || !d.baseUnder(index) {
		n, err := d.pwrite(p, off)
		if n > 0 {
			d.dirtyLocked(index)
		}
		return n, err
	}
	var err error
	if off%BlockSize == 0 && len(p) >= blockLength(d.size, index) {
		err = d.writeOverBaseLocked(p, off)
	} else {
		err = d.copyUpLocked(index, p, int(off%BlockSize))
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// copyUpLocked makes a clean block dirty: the base's bytes, with p at offset
// in of the block, become the draft's.
func (d *Draft) copyUpLocked(index int64, p []byte, in int) error {
	buf := blockBuffers.Get().(*[]byte)
	defer blockBuffers.Put(buf)
	b, err := d.readBaseBlock(index, *buf)
	if err != nil {
		return fmt.Errorf("copy up block %d: %w", index, err)
	}
	b = b[:max(blockLength(d.size, index), in+len(p))]
	copy(b[in:], p)
	return d.writeOverBaseLocked(b, index*BlockSize)
}

// readBaseBlock reads what the base shows in a block into buf, which is
// returned with zeros behind the base's bytes.
func (d *Draft) readBaseBlock(index int64, buf []byte) ([]byte, error) {
	n, err := d.store.readBlock(d.baseHash(index), buf)
	if err != nil {
		return nil, err
	}
	shown := min(int64(n), d.baseLimit-index*BlockSize)
	clear(buf[shown:])
	return buf, nil
}

// writeOverBaseLocked writes all bytes of a block that has base bytes under
// it and is clean. It does so in one pwrite, so that what a crash leaves
// undone is a hole, not the zeros of a block half merged.
func (d *Draft) writeOverBaseLocked(b []byte, off int64) error {
	if _, err := d.pwrite(b, off); err != nil {
		// The block stays clean; a restart must not take the part that was
		// written for acknowledged bytes. Best effort: the write failed anyway.
		punch(d.f, off, int64(len(b))) //nolint:errcheck // best effort: the write failed anyway
		d.f.Truncate(d.size)           //nolint:errcheck // best effort: the write failed anyway
		return err
	}
	d.dirtyLocked(off / BlockSize)
	return nil
}

func (d *Draft) pwrite(p []byte, off int64) (int, error) {
	if err := d.store.failing("write"); err != nil {
		return 0, err
	}
	return d.f.WriteAt(p, off)
}

// grownLocked notes that the draft file reaches up to end at least.
func (d *Draft) grownLocked(end int64) {
	if end <= d.size {
		return
	}
	// A short last block gets longer, and with it its hash another.
	if b := d.blocks[d.size/BlockSize]; b != nil {
		b.changed = true
	}
	d.size = end
}
