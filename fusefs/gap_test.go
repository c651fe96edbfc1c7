package fusefs_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

// replacements put something else at x, or at x and y, where something stood
// before. Some have a gap: there the name is absent in between, for the writer.
var replacements = []struct {
	name string
	gap  bool
	do   func(d string, n int) error
}{
	{"a new file", false, func(d string, n int) error { return overWrite(d, "x", n) }},
	{"a new file, twice", false, func(d string, n int) error {
		return errors.Join(overWrite(d, "x", n), overWrite(d, "x", n))
	}},
	{"a link", false, func(d string, n int) error {
		if err := errors.Join(overWrite(d, "x", n), os.Link(d+"/x", d+"/tmp")); err != nil {
			return err
		}
		return os.Rename(d+"/tmp", d+"/y")
	}},
	{"exchanged", false, func(d string, n int) error { return exchangeFiles(d+"/x", d+"/y") }},
	{"exchanged with a new one", false, func(d string, n int) error {
		if err := os.WriteFile(d+"/tmp", []byte{byte(n)}, 0o644); err != nil {
			return err
		}
		return errors.Join(exchangeFiles(d+"/tmp", d+"/x"), os.Remove(d+"/tmp"))
	}},
	{"exchanged with a directory", false, func(d string, n int) error {
		if err := os.Mkdir(d+"/tmp", 0o755); err != nil {
			return err
		}
		if err := exchangeFiles(d+"/tmp", d+"/x"); err != nil {
			return err
		}
		return errors.Join(overWrite(d, "tmp", n), exchangeFiles(d+"/tmp", d+"/x"), os.Remove(d+"/tmp"))
	}},
	{"removed and made anew", true, func(d string, n int) error {
		return errors.Join(os.Remove(d+"/x"), os.WriteFile(d+"/x", []byte{byte(n)}, 0o644))
	}},
	{"moved aside and made anew", true, func(d string, n int) error {
		os.Remove(d + "/x.bak")
		return errors.Join(os.Rename(d+"/x", d+"/x.bak"), os.WriteFile(d+"/x", []byte{byte(n)}, 0o644))
	}},
	{"moved over another one, and replaced", true, func(d string, n int) error {
		return errors.Join(os.Rename(d+"/x", d+"/y"), overWrite(d, "x", n))
	}},
	{"a directory for a file, and back", true, func(d string, n int) error {
		if err := os.Remove(d + "/x"); err != nil {
			return err
		}
		if n%2 == 0 {
			return os.Mkdir(d+"/x", 0o755)
		}
		return os.WriteFile(d+"/x", []byte{byte(n)}, 0o644)
	}},
	{"a directory moved over a file, and back", true, func(d string, n int) error {
		if n%2 == 1 {
			return errors.Join(os.Remove(d+"/x"), overWrite(d, "x", n))
		}
		return errors.Join(os.Mkdir(d+"/tmp", 0o755), os.Remove(d+"/x"), os.Rename(d+"/tmp", d+"/x"))
	}},
}

func overWrite(d, name string, n int) error {
	if err := os.WriteFile(d+"/tmp", []byte{byte(n)}, 0o644); err != nil {
		return err
	}
	return os.Rename(d+"/tmp", d+"/"+name)
}

func exchangeFiles(from, to string) error {
	return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
}

// TestP2ReplacedIsNeverAbsent: whoever opens, on another node, a name at which
// one thing takes the place of another, finds the one or the other, in whatever
// way that is shown.
func TestP2ReplacedIsNeverAbsent(t *testing.T) {
	for _, mode := range []struct {
		name  string
		opts  fstest.Options
		hurry func(p *fstest.Pair)
	}{
		{name: "by calls"},
		{name: "without the helper", opts: fstest.Options{NoHelper: true}},
		{name: "calls are given up", hurry: func(p *fstest.Pair) { p.B.Mount.Hurry(50 * time.Microsecond) }},
		{name: "the helper dies", hurry: func(p *fstest.Pair) { p.B.Mount.KillHelper() }},
	} {
		t.Run(mode.name, func(t *testing.T) {
			// What is held waits for its other half, and not for the time.
			mode.opts.Store.Hold = time.Minute
			p := fstest.MountPair(t, mode.opts)
			for n, r := range replacements {
				t.Run(r.name, func(t *testing.T) {
					if mode.hurry != nil {
						mode.hurry(p)
					}
					neverAbsent(t, p, fmt.Sprintf("/d%d", n), r.gap, r.do)
				})
			}
		})
	}
}

func neverAbsent(t *testing.T, p *fstest.Pair, dir string, gap bool, do func(string, int) error) {
	a, b := p.A.Dir+dir, p.B.Dir+dir
	must(t, os.Mkdir(a, 0o755))
	writeFile(t, a+"/x", "first")
	writeFile(t, a+"/y", "first")
	p.Sync()
	defer readAlways(t, b+"/x", b+"/y")()
	for n := 0; n < 12 && !t.Failed(); n++ {
		resume := func() {}
		if gap || n/2%2 == 0 { // all at once, else as it comes
			resume = p.B.Mount.Pause()
		}
		if err := do(a, n); err != nil {
			t.Errorf("%d: %v; A shows %q, B %q", n, err, tree(t, a), tree(t, b))
		}
		// What is synced does not wait for a file that is yet to be published.
		fstest.Eventually(t, func() error {
			if n := p.A.Volume.Stats().OpenDrafts; n > 0 {
				return fmt.Errorf("%d files are not published", n)
			}
			return nil
		})
		merged(t, p)
		resume()
		p.Sync()
	}
	if got, want := tree(t, b), tree(t, a); !slices.Equal(got, want) {
		t.Errorf("B shows %q, A %q", got, want)
	}
}

// readAlways opens files, again and again, until stop is called; none must ever
// be absent. When it returns, the kernel knows them.
func readAlways(t *testing.T, paths ...string) (stop func()) {
	for _, path := range paths {
		_, err := os.Stat(path)
		must(t, err)
	}
	var stopped atomic.Bool
	var readers sync.WaitGroup
	for n := range paths {
		readers.Go(func() {
			for !stopped.Load() && !t.Failed() {
				for _, path := range slices.Concat(paths[n:], paths[:n]) {
					f, err := os.Open(path)
					if err != nil {
						t.Error(err)
						continue
					}
					f.Close()
				}
			}
		})
	}
	return func() {
		stopped.Store(true)
		readers.Wait()
	}
}

// TestP2ReplacedOnBothNodes: so it is where both nodes replace it at once.
func TestP2ReplacedOnBothNodes(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	writeFile(t, p.A.Dir+"/x", "first")
	p.Sync()
	stop := readAlways(t, p.A.Dir+"/x", p.B.Dir+"/x")
	for n := 0; n < 20 && !t.Failed(); n++ {
		var writers sync.WaitGroup
		for _, node := range []*fstest.Node{p.A, p.B} {
			writers.Go(func() {
				tmp := fmt.Sprintf("%s/tmp %s", node.Dir, map[bool]string{true: "A", false: "B"}[node == p.A])
				for m := range 5 {
					if err := errors.Join(os.WriteFile(tmp, []byte{byte(n), byte(m)}, 0o644), os.Rename(tmp, node.Dir+"/x")); err != nil {
						t.Error(err)
					}
				}
			})
		}
		writers.Wait()
		if n%2 == 0 {
			p.Sync()
		}
	}
	stop()
	p.Sync()
	if got, want := tree(t, p.B.Dir), tree(t, p.A.Dir); !slices.Equal(got, want) {
		t.Errorf("B shows %q, A %q", got, want)
	}
}
