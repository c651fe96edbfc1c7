package content

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// maxOpenFiles bounds the descriptors kept open for reading immutable files.
const maxOpenFiles = 128

// A Store holds the content of one replica. It is safe for concurrent use.
type Store struct {
	// Fixed by Open.
	dir   string
	index Index
	files *fileCache
	slots *slots
	helds *helds
	fault func(op string) error // nil but in tests: fails operations by name

	placed placed
}

// Open opens the content in dir, which is made if it does not exist, and
// removes what a crash left in its tmp directory. One process at a time may
// have dir open. The file system must report holes (SEEK_HOLE), as drafts
// depend on it.
func Open(dir string, index Index) (*Store, error) {
	s := &Store{dir: dir, index: index, placed: placed{pending: map[FileID]struct{}{}, lately: map[FileID]struct{}{}}}
	s.files = newFileCache(maxOpenFiles, s.filePath)
	if err := os.RemoveAll(s.tmpPath("")); err != nil {
		return nil, fmt.Errorf("clear temporary content: %w", err)
	}
	for _, d := range []string{"files", "drafts", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("make content directory: %w", err)
		}
	}
	if err := s.probeHoles(); err != nil {
		return nil, fmt.Errorf("open content: %w", err)
	}
	var err error
	if s.slots, err = openSlots(slotsPath(dir)); err != nil {
		return nil, fmt.Errorf("open content: %w", err)
	}
	if s.helds, err = openHelds(filepath.Join(dir, "held")); err != nil {
		s.slots.f.Close()
		return nil, fmt.Errorf("open content: %w", err)
	}
	return s, nil
}

// Close closes the descriptors that are kept open. Drafts must be closed before.
func (s *Store) Close() error {
	return errors.Join(s.files.close(), s.slots.f.Close(), s.helds.f.Close())
}

func (s *Store) filePath(id FileID) string {
	name := id.String()
	return filepath.Join(s.dir, "files", name[:2], name)
}

func (s *Store) draftPath(name string) string { return filepath.Join(s.dir, "drafts", name) }

func (s *Store) tmpPath(name string) string { return filepath.Join(s.dir, "tmp", name) }

