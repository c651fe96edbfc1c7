package store

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// syncGroup lets one sync serve all callers that are waiting when it begins.
type syncGroup struct {
	sync func() error

	mu      sync.Mutex
	running bool
	next    *syncRun // the run that callers of now wait for
}

type syncRun struct {
	done chan struct{}
	err  error
}

// wait returns when a sync that began after the call has ended.
func (g *syncGroup) wait() error {
	g.mu.Lock()
	if g.next == nil {
		g.next = &syncRun{done: make(chan struct{})}
	}
	run := g.next
	if g.running {
		g.mu.Unlock()
		<-run.done
		return run.err
	}
	g.running = true
	for r := g.next; r != nil; r = g.next {
		g.next = nil
		g.mu.Unlock()
		r.err = g.sync()
		close(r.done)
		g.mu.Lock()
	}
	g.running = false
	g.mu.Unlock()
	<-run.done
	return run.err
}

// syncAll brings content before the records that name it to the disk.
func (db *DB) syncAll() error {
	return errors.Join(db.content.Sync(), db.kv.sync())
}

const spaceInterval = 250 * time.Millisecond

// watchSpace keeps db.full true while the disk is nearly full: the database's
// log is a mapping of a sparse file, and running out of disk under it would
// kill the daemon.
func (db *DB) watchSpace() {
	tick := time.NewTicker(spaceInterval)
	defer tick.Stop()
	for {
		select {
		case <-db.stop:
			return
		case <-tick.C:
			db.checkSpace()
		}
	}
}

func (db *DB) checkSpace() {
	var st unix.Statfs_t
	if err := unix.Statfs(db.opts.Dir, &st); err != nil {
		db.opts.Log.Error("statfs", "dir", db.opts.Dir, "err", err)
		return
	}
	full := st.Bavail*uint64(st.Bsize) < db.opts.ReserveBytes
	if was := db.full.Swap(full); was != full {
		db.opts.Log.Warn("disk space", "dir", db.opts.Dir, "full", full, "free", st.Bavail*uint64(st.Bsize))
	}
}

// room says ErrNoSpace while the disk is nearly full.
func (db *DB) room() error {
	if db.full.Load() {
		return ErrNoSpace
	}
	return nil
}
