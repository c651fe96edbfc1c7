package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/synapsefs/synapsefs/store/crdt"
)

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
	// What a deletion that was cut short left must not become part of it.
	keys := newKeyspace(id, 0)
	if err := db.deletePrefix(keys.prefix[:]); err != nil {
		return nil, fmt.Errorf("create replica of volume %q: %w", name, err)
	}
	r := replicaRecord{Name: name, Replica: crdt.ReplicaID(db.randomID()), Ready: ready}
	err := db.kv.update(func(t txn) error {
		if err := putJSON(t, replicaKey(id), r); err != nil {
			return err
		}
		return putFixed(t, &keys)
	})
	if err != nil {
		return nil, fmt.Errorf("create replica of volume %q: %w", name, err)
	}
	v, err := openVolume(db, id, r, start{})
	if err != nil {
		err = errors.Join(err, db.kv.update(func(t txn) error { return t.del(replicaKey(id)) }))
		return nil, fmt.Errorf("create replica of volume %q: %w", name, err)
	}
	db.volumes[id] = v
	return v, nil
}

// putFixed makes the inodes that every replica has, but those that are there.
func putFixed(t txn, keys *keyspace) error {
	for _, i := range crdt.FixedInodes() {
		if b, err := t.get(keys.inode(i.Ino)); err != nil {
			return err
		} else if b != nil {
			continue
		}
		if err := t.set(keys.inode(i.Ino), crdt.AppendInode(nil, i)); err != nil {
			return err
		}
	}
	return nil
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
	return errors.Join(v.removeDrafts(), db.deletePrefix(v.keys.prefix[:]))
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

// randomID returns a random number that is no reserved one: positive as a
// signed number, and beyond the root's.
func (db *DB) randomID() uint64 {
	var b [8]byte
	for {
		io.ReadFull(db.opts.Random, b[:]) //nolint:errcheck // never fails: crypto/rand aborts the process instead
		if n := binary.LittleEndian.Uint64(b[:]) >> 1; n > 1<<16 {
			return n
		}
	}
}
