package store

import (
	"context"
	"errors"
	"time"
)

// compactingLook is between two looks of PrepareClose.
const compactingLook = 5 * time.Millisecond

// PrepareClose does what Close, which is to follow, takes long for, while
// others go on to use the store, as far as that is possible before ctx ends.
func (db *DB) PrepareClose(ctx context.Context) error {
	stopped := make(chan struct{})
	go func() {
		db.stopReclaimer()
		close(stopped)
	}()
	err := db.kv.sync()
	select {
	case <-stopped:
	case <-ctx.Done():
	}
	tick := time.NewTicker(compactingLook)
	defer tick.Stop()
	for db.kv.compacting() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
	return err
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
	place, err := db.takePlace()
	db.boot.Place, db.boot.Clean = place, true
	errs = append(errs, err, db.markBoot(db.boot))
	errs = append(errs, db.release())
	return errors.Join(errs...)
}

func (db *DB) release() error {
	var errs []error
	if db.stopReclaimer != nil {
		db.stopReclaimer()
	}
	if db.stopSpace != nil {
		db.stopSpace()
	}
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
