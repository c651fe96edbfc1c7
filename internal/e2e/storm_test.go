package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

// TestP10Storm: many remote changes a second, each revealed, in a directory that
// others read, write, list and map. Nobody is stuck, nothing fails, and in the end
// all bytes are right. What it prints are figures of this host, and no verdict.
func TestP10Storm(t *testing.T) {
	c := start(t, 2)
	a, b := c.Nodes[0], c.Nodes[1]
	const names = 500
	dir, there := filepath.Join(a.Mount, "d"), filepath.Join(b.Mount, "d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for n := range names {
		write(t, a, fmt.Sprintf("d/%d", n), stormText(n, 0))
	}
	equal(t, a, b)
	watch := fstest.NewWatch(t, there)
	var heard atomic.Int64
	watch.Record(func(e fstest.Event) {
		switch e.Kind {
		case "CLOSE_WRITE", "MOVED_TO", "DELETE", "CREATE":
			if !strings.HasPrefix(e.Name, "local") {
				heard.Add(1)
			}
		}
	})
	var stop atomic.Bool
	var users sync.WaitGroup
	var uses atomic.Int64
	for u := range eventsCI(16, 64) {
		users.Go(func() {
			for round := 0; !stop.Load() && !t.Failed(); round++ {
				if err := stormUses[u%len(stormUses)](there, u, round); err != nil {
					t.Errorf("user %d: %v", u, err)
				}
				uses.Add(1)
			}
		})
	}
	longest := watchStuck(t, &stop, &users)
	begin := time.Now()
	changes := 0
	length := eventsCI(10*time.Second, time.Minute)
	const rate = 2000 // a second
	for time.Since(begin) < length && !t.Failed() {
		if err := stormChange(dir, changes%names, changes); err != nil {
			t.Fatal(err)
		}
		changes++
		if ahead := time.Duration(changes)*time.Second/rate - time.Since(begin); ahead > 0 {
			time.Sleep(ahead)
		}
	}
	took := time.Since(begin)
	barrier(t, a)
	lag := time.Since(begin) - took
	t.Logf("%d changes, %.0f a second; %d events of theirs, %d uses by others; all arrived %v after the last", changes,
		float64(changes)/took.Seconds(), heard.Load(), uses.Load(), lag)
	// Successive versions of few names, as fast as it goes.
	begin = time.Now()
	versions := 0
	for ; time.Since(begin) < 2*time.Second; versions++ {
		if err := os.WriteFile(fmt.Sprintf("%s/%d", dir, versions%4), []byte(stormText(versions%4, versions)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	rateOf := float64(versions) / time.Since(begin).Seconds()
	begin = time.Now()
	mark := stormText(0, -1)
	write(t, a, "d/0", mark)
	until(t, "the last version", shows(b, "d/0", mark))
	t.Logf("%d versions of 4 names, %.0f a second; one more was shown after %v", versions, rateOf, time.Since(begin))
	stop.Store(true)
	users.Wait()
	equal(t, a, b)
	t.Logf("no thread was in an uninterruptible sleep for longer than %v", longest())
	for n := range names {
		path := fmt.Sprintf("%s/%d", there, n)
		want, err := os.ReadFile(fmt.Sprintf("%s/%d", dir, n))
		if err != nil {
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != string(want) {
			t.Errorf("%s: %d bytes, want %d, %v", path, len(got), len(want), err)
		}
	}
}

// stormText is a number, again and again, of a length of its own.
func stormText(n, version int) string {
	return strings.Repeat(fmt.Sprintf("%d:%d\n", n, version), 20+(version+500)%500)
}

// wholeText reports whether bytes are a stormText.
func wholeText(b []byte) error {
	line, _, _ := strings.Cut(string(b), "\n")
	if strings.Repeat(line+"\n", len(b)/(len(line)+1)) != string(b) || len(b) == 0 {
		return fmt.Errorf("%d bytes are of more than one version: %.20q", len(b), b)
	}
	return nil
}

// stormChange changes a file in one of the ways that programs do.
func stormChange(dir string, n, version int) error {
	path, text := fmt.Sprintf("%s/%d", dir, n), []byte(stormText(n, version))
	switch version % 5 {
	case 0:
		return errors.Join(os.WriteFile(path+".tmp", text, 0o644), os.Rename(path+".tmp", path))
	case 1:
		return os.Chmod(path, os.FileMode(0o600|version%8))
	case 2:
		return errors.Join(os.Remove(path), os.WriteFile(path, text, 0o644))
	}
	return os.WriteFile(path, text, 0o644)
}

// stormUses are what local programs do meanwhile.
var stormUses = []func(dir string, u, round int) error{
	func(dir string, _, round int) error { return stormRead(dir, round, readBuffered) },
	func(dir string, _, round int) error { return stormRead(dir, round, readMapped) },
	func(dir string, _, _ int) error {
		_, err := os.ReadDir(dir)
		return err
	},
	func(dir string, u, round int) error {
		path := fmt.Sprintf("%s/local%d", dir, u)
		if round%10 == 9 {
			return os.Remove(path)
		}
		return os.WriteFile(path, []byte(stormText(u, round)), 0o644)
	},
}

func stormRead(dir string, round int, read func(*os.File) ([]byte, error)) error {
	f, err := os.Open(fmt.Sprintf("%s/%d", dir, round%500))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := read(f)
	if err != nil {
		return err
	}
	return wholeText(b)
}

// watchStuck looks at the states of this process's threads, until the users stop.
// It is an error if one is in an uninterruptible sleep for five seconds.
func watchStuck(t *testing.T, stop *atomic.Bool, task *sync.WaitGroup) (longest func() time.Duration) {
	t.Helper()
	var most atomic.Int64
	task.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		since := map[string]time.Time{}
		for !stop.Load() {
			threads, err := os.ReadDir("/proc/self/task")
			if err != nil {
				t.Error(err)
				return
			}
			now := time.Now()
			for _, thread := range threads {
				b, _ := os.ReadFile("/proc/self/task/" + thread.Name() + "/stat") // it may have ended
				_, state, _ := strings.Cut(string(b), ") ")
				if !strings.HasPrefix(state, "D") {
					delete(since, thread.Name())
					continue
				}
				if _, ok := since[thread.Name()]; !ok {
					since[thread.Name()] = now
				}
				stuck := now.Sub(since[thread.Name()])
				if stuck > 5*time.Second {
					t.Errorf("thread %s is stuck", thread.Name())
					return
				}
				most.Store(max(most.Load(), int64(stuck)))
			}
			unix.Nanosleep(&unix.Timespec{Nsec: 50e6}, nil) //nolint:errcheck // an interval
		}
	})
	return func() time.Duration { return time.Duration(most.Load()) }
}
