package store

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// FormatVersion is that of the state directory. A higher one on disk is refused.
const FormatVersion = 1

// Options say how a node's store works. Zero fields mean the default.
type Options struct {
	// Dir is the state directory; it is made if it is missing.
	Dir string
	// Sign signs a batch's digest with the node's key. Nil leaves batches
	// unsigned: peers refuse them.
	Sign func(digest []byte) []byte
	// Now is the wall clock; default time.Now.
	Now func() time.Time
	Log *slog.Logger

	// InlineLimit is the largest file, in bytes, that travels in its op.
	// More means fewer round trips for readers, and longer batches.
	// Default 64 KiB, at most 256 KiB.
	InlineLimit int
	// PublishInterval is how often a file that is held open for in-place
	// change is published. Default 1 s.
	PublishInterval time.Duration
	// Hold is how long an unlink or rename away waits for the name to come
	// back, so that peers see a replacement and no gap. Default 40 ms.
	Hold time.Duration
	// HoldTruncate is how long an overwrite from O_TRUNC waits for its
	// utimensat. Default 5 ms.
	HoldTruncate time.Duration
	// ReserveBytes of free disk are kept: below it, calls that need room
	// fail with ErrNoSpace instead of running the database out of disk.
	// Default 64 MiB.
	ReserveBytes uint64
}

func (o *Options) setDefaults() {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.InlineLimit == 0 {
		o.InlineLimit = 64 << 10
	}
	o.InlineLimit = min(o.InlineLimit, 256<<10)
	if o.PublishInterval == 0 {
		o.PublishInterval = time.Second
	}
	if o.Hold == 0 {
		o.Hold = 40 * time.Millisecond
	}
	if o.HoldTruncate == 0 {
		o.HoldTruncate = 5 * time.Millisecond
	}
	if o.ReserveBytes == 0 {
		o.ReserveBytes = 64 << 20
	}
}

// A DB is one node's store: all volumes it holds, in one Badger database.
type DB struct {
	opts      Options
	kv        kv
	lock      *os.File
	content   *content.Store
	manifests manifestCache
	full      atomic.Bool   // less than ReserveBytes are free
	stop      chan struct{} // closed by Close
	done      sync.WaitGroup
	syncs     syncGroup

	mu      sync.Mutex // guards what follows
	volumes map[VolumeID]*Volume
	closed  bool
}

// bootRecord tells an unclean boot of the machine from a mere restart.
type bootRecord struct {
	BootID string
	Clean  bool
}

// replicaRecord is what is kept of a replica besides its volume's keys.
type replicaRecord struct {
	Name    string
	Replica crdt.ReplicaID
	Ready   bool
}

// Open opens the store in o.Dir, making it if the directory is empty. Errors:
// ErrLocked, ErrNewerFormat, ErrDamaged, or of the file system.
func Open(o Options) (*DB, error) {
	o.setDefaults()
	db := &DB{opts: o, volumes: map[VolumeID]*Volume{}, stop: make(chan struct{})}
	if err := db.open(); err != nil {
		db.release()
		return nil, fmt.Errorf("open state directory %s: %w", o.Dir, err)
	}
	return db, nil
}

func (db *DB) open() error {
	if err := os.MkdirAll(db.opts.Dir, 0o700); err != nil {
		return err
	}
	if err := db.takeLock(); err != nil {
		return err
	}
	if err := db.checkFormat(); err != nil {
		return err
	}
	b, err := openBadger(filepath.Join(db.opts.Dir, "db"), db.opts.Log)
	if err != nil {
		return err
	}
	db.kv = b
	db.syncs.sync = db.syncAll
	if db.content, err = content.Open(filepath.Join(db.opts.Dir, "content"), blockIndex{b}); err != nil {
		return err
	}
	unclean, err := db.checkBoot()
	if err != nil {
		return err
	}
	db.checkSpace()
	db.done.Go(db.watchSpace)
	return db.openVolumes(unclean)
}

// takeLock keeps a second daemon out.
func (db *DB) takeLock() error {
	f, err := os.OpenFile(filepath.Join(db.opts.Dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%w: stop it, or choose another directory", ErrLocked)
		}
		return err
	}
	db.lock = f
	return nil
}

