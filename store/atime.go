package store

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// accessRecord is what this node alone knows of an inode's times: atime does
// not travel. What nobody has read or set here shows its mtime.
type accessRecord struct {
	At      crdt.Time
	Changed crdt.Time `json:",omitzero"` // when At was set by hand, which ctime shows
}

// maxRecent is how many reads gather until they are written.
const maxRecent = 1000

// atimes holds the access times that are not written yet. Those that were set
// by hand never are among them; those of reads may be lost in a crash.
type atimes struct {
	mu     sync.RWMutex // guards what follows; taken after the transaction
	recent map[crdt.Ino]accessRecord
}

// access returns what is known of an inode's access time.
func (v *Volume) access(t *tree, ino crdt.Ino) (r accessRecord, ok bool, err error) {
	v.atimes.mu.RLock()
	r, ok = v.atimes.recent[ino]
	v.atimes.mu.RUnlock()
	if ok {
		return r, true, nil
	}
	ok, err = getJSON(t.t, t.keys.key('A', uint64(ino)), &r)
	return r, ok, err
}

// setAtime sets an access time by hand.
func (v *Volume) setAtime(ino crdt.Ino, at crdt.Time) error {
	r := accessRecord{At: at, Changed: crdt.TimeOf(v.db.opts.Now().UnixNano())}
	v.atimes.mu.Lock()
	defer v.atimes.mu.Unlock()
	if err := v.db.kv.update(func(t txn) error { return putJSON(t, v.keys.key('A', uint64(ino)), r) }); err != nil {
		return err
	}
	delete(v.atimes.recent, ino)
	return nil
}

// forgetAccess removes the access time of an inode that is gone for good.
func (c *change) forgetAccess(ino crdt.Ino) error {
	c.after = append(c.after, func() {
		c.v.atimes.mu.Lock()
		defer c.v.atimes.mu.Unlock()
		delete(c.v.atimes.recent, ino)
	})
	return c.t.del(c.keys.key('A', uint64(ino)))
}

// relatime is how old an access time may get before a read renews it that is
// younger than the last change.
const relatime = 24 * time.Hour

// Accessed notes that a node was read: its atime becomes the present if it is
// not younger than its mtime and ctime, or a day old.
func (v *Volume) Accessed(node NodeID) error {
	now := v.db.opts.Now()
	var ino crdt.Ino
	var r accessRecord
	due := false
	err := v.read(func(t *tree) error {
		a, err := v.times(t, node)
		if err != nil {
			return err
		}
		ino = a.Ino
		if r, _, err = v.access(t, ino); err != nil {
			return err
		}
		due = !a.Mtime.Before(a.Atime) || !a.Ctime.Before(a.Atime) || a.Atime.Before(crdt.TimeOf(now.Add(-relatime).UnixNano()))
		return nil
	})
	if err != nil || !due {
		return err
	}
	r.At = crdt.TimeOf(now.UnixNano())
	v.atimes.mu.Lock()
	defer v.atimes.mu.Unlock()
	if v.atimes.recent == nil {
		v.atimes.recent = map[crdt.Ino]accessRecord{}
	}
	v.atimes.recent[ino] = r
	if len(v.atimes.recent) < maxRecent {
		return nil
	}
	return v.saveAtimesLocked()
}

// saveAtimesLocked writes the access times that have gathered. The lock of
// atimes is held.
func (v *Volume) saveAtimesLocked() error {
	err := v.db.kv.update(func(t txn) error {
		for ino, r := range maps.All(v.atimes.recent) {
			if err := putJSON(t, v.keys.key('A', uint64(ino)), r); err != nil {
				return err
			}
		}
		return nil
	})
	v.atimes.recent = nil // also if the disk is full: they are not worth more
	if err != nil && !errors.Is(err, ErrClosed) {
		return fmt.Errorf("save access times: %w", err)
	}
	return nil
}

func (v *Volume) saveAtimes() error {
	v.atimes.mu.Lock()
	defer v.atimes.mu.Unlock()
	if len(v.atimes.recent) == 0 {
		return nil
	}
	return v.saveAtimesLocked()
}
