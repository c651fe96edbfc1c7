package content

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// OpenDraft opens a draft after a restart, with the base it was created with
// and the base limit it last reported. Its size is what was written, whole
// blocks or not; a write that the crash cut short may have left some of its
// bytes. Inline bytes of base are ignored: the draft file has them. If there
// is no such draft the error wraps os.ErrNotExist.
func (s *Store) OpenDraft(name string, base Base, baseLimit int64) (*Draft, error) {
	if err := checkDraftName(name); err != nil {
		return nil, fmt.Errorf("open draft %q: %w", name, err)
	}
	f, err := os.OpenFile(s.draftPath(name), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open draft %q: %w", name, err)
	}
	d := s.newDraft(name, base, f, baseLimit, 0)
	if err := d.reopen(baseLimit); err != nil {
		d.Close() //nolint:errcheck // the first error counts
		return nil, fmt.Errorf("open draft %q: %w", name, err)
	}
	return d, nil
}

// reopen learns a draft's state from its file.
func (d *Draft) reopen(baseLimit int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.f.Fd()), &st); err != nil {
		return err
	}
	d.size = st.Size
	if d.base != nil {
		// A crash may have come between a truncation and its record.
		d.baseLimit = max(0, min(baseLimit, d.base.size, d.size))
	}
	if st.Nlink > 1 {
		if err := d.breakLinkLocked(); err != nil {
			return err
		}
	}
	if err := d.findDirty(); err != nil {
		return err
	}
	for index := range d.blocks {
		if err := d.finishCopyUp(index); err != nil {
			return fmt.Errorf("finish copy of block %d: %w", index, err)
		}
	}
	return nil
}

// findDirty marks every block that has data in the draft file.
func (d *Draft) findDirty() error {
	for off := int64(0); off < d.size; {
		start, end, err := nextData(d.f, off, d.size)
		if err != nil {
			return err
		}
		for index := start / BlockSize; index*BlockSize < end; index++ {
			d.dirtyLocked(index)
		}
		off = end
	}
	return nil
}

// finishCopyUp fills the holes of a dirty block that still show the base.
func (d *Draft) finishCopyUp(index int64) error {
	if !d.baseUnder(index) {
		return nil
	}
	first := index * BlockSize
	limit := min(first+BlockSize, d.baseLimit)
	var block []byte // read when the first hole is found
	for off := first; off < limit; {
		start, end, err := nextData(d.f, off, limit)
		if err != nil {
			return err
		}
		if start > off {
			if block == nil {
				if block, err = d.readBaseBlock(index, make([]byte, BlockSize)); err != nil {
					return err
				}
			}
			if _, err := d.pwrite(block[off-first:start-first], off); err != nil {
				return err
			}
		}
		off = end
	}
	return nil
}

// breakLinkLocked gives the draft a file of its own, with the same data and
// holes, and leaves the old one to the immutable file that shares it.
func (d *Draft) breakLinkLocked() error {
	f, err := d.copyFile()
	if err != nil {
		return fmt.Errorf("copy from immutable file: %w", err)
	}
	if err := errors.Join(f.Sync(), os.Rename(f.Name(), d.store.draftPath(d.name))); err != nil {
		f.Close()
		return errors.Join(err, os.Remove(f.Name()))
	}
	d.f.Close()
	d.f, d.link, d.dirSynced = f, nil, false
	return nil
}

// copyFile copies the draft file, hole by hole, to a temporary file.
func (d *Draft) copyFile() (*os.File, error) {
	f, err := os.OpenFile(d.store.tmpPath(newFileID().String()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := d.copyData(f); err != nil {
		f.Close()
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	return f, nil
}

func (d *Draft) copyData(to *os.File) error {
	if err := to.Truncate(d.size); err != nil {
		return err
	}
	for off := int64(0); off < d.size; {
		start, end, err := nextData(d.f, off, d.size)
		if err != nil {
			return err
		}
		src := io.NewSectionReader(d.f, start, end-start)
		if _, err := io.Copy(io.NewOffsetWriter(to, start), src); err != nil {
			return err
		}
		off = end
	}
	return nil
}
