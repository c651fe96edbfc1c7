package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lockFile, in the state directory, is locked by who has the directory open.
const lockFile = "lock"

// takeLock keeps a second daemon out.
func (db *DB) takeLock() error {
	f, err := os.OpenFile(filepath.Join(db.opts.Dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
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

// WaitClosed returns when no process has the state directory dir open. The next to
// open it may be another one.
//
// After ctx has ended a thread of this process may wait on, until the other one ends.
func WaitClosed(ctx context.Context, dir string) error {
	f, err := os.Open(filepath.Join(dir, lockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	free := make(chan error, 1)
	go func() {
		defer f.Close()
		err := unix.Flock(int(f.Fd()), unix.LOCK_SH)
		for err == unix.EINTR {
			err = unix.Flock(int(f.Fd()), unix.LOCK_SH)
		}
		if err == nil { // at once: closing may come later, and be in the way of an Open
			err = unix.Flock(int(f.Fd()), unix.LOCK_UN)
		}
		free <- err
	}()
	select {
	case err := <-free:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
