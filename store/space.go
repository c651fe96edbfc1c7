package store

import (
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// spaceInterval is how often the disk is looked at, since others fill it too.
	spaceInterval = 100 * time.Millisecond
	// spaceStep is how many bytes are written before it is looked at at once.
	spaceStep = 4 << 20
	// maxCritical is what the database may need without being asked: its logs
	// are mappings of sparse files, and running out of disk under one kills
	// the daemon.
	maxCritical = 32 << 20
)

// watchSpace keeps db.full and db.critical true while they are.
func (db *DB) watchSpace() {
	tick := time.NewTicker(spaceInterval)
	defer tick.Stop()
	for {
		select {
		case <-db.stop:
			return
		case <-tick.C:
			if err := db.checkSpace(); err != nil {
				db.opts.Log.Error("check disk space", "err", err)
			}
		}
	}
}

func (db *DB) criticalBytes() uint64 { return min(maxCritical, db.opts.ReserveBytes/2) }

func (db *DB) checkSpace() error {
	var st unix.Statfs_t
	if err := unix.Statfs(db.opts.Dir, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", db.opts.Dir, err)
	}
	free := st.Bavail * uint64(st.Bsize)
	db.critical.Store(free < db.criticalBytes())
	full := free < db.opts.ReserveBytes
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
