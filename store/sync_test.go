package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
)

// TestP8OneSyncServesAllThatWait: a caller is served by a sync that began after
// its call, and shares it with all who wait by then.
func TestP8OneSyncServesAllThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		proceed, syncs := make(chan error), 0
		g := &syncGroup{sync: func() error {
			syncs++
			return <-proceed
		}}
		errs := make(chan error, 100)
		wait := func(callers int) {
			for range callers {
				go func() { errs <- g.wait() }()
			}
			synctest.Wait()
		}
		finish := func(err error, served, more int) {
			t.Helper()
			proceed <- err
			synctest.Wait()
			if len(errs) != served || syncs != more {
				t.Fatalf("%d callers served, %d syncs begun; want %d, %d", len(errs), syncs, served, more)
			}
			for range served {
				check(t, <-errs, err)
			}
		}
		broken := errors.New("disk")
		wait(1)
		wait(50) // while the first one runs
		finish(nil, 1, 2)
		wait(7)
		finish(broken, 50, 3)
		finish(nil, 7, 3)
		wait(1)
		finish(nil, 1, 4)
	})
}

// TestP8SyncReachesEveryLog: memtables that are full and not yet tables are
// synced too, each as long as it can have changed.
func TestP8SyncReachesEveryLog(t *testing.T) {
	dir := t.TempDir()
	s := logSync{dir: dir}
	for _, step := range [][]string{{"1"}, {"1"}, {"1", "2"}, {"1", "2", "3"}, {"3"}, {"4", "5"}, {}} {
		all, err := filepath.Glob(filepath.Join(dir, "*"))
		check(t, err, nil)
		for _, p := range all {
			check(t, os.Remove(p), nil)
		}
		for _, name := range step {
			check(t, os.WriteFile(filepath.Join(dir, name+".mem"), []byte(name), 0o600), nil)
		}
		check(t, s.run(), nil)
		if len(s.last) != len(step) {
			t.Errorf("%v: knows %q", step, s.last)
		}
	}
	check(t, os.RemoveAll(dir), nil)
	check(t, os.WriteFile(dir, nil, 0o600), nil)
	check(t, s.run(), nil) // no logs, and a name that can be synced
	v := volumeWith(t, NewVolumeID(), Options{})
	for n := range 300 {
		write(t, v, root, fmt.Sprint("f", n), noise(uint64(n), 60_000))
		if n%50 == 0 {
			check(t, v.Sync(), nil)
		}
	}
}
