package content

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Writing says how somebody who opened a file may write it.
type Writing int

const (
	// WritesAnywhere is by a mapping too, without a word.
	WritesAnywhere Writing = iota
	// WritesByCall is who may not read, and so cannot map.
	WritesByCall
	// WritesAtEnd is WritesByCall, at the end alone.
	WritesAtEnd
)

// AdoptDraft makes a draft of a file that kernels have: f is open on it, and
// link names the immutable file that it is, nil if it is none any more. To write
// behind what an immutable file holds disturbs nobody: its blocks have a place
// and a length. Before anything else is written it gets a copy in its place,
// which is durable then.
func (s *Store) AdoptDraft(name string, f *os.File, link *FileID) (*DirectDraft, error) {
	d, err := s.adoptDraft(name, f, link)
	if err != nil {
		return nil, fmt.Errorf("adopt draft %q: %w", name, err)
	}
	return d, nil
}

func (s *Store) adoptDraft(name string, f *os.File, link *FileID) (*DirectDraft, error) {
	if err := checkDraftName(name); err != nil {
		return nil, err
	}
	// If it has the name already, that may be the only one by which the next
	// daemon would find it: never to be taken away, not for a moment.
	d, err := s.openSame(name, f)
	if err != nil && link != nil {
		err = os.Remove(s.draftPath(name))
		if err == nil || errors.Is(err, os.ErrNotExist) {
			err = os.Link(s.filePath(*link), s.draftPath(name))
		}
		if err == nil {
			d, err = s.openSame(name, f)
		}
	}
	if err != nil {
		return nil, err
	}
	if d.link = link; link != nil {
		d.below = fileSize(f)
	}
	return d, nil
}

// openSame opens a direct draft, if it is the file that f is open on.
func (s *Store) openSame(name string, f *os.File) (*DirectDraft, error) {
	d, err := s.openDirect(name)
	if err != nil {
		return nil, err
	}
	if same, err := sameFile(d.f, f); err != nil || !same {
		return nil, errors.Join(errors.New("it is another file"), err, d.f.Close())
	}
	return d, nil
}

func sameFile(a, b *os.File) (bool, error) {
	sa, err := a.Stat()
	if err != nil {
		return false, err
	}
	sb, err := b.Stat()
	return err == nil && os.SameFile(sa, sb), err
}

// ownLocked gives the immutable file that shares the draft's inode a copy of its
// own.
func (d *DirectDraft) ownLocked() error {
	if d.link == nil {
		return nil
	}
	copied, err := (&Draft{store: d.store, name: d.name, f: d.f, size: d.below}).copyFile()
	if err != nil {
		return fmt.Errorf("copy immutable file: %w", err)
	}
	defer copied.Close()
	before, err := d.sign()
	if err != nil {
		return errors.Join(err, os.Remove(copied.Name()))
	}
	to := d.store.filePath(*d.link)
	if err := errors.Join(copied.Sync(), os.Rename(copied.Name(), to)); err != nil {
		return errors.Join(err, os.Remove(copied.Name()))
	}
	if err := d.store.syncPath("sync directory", filepath.Dir(to)); err != nil {
		return err
	}
	d.store.files.forget(*d.link)
	d.link, d.below = nil, 0
	after, err := d.sign() // of one name less
	for _, s := range []*signature{&d.clean, &d.taken, &d.seen.as} {
		if *s == before {
			*s = after
		}
	}
	return err
}

func fileSize(f *os.File) int64 {
	st, err := f.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}

// Writer says that somebody is about to write. It returns true if he has to do
// so by WriteAt: so it stays known which blocks are as they were, and that an
// immutable file is only written behind its end. What is published of one that
// is written past us is read whole each time.
func (d *DirectDraft) Writer(w Writing) (byUs bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.grows = w == WritesAtEnd && (d.grows || !d.wrote)
	d.wrote = true
	if w == WritesAnywhere {
		d.seen = tracked{}
	}
	if d.seen.base != nil {
		return true, nil
	}
	return false, d.ownLocked()
}

// tracked is what is known of the blocks of a file that only we write.
type tracked struct {
	base    *Manifest          // what it held at some time; nil: nothing is known
	changed map[int64]struct{} // blocks written since
	as      signature          // after the last write of ours
}

// Track says that the file holds what m describes.
func (d *DirectDraft) Track(m *Manifest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, err := d.sign()
	if err == nil && s.size == m.size {
		d.seen = tracked{base: m, changed: map[int64]struct{}{}, as: s}
	}
	return err
}

// trackLocked runs do, which changes what is between off and end.
func (d *DirectDraft) trackLocked(off, end int64, do func() error) error {
	if d.seen.base != nil {
		if s, err := d.sign(); err != nil || s != d.seen.as { // somebody else has written
			d.seen = tracked{}
		}
	}
	err := do()
	if d.seen.base == nil {
		return err
	}
	s, serr := d.sign()
	if err != nil || serr != nil { // it may be done by half
		d.seen = tracked{}
		return err
	}
	d.seen.as = s
	for index := off / BlockSize; index*BlockSize < min(end, s.size); index++ {
		d.seen.changed[index] = struct{}{}
	}
	return nil
}

// take begins a publication of what the file is now: the blocks that change from
// here on are the next one's.
func (d *DirectDraft) take() (as signature, blocks tracked, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if as, err = d.sign(); err != nil || as != d.seen.as {
		d.seen = tracked{}
	}
	blocks = d.seen
	if blocks.base != nil {
		d.seen.changed = map[int64]struct{}{}
	}
	return as, blocks, err
}

// giveBack takes over the blocks of a publication that failed.
func (t *tracked) giveBack(taken tracked) {
	if t.base != nil {
		maps.Copy(t.changed, taken.changed)
	}
}

// applyTo spares a draft of the same file hashing what is as it was.
func (t *tracked) applyTo(d *Draft) {
	if t.base == nil {
		return
	}
	for index, h := range t.base.Blocks() {
		_, changed := t.changed[index]
		if b := d.blocks[index]; b != nil && !changed && t.base.BlockLength(index) == blockLength(d.size, index) {
			b.hash, b.changed = h, false
		}
	}
}

// faultAgain has the next store to each page of a mapping change the file's
// times: as long as a page is dirty, stores to it go unnoticed.
func (d *DirectDraft) faultAgain() error {
	const flags = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE
	return unix.SyncFileRange(int(d.f.Fd()), 0, 0, flags)
}

// Base is the content that the draft was begun from, as far as it is kept in
// mind; nil if it is not. See [DirectDraft.Track].
func (d *DirectDraft) Base() *Manifest {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.seen.base
}