// checkFormat compares the format file, which is written first and outside the
// database, since a newer version may have another database.
func (db *DB) checkFormat() error {
	path := filepath.Join(db.opts.Dir, "format")
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return os.WriteFile(path, []byte(strconv.Itoa(FormatVersion)+"\n"), 0o600)
	}
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return fmt.Errorf("%w: file %s does not hold a number", ErrDamaged, path)
	}
	if n > FormatVersion {
		return fmt.Errorf("%w %d; this version knows %d: run the newer synapsefs", ErrNewerFormat, n, FormatVersion)
	}
	return nil
}

// checkBoot reports whether the machine went down under the running daemon
// since the last clean stop: ops may then have left that are lost here.
func (db *DB) checkBoot() (unclean bool, err error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return false, err
	}
	now := strings.TrimSpace(string(raw))
	err = db.kv.update(func(t txn) error {
		b, err := t.get(keyBoot)
		if err != nil {
			return err
		}
		if b != nil {
			var was bootRecord
			if err := json.Unmarshal(b, &was); err != nil {
				return fmt.Errorf("%w: boot record: %w", ErrDamaged, err)
			}
			unclean = !was.Clean && was.BootID != now
		}
		return putJSON(t, keyBoot, bootRecord{BootID: now})
	})
	return unclean, err
}

func putJSON(t txn, key []byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return t.set(key, b)
}

func (db *DB) openVolumes(unclean bool) error {
	records := map[VolumeID]replicaRecord{}
	if err := db.kv.view(func(t txn) error {
		return t.scan([]byte{'V'}, nil, func(key, value []byte) (bool, error) {
			var r replicaRecord
			if err := json.Unmarshal(value, &r); err != nil || len(key) != 17 {
				return false, fmt.Errorf("%w: replica record %x: %w", ErrDamaged, key, err)
			}
			records[VolumeID(key[1:])] = r
			return true, nil
		})
	}); err != nil {
		return err
	}
	for id, r := range records {
		v, err := openVolume(db, id, r, unclean)
		if err != nil {
			return fmt.Errorf("volume %q: %w", r.Name, err)
		}
		db.volumes[id] = v
	}
	return nil
}

// Close stops all volumes, leaves the mark of a clean stop, and syncs.
func (db *DB) Close() error {
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return nil
	}
	db.closed = true
	volumes := db.sorted()
	db.mu.Unlock()
	var errs []error
	for _, v := range volumes {
		errs = append(errs, v.close())
	}
	errs = append(errs, db.kv.update(func(t txn) error {
		b, err := t.get(keyBoot)
		if err != nil {
			return err
		}
		var r bootRecord
		if err := json.Unmarshal(b, &r); err != nil {
			return err
		}
		r.Clean = true
		return putJSON(t, keyBoot, r)
	}), db.syncAll())
	errs = append(errs, db.release())
	return errors.Join(errs...)
}

func (db *DB) release() error {
	var errs []error
	close(db.stop)
	db.done.Wait()
	if db.content != nil {
		errs = append(errs, db.content.Close())
	}
	if db.kv != nil {
		errs = append(errs, db.kv.close())
	}
	if db.lock != nil {
		errs = append(errs, db.lock.Close())
	}
	return errors.Join(errs...)
}

// Dir is the state directory.
func (db *DB) Dir() string { return db.opts.Dir }

// Content is the node's store of large content.
func (db *DB) Content() *content.Store { return db.content }

// Index is the content store's index, where manifests fetched from a peer are put.
func (db *DB) Index() content.Index { return blockIndex{db.kv} }

// Volumes returns the replicas on this node, by id.
func (db *DB) Volumes() []*Volume {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.sorted()
}

func (db *DB) sorted() []*Volume {
	var out []*Volume
	for _, v := range db.volumes {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b *Volume) int { return bytes.Compare(a.id[:], b.id[:]) })
	return out
}

// Volume returns the replica of a volume, or nil if this node has none.
func (db *DB) Volume(id VolumeID) *Volume {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.volumes[id]
}

// CreateReplica makes an empty replica. It is ready only if the volume itself
// is made by this call; else it must catch up with a ready one first (P11).
func (db *DB) CreateReplica(id VolumeID, name string, ready bool) (*Volume, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return nil, ErrClosed
	}
	if db.volumes[id] != nil {
		return nil, fmt.Errorf("create replica of volume %q: %w", name, crdt.ErrExist)
	}
	r := replicaRecord{Name: name, Replica: newReplicaID(), Ready: ready}
	err := db.kv.update(func(t txn) error {
		if err := putJSON(t, replicaKey(id), r); err != nil {
			return err
		}
		keys := newKeyspace(id)
		return newTree(t, &keys, &sets{}).PutInode(rootInode())
	})
	if err != nil {
		return nil, fmt.Errorf("create replica of volume %q: %w", name, err)
	}
	v, err := openVolume(db, id, r, false)
	if err != nil {
		return nil, fmt.Errorf("create replica of volume %q: %w", name, err)
	}
	db.volumes[id] = v
	return v, nil
}

