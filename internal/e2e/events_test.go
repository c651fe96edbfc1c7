package e2e

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
	"github.com/synapsefs/synapsefs/internal/playground"
)

var eventsFull = flag.Bool("events.full", false, "run the tests of events at full length: some minutes")

func eventsCI[T any](short, long T) T {
	if *eventsFull {
		return long
	}
	return short
}

// Reports from people whose programs follow a directory that others write, as
// steps on two nodes.

// TestP10RenameChain: quick renames are renames elsewhere, of which some may be left
// out, and neither removals nor new files.
func TestP10RenameChain(t *testing.T) {
	c := start(t, 2)
	a, b := c.Nodes[0], c.Nodes[1]
	for round := range eventsCI(8, 500) {
		name := fmt.Sprint(round)
		dir, there := filepath.Join(a.Mount, name), filepath.Join(b.Mount, name)
		if err := os.MkdirAll(dir+"/foo", 0o755); err != nil {
			t.Fatal(err)
		}
		for n := range 100 {
			write(t, a, fmt.Sprintf("%s/foo/%d", name, n), fmt.Sprint(n))
		}
		until(t, "the start", func() bool { _, err := os.ReadFile(there + "/foo/99"); return err == nil })
		before, err := os.Stat(there + "/foo/7")
		if err != nil {
			t.Fatal(err)
		}
		w := fstest.NewWatch(t, there)
		for _, err := range []error{
			os.Rename(dir+"/foo", dir+"/bar"), os.Rename(dir+"/bar", dir+"/baz"),
			os.WriteFile(dir+"/foo", nil, 0o644), os.Rename(dir+"/foo", dir+"/bar"),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		until(t, "the end", func() bool { return kinds(t, there) == "bar baz/" })
		after, err := os.Stat(there + "/baz/7")
		if err != nil || !os.SameFile(before, after) {
			t.Errorf("round %d: not the same file: %v", round, err)
		}
		if events := w.Events(); slices.ContainsFunc(events, func(e string) bool { return strings.HasPrefix(e, "DELETE") }) {
			t.Errorf("round %d: %q", round, events)
		}
	}
	equal(t, a, b)
}

// kinds lists a directory, a slash behind each directory's name.
func kinds(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() {
			name += "/"
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

// TestP10SymlinkSwap: readers of a directory behind a symlink that is swapped, as
// fast as it goes, find all files of one version, as long as the symlink leads to
// it.
func TestP10SymlinkSwap(t *testing.T) {
	c := start(t, 2)
	a, b := c.Nodes[0], c.Nodes[1]
	w := swapWriter{a.Mount}
	if err := errors.Join(os.Mkdir(a.Mount+"/w", 0o755), w.swap(0)); err != nil {
		t.Fatal(err)
	}
	until(t, "the start", func() bool { return readSet(b.Mount+"/current", 0) == nil })
	var stop atomic.Bool
	var byPath, bySet atomic.Int64
	var readers sync.WaitGroup
	reader := func(count *atomic.Int64, read func(dir string) error) {
		readers.Go(func() {
			for !stop.Load() && !t.Failed() {
				if err := read(b.Mount); err != nil {
					t.Error(err)
				}
				count.Add(1)
			}
		})
	}
	reader(&byPath, readByPath)
	reader(&bySet, readOpenSet)
	swaps := eventsCI(20, 500)
	for n := 1; n <= swaps && !t.Failed(); n++ {
		if err := w.swap(n); err != nil {
			t.Fatal(err)
		}
	}
	equal(t, a, b)
	stop.Store(true)
	readers.Wait()
	if err := readSet(b.Mount+"/current", swaps); err != nil {
		t.Error(err)
	}
	t.Logf("%d swaps, %d reads by path, %d of whole sets", swaps, byPath.Load(), bySet.Load())
}

const swapFiles = 100

// A swapWriter publishes directories as git-sync and the kubelet do.
type swapWriter struct{ root string }

func (w swapWriter) swap(n int) error {
	target := filepath.Join("w", strconv.Itoa(n))
	dir := filepath.Join(w.root, target)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for k := range swapFiles {
		if err := os.WriteFile(fmt.Sprintf("%s/f%d", dir, k), []byte(strconv.Itoa(n)), 0o644); err != nil {
			return err
		}
	}
	return errors.Join(os.Symlink(target, w.root+"/tmp"), os.Rename(w.root+"/tmp", w.root+"/current"),
		os.RemoveAll(filepath.Join(w.root, "w", strconv.Itoa(n-1))))
}

// readSet wants all files of a version.
func readSet(dir string, version int) error {
	for k := range swapFiles {
		b, err := os.ReadFile(fmt.Sprintf("%s/f%d", dir, k))
		if err == nil && string(b) != strconv.Itoa(version) {
			err = fmt.Errorf("%s/f%d is of version %q, not %d", dir, k, b, version)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readByPath reads each file by a path through the symlink. A file may be missing
// only if the symlink was swapped meanwhile, and no version comes after a later one.
func readByPath(root string) error {
	last := -1
	for k := range swapFiles {
		before, err := os.Readlink(root + "/current")
		if err != nil {
			return err
		}
		b, err := os.ReadFile(fmt.Sprintf("%s/current/f%d", root, k))
		if errors.Is(err, fs.ErrNotExist) {
			after, err := os.Readlink(root + "/current")
			if err != nil || after == before {
				return fmt.Errorf("f%d is missing while current leads to %s, %v", k, before, err)
			}
			continue
		}
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(string(b))
		if err != nil || n < last {
			return fmt.Errorf("f%d is of version %q after %d", k, b, last)
		}
		last = n
	}
	return nil
}

// readOpenSet opens the directory behind the symlink, lists it, and reads all from
// there. It may be incomplete only if the symlink leads elsewhere by then.
func readOpenSet(root string) error {
	version, err := os.Readlink(root + "/current")
	if err != nil {
		return err
	}
	err = func() error {
		dir, err := os.OpenRoot(root + "/current")
		if err != nil {
			return err
		}
		defer dir.Close()
		names, err := fs.ReadDir(dir.FS(), ".")
		if err != nil {
			return err
		}
		if len(names) != swapFiles {
			return fmt.Errorf("%d files are listed: %w", len(names), fs.ErrNotExist)
		}
		var first []byte
		for _, name := range names {
			b, err := dir.ReadFile(name.Name())
			if err != nil {
				return err
			}
			if first == nil {
				first = b
			}
			if string(b) != string(first) {
				return fmt.Errorf("%s is of version %s, others are of %s", name.Name(), b, first)
			}
		}
		return nil
	}()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESTALE) {
		if now, e := os.Readlink(root + "/current"); e == nil && now != version {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("current led to %s: %w", version, err)
	}
	return nil
}

// TestP10Overflow: a watcher who sleeps through more than his queue takes hears
// that it overflowed, and one who does not hears all.
func TestP10Overflow(t *testing.T) {
	c := start(t, 2)
	a, b := c.Nodes[0], c.Nodes[1]
	if err := os.Mkdir(a.Mount+"/d", 0o755); err != nil {
		t.Fatal(err)
	}
	equal(t, a, b)
	asleep, awake := fstest.NewWatch(t, b.Mount+"/d"), fstest.NewWatch(t, b.Mount+"/d")
	heard := map[string]bool{}
	stop := awake.Record(func(e fstest.Event) { heard[e.Kind+" "+e.Name] = true })
	files := eventsCI(4200, 40_000) // four events each; max_queued_events is 16,384
	begin := time.Now()
	for n := range files {
		write(t, a, fmt.Sprintf("d/%d", n), "x")
	}
	equal(t, a, b)
	t.Logf("%d files in %v", files, time.Since(begin))
	stop()
	for n := range files {
		if name := fmt.Sprintf("CREATE %d", n); !heard[name] && !heard["Q_OVERFLOW "] {
			t.Fatalf("not heard: %s", name)
		}
	}
	slept := asleep.Read()
	if last := slept[len(slept)-1]; last.Kind != "Q_OVERFLOW" {
		t.Errorf("%d events of %d files, the last is %v", len(slept), files, last)
	}
	empty(t, &playground.Node{Mount: a.Mount + "/d"})
	equal(t, a, b)
	if slept = asleep.Read(); len(slept) == 0 {
		t.Error("the watch is silent after the overflow")
	}
}
