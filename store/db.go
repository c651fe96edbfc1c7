package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	// Sign signs with the node's key: the digests of batches, and what
	// Member.Signed returns. Nil leaves both unsigned: peers refuse them.
	Sign func(message []byte) []byte
	// Now is the wall clock; default time.Now.
	Now func() time.Time
	// Scheduler runs what is done in the background. Default: goroutines.
	Scheduler Scheduler
	// Random is where ids come from; default crypto/rand.
	Random io.Reader
	// Memory, if set, is the database, instead of one in Dir.
	Memory *Memory
	Log    *slog.Logger
	// Mounted are mounts, of each volume, whose kernels live on although the
	// daemon that served them has ended (P9). What they have open stays open.
	// Each is to be followed by Volume.AddViewer or Volume.Unmounted.
	Mounted map[VolumeID][]MountID

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
	// ReplicaRetention is how long a replica that was not heard of still
	// counts: until then nothing that it lacks is collected. More means
	// that a node may be away longer, and more removed files are
	// remembered. Default 7 days.
	ReplicaRetention time.Duration
	// JournalLimit is the size of a volume's journal, in bytes, over which
	// changes go that some replica still lacks: it will take a snapshot.
	// Default 256 MiB.
	JournalLimit int64
	// ReserveBytes of free disk are kept: below it, calls that need room
	// fail with ErrNoSpace instead of running the database out of disk.
	// Default 64 MiB.
	ReserveBytes uint64
}

func (o *Options) setDefaults() {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Scheduler == nil {
		o.Scheduler = machine{}
	}
	if o.Random == nil {
		o.Random = rand.Reader
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
	if o.ReplicaRetention == 0 {
		o.ReplicaRetention = 7 * 24 * time.Hour
	}
	if o.JournalLimit == 0 {
		o.JournalLimit = 256 << 20
	}
	if o.ReserveBytes == 0 {
		o.ReserveBytes = 64 << 20
	}
}

// A DB is one node's store: all volumes it holds, in one Badger database.
type DB struct {
	opts          Options
	kv            kv
	boot          bootRecord
	lock          *os.File
	content       *content.Store
	manifests     manifestCache
	full          atomic.Bool   // less than ReserveBytes are free
	critical      atomic.Bool   // less than the database itself may need
	reserve       atomic.Uint64 // bytes of disk to keep
	free          atomic.Uint64 // bytes of disk, when last looked at
	written       atomic.Int64  // bytes since the disk was looked at
	stopSpace     func()        // ends watchSpace; nil if it has not begun
	reclaimer     reclaimer
	stopReclaimer func() // nil if it has not begun
	syncs         syncGroup

	allocating sync.Mutex // one fallocate at a time looks at the disk and takes some; a leaf

	backingMu sync.Mutex              // a leaf; guards what follows, all Volume.backings and draft.began
	backed    map[content.FileID]bool // immutable files that are a Backing

	mu      sync.Mutex // guards what follows
	volumes map[VolumeID]*Volume
	closed  bool
}

// bootRecord tells an unclean boot of the machine, and a database that was
// copied or restored from a copy, from a mere restart.
type bootRecord struct {
	BootID string
	Clean  bool
	Place  string `json:",omitempty"` // what placeOf said when it was opened
}

// A start is what the boot record told of it.
type start struct {
	unclean bool // what was not synced may be lost, ops that have left among it
	moved   bool // others may have gone on from where this copy was made
}

// replicaRecord is what is kept of a replica besides its volume's keys.
type replicaRecord struct {
	Name    string
	Replica crdt.ReplicaID
	Ready   bool
	// Gen is the generation of its keys; TwoStates, that those of the other
	// may be there too.
	Gen       byte `json:",omitempty"`
	TwoStates bool `json:",omitempty"`
	// Next is the id under which the replica is about to begin anew.
	Next crdt.ReplicaID `json:",omitempty"`
}

// Open opens the store in o.Dir, making it if the directory is empty. Errors:
// ErrLocked, ErrNewerFormat, ErrDamaged, or of the file system.
func Open(o Options) (*DB, error) {
	o.setDefaults()
	db := &DB{opts: o, volumes: map[VolumeID]*Volume{}, backed: map[content.FileID]bool{}}
	db.reserve.Store(o.ReserveBytes)
	if err := db.open(); err != nil {
		for _, v := range db.volumes {
			v.close() //nolint:errcheck // the first error counts
		}
		db.release() //nolint:errcheck // the first error counts
		return nil, fmt.Errorf("open state directory %s: %w", o.Dir, diskError(err))
	}
	return db, nil
}

func (db *DB) open() error {
	if err := os.MkdirAll(db.opts.Dir, 0o700); err != nil {
		return err
	}
	var err error
	if err = db.openDatabase(); err != nil {
		return err
	}
	db.syncs.sync = db.kv.sync
	if db.content, err = content.Open(filepath.Join(db.opts.Dir, "content"), blockIndex{db.kv, &db.reclaimer}); err != nil {
		return err
	}
	for _, dir := range []string{filepath.Dir(db.opts.Dir), db.opts.Dir, filepath.Join(db.opts.Dir, "content")} {
		if err := syncFile(dir); err != nil { // the names of what is synced later
			return err
		}
	}
	s, err := db.compareBoot()
	if err != nil {
		return err
	}
	if s.moved {
		db.opts.Log.Warn("the state directory was copied or restored: its replicas take new ids", "dir", db.opts.Dir)
	}
	if err := db.openVolumes(s); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	db.reclaimer.ctx = ctx
	if err := db.checkOpened(); err != nil {
		cancel()
		return err
	}
	if db.boot.Place, err = db.takePlace(); err != nil {
		cancel()
		return err
	}
	_, stop := db.opts.Scheduler.Loop(later(reclaimInterval, db.reclaimTurn))
	db.stopReclaimer = sync.OnceFunc(func() { cancel(); stop() })
	return db.markBoot(db.boot)
}

// openDatabase opens what db.kv is, and finds out on which boot and where.
func (db *DB) openDatabase() (err error) {
	if m := db.opts.Memory; m != nil {
		db.kv, db.boot.BootID = m, m.BootID
		return nil
	}
	if err := db.takeLock(); err != nil {
		return err
	}
	if err := db.checkFormat(); err != nil {
		return err
	}
	if err := db.checkSpace(); err != nil {
		return err
	}
	if db.critical.Load() {
		return fmt.Errorf("%w: only %d MiB are free", ErrNoSpace, db.free.Load()>>20)
	}
	if db.boot.BootID, err = readBootID(); err != nil {
		return err
	}
	b, err := openBadger(db.databaseDir(), db.boot.BootID, db.opts.Log)
	if err != nil {
		return err
	}
	db.kv = &guardedKV{kv: b, closed: &db.critical}
	_, db.stopSpace = db.opts.Scheduler.Loop(db.watchSpace)
	return nil
}

// placeOf tells a file from a copy: nothing that copies files keeps both number
// and birth. A copy of the whole disk does. It is a variable for tests that make
// one.
var placeOf = func(path string) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return "", fmt.Errorf("statx %s: %w", path, err)
	}
	return fmt.Sprintf("%d born %d.%09d", st.Ino, st.Btime.Sec, st.Btime.Nsec), nil
}

