//go:build faults

package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// checkOpened checks the content, in a program built for tests: no kill of the
// one before may have harmed it.
func (db *DB) checkOpened() error {
	if os.Getenv("SYNAPSEFS_FAULT_CHECK") == "" {
		return nil
	}
	path := filepath.Join(db.opts.Dir, "checked")
	var since time.Time
	st, err := os.Stat(path)
	if err == nil {
		since = st.ModTime()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	now := time.Now().Add(-time.Second) // the disk's clock is coarser
	if err := db.checkContent(since); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, now, now))
}
