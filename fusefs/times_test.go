package fusefs_test

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

func later(a, b unix.Timespec) bool { return a.Nano() > b.Nano() }

// closed waits for the publication of what was closed.
func closed(t *testing.T, n *fstest.Node) {
	t.Helper()
	fstest.Eventually(t, func() error {
		if d := n.Volume.Stats().OpenDrafts; d > 0 {
			return fmt.Errorf("%d drafts open", d)
		}
		return nil
	})
}

// The times of a file are those of what was done to it, not of when its handle
// was closed: git takes a file whose ctime moves for changed.
func TestTimesStayAtClose(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	for what, do := range map[string]func(f *os.File) error{
		"write":    func(f *os.File) error { _, err := f.WriteString("text"); return err },
		"truncate": func(f *os.File) error { return f.Truncate(100) },
		"times": func(f *os.File) error {
			if _, err := f.WriteString("text"); err != nil {
				return err
			}
			return unix.UtimesNanoAt(unix.AT_FDCWD, f.Name(), []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: 3, Nsec: 4}}, 0)
		},
		"mode": func(f *os.File) error { return f.Chmod(0o600) },
	} {
		for _, old := range []bool{false, true} {
			path := n.Dir + "/" + what
			os.Remove(path)
			if old {
				writeFile(t, path, "old")
				closed(t, n)
			}
			f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
			must(t, err)
			must(t, do(f))
			before := stat(t, path)
			must(t, f.Close())
			closed(t, n)
			if after := stat(t, path); after.Ctim != before.Ctim || after.Mtim != before.Mtim || after.Atim != before.Atim {
				t.Errorf("%s, old %v: a close changed the times\nfrom %v\n  to %v", what, old, before, after)
			}
		}
	}
}

// What changes an inode changes its ctime, and what does not does not.
func TestChangeTime(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	path := n.Dir + "/f"
	must(t, os.Mkdir(n.Dir+"/d", 0o755))
	open := func(flags int, do func(f *os.File)) func() {
		return func() {
			f, err := os.OpenFile(path, flags, 0)
			must(t, err)
			if do != nil {
				do(f)
			}
			must(t, f.Close())
		}
	}
	times := []unix.Timespec{{Sec: 5, Nsec: 6}, {Sec: 7, Nsec: 8}}
	utimes := func(a, m unix.Timespec) func() {
		return func() { must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{a, m}, 0)) }
	}
	omit, now := unix.Timespec{Nsec: unix.UTIME_OMIT}, unix.Timespec{Nsec: unix.UTIME_NOW}
	for _, c := range []struct {
		what         string
		do           func()
		ctime, mtime bool // change
	}{
		{"write", open(os.O_WRONLY, func(f *os.File) { _, err := f.WriteString("x"); must(t, err) }), true, true},
		{"truncate", func() { must(t, os.Truncate(path, 2)) }, true, true},
		{"truncate to the present size", func() { must(t, os.Truncate(path, 2)) }, false, false},
		{"chmod", func() { must(t, os.Chmod(path, 0o600)) }, true, false},
		{"chmod to the present mode", func() { must(t, os.Chmod(path, 0o600)) }, false, false},
		{"chown", func() { must(t, os.Chown(path, 1, 2)) }, true, false},
		{"chown to the present owner", func() { must(t, os.Chown(path, 1, 2)) }, false, false},
		{"chown of nothing", func() { must(t, os.Chown(path, -1, -1)) }, false, false},
		{"setxattr", func() { must(t, unix.Setxattr(path, "user.a", []byte("1"), 0)) }, true, false},
		{"setxattr to the present value", func() { must(t, unix.Setxattr(path, "user.a", []byte("1"), 0)) }, false, false},
		{"removexattr", func() { must(t, unix.Removexattr(path, "user.a")) }, true, false},
		{"link", func() { must(t, os.Link(path, n.Dir+"/l")) }, true, false},
		{"rename of a link", func() { must(t, os.Rename(n.Dir+"/l", n.Dir+"/d/l")) }, true, false},
		{"unlink of a link", func() { must(t, os.Remove(n.Dir+"/d/l")) }, true, false},
		{"times", utimes(times[0], times[1]), true, true},
		{"times to the present ones", utimes(times[0], times[1]), false, false},
		{"atime", utimes(unix.Timespec{Sec: 9}, omit), true, false},
		{"atime to the present one", utimes(unix.Timespec{Sec: 9}, omit), false, false},
		{"no time", utimes(omit, omit), false, false},
		{"times to now", utimes(now, now), true, true},
		{"atime to now", utimes(now, omit), true, false},
		{"open for writing", open(os.O_RDWR, nil), false, false},
		{"open for appending", open(os.O_WRONLY|os.O_APPEND, nil), false, false},
		{"write of nothing", open(os.O_WRONLY, func(f *os.File) { _, err := f.Write(nil); must(t, err) }), false, false},
		{"open with O_CREATE", open(os.O_RDWR|os.O_CREATE, nil), false, false},
		{"read", open(os.O_RDONLY, func(f *os.File) { _, err := f.Read(make([]byte, 10)); must(t, err) }), false, false},
		{"open with O_TRUNC", open(os.O_WRONLY|os.O_TRUNC, nil), true, true},
	} {
		if _, err := os.Lstat(path); err != nil {
			writeFile(t, path, "text")
		}
		closed(t, n)
		before := stat(t, path)
		dir := stat(t, n.Dir)
		changed := ops(t, n, c.do)
		after := stat(t, path)
		if got := later(after.Ctim, before.Ctim); got != c.ctime || after.Ctim.Nano() < before.Ctim.Nano() {
			t.Errorf("%s: ctime %v, was %v", c.what, after.Ctim, before.Ctim)
		}
		if got := after.Mtim != before.Mtim; got != c.mtime {
			t.Errorf("%s: mtime %v, was %v", c.what, after.Mtim, before.Mtim)
		}
		if !c.ctime && changed > 0 {
			t.Errorf("%s: %d ops", c.what, changed)
		}
		if c.what != "link" && c.what != "rename of a link" && stat(t, n.Dir).Mtim != dir.Mtim {
			t.Errorf("%s changed the directory's mtime", c.what)
		}
	}
}

