package content

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// SmallLimit is the largest size in bytes of a [SmallDraft].
const SmallLimit = 64 << 10

const (
	slotHeader = 4096 // one page: written by one call, it is never torn
	slotSize   = slotHeader + SmallLimit
	slotMagic  = 0x53794466536c6f74
	maxSlots   = 1024 // beyond that drafts are files of their own
)

// slots keeps small drafts in one file: making a file for each would cost more
// than everything else that a small write does. A slot is a header (magic,
// size, length of the name, name, closing mark) and the bytes; a header of zeros
// is free.
type slots struct {
	f *os.File

	mu   sync.Mutex // guards what follows
	free []int
	n    int            // slots in the file
	used map[string]int // by draft name
}

func openSlots(path string) (*slots, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	s := &slots{f: f, used: map[string]int{}}
	if err := s.load(); err != nil {
		f.Close()
		return nil, fmt.Errorf("read small drafts: %w", err)
	}
	return s, nil
}

func (s *slots) load() error {
	st, err := s.f.Stat()
	if err != nil {
		return err
	}
	s.n = int((st.Size() + slotSize - 1) / slotSize)
	for n := range s.n {
		name, _, _, err := s.header(n)
		if err != nil {
			return err
		}
		if name == "" {
			s.free = append(s.free, n)
		} else {
			s.used[name] = n
		}
	}
	return nil
}

// header returns the name, size and closing mark in a slot; no name if it is free.
func (s *slots) header(n int) (name string, size int, closed *crdt.Time, err error) {
	b := make([]byte, slotHeader)
	if _, err := s.f.ReadAt(b, int64(n)*slotSize); err != nil && err != io.EOF {
		return "", 0, nil, err
	}
	size, length := int(binary.BigEndian.Uint32(b[8:])), int(b[12])
	if binary.BigEndian.Uint64(b) != slotMagic || size > SmallLimit {
		return "", 0, nil, nil
	}
	if m := b[slotMark:]; m[0] == 1 {
		closed = &crdt.Time{Sec: int64(binary.BigEndian.Uint64(m[1:])), Nsec: binary.BigEndian.Uint32(m[9:])}
	}
	return string(b[13 : 13+length]), size, closed, nil
}

const slotMark = 13 + 255 // where a header's closing mark is

func (s *slots) putHeader(n int, name string, size int, closed *crdt.Time) error {
	b := make([]byte, slotMark+13)
	if name != "" {
		binary.BigEndian.PutUint64(b, slotMagic)
		binary.BigEndian.PutUint32(b[8:], uint32(size))
		b[12] = byte(len(name))
		copy(b[13:], name)
	}
	if m := b[slotMark:]; closed != nil {
		m[0] = 1
		binary.BigEndian.PutUint64(m[1:], uint64(closed.Sec))
		binary.BigEndian.PutUint32(m[9:], closed.Nsec)
	}
	_, err := s.f.WriteAt(b, int64(n)*slotSize)
	return err
}

// take returns a slot for the name; ok is false if there is none left.
func (s *slots) take(name string) (n int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := s.used[name]; ok { // left over: its bytes are worth nothing
		return n, true
	}
	switch last := len(s.free) - 1; {
	case last >= 0:
		n, s.free = s.free[last], s.free[:last]
	case s.n < maxSlots:
		n = s.n
		s.n++
	default:
		return 0, false
	}
	s.used[name] = n
	return n, true
}

// drop frees the slot of a name, if it has one.
func (s *slots) drop(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.used[name]
	if !ok {
		return nil
	}
	if err := s.putHeader(n, "", 0, nil); err != nil {
		return err
	}
	delete(s.used, name)
	s.free = append(s.free, n)
	return nil
}

// A SmallDraft is a draft of at most SmallLimit bytes without a base. It
// promises what [Draft] promises, but for growing: see [SmallDraft.Grow].
type SmallDraft struct {
	store *Store
	name  string
	slot  int

	mu     sync.RWMutex // guards what follows
	bytes  []byte
	closed *crdt.Time // see MarkClosed
	synced bool       // some of it is known to be on the disk
	done   bool
}

// CreateSmallDraft makes a small draft holding the given bytes. ok is false if
// too many are open: the caller then makes a [Draft].
func (s *Store) CreateSmallDraft(name string, bytes []byte) (d *SmallDraft, ok bool, err error) {
	if err := checkDraftName(name); err != nil || len(bytes) > SmallLimit {
		return nil, false, err
	}
	n, ok := s.slots.take(name)
	if !ok {
		return nil, false, nil
	}
	d = &SmallDraft{store: s, name: name, slot: n, bytes: append([]byte(nil), bytes...)}
	if err := d.save(0, d.bytes); err != nil {
		return nil, false, fmt.Errorf("create draft %q: %w", name, errors.Join(err, s.slots.drop(name)))
	}
	return d, true, nil
}

// OpenSmallDraft opens a small draft after a restart; ok is false if there is
// none of that name.
func (s *Store) OpenSmallDraft(name string) (d *SmallDraft, ok bool, err error) {
	s.slots.mu.Lock()
	n, ok := s.slots.used[name]
	s.slots.mu.Unlock()
	if !ok {
		return nil, false, nil
	}
	_, size, closed, err := s.slots.header(n)
	if err != nil {
		return nil, false, fmt.Errorf("open draft %q: %w", name, err)
	}
	d = &SmallDraft{store: s, name: name, slot: n, bytes: make([]byte, size), closed: closed}
	if _, err := s.slots.f.ReadAt(d.bytes, int64(n)*slotSize+slotHeader); err != nil && err != io.EOF {
		return nil, false, fmt.Errorf("open draft %q: %w", name, err)
	}
	return d, true, nil
}

