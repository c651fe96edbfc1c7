package fusefs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/fusefs"
	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/fstest"
)

// P9: what a program has of a mount, it has after the next daemon took over.
// Each case makes something, and returns what must hold before and after.
func TestP9RestartUnderPrograms(t *testing.T) {
	for _, test := range []struct {
		name string
		make func(t *testing.T, n *fstest.Node) (check func() error)
	}{
		{"file open for writing", func(t *testing.T, n *fstest.Node) func() error {
			f := created(t, n, "f")
			return func() error { return append1(f) }
		}},
		{"file opened again and rewritten", func(t *testing.T, n *fstest.Node) func() error {
			written(t, n, "f", "old")
			f, err := os.OpenFile(filepath.Join(n.Dir, "f"), os.O_RDWR|os.O_TRUNC, 0)
			must(t, err)
			t.Cleanup(func() { f.Close() })
			return func() error { return append1(f) }
		}},
		{"file without a name", func(t *testing.T, n *fstest.Node) func() error {
			f := created(t, n, "f")
			must(t, os.Remove(f.Name()))
			return func() error {
				if err := append1(f); err != nil {
					return err
				}
				return isGone(f.Name())
			}
		}},
		{"published file without a name, read", func(t *testing.T, n *fstest.Node) func() error {
			written(t, n, "f", "content")
			f, err := os.Open(filepath.Join(n.Dir, "f"))
			must(t, err)
			t.Cleanup(func() { f.Close() })
			must(t, os.Remove(f.Name()))
			return func() error { return reads(f, "content") }
		}},
		{"file renamed over, read", func(t *testing.T, n *fstest.Node) func() error {
			written(t, n, "f", "old")
			f, err := os.Open(filepath.Join(n.Dir, "f"))
			must(t, err)
			t.Cleanup(func() { f.Close() })
			written(t, n, "tmp", "new")
			must(t, os.Rename(filepath.Join(n.Dir, "tmp"), f.Name()))
			return func() error {
				return errors.Join(reads(f, "old"), holds(f.Name(), "new"))
			}
		}},
		{"O_TMPFILE", func(t *testing.T, n *fstest.Node) func() error {
			fd, err := unix.Open(n.Dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
			must(t, err)
			f := os.NewFile(uintptr(fd), filepath.Join(n.Dir, "none"))
			t.Cleanup(func() { f.Close() })
			return func() error { return append1(f) }
		}},
		{"removed working directory", func(t *testing.T, n *fstest.Node) func() error {
			d := filepath.Join(n.Dir, "d")
			must(t, os.Mkdir(d, 0o755))
			fd, err := unix.Open(d, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			must(t, err)
			t.Cleanup(func() { unix.Close(fd) })
			must(t, os.Remove(d))
			must(t, os.Mkdir(d, 0o755)) // another one of the name
			return func() error {
				if err := unix.Mkdirat(fd, "x", 0o755); !errors.Is(err, unix.ENOENT) {
					return fmt.Errorf("mkdir in a removed directory: %v", err)
				}
				if err := os.Mkdir(filepath.Join(d, "x"), 0o755); err != nil {
					return err
				}
				return os.Remove(filepath.Join(d, "x"))
			}
		}},
		{"negative entry", func(t *testing.T, n *fstest.Node) func() error {
			name := filepath.Join(n.Dir, "f")
			must(t, isGone(name))
			return func() error {
				if err := isGone(name); err != nil {
					return err
				}
				if err := os.WriteFile(name, []byte("x"), 0o644); err != nil {
					return err
				}
				return errors.Join(holds(name, "x"), os.Remove(name))
			}
		}},
		{"mapping", func(t *testing.T, n *fstest.Node) func() error {
			f := created(t, n, "f")
			must(t, f.Truncate(8192))
			m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			must(t, err)
			t.Cleanup(func() { unix.Munmap(m) })
			want := byte(0)
			return func() error {
				if m[5000] != want {
					return fmt.Errorf("it holds %d, not %d", m[5000], want)
				}
				want++
				m[5000] = want
				if err := unix.Msync(m, unix.MS_SYNC); err != nil {
					return err
				}
				return unix.Madvise(m, unix.MADV_DONTNEED)
			}
		}},
		{"lock", func(t *testing.T, n *fstest.Node) func() error {
			f := created(t, n, "f")
			must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
			other, err := os.Open(f.Name())
			must(t, err)
			t.Cleanup(func() { other.Close() })
			return func() error {
				if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
					return fmt.Errorf("a second lock: %v", err)
				}
				return nil
			}
		}},
	} {
		for name, past := range map[string]bool{", without passthrough": false, "": true} {
			t.Run(test.name+name, func(t *testing.T) {
				n := fstest.KeptMount(t, fstest.Options{Mount: fusefs.Options{NoPassthrough: !past}})
				check := test.make(t, n)
				for round := range 3 {
					if err := check(); err != nil {
						t.Fatalf("after %d restarts: %v", round, err)
					}
					n.Restart()
				}
				must(t, check())
			})
		}
	}
}

// P9: a mount that refuses changes still does.
func TestP9RestartOfAReadOnlyMount(t *testing.T) {
	n := fstest.KeptMount(t, fstest.Options{})
	written(t, n, "f", "content")
	must(t, n.Mount.Remount(true, kernel.Flags{}))
	n.Restart()
	if err := os.WriteFile(filepath.Join(n.Dir, "f"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("a write says %v", err)
	}
	must(t, holds(filepath.Join(n.Dir, "f"), "content"))
	must(t, n.Mount.Remount(false, kernel.Flags{}))
	n.Restart()
	written(t, n, "f", "changed")
}

// P9: a daemon that is killed between showing a change and noting that it did
// leaves no name wrong, also when a peer takes the change back before the next
// daemon shows it again.
func TestP9RestartInDoubt(t *testing.T) {
	swap := func(d string) error {
		return unix.Renameat2(unix.AT_FDCWD, d+"/a", unix.AT_FDCWD, d+"/s", unix.RENAME_EXCHANGE)
	}
	for _, c := range []struct {
		name     string
		do, undo func(d string) error
	}{
		{"create, remove", func(d string) error { return os.WriteFile(d+"/n", []byte("new"), 0o644) }, func(d string) error { return os.Remove(d + "/n") }},
		{"mkdir, rmdir", func(d string) error { return os.Mkdir(d+"/n", 0o755) }, func(d string) error { return os.Remove(d + "/n") }},
		{"move there, move back", func(d string) error { return os.Rename(d+"/a", d+"/n") }, func(d string) error { return os.Rename(d+"/n", d+"/a") }},
		{"the same with a directory", func(d string) error { return os.Rename(d+"/s", d+"/n") }, func(d string) error { return os.Rename(d+"/n", d+"/s") }},
		{"exchange twice", swap, swap},
		{"replace, remove", func(d string) error {
			return errors.Join(os.WriteFile(d+"/tmp", []byte("new"), 0o644), os.Rename(d+"/tmp", d+"/a"))
		}, func(d string) error { return os.Remove(d + "/a") }},
		{"remove, make again", func(d string) error { return os.Remove(d + "/a") }, func(d string) error { return os.WriteFile(d+"/a", []byte("again"), 0o644) }},
		{"remove and make a directory again", func(d string) error { return os.RemoveAll(d + "/s") }, func(d string) error { return os.Mkdir(d+"/s", 0o755) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := fstest.KeptPair(t, fstest.Options{})
			a, b := makeStart(t, p)
			resume := p.B.Mount.Pause()
			must(t, c.do(a))
			merged(t, p)
			ledger, err := os.ReadFile(p.B.Ledger()) // as of a daemon that dies with the first thing that it shows
			must(t, err)
			resume()
			p.Sync()
			expectTree(t, b, tree(t, a)...)
			for _, name := range []string{"a", "n", "s", "s/x"} {
				os.Lstat(filepath.Join(b, name)) //nolint:errcheck // the kernel is to have it cached
			}
			heal := p.Cut()
			p.B.RestartWith(func() {
				must(t, os.WriteFile(p.B.Ledger(), ledger, 0o600))
			}, func() {
				must(t, c.undo(a))
				heal()
				merged(t, p)
			})
			p.Sync()
			expectTree(t, b, tree(t, a)...)
			for _, name := range []string{"a", "n", "s", "s/x"} {
				_, want := os.Lstat(filepath.Join(a, name))
				if _, got := os.Lstat(filepath.Join(b, name)); (got == nil) != (want == nil) {
					t.Errorf("%s: %v, not %v", name, got, want)
				}
			}
		})
	}
}

// P9: what nobody has open any more goes, whoever had served it.
func TestP9RestartLeavesNothingBehind(t *testing.T) {
	n := fstest.KeptMount(t, fstest.Options{})
	for range 3 {
		f := created(t, n, "f")
		must(t, append1(f))
		must(t, os.Remove(f.Name()))
		n.Restart()
		must(t, append1(f))
		must(t, f.Close())
		fstest.Eventually(t, func() error {
			if s := n.Volume.Stats(); s.OpenDrafts+s.Frozen+s.Unfinished > 0 {
				return fmt.Errorf("left behind: %+v", s)
			}
			return nil
		})
	}
}

func created(t *testing.T, n *fstest.Node, name string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(n.Dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func written(t *testing.T, n *fstest.Node, name, text string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(n.Dir, name), []byte(text), 0o644))
}

// append1 writes one more byte and reads all.
func append1(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte{byte(st.Size())}, st.Size()); err != nil {
		return err
	}
	b := make([]byte, st.Size()+1)
	if _, err := f.ReadAt(b, 0); err != nil {
		return err
	}
	for i := range b {
		if b[i] != byte(i) {
			return fmt.Errorf("byte %d of %d is %d", i, len(b), b[i])
		}
	}
	return nil
}

func reads(f *os.File, want string) error {
	b := make([]byte, len(want)+1)
	n, _ := f.ReadAt(b, 0)
	if string(b[:n]) != want {
		return fmt.Errorf("%s reads %q, not %q", f.Name(), b[:n], want)
	}
	return nil
}

func holds(name, want string) error {
	b, err := os.ReadFile(name)
	if err == nil && string(b) != want {
		err = fmt.Errorf("%s holds %q, not %q", name, b, want)
	}
	return err
}

func isGone(name string) error {
	if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is there: %v", name, err)
	}
	return nil
}
