package fusefs_test

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fsnotify/fsnotify"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

// A copier writes each file of its directory back when it hears of it, as those
// who keep two places in step do, unless it holds what the copier wrote last.
type copier struct {
	writes atomic.Int64

	mu   sync.Mutex // guards what follows
	last []byte
}

func newCopier(t *testing.T, dir string) *copier {
	t.Helper()
	watcher, err := fsnotify.NewWatcher()
	must(t, err)
	must(t, watcher.Add(dir))
	c := &copier{}
	var task sync.WaitGroup
	task.Go(func() {
		for e := range watcher.Events {
			if err := c.copy(e.Name); err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(func() {
		watcher.Close()
		task.Wait()
	})
	return c
}

func (c *copier) copy(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(b) == 0 || bytes.Equal(b, c.last) { // it is truncated, or ours
		return nil
	}
	c.last = b
	c.writes.Add(1)
	return os.WriteFile(path, b, 0o644)
}

func (c *copier) has(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.last) == text
}

// TestP10NoEcho: showing a change with its events is no change. Two copiers, one
// on each node, write a version back once each, and then there is peace.
func TestP10NoEcho(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	writeFile(t, p.A.Dir+"/f", "start")
	p.Sync()
	tree(t, p.B.Dir)
	a, b := newCopier(t, p.A.Dir), newCopier(t, p.B.Dir)
	const versions = 20
	for n := range versions {
		text := fmt.Sprint("version ", n)
		writeFile(t, p.A.Dir+"/f", text)
		fstest.Eventually(t, func() error {
			if !a.has(text) || !b.has(text) {
				return fmt.Errorf("version %d is not copied", n)
			}
			return nil
		})
		p.Sync()
	}
	if a.writes.Load() != versions || b.writes.Load() != versions {
		t.Errorf("%d and %d copies of %d versions", a.writes.Load(), b.writes.Load(), versions)
	}
	for _, n := range []*fstest.Node{p.A, p.B} {
		if got := ops(t, n, p.Sync); got > 0 {
			t.Errorf("%d ops with nobody writing", got)
		}
		if records, err := n.Volume.Records(); err != nil || len(records) > 0 {
			t.Errorf("%d conflict records, %v", len(records), err)
		}
	}
}