func rootInode() *crdt.Inode {
	return &crdt.Inode{Ino: crdt.RootIno, Kind: crdt.KindDir, Mode: crdt.Register[uint32]{Value: 0o755}}
}

// DeleteReplica forgets a replica with all its data. Its mounts must be gone.
func (db *DB) DeleteReplica(id VolumeID) error {
	db.mu.Lock()
	v := db.volumes[id]
	delete(db.volumes, id)
	db.mu.Unlock()
	if v == nil {
		return ErrNoVolume
	}
	if err := v.close(); err != nil {
		return err
	}
	if err := db.kv.update(func(t txn) error { return t.del(replicaKey(id)) }); err != nil {
		return err
	}
	return db.deletePrefix(v.keys.prefix[:])
}

// deletePrefix deletes in portions, since a transaction is bounded.
func (db *DB) deletePrefix(prefix []byte) error {
	for more := true; more; {
		more = false
		err := db.kv.update(func(t txn) error {
			n := 0
			var keys [][]byte
			if err := t.scan(prefix, nil, func(key, _ []byte) (bool, error) {
				keys = append(keys, slices.Clone(key))
				n++
				return n < 2000, nil
			}); err != nil {
				return err
			}
			more = n == 2000
			for _, k := range keys {
				if err := t.del(k); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func newReplicaID() crdt.ReplicaID { return crdt.ReplicaID(randomID()) }

// randomID returns a random number that is no reserved one: positive as a
// signed number, and beyond the root's.
func randomID() uint64 {
	var b [8]byte
	for {
		rand.Read(b[:]) // never fails: crypto/rand aborts the process instead
		if n := binary.LittleEndian.Uint64(b[:]) >> 1; n > 1<<16 {
			return n
		}
	}
}

// blockIndex keeps the content store's index in the database.
type blockIndex struct{ kv kv }

const manifestChunk = 512 << 10

func blockKey(h crdt.Hash) []byte { return append([]byte{'b'}, h[:]...) }

func manifestKey(h crdt.Hash) []byte { return append([]byte{'M'}, h[:]...) }

func (x blockIndex) Block(h crdt.Hash) (loc content.Location, ok bool, err error) {
	err = x.kv.view(func(t txn) error {
		b, err := t.get(blockKey(h))
		if err != nil || b == nil {
			return err
		}
		if len(b) != 28 {
			return fmt.Errorf("%w: location of block %x", ErrDamaged, h)
		}
		copy(loc.File[:], b)
		loc.Offset = int64(binary.BigEndian.Uint64(b[16:]))
		loc.Length = int32(binary.BigEndian.Uint32(b[24:]))
		ok = true
		return nil
	})
	return loc, ok, err
}

func (x blockIndex) PutBlocks(entries []content.IndexEntry) error {
	for part := range slices.Chunk(entries, 2000) {
		if err := x.kv.update(func(t txn) error {
			for _, e := range part {
				b := append(make([]byte, 0, 28), e.Location.File[:]...)
				b = binary.BigEndian.AppendUint64(b, uint64(e.Location.Offset))
				b = binary.BigEndian.AppendUint32(b, uint32(e.Location.Length))
				if err := t.set(blockKey(e.Hash), b); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func (x blockIndex) Manifest(h crdt.Hash) (encoded []byte, ok bool, err error) {
	err = x.kv.view(func(t txn) error {
		return t.scan(manifestKey(h), nil, func(_, value []byte) (bool, error) {
			encoded, ok = append(encoded, value...), true
			return true, nil
		})
	})
	return encoded, ok, err
}

// PutManifest writes the last chunk first, so that a manifest cut short by a
// crash fails its hash rather than look whole.
func (x blockIndex) PutManifest(h crdt.Hash, encoded []byte) error {
	chunks := slices.Collect(slices.Chunk(encoded, manifestChunk))
	for n, c := range slices.Backward(chunks) {
		key := binary.BigEndian.AppendUint32(manifestKey(h), uint32(n))
		if err := x.kv.update(func(t txn) error { return t.set(key, c) }); err != nil {
			return err
		}
	}
	return nil
}
