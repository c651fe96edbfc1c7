package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// logSync brings a database's logs to the disk. Badger's own Sync leaves out
// those of memtables that are full and not yet tables, and the files' names.
type logSync struct {
	dir string

	mu     sync.Mutex // one at a time; guards what follows
	last   []string   // the logs at the last call, in order of age
	failed error      // of the first sync that failed
}

// run syncs the newest log, and, once more, each that was the newest at the
// call before: the others have not changed since. A log that is gone by then
// has become a table, which Badger has synced. After a failure it fails for
// good: the system drops what it could not write, and says so once.
func (s *logSync) run() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return s.failed
	}
	logs, err := filepath.Glob(filepath.Join(s.dir, "*.mem"))
	if err != nil {
		return err
	}
	slices.Sort(logs)
	paths := logs
	if n := len(s.last); n > 0 {
		if first, ok := slices.BinarySearch(logs, s.last[n-1]); ok {
			paths = logs[first:]
		}
	}
	if !slices.Equal(logs, s.last) {
		paths = append(slices.Clone(paths), s.dir)
	}
	for _, path := range paths {
		if err := syncFile(path); err != nil {
			s.failed = fmt.Errorf("sync database: %w: restart the daemon when the disk works again", err)
			return s.failed
		}
	}
	s.last = logs
	return nil
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
