package content

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/synapsefs/synapsefs/store/crdt"
	"golang.org/x/sys/unix"
)

// A Base is the content a draft starts from: bytes, a manifest, or nothing.
type Base struct {
	Inline   []byte
	Manifest *Manifest
}

// A Draft is the bytes of a file while somebody writes it, over an optional
// base. Written bytes are in the kernel's page cache when a method returns,
// so killing the process loses none; [Draft.Sync] makes them durable.
//
// It is safe for concurrent use: reads run side by side, and everything that
// changes the draft runs alone. A Publish that is not final lets both in
// between blocks.
type Draft struct {
	// Fixed by CreateDraft and OpenDraft.
	store *Store
	name  string
	base  *Manifest // nil if nothing lies below

	publishing sync.Mutex // held through Publish; taken before mu

	mu        sync.RWMutex // guards what follows
	f         *os.File     // nil once closed
	size      int64        // bytes; that of f too
	baseLimit int64        // bytes; at most size and the base's size
	blocks    map[int64]*draftBlock
	link      *FileID // the immutable file that shares f's inode, if any
	dirSynced bool    // the draft's name is durable
}

// A draftBlock is a dirty block: the draft file holds all of its bytes.
type draftBlock struct {
	changed bool      // since its hash was taken
	hash    crdt.Hash // if not changed; zero for a hole
}

// CreateDraft makes a draft of size bytes, replacing a left-over one of that
// name. The base shows below baseLimit, which is clipped to the sizes of base
// and draft; see [Draft.BaseLimit]. Inline bytes are copied, so that the
// draft's base is nothing afterwards. The caller should record the draft only
// after CreateDraft returned.
func (s *Store) CreateDraft(name string, base Base, baseLimit, size int64) (*Draft, error) {
	d, err := s.createDraft(name, base, baseLimit, size)
	if err != nil {
		return nil, fmt.Errorf("create draft %q: %w", name, err)
	}
	return d, nil
}