// probeHoles fails if the file system does not tell holes from data at the
// granularity of memory pages.
func (s *Store) probeHoles() error {
	f, err := os.OpenFile(s.tmpPath("probe"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	const at = 1 << 19
	if _, err := f.WriteAt([]byte{1}, at); err != nil {
		return err
	}
	if err := f.Truncate(BlockSize); err != nil {
		return err
	}
	start, end, err := nextData(f, 0, BlockSize)
	if err != nil {
		return err
	}
	if page := int64(os.Getpagesize()); start < at-page || end > at+page {
		return fmt.Errorf("file system of %s does not report holes: %w", s.dir, unix.EOPNOTSUPP)
	}
	return nil
}

// ReadAt reads from the file that m describes, as io.ReaderAt does. Holes read
// as zeros. A block that this replica does not have is a [MissingBlockError].
// Bytes are not verified against their hash; see [Store.Block].
func (s *Store) ReadAt(m *Manifest, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read content at %d: %w", off, unix.EINVAL)
	}
	if off >= m.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > m.size-off {
		p, eof = p[:m.size-off], io.EOF
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		step := min(len(p)-n, int(BlockSize-at%BlockSize))
		if err := s.readInBlock(m.Block(at/BlockSize), p[n:n+step], at%BlockSize); err != nil {
			return n, err
		}
		n += step
	}
	return len(p), eof
}

// readInBlock fills p from offset off of a block.
func (s *Store) readInBlock(h crdt.Hash, p []byte, off int64) error {
	if h == (crdt.Hash{}) {
		clear(p)
		return nil
	}
	loc, err := s.locate(h)
	if err != nil {
		return fmt.Errorf("read block: %w", err)
	}
	if off+int64(len(p)) > int64(loc.Length) {
		return fmt.Errorf("read block %x: %d bytes long: %w", h[:], loc.Length, io.ErrUnexpectedEOF)
	}
	if err := s.files.readAt(loc.File, p, loc.Offset+off); err != nil {
		return fmt.Errorf("read block %x: %w", h[:], err)
	}
	return nil
}

// locate returns where a block is, or a MissingBlockError.
func (s *Store) locate(h crdt.Hash) (Location, error) {
	loc, ok, err := s.index.Block(h)
	if err == nil && !ok {
		err = &MissingBlockError{h}
	}
	return loc, err
}

// Block reads one block, for a peer, and verifies it. Bytes that rotted on
// this disk are [ErrCorrupt].
func (s *Store) Block(h crdt.Hash) ([]byte, error) {
	b := make([]byte, BlockSize)
	n, err := s.readBlock(h, b)
	if err != nil {
		return nil, err
	}
	return b[:n:n], nil
}

// readBlock reads one block into buf, which holds BlockSize bytes, verifies it
// and returns its length.
func (s *Store) readBlock(h crdt.Hash, buf []byte) (int, error) {
	loc, err := s.locate(h)
	if err != nil {
		return 0, fmt.Errorf("read block: %w", err)
	}
	if loc.Length <= 0 || loc.Length > BlockSize {
		return 0, fmt.Errorf("read block %x: indexed as %d bytes: %w", h[:], loc.Length, ErrCorrupt)
	}
	b := buf[:loc.Length]
	if err := s.files.readAt(loc.File, b, loc.Offset); err != nil {
		return 0, fmt.Errorf("read block %x: %w", h[:], err)
	}
	if blake3.Sum256(b) != h {
		return 0, fmt.Errorf("read block %x from file %s: %w", h[:], loc.File, ErrCorrupt)
	}
	return len(b), nil
}

// Missing returns the hashes of m's blocks that this replica does not have,
// each once, in the order of the file.
func (s *Store) Missing(m *Manifest) ([]crdt.Hash, error) {
	var missing []crdt.Hash
	seen := make(map[crdt.Hash]struct{})
	for _, h := range m.Blocks() {
		if _, ok := seen[h]; ok {
			continue
		}
		seen[h] = struct{}{}
		_, ok, err := s.index.Block(h)
		if err != nil {
			return nil, fmt.Errorf("look up block %x: %w", h[:], err)
		}
		if !ok {
			missing = append(missing, h)
		}
	}
	return missing, nil
}

// Manifest returns the manifest with the given hash; false if this replica
// does not have it.
func (s *Store) Manifest(h crdt.Hash) (*Manifest, bool, error) {
	b, ok, err := s.index.Manifest(h)
	if err != nil || !ok {
		return nil, false, err
	}
	m, err := DecodeManifest(b)
	if err != nil {
		return nil, false, fmt.Errorf("read manifest %x: %w", h[:], err)
	}
	return m, true, nil
}

// ChangedSince reports whether an immutable file has changed since, in whatever
// way: been made, got longer, or lost a name.
func (s *Store) ChangedSince(id FileID, since time.Time) (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(s.filePath(id), &st); err != nil {
		return false, fmt.Errorf("stat immutable file %s: %w", id, err)
	}
	return !time.Unix(st.Ctim.Unix()).Before(since), nil
}

// syncPath makes one file or directory durable.
func (s *Store) syncPath(op, path string) error {
	if err := s.failing(op); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// place gives the file at path the name of a new immutable file, with link or
// rename. It is durable when place returns: what names it may reach the disk
// at any time after, and a power loss must not leave the name without the bytes.
func (s *Store) place(move func(from, to string) error, path string, id FileID) error {
	if err := s.failing("place"); err != nil {
		return err
	}
	to := s.filePath(id)
	dir := filepath.Dir(to)
	if _, err := os.Lstat(to); err == nil {
		return s.syncPath("sync directory", dir) // moved by a call that failed after
	}
	if err := s.syncPath("sync", path); err != nil {
		return err
	}
	s.placed.mu.Lock()
	s.placed.pending[id] = struct{}{}
	s.placed.mu.Unlock()
	err := move(path, to)
	if errors.Is(err, unix.ENOENT) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := s.syncPath("sync directory", filepath.Dir(dir)); err != nil {
			return err
		}
		err = move(path, to)
	}
	if err != nil {
		return err
	}
	return s.syncPath("sync directory", dir)
}

// failing returns the error that a test wants operation op to have.
func (s *Store) failing(op string) error {
	if s.fault == nil {
		return nil
	}
	return s.fault(op)
}

func newFileID() (id FileID) {
	rand.Read(id[:]) // never fails
	return id
}