// save writes changed bytes to the slot, then the header. mu is held.
func (d *SmallDraft) save(off int, p []byte) error {
	if err := d.store.failing("write"); err != nil {
		return err
	}
	if len(p) > 0 {
		if _, err := d.store.slots.f.WriteAt(p, int64(d.slot)*slotSize+slotHeader+int64(off)); err != nil {
			return err
		}
	}
	d.closed = nil
	return d.store.slots.putHeader(d.slot, d.name, len(d.bytes), nil)
}

// MarkClosed records that the draft was closed after its last write, with the
// mtime it has. The next write takes the mark back.
func (d *SmallDraft) MarkClosed(mtime crdt.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done || d.closed != nil && *d.closed == mtime {
		return nil
	}
	if err := d.store.slots.putHeader(d.slot, d.name, len(d.bytes), &mtime); err != nil {
		return fmt.Errorf("close draft %q: %w", d.name, err)
	}
	d.closed = &mtime
	return nil
}

// Closed returns the mark of MarkClosed, nil if it is not set.
func (d *SmallDraft) Closed() *crdt.Time {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.closed
}

// Grow returns a draft without bound that holds the same bytes, and ends this one.
func (d *SmallDraft) Grow() (*Draft, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	size := int64(len(d.bytes))
	big, err := d.store.CreateDraft(d.name, Base{Inline: d.bytes}, size, size)
	if err != nil {
		return nil, err
	}
	if d.synced {
		err = big.Sync() // before the slot goes
	}
	if err := errors.Join(err, d.store.slots.drop(d.name)); err != nil {
		return nil, errors.Join(err, big.Close())
	}
	d.done = true
	return big, nil
}

// ReadAt reads from the draft, as io.ReaderAt does.
func (d *SmallDraft) ReadAt(p []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	switch {
	case d.done:
		return 0, ErrClosed
	case off < 0:
		return 0, unix.EINVAL
	case off >= int64(len(d.bytes)):
		return 0, io.EOF
	}
	n := copy(p, d.bytes[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes to the draft. The end must be at most SmallLimit.
func (d *SmallDraft) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done {
		return 0, ErrClosed
	}
	if off < 0 || off+int64(len(p)) > SmallLimit {
		return 0, unix.EFBIG
	}
	if len(p) == 0 {
		return 0, nil // makes no file longer
	}
	from := int(off)
	if gap := from - len(d.bytes); gap > 0 {
		from = len(d.bytes) // the slot may hold old bytes there
		d.bytes = append(d.bytes, make([]byte, gap)...)
	}
	end := int(off) + len(p)
	if end > len(d.bytes) {
		d.bytes = append(d.bytes, make([]byte, end-len(d.bytes))...)
	}
	copy(d.bytes[off:], p)
	if err := d.save(from, d.bytes[from:end]); err != nil {
		return 0, fmt.Errorf("write draft %q at %d: %w", d.name, off, err)
	}
	return len(p), nil
}

// Truncate sets the size in bytes, at most SmallLimit.
func (d *SmallDraft) Truncate(size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done {
		return ErrClosed
	}
	if size < 0 || size > SmallLimit {
		return unix.EFBIG
	}
	from := len(d.bytes)
	if int(size) <= from {
		d.bytes = d.bytes[:size]
		from = int(size)
	} else {
		d.bytes = append(d.bytes, make([]byte, int(size)-from)...)
	}
	if err := d.save(from, d.bytes[from:]); err != nil {
		return fmt.Errorf("truncate draft %q to %d: %w", d.name, size, err)
	}
	return nil
}

// Size returns the draft's size in bytes.
func (d *SmallDraft) Size() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return int64(len(d.bytes))
}

// Allocated is what the draft takes as a file, in bytes.
func (d *SmallDraft) Allocated() (int64, error) { return d.Size(), nil }

// GiveBack does nothing: a small draft has no more than its bytes.
func (d *SmallDraft) GiveBack() error { return nil }

// BaseLimit is 0: there is no base.
func (d *SmallDraft) BaseLimit() int64 { return 0 }

// Extent is that of a file without holes.
func (d *SmallDraft) Extent(off int64) (ExtentKind, int64, error) {
	if size := d.Size(); off >= 0 && off < size {
		return Data, size, nil
	}
	return Hole, off, nil
}

// Sync makes the draft durable, and all small ones with it.
func (d *SmallDraft) Sync() error {
	if err := d.store.failing("sync"); err != nil {
		return err
	}
	if err := d.store.slots.f.Sync(); err != nil {
		return fmt.Errorf("sync draft %q: %w", d.name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.synced = true
	return nil
}

// Close ends the use of the draft and leaves its bytes for OpenSmallDraft.
func (d *SmallDraft) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.done = true
	return nil
}

// Remove closes the draft and forgets its bytes.
func (d *SmallDraft) Remove() error {
	if err := errors.Join(d.Close(), d.store.slots.drop(d.name)); err != nil {
		return fmt.Errorf("remove draft %q: %w", d.name, err)
	}
	return nil
}

// Publish returns the bytes; the draft goes on until Remove, final or not.
func (d *SmallDraft) Publish(_ bool, inlineLimit int) (Published, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.done {
		return Published{}, ErrClosed
	}
	if len(d.bytes) > inlineLimit {
		return Published{}, fmt.Errorf("publish draft %q: %d bytes: %w", d.name, len(d.bytes), unix.EFBIG)
	}
	b := append([]byte{}, d.bytes...)
	return Published{Size: int64(len(b)), Hash: crdt.Hash(blake3.Sum256(b)), Inline: b}, nil
}

func slotsPath(dir string) string { return filepath.Join(dir, "drafts.small") }
