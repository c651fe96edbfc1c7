package store

import (
	"errors"
	"fmt"
	"time"

	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// checkContent is for tests. It returns what is wrong with the large content of
// this node: what the state, the history, the journal or a draft names must be
// here, and each block of the index must be what its hash says. Blocks in files
// that have not changed since a time are not read. It is not for a replica that
// took a snapshot, which may lack what is only history.
func (db *DB) checkContent(since time.Time) error {
	manifests := map[crdt.Hash]struct{}{}
	for _, v := range db.Volumes() {
		if whole, err := v.namedContent(manifests); err != nil || !whole {
			return err
		}
		if err := v.eachJournaled(func(_ *Batch, h crdt.Hash) { manifests[h] = struct{}{} }); err != nil {
			return err
		}
	}
	var errs []error
	for h := range manifests {
		m, err := db.manifest(h)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		missing, err := db.content.Missing(m)
		if err != nil {
			return err
		}
		if len(missing) > 0 {
			errs = append(errs, fmt.Errorf("%w: %d blocks of manifest %x", ErrNoContent, len(missing), h))
		}
	}
	return errors.Join(append(errs, db.checkBlocks(since))...)
}

func (db *DB) checkBlocks(since time.Time) error {
	files := map[content.FileID]bool{}
	var errs []error
	err := db.kv.view(func(t txn) error {
		return db.eachIndexed(t, func(e indexed, value []byte) error {
			if e.manifest {
				return nil
			}
			loc, err := decodeLocation(e.hash[:], value)
			if err != nil {
				return err
			}
			changed, known := files[loc.File]
			if !known {
				if changed, err = db.content.ChangedSince(loc.File, since); err != nil {
					errs = append(errs, err)
				}
				files[loc.File] = changed
			}
			if changed {
				_, err := db.content.Block(e.hash)
				errs = append(errs, err)
			}
			return nil
		})
	})
	return errors.Join(append(errs, err)...)
}
