package store

import (
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// spaceInterval is how often the disk is looked at, since others fill it
	// too; spaceNear how often while less than nearlyFull is free.
	spaceInterval = 250 * time.Millisecond
	spaceNear     = 20 * time.Millisecond
	nearlyFull    = 1 << 30
	// spaceStep is how many bytes are written before it is looked at at once.
	spaceStep = 4 << 20
	// maxCritical is what the database may need for its logs, and
	// maxHeadroom for writing tables anew, without being asked: its files are
	// mappings of sparse files, and running out of disk under one kills the
	// daemon. It never takes more than it has already.
	maxCritical = 32 << 20
	maxHeadroom = 192 << 20
)

// watchSpace keeps db.full and db.critical true while they are.
func (db *DB) watchSpace() time.Duration {
	if err := db.checkSpace(); err != nil {
		db.opts.Log.Error("check disk space", "err", err)
	}
	if db.free.Load() < nearlyFull {
		return spaceNear
	}
	return spaceInterval
}

// headroom is how much disk the database may take without being asked.
func (db *DB) headroom() uint64 {
	var size int64
	if db.kv == nil {
		size = tableBytes(db.databaseDir())
	} else {
		size = db.kv.size()
	}
	return min(maxHeadroom, uint64(size))
}

func (db *DB) checkSpace() error {
	var st unix.Statfs_t
	if err := unix.Statfs(db.opts.Dir, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", db.opts.Dir, err)
	}
	free, headroom, reserve := st.Bavail*uint64(st.Bsize), db.headroom(), db.reserve.Load()
	db.free.Store(free)
	db.critical.Store(free < min(maxCritical, reserve/2)+headroom)
	full := free < reserve+headroom
	if was := db.full.Swap(full); was != full {
		db.opts.Log.Warn("disk space", "dir", db.opts.Dir, "full", full, "free", free)
	}
	return nil
}

// room says ErrNoSpace while the disk is nearly full.
func (db *DB) room() error {
	if db.full.Load() {
		return ErrNoSpace
	}
	return nil
}

// roomFor is room for a write of n bytes: a fast writer would fill the disk
// between two looks.
func (db *DB) roomFor(n int) error {
	if db.written.Add(int64(n)) >= spaceStep {
		db.written.Store(0)
		if err := db.checkSpace(); err != nil {
			return err
		}
	}
	return db.room()
}

// roomAhead is room for n bytes that are to be taken at once.
func (db *DB) roomAhead(n int64) error {
	if err := db.checkSpace(); err != nil {
		return err
	}
	if n > 0 && db.free.Load() < uint64(n)+db.reserve.Load()+db.headroom() {
		return ErrNoSpace
	}
	return db.room()
}

// guardedKV writes nothing while the disk is so full that the database could
// not hold it.
type guardedKV struct {
	kv
	closed *atomic.Bool
}

func (k *guardedKV) update(fn func(txn) error) error {
	if k.closed.Load() {
		return ErrNoSpace
	}
	return k.kv.update(fn)
}
