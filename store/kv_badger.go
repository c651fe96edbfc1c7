package store

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// maxValue keeps every value below Badger's ValueThreshold.
const maxValue = 1 << 20

type badgerKV struct {
	// Fixed by openBadger.
	db     *badger.DB
	dir    string
	bootID string
	logs   logSync

	running sync.WaitGroup // transactions: Badger unmaps its tables under them
	failed  atomic.Bool    // a transaction has failed: its number may be missing

	mu     sync.Mutex // guards what follows
	closed bool
}

// begin counts a transaction; false if the database is closed.
func (k *badgerKV) begin() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.closed {
		k.running.Add(1)
	}
	return !k.closed
}

// openBadger opens the database with limits for a small node: its defaults
// take hundreds of MiB. SyncWrites is off: the memtable's log is a shared
// mapping, which survives kill -9; power loss is what sync is for.
func openBadger(dir, bootID string, log *slog.Logger) (*badgerKV, error) {
	if err := checkBadger(dir, bootID); err != nil {
		return nil, err
	}
	o := badger.DefaultOptions(dir).
		WithSyncWrites(false).
		WithDetectConflicts(false). // one writer a volume
		WithNumVersionsToKeep(1).
		WithMemTableSize(8 << 20).
		WithNumMemtables(2).
		WithValueThreshold(maxValue).
		WithValueLogFileSize(8 << 20).
		WithBlockCacheSize(0). // not compressed: read from the page cache
		WithIndexCacheSize(0).
		WithNumCompactors(2).
		WithBaseTableSize(1 << 20). // one that is being written takes several times that on the heap
		WithBaseLevelSize(16 << 20).
		WithCompression(options.None).
		WithChecksumVerificationMode(options.OnBlockRead).
		WithMetricsEnabled(false).
		WithLogger(badgerLog{log})
	db, err := badger.Open(o)
	switch {
	case err == nil:
		if err := markManifest(dir, bootID); err != nil {
			return nil, errors.Join(err, db.Close())
		}
		return &badgerKV{db: db, dir: dir, bootID: bootID, logs: logSync{dir: dir}}, nil
	case strings.Contains(err.Error(), "Another process is using this Badger database"):
		// Badger has no sentinel for it.
		return nil, fmt.Errorf("%w: stop it, or choose another --state-dir", ErrLocked)
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.ENOSPC):
		return nil, err
	default:
		return nil, fmt.Errorf("%w: %w: move it away and let the node join again", ErrDamaged, err)
	}
}

func (k *badgerKV) view(fn func(txn) error) error {
	if !k.begin() {
		return ErrClosed
	}
	defer k.running.Done()
	return k.db.View(func(t *badger.Txn) error { return fn(badgerTxn{t: t}) })
}

func (k *badgerKV) pin() (txn, func(), error) {
	if !k.begin() {
		return nil, nil, ErrClosed
	}
	t := k.db.NewTransaction(false)
	return badgerTxn{t: t}, func() {
		t.Discard()
		k.running.Done()
	}, nil
}

func (k *badgerKV) update(fn func(txn) error) error {
	if !k.begin() {
		return ErrClosed
	}
	defer k.running.Done()
	order := orderPlain
	if k.failed.Load() {
		order = orderAfterFailure
	}
	var refused error // by fn: nothing was numbered
	err := k.db.Update(func(t *badger.Txn) error {
		b := badgerTxn{t: t, wrote: new(bool)}
		if refused = fn(b); refused != nil || !*b.wrote {
			return refused
		}
		return t.Set(keyOrder, []byte{order})
	})
	if err != nil && refused == nil {
		k.failed.Store(true)
	}
	if errors.Is(err, syscall.ENOSPC) {
		err = fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

func (k *badgerKV) sync() error { return k.logs.run() }

func (k *badgerKV) size() (n int64) {
	if !k.begin() {
		return 0
	}
	defer k.running.Done()
	for _, l := range k.db.Levels() {
		n += l.Size
	}
	return n
}

// compacting looks at the newest tables, which are merged all at once.
func (k *badgerKV) compacting() bool {
	if !k.begin() {
		return false
	}
	defer k.running.Done()
	return k.db.Levels()[0].Score >= 1
}

// close waits for the transactions that run.
func (k *badgerKV) close() error {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.running.Wait()
	return errors.Join(k.db.Close(), markManifest(k.dir, k.bootID))
}

type badgerTxn struct {
	t     *badger.Txn
	wrote *bool // nil if it may not write
}

func (b badgerTxn) get(key []byte) ([]byte, error) {
	item, err := b.t.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return item.ValueCopy([]byte{})
}

func (b badgerTxn) set(key, value []byte) error {
	*b.wrote = true
	return b.t.Set(key, value)
}

func (b badgerTxn) del(key []byte) error {
	*b.wrote = true
	return b.t.Delete(key)
}

func (b badgerTxn) scan(prefix, from []byte, fn func(key, value []byte) (bool, error)) error {
	o := badger.DefaultIteratorOptions
	o.Prefix = prefix
	o.PrefetchValues = false
	it := b.t.NewIterator(o)
	defer it.Close()
	if from == nil {
		from = prefix
	}
	for it.Seek(from); it.Valid(); it.Next() {
		item := it.Item()
		more := false
		err := item.Value(func(value []byte) (err error) {
			more, err = fn(item.Key(), value)
			return err
		})
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// badgerLog hands Badger's complaints to slog and drops its chatter.
type badgerLog struct{ log *slog.Logger }

func (l badgerLog) Errorf(f string, a ...any)   { l.log.Error("badger", "msg", line(f, a)) }
func (l badgerLog) Warningf(f string, a ...any) { l.log.Warn("badger", "msg", line(f, a)) }
func (l badgerLog) Infof(f string, a ...any)    {}
func (l badgerLog) Debugf(f string, a ...any)   {}

func line(f string, a []any) string { return strings.TrimSpace(fmt.Sprintf(f, a...)) }