func (s *Store) createDraft(name string, base Base, baseLimit, size int64) (*Draft, error) {
	if err := checkDraftName(name); err != nil {
		return nil, err
	}
	if size < 0 || baseLimit < 0 {
		return nil, fmt.Errorf("size %d, base limit %d: %w", size, baseLimit, unix.EINVAL)
	}
	// Never reuse a left-over file: it may share its inode with an immutable one.
	if err := os.Remove(s.draftPath(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(s.draftPath(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	d := s.newDraft(name, base, f, baseLimit, size)
	inline := base.Inline[:min(int64(len(base.Inline)), baseLimit, size)]
	if err := d.fill(inline); err != nil {
		f.Close()
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	return d, nil
}

// newDraft makes a draft without dirty blocks.
func (s *Store) newDraft(name string, base Base, f *os.File, baseLimit, size int64) *Draft {
	d := &Draft{
		store:  s,
		name:   name,
		base:   base.Manifest,
		f:      f,
		size:   size,
		blocks: make(map[int64]*draftBlock),
	}
	if d.base != nil {
		d.baseLimit = min(baseLimit, d.base.size, size)
	}
	return d
}

// fill gives a new draft file its size and first bytes.
func (d *Draft) fill(inline []byte) error {
	if err := d.f.Truncate(d.size); err != nil {
		return err
	}
	for off := int64(0); off < int64(len(inline)); off += BlockSize {
		if _, err := d.writeBlockLocked(inline[off:min(off+BlockSize, int64(len(inline)))], off); err != nil {
			return err
		}
	}
	return nil
}

// checkDraftName refuses names that would lead out of the drafts directory.
func checkDraftName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("name of draft: %w", unix.EINVAL)
	}
	return nil
}

// Drafts returns the names of all drafts on disk, in order.
func (s *Store) Drafts() ([]string, error) {
	entries, err := os.ReadDir(s.draftPath(""))
	if err != nil {
		return nil, fmt.Errorf("list drafts: %w", err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// RemoveDraft removes a draft that is not open. It is no error if there is none.
func (s *Store) RemoveDraft(name string) error {
	err := checkDraftName(name)
	if err == nil {
		err = os.Remove(s.draftPath(name))
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove draft %q: %w", name, err)
	}
	return nil
}

// Size returns the draft's size in bytes.
func (d *Draft) Size() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.size
}

// Allocated returns how many bytes of disk the file takes: what was written,
// what is reserved, and what shows of the base.
func (d *Draft) Allocated() (int64, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.f == nil {
		return 0, ErrClosed
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(d.f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("blocks of draft %q: %w", d.name, err)
	}
	n := st.Blocks * 512
	if d.base != nil {
		for index := range d.base.Blocks() {
			if index*BlockSize >= d.baseLimit {
				break
			}
			if d.blocks[index] == nil {
				n += min(int64(d.base.BlockLength(index)), d.baseLimit-index*BlockSize)
			}
		}
	}
	return n, nil
}

// BaseLimit returns the offset in bytes below which the base shows: the
// smallest size the draft ever had, at most the base's. It only falls, and
// only in Truncate. The caller must have recorded it before it lets the draft
// grow again, and hand it to [Store.OpenDraft] after a restart.
func (d *Draft) BaseLimit() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.baseLimit
}

// Sync makes the draft's bytes and its name durable. Writers wait meanwhile;
// readers do not.
func (d *Draft) Sync() error {
	d.mu.RLock()
	f, named := d.f, d.dirSynced
	err := d.syncFile()
	d.mu.RUnlock()
	if err == nil && !named {
		err = d.store.syncPath("sync directory", d.store.draftPath(""))
	}
	if err != nil {
		return fmt.Errorf("sync draft %q: %w", d.name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dirSynced = d.dirSynced || d.f == f // else the file was replaced meanwhile
	return nil
}

// syncFile syncs the draft file; mu is held for reading.
func (d *Draft) syncFile() error {
	if d.f == nil {
		return ErrClosed
	}
	if err := d.store.failing("sync"); err != nil {
		return err
	}
	return d.f.Sync()
}

// Close closes the draft and leaves its file for [Store.OpenDraft]. Closing
// twice is no error.
func (d *Draft) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closeLocked()
}

func (d *Draft) closeLocked() error {
	if d.f == nil {
		return nil
	}
	f := d.f
	d.f = nil
	if err := f.Close(); err != nil {
		return fmt.Errorf("close draft %q: %w", d.name, err)
	}
	return nil
}

// Remove closes the draft, if it is open, and removes its file. After a final
// Publish it is called once the publication is recorded.
func (d *Draft) Remove() error {
	return errors.Join(d.Close(), d.store.RemoveDraft(d.name))
}

// baseHash returns the hash of the base's block that shows under block index,
// zero if nothing does. A dirty block may have one too.
func (d *Draft) baseHash(index int64) crdt.Hash {
	if d.base == nil || index*BlockSize >= d.baseLimit {
		return crdt.Hash{}
	}
	return d.base.Block(index)
}

// baseUnder reports whether holes in a block's part of the draft file would
// show the base.
func (d *Draft) baseUnder(index int64) bool { return d.baseHash(index) != crdt.Hash{} }

// baseEnd returns the offset at which the last block with base bytes ends.
func (d *Draft) baseEnd() int64 { return blockCount(d.baseLimit) * BlockSize }

// dirtyLocked marks a block as wholly in the draft file and changed.
func (d *Draft) dirtyLocked(index int64) {
	if b := d.blocks[index]; b != nil {
		b.changed = true
		return
	}
	d.blocks[index] = &draftBlock{changed: true}
}

// beginChangeLocked must be called before the draft file is changed.
func (d *Draft) beginChangeLocked() error {
	if d.f == nil {
		return ErrClosed
	}
	if d.link == nil {
		return nil
	}
	return d.breakLinkLocked()
}
