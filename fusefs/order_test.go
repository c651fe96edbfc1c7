package fusefs_test

import (
	"encoding/binary"
	"errors"
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

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

// swapDir publishes version n as git-sync and the kubelet do: a directory, a
// symlink to it, and away with the one before.
func swapDir(root string, n int) error {
	target := filepath.Join("w", strconv.Itoa(n))
	if err := os.Mkdir(filepath.Join(root, target), 0o755); err != nil {
		return err
	}
	for k := range swapDirFiles {
		if err := os.WriteFile(fmt.Sprintf("%s/%s/f%d", root, target, k), []byte(strconv.Itoa(n)), 0o644); err != nil {
			return err
		}
	}
	return errors.Join(os.Symlink(target, root+"/tmp"), os.Rename(root+"/tmp", root+"/current"),
		os.RemoveAll(filepath.Join(root, "w", strconv.Itoa(n-1))))
}

const swapDirFiles = 10

// leads wants that each file is found by way of the symlink. One may be missing
// only if the symlink leads elsewhere by then; versions do not go back.
func leads(root string, last *int) error {
	for k := range swapDirFiles {
		before, err := os.Readlink(root + "/current")
		if err != nil {
			return err
		}
		b, err := os.ReadFile(fmt.Sprintf("%s/current/f%d", root, k))
		if errors.Is(err, fs.ErrNotExist) {
			if after, linkErr := os.Readlink(root + "/current"); linkErr != nil || after == before {
				return fmt.Errorf("%w, while current leads to %s: %v", err, before, linkErr)
			}
			continue
		}
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(string(b))
		if err != nil || n < *last {
			return fmt.Errorf("f%d is of version %q after %d", k, b, *last)
		}
		*last = n
	}
	return nil
}

// TestP3SwapsWhileOthersWait: who follows a symlink that is swapped faster than
// can be shown always finds what it leads to.
func TestP3SwapsWhileOthersWait(t *testing.T) {
	for _, mode := range []struct {
		name string
		// step is called after each swap.
		step func(t *testing.T, p *fstest.Pair, n int)
	}{
		{"as they come", func(*testing.T, *fstest.Pair, int) {}},
		{"some at once", func() func(t *testing.T, p *fstest.Pair, n int) {
			var resume func()
			return func(t *testing.T, p *fstest.Pair, n int) {
				merged(t, p)
				if n%4 == 1 {
					resume = sync.OnceFunc(p.B.Mount.Pause())
					t.Cleanup(resume)
				} else if n%4 == 0 {
					resume()
				}
			}
		}()},
	} {
		t.Run(mode.name, func(t *testing.T) {
			p := fstest.MountPair(t, fstest.Options{})
			must(t, os.Mkdir(p.A.Dir+"/w", 0o755))
			must(t, swapDir(p.A.Dir, 0))
			p.Sync()
			defer pollAlways(t, 2, func() func() error {
				last := -1
				return func() error { return leads(p.B.Dir, &last) }
			})()
			for n := 1; n <= 40 && !t.Failed(); n++ {
				must(t, swapDir(p.A.Dir, n))
				mode.step(t, p, n)
			}
			p.Sync()
		})
	}
}

// pollAlways calls what look returns again and again, in some goroutines, until
// stop is called.
func pollAlways(t *testing.T, pollers int, look func() func() error) (stop func()) {
	var stopped atomic.Bool
	var tasks sync.WaitGroup
	for range pollers {
		tasks.Go(func() {
			for see := look(); !stopped.Load() && !t.Failed(); {
				if err := see(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	return func() {
		stopped.Store(true)
		tasks.Wait()
	}
}

// TestP3RenameChainIsSeenInOrder: who looks all the time sees states that were, in
// their order: `mv foo bar; mv bar baz; touch foo; mv foo bar`.
func TestP3RenameChainIsSeenInOrder(t *testing.T) {
	states := []string{"foo/", "bar/", "baz/", "baz/ foo", "bar baz/"}
	p := fstest.MountPair(t, fstest.Options{})
	for round := range 30 {
		a, b := fmt.Sprintf("%s/%d", p.A.Dir, round), fmt.Sprintf("%s/%d", p.B.Dir, round)
		must(t, os.MkdirAll(a+"/foo", 0o755))
		for k := range 10 {
			writeFile(t, fmt.Sprintf("%s/foo/%d", a, k), "text")
		}
		p.Sync()
		stop := pollAlways(t, 1, func() func() error {
			at := 0
			return func() error {
				now, err := listedAtOnce(b)
				if err != nil {
					return err
				}
				for n := at; n < len(states); n++ {
					if states[n] == now {
						at = n
						return nil
					}
				}
				return fmt.Errorf("after %q comes %q", states[at], now)
			}
		})
		resume := func() {}
		if round%3 == 0 {
			resume = p.B.Mount.Pause()
		}
		for k, step := range []func() error{
			func() error { return os.Rename(a+"/foo", a+"/bar") },
			func() error { return os.Rename(a+"/bar", a+"/baz") },
			func() error { return os.WriteFile(a+"/foo", nil, 0o644) },
			func() error { return os.Rename(a+"/foo", a+"/bar") },
		} {
			must(t, step())
			if round%3 < 2 && k != 2 {
				merged(t, p)
			}
		}
		merged(t, p)
		resume()
		p.Sync()
		stop()
		if got := tree(t, b); len(got) != 12 {
			t.Fatalf("round %d: %q", round, got)
		}
	}
}

// listedAtOnce lists a small directory by one system call, between two of which
// anything may be renamed.
func listedAtOnce(dir string) (string, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Getdents(fd, buf)
	if err != nil {
		return "", err
	}
	var names []string
	for buf = buf[:n]; len(buf) > 0; {
		size, kind := int(binary.NativeEndian.Uint16(buf[16:])), buf[18]
		name := unix.ByteSliceToString(buf[19:size])
		switch {
		case name == "." || name == "..":
		case kind == unix.DT_DIR:
			names = append(names, name+"/")
		default:
			names = append(names, name)
		}
		buf = buf[size:]
	}
	slices.Sort(names)
	return strings.Join(names, " "), nil
}
