package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
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
//
// docs/performance.md says what bounds it on two cores. There the last of 500
// changes a second is shown 0.2 s later; of 2,000 with 64 users some 150 a second
// are, and the rest in the minute after.
func TestP10Storm(t *testing.T) {
	s, c := startSource(t, 2, "d")
	b := c.Nodes[1]
	there := filepath.Join(b.Mount, "d")
	for n := range stormNames {
		if err := s.make(fmt.Sprint(n), stormText(n, 0)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the start", func() bool { _, err := os.Stat(fmt.Sprintf("%s/%d", there, stormNames-1)); return err == nil })
	watch := fstest.NewWatch(t, there)
	var heard atomic.Int64
	watch.Record(func(e fstest.Event) {
		if !strings.HasPrefix(e.Name, "local") && slices.Contains([]string{"CLOSE_WRITE", "MOVED_TO", "DELETE", "ATTRIB"}, e.Kind) {
			heard.Add(1)
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
	marks := 0
	shown := func() time.Duration { // how long another change takes now
		begin := time.Now()
		marks++
		name := fmt.Sprintf("mark%d", marks)
		if err := s.make(name, "x"); err != nil {
			t.Fatal(err)
		}
		fstest.Until(t, 2*patience, "the last change", func() bool { _, err := os.Stat(filepath.Join(there, name)); return err == nil })
		return time.Since(begin)
	}
	for _, phase := range []struct {
		what   string
		rate   float64
		length time.Duration
		change func() error
	}{
		{"changes", eventsCI(500.0, 2000), eventsCI(5*time.Second, time.Minute), func() error { return s.change(stormNames) }},
		{"versions of 4 names", eventsCI(1000.0, 10_000), eventsCI(2*time.Second, 10*time.Second), func() error {
			name := fmt.Sprint(s.done % 4)
			if _, moved := s.text[name+".moved"]; moved {
				name += ".moved"
			}
			s.done++
			return s.rewrite(name, stormText(s.done%4, s.done))
		}},
	} {
		heard.Store(0)
		uses.Store(0)
		spent, before := cpuTime(b.PID()), s.done
		rate, err := atRate(phase.length, phase.rate, phase.change)
		if err != nil {
			t.Fatal(err)
		}
		during := heard.Load()
		lag := shown()
		t.Logf("%.0f %s a second for %v; %d events of them then, %d when all were shown, %v later; %d uses by others, %v of the node's CPU for a change",
			rate, phase.what, phase.length, during, heard.Load(), lag.Round(time.Millisecond), uses.Load(),
			(cpuTime(b.PID())-spent)/time.Duration(s.done-before))
	}
	stop.Store(true)
	users.Wait()
	barrier(t, b)
	t.Logf("no thread was in an uninterruptible sleep for longer than %v", longest())
	for name, want := range s.text {
		got, err := os.ReadFile(filepath.Join(there, name))
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, want %d, %v", name, len(got), len(want), err)
		}
	}
}

// cpuTime is what a process and its children have used.
func cpuTime(pid int) (used time.Duration) {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // what has ended counts no more
	_, rest, _ := strings.Cut(string(stat), ") ")
	if fields := strings.Fields(rest); len(fields) > 12 {
		for _, ticks := range fields[11:13] {
			n, _ := strconv.Atoi(ticks) // the kernel's format
			used += time.Duration(n) * time.Second / 100
		}
	}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is right
	for _, list := range lists {
		children, _ := os.ReadFile(list) // as above
		for _, child := range strings.Fields(string(children)) {
			n, _ := strconv.Atoi(child) // as above
			used += cpuTime(n)
		}
	}
	return used
}

// stormNames is how many files are changed.
const stormNames = 500

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
	f, err := os.Open(fmt.Sprintf("%s/%d", dir, round%stormNames))
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
// It is an error if one is in one uninterruptible sleep for five seconds: without
// having run in between, as the kernel's own watch for hung tasks has it.
func watchStuck(t *testing.T, stop *atomic.Bool, task *sync.WaitGroup) (longest func() time.Duration) {
	t.Helper()
	type sleep struct {
		since    time.Time
		switches string
	}
	var most atomic.Int64
	task.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		sleeps := map[string]sleep{}
		for !stop.Load() {
			threads, err := os.ReadDir("/proc/self/task")
			if err != nil {
				t.Error(err)
				return
			}
			now := time.Now()
			for _, thread := range threads {
				dir := "/proc/self/task/" + thread.Name()
				b, _ := os.ReadFile(dir + "/status") // it may have ended
				_, state, _ := strings.Cut(string(b), "State:\t")
				if !strings.HasPrefix(state, "D") {
					delete(sleeps, thread.Name())
					continue
				}
				_, switches, _ := strings.Cut(state, "voluntary_ctxt_switches:") // and the others
				if s, ok := sleeps[thread.Name()]; !ok || s.switches != switches {
					sleeps[thread.Name()] = sleep{now, switches}
				}
				stuck := now.Sub(sleeps[thread.Name()].since)
				if stuck > 5*time.Second {
					stack, _ := os.ReadFile(dir + "/stack") // only root may
					t.Errorf("thread %s is stuck:\n%s", thread.Name(), stack)
					return
				}
				most.Store(max(most.Load(), int64(stuck)))
			}
			unix.Nanosleep(&unix.Timespec{Nsec: 50e6}, nil) //nolint:errcheck // an interval
		}
	})
	return func() time.Duration { return time.Duration(most.Load()) }
}
