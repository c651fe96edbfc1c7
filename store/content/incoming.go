package content

import (
	"fmt"
	"os"
	"sync"

	"github.com/synapsefs/synapsefs/store/crdt"
	"github.com/zeebo/blake3"
)

// An Incoming collects blocks, from a peer or of a draft, in one new immutable
// file. It keeps none of their bytes in memory and is safe for concurrent use.
// It ends with Commit or Abort.
type Incoming struct {
	// Fixed by NewIncoming.
	store *Store
	id    FileID

	mu      sync.Mutex // guards what follows
	f       *os.File   // nil after the end and, before the first block, if never made
	size    int64
	entries []IndexEntry
	known   map[crdt.Hash]struct{}
	placed  bool // the file is in place, though the index may not know all of it
	ended   bool
}

// NewIncoming starts a new immutable file.
func (s *Store) NewIncoming() (*Incoming, error) {
	if err := s.failing("create"); err != nil {
		return nil, fmt.Errorf("create incoming file: %w", err)
	}
	in := &Incoming{store: s, id: newFileID(), known: make(map[crdt.Hash]struct{})}
	f, err := os.OpenFile(in.path(), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create incoming file: %w", err)
	}
	in.f = f
	return in, nil
}

func (in *Incoming) path() string { return in.store.tmpPath(in.id.String()) }

// Put verifies a block from a peer and appends it. A block whose bytes do not
// have the hash is [ErrCorrupt] and nothing of it is used. A block that was
// put before is left out.
func (in *Incoming) Put(h crdt.Hash, block []byte) error {
	if len(block) == 0 || len(block) > BlockSize {
		return fmt.Errorf("put block %x of %d bytes: %w", h[:], len(block), ErrCorrupt)
	}
	if blake3.Sum256(block) != h {
		return fmt.Errorf("put block %x: %w", h[:], ErrCorrupt)
	}
	return in.append(h, block)
}

// append appends a block that has hash h.
func (in *Incoming) append(h crdt.Hash, block []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.ended || in.placed {
		return fmt.Errorf("put block %x: %w", h[:], ErrClosed)
	}
	if _, ok := in.known[h]; ok {
		return nil
	}
	// What a failed write left is overwritten by the next block.
	err := in.store.failing("write")
	if err == nil {
		_, err = in.f.WriteAt(block, in.size)
	}
	if err != nil {
		return fmt.Errorf("put block %x: %w", h[:], err)
	}
	in.known[h] = struct{}{}
	in.entries = append(in.entries, IndexEntry{h, Location{in.id, in.size, int32(len(block))}})
	in.size += int64(len(block))
	return nil
}

// Commit puts the file in place, durably, and then its blocks into the index.
// If it fails it may be tried again. An Incoming without blocks leaves nothing
// behind.
func (in *Incoming) Commit() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.ended {
		return fmt.Errorf("commit incoming file %s: %w", in.id, ErrClosed)
	}
	if len(in.entries) == 0 {
		in.endLocked()
		return nil
	}
	if err := in.commitLocked(); err != nil {
		return fmt.Errorf("commit incoming file %s: %w", in.id, err)
	}
	in.endLocked()
	return nil
}

func (in *Incoming) commitLocked() error {
	if !in.placed {
		if err := in.f.Truncate(in.size); err != nil { // drops the rest of a failed write
			return err
		}
		if err := in.store.place(os.Rename, in.path(), in.id); err != nil {
			return err
		}
		in.placed = true
	}
	if err := in.store.putBlocks(in.entries); err != nil {
		return fmt.Errorf("index its blocks: %w", err)
	}
	return nil
}

// Abort drops the file. After a Commit, even one that failed once the file was
// in place, it removes nothing.
func (in *Incoming) Abort() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.endLocked()
}

func (in *Incoming) endLocked() {
	if in.ended {
		return
	}
	in.ended = true
	in.f.Close()
	if !in.placed {
		os.Remove(in.path()) // if that fails, Open does it
	}
}