func (db *DB) placeFile() string { return filepath.Join(db.opts.Dir, "place") }

// takePlace makes the file whose place is the database's anew, when it is opened
// and when it is closed: so a copy is told from the original even if it was
// written over that.
func (db *DB) takePlace() (string, error) {
	if db.opts.Memory != nil {
		return "", nil
	}
	if err := replaceFile(db.placeFile(), nil); err != nil {
		return "", err
	}
	return placeOf(db.placeFile())
}

func (db *DB) databaseDir() string { return filepath.Join(db.opts.Dir, "db") }

// readBootID is a variable for tests that lose the power.
var readBootID = func() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// checkFormat compares the format file, which is written first and outside the
// database, since a newer version may have another database.
func (db *DB) checkFormat() error {
	path := filepath.Join(db.opts.Dir, "format")
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(db.databaseDir()); err == nil {
			return fmt.Errorf("%w: file %s is missing", ErrDamaged, path)
		}
		return replaceFile(path, []byte(strconv.Itoa(FormatVersion)+"\n"))
	}
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return fmt.Errorf("%w: file %s does not hold a number", ErrDamaged, path)
	}
	if err := db.checkWhole(); err != nil {
		return err
	}
	if n > FormatVersion {
		return fmt.Errorf("%w %d; this version knows %d: run the newer synapsefs", ErrNewerFormat, n, FormatVersion)
	}
	return nil
}

// checkWhole refuses to begin anew where the database has gone and what belongs
// to it is there still.
func (db *DB) checkWhole() error {
	if _, err := os.Stat(db.databaseDir()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(filepath.Join(db.opts.Dir, "content")); err == nil {
		return fmt.Errorf("%w: directory %s is missing: bring it back, or move %s away and let the node join again",
			ErrDamaged, db.databaseDir(), db.opts.Dir)
	}
	return nil
}

// compareBoot finds out whether the machine went down under the running daemon
// since the last clean stop, or the database is a copy.
func (db *DB) compareBoot() (s start, err error) {
	err = db.kv.view(func(t txn) error {
		was, err := getBoot(t)
		s.unclean = was != bootRecord{} && !was.Clean && was.BootID != db.boot.BootID
		if err != nil || was.Place == "" {
			return err
		}
		place, err := placeOf(db.placeFile())
		s.moved = place != was.Place
		if errors.Is(err, unix.ENOENT) {
			err = nil
		}
		return err
	})
	return s, err
}

func getBoot(t txn) (r bootRecord, err error) {
	if _, err = getJSON(t, keyBoot, &r); err != nil {
		err = fmt.Errorf("boot record: %w", err)
	}
	return r, err
}

// markBoot records that the daemon runs. Until every replica has the new id
// that it needs, a restart must still see the unclean boot; and no op may leave
// before it is on disk, or a power loss would bring the clean mark back.
func (db *DB) markBoot(r bootRecord) error {
	return errors.Join(db.kv.update(func(t txn) error {
		if _, err := getBoot(t); err != nil { // not to be covered up
			return err
		}
		return putJSON(t, keyBoot, r)
	}), db.kv.sync())
}

// replaceFile writes a small file whole or not at all.
func replaceFile(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func putJSON(t txn, key []byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return t.set(key, b)
}

func (db *DB) openVolumes(s start) error {
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
		v, err := openVolume(db, id, r, s)
		if err != nil {
			return fmt.Errorf("volume %q: %w", r.Name, err)
		}
		db.volumes[id] = v
	}
	return nil
}

// Dir is the state directory.
func (db *DB) Dir() string { return db.opts.Dir }

// Content is the node's store of large content.
func (db *DB) Content() *content.Store { return db.content }

// Index is the content store's index, where manifests fetched from a peer are put.
func (db *DB) Index() content.Index { return blockIndex{db.kv, &db.reclaimer} }

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
