package fusefs_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

// merged returns when B has merged what A published, whether shown or not.
func merged(t *testing.T, p *fstest.Pair) {
	t.Helper()
	fstest.Eventually(t, func() error {
		if err := p.A.Volume.Sync(); err != nil {
			return err
		}
		if s := p.A.Volume.Stats(); s.Unsealed > 0 || s.OpenDrafts > 0 {
			return fmt.Errorf("not published: %+v", s)
		}
		if !p.B.Volume.Vector().Contains(p.A.Volume.Vector()) {
			return errors.New("not merged")
		}
		return nil
	})
}

// Until it is revealed, a change is in no listing, no lookup and no stat; then
// it is in all of them.
func TestMergedIsNotShown(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	a, b := makeStart(t, p)
	resume := p.B.Mount.Pause()
	writeFile(t, a+"/n", "new")
	must(t, os.Remove(a+"/a"))
	must(t, os.Rename(a+"/b", a+"/c"))
	must(t, os.RemoveAll(a+"/s"))
	merged(t, p)
	expectTree(t, b, "a=1", "b=2", "s/", "s/x=3")
	resume()
	p.Sync()
	expectTree(t, b, "c=2", "n=new")
}

// A call of this node that meets a name which is merged and not shown.
func TestLocalCallMeetsPendingName(t *testing.T) {
	for _, c := range []struct {
		name          string
		remote, local func(dir string) error
		err           error
		tree          []string
	}{
		{"mkdir, mkdir",
			func(d string) error { return os.Mkdir(d+"/n", 0o755) },
			func(d string) error { return os.Mkdir(d+"/n", 0o755) }, nil,
			[]string{"a=1", "b=2", "n/", "s/", "s/x=3"}},
		{"create, create",
			func(d string) error { return os.WriteFile(d+"/n", []byte("remote"), 0o644) },
			func(d string) error { return os.WriteFile(d+"/n", []byte("local"), 0o644) }, nil,
			[]string{"a=1", "b=2", "n=local", "s/", "s/x=3"}},
		{"create, append",
			func(d string) error { return os.WriteFile(d+"/n", []byte("remote"), 0o644) },
			func(d string) error {
				f, err := os.OpenFile(d+"/n", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
				if err != nil {
					return err
				}
				_, err = f.WriteString("+local")
				return errors.Join(err, f.Close())
			}, nil,
			[]string{"a=1", "b=2", "n=remote+local", "s/", "s/x=3"}},
		{"create, create exclusively",
			func(d string) error { return os.WriteFile(d+"/n", []byte("remote"), 0o644) },
			func(d string) error {
				_, err := os.OpenFile(d+"/n", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
				return err
			}, syscall.EEXIST,
			[]string{"a=1", "b=2", "n=remote", "s/", "s/x=3"}},
		{"mkdir, create",
			func(d string) error { return os.Mkdir(d+"/n", 0o755) },
			func(d string) error { return os.WriteFile(d+"/n", nil, 0o644) }, syscall.EISDIR,
			[]string{"a=1", "b=2", "n/", "s/", "s/x=3"}},
		{"create, mkdir",
			func(d string) error { return os.WriteFile(d+"/n", nil, 0o644) },
			func(d string) error { return os.Mkdir(d+"/n", 0o755) }, syscall.EEXIST,
			[]string{"a=1", "b=2", "n=", "s/", "s/x=3"}},
		{"symlink, symlink",
			func(d string) error { return os.Symlink("r", d+"/n") },
			func(d string) error { return os.Symlink("l", d+"/n") }, syscall.EEXIST,
			[]string{"a=1", "b=2", "n->r", "s/", "s/x=3"}},
		{"unlink, unlink",
			func(d string) error { return os.Remove(d + "/a") },
			func(d string) error { return unix.Unlink(d + "/a") }, nil,
			[]string{"b=2", "s/", "s/x=3"}},
		{"rmdir, rmdir",
			func(d string) error { return os.RemoveAll(d + "/s") },
			func(d string) error { return errors.Join(unix.Unlink(d+"/s/x"), unix.Rmdir(d+"/s")) }, nil,
			[]string{"a=1", "b=2"}},
		{"replaced, unlink: what was not seen stays",
			func(d string) error { return os.Rename(d+"/b", d+"/a") },
			func(d string) error { return unix.Unlink(d + "/a") }, nil,
			[]string{"a=2", "s/", "s/x=3"}},
		{"unlink, write",
			func(d string) error { return os.Remove(d + "/a") },
			func(d string) error { return os.WriteFile(d+"/a", []byte("edit"), 0o644) }, nil,
			[]string{"a=edit", "b=2", "s/", "s/x=3"}},
		{"unlink, rename",
			func(d string) error { return os.Remove(d + "/a") },
			func(d string) error { return unix.Rename(d+"/a", d+"/n") }, syscall.ENOENT,
			[]string{"b=2", "s/", "s/x=3"}},
		{"rename, rename",
			func(d string) error { return os.Rename(d+"/a", d+"/m") },
			func(d string) error { return unix.Rename(d+"/a", d+"/n") }, syscall.ENOENT,
			[]string{"b=2", "m=1", "s/", "s/x=3"}},
		{"create, rename to it",
			func(d string) error { return os.WriteFile(d+"/n", []byte("remote"), 0o644) },
			func(d string) error { return unix.Rename(d+"/a", d+"/n") }, nil,
			[]string{"b=2", "n=1", "s/", "s/x=3"}},
		{"replaced, exchange with it",
			func(d string) error {
				return errors.Join(os.WriteFile(d+"/n", []byte("remote"), 0o644), os.Rename(d+"/n", d+"/b"))
			},
			func(d string) error { return exchangeFiles(d+"/a", d+"/b") }, nil,
			[]string{"a=remote", "b=1", "s/", "s/x=3"}},
		{"rewrite, append",
			func(d string) error { return os.WriteFile(d+"/a", []byte("remote"), 0o644) },
			func(d string) error { return os.Chmod(d+"/a", 0o600) }, nil,
			[]string{"a=remote", "b=2", "s/", "s/x=3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := fstest.MountPair(t, fstest.Options{})
			a, b := makeStart(t, p)
			tree(t, b)
			resume := p.B.Mount.Pause()
			must(t, c.remote(a))
			merged(t, p)
			if err := c.local(b); !errors.Is(err, c.err) {
				t.Errorf("%v, want %v", err, c.err)
			}
			resume()
			p.Sync()
			for _, line := range c.tree { // before a listing tells the kernel what is where
				if name, text, ok := strings.Cut(line, "="); ok {
					if got, err := os.ReadFile(b + "/" + name); err != nil || string(got) != text {
						t.Errorf("%s: %q, want %q, %v", name, got, text, err)
					}
				}
			}
			expectTree(t, b, c.tree...)
			expectTree(t, a, c.tree...)
			if s := p.B.Mount.Stats(); s.Pending > 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// A poller of names that appear never sees a part of a file, nor an empty one.
func TestP2AtomicCreate(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	text := string(slices.Repeat([]byte("0123456789abcdef"), 50<<10/16))
	const files = 100
	var at atomic.Int64
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for at.Load() < files {
			b, err := os.ReadFile(fmt.Sprintf("%s/f%d", p.B.Dir, at.Load()))
			switch {
			case err == nil && string(b) == text:
				at.Add(1)
			case err == nil || !os.IsNotExist(err):
				t.Errorf("%d bytes, %v", len(b), err)
				at.Store(files)
			}
		}
	})
	for n := range files {
		writeFile(t, fmt.Sprintf("%s/f%d", p.A.Dir, n), text)
	}
	tasks.Wait()
	if s := p.B.Mount.Stats(); s.Fallbacks > 0 {
		t.Errorf("%+v", s)
	}
}

// What is mounted below a directory survives whatever happens around it, and
// a mount point cannot be removed from afar.
func TestMountBelow(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	a, b := makeStart(t, p)
	must(t, unix.Mount("below", b+"/s", "tmpfs", 0, ""))
	mounted := true
	t.Cleanup(func() {
		if mounted {
			unix.Unmount(b+"/s", unix.MNT_DETACH)
		}
	})
	writeFile(t, b+"/s/inside", "tmpfs")
	writeFile(t, a+"/n", "new")
	must(t, os.Remove(a+"/a"))
	must(t, os.Chmod(a+"/s", 0o700))
	writeFile(t, a+"/s/y", "4")
	must(t, os.RemoveAll(a+"/s"))
	merged(t, p)
	fstest.Eventually(t, func() error { _, err := os.Stat(b + "/n"); return err })
	if got, err := os.ReadFile(b + "/s/inside"); string(got) != "tmpfs" {
		t.Errorf("the mount is gone: %v", err)
	}
	must(t, unix.Unmount(b+"/s", 0))
	mounted = false
	p.Sync()
	expectTree(t, b, "b=2", "n=new")
}

// A big tree that appears where nobody looks costs few reveals.
func TestImportIsCheap(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	must(t, os.Mkdir(p.A.Dir+"/x", 0o755))
	for d := range 10 {
		dir := fmt.Sprintf("%s/x/d%d", p.A.Dir, d)
		must(t, os.Mkdir(dir, 0o755))
		for n := range 50 {
			writeFile(t, fmt.Sprintf("%s/f%d", dir, n), "text")
		}
	}
	p.Sync()
	if s := p.B.Mount.Stats(); s.Reveals > 200 {
		t.Errorf("%+v", s)
	}
	if got := len(tree(t, p.B.Dir)); got != 511 {
		t.Errorf("%d names", got)
	}
}

// Without the helper process for a while, changes are seen all the same.
func TestHelperDies(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	a, b := makeStart(t, p)
	p.B.Mount.KillHelper()
	writeFile(t, a+"/n", "new")
	writeFile(t, a+"/a", "more")
	must(t, os.RemoveAll(a+"/s"))
	p.Sync()
	expectTree(t, b, "a=more", "b=2", "n=new")
	w := fstest.NewWatch(t, b)
	fstest.Eventually(t, func() error {
		must(t, os.WriteFile(a+"/b", []byte("again"), 0o644))
		p.Sync()
		if !slices.Contains(w.Events(), "CLOSE_WRITE b") {
			return errors.New("the helper did not come back")
		}
		return nil
	})
}

// Two programs hold the mount: unmounting fails until they leave, and by force
// it is taken away under them.
func TestUnmountInUse(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	writeFile(t, n.Dir+"/f", "text")
	c := shellIn(n.Dir, "echo; exec sleep 60")
	there, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	_, err = there.Read(make([]byte, 1))
	must(t, err)
	if err := n.Mount.Unmount(false); !errors.Is(err, syscall.EBUSY) {
		t.Fatal(err)
	}
	writeFile(t, n.Dir+"/g", "still works")
	must(t, n.Mount.Unmount(true))
	if _, err := os.Stat(n.Dir + "/f"); !os.IsNotExist(err) {
		t.Error(err)
	}
	c.Process.Kill()
	c.Wait()
	must(t, n.Mount.Wait())
}