// atime follows reads as with relatime: if it is not younger than the last
// change, a read makes it so.
func TestAccessTime(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	path := n.Dir + "/f"
	writeFile(t, path, "text")
	closed(t, n)
	read := func() unix.Stat_t {
		_, err := os.ReadFile(path)
		must(t, err)
		return stat(t, path)
	}
	first := read()
	if !later(first.Atim, first.Mtim) {
		t.Errorf("read, and atime %v is not after mtime %v", first.Atim, first.Mtim)
	}
	if second := read(); second.Atim != first.Atim {
		t.Errorf("read again, and atime went from %v to %v", first.Atim, second.Atim)
	}
	writeFile(t, path, "text")
	closed(t, n)
	if third := read(); !later(third.Atim, third.Mtim) {
		t.Errorf("written and read, and atime %v is not after mtime %v", third.Atim, third.Mtim)
	}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Sec: 1, Nsec: 5}, {Nsec: unix.UTIME_OMIT}}, 0))
	if s := stat(t, path); s.Atim != (unix.Timespec{Sec: 1, Nsec: 5}) {
		t.Errorf("atime set to the past is %v", s.Atim)
	}
}

// Times are kept to the nanosecond, from before 1970 to after 2262.
func TestTimeRange(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	for _, c := range []unix.Timespec{{Sec: -1, Nsec: 999999999}, {Sec: -1 << 33, Nsec: 1}, {Sec: 1 << 31, Nsec: 2}, {Sec: 1 << 34, Nsec: 3}} {
		for _, path := range []string{n.Dir + "/f", n.Dir + "/d", n.Dir + "/l"} {
			os.Remove(path)
			switch path[len(path)-1] {
			case 'f':
				writeFile(t, path, "x")
			case 'd':
				must(t, os.Mkdir(path, 0o755))
			default:
				must(t, os.Symlink("x", path))
			}
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{c, c}, unix.AT_SYMLINK_NOFOLLOW))
			if s := stat(t, path); s.Mtim != c || s.Atim != c {
				t.Errorf("%s: %v and %v, want %v", path, s.Atim, s.Mtim, c)
			}
		}
	}
}
