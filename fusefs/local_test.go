package fusefs_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/fusefs"
	"github.com/synapsefs/synapsefs/internal/fstest"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// ops runs do and returns how many ops it committed, once all is closed.
func ops(t *testing.T, n *fstest.Node, do func()) uint64 {
	t.Helper()
	before := n.Volume.Stats().Ops
	do()
	fstest.Eventually(t, func() error {
		if s := n.Volume.Stats(); s.OpenDrafts > 0 {
			return fmt.Errorf("%d drafts open", s.OpenDrafts)
		}
		return nil
	})
	return n.Volume.Stats().Ops - before
}

// TestP2Versions: what is one version and what is none.
func TestP2Versions(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{Store: store.Options{PublishInterval: time.Hour}})
	f := n.Dir + "/f"
	shell := func(script string) func() {
		return func() {
			if out, err := shellIn(n.Dir, script).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", script, err, out)
			}
		}
	}
	for _, c := range []struct {
		what string
		do   func()
		want uint64 // at most; 0 and 1 exactly
	}{
		{"a new file in several steps", shell("{ echo a; sleep 0.1; echo b; } > f"), 1},
		{"a rewrite in several steps", shell("{ echo c; sleep 0.1; (echo d); echo e; } > f"), 1},
		{"an append", shell("echo x >> f"), 1},
		{"open for appending without a write", shell(": >> f"), 0},
		{"open for reading and writing without a write", func() {
			fd, err := os.OpenFile(f, os.O_RDWR, 0)
			must(t, err)
			fd.Close()
		}, 0},
		{"chmod to the present mode", shell("chmod 644 f; chmod 644 f"), 0},
		{"chmod", shell("chmod 600 f"), 1},
		{"chown to the present owner", shell("chown 0:0 f"), 0},
		{"a new empty file", shell(": > g"), 1},
		{"mkdir, symlink, link, rename, unlink", shell("mkdir d; ln -s f l; ln f h; mv h d; rm g"), 5},
		{"a temporary file, closed and renamed over", shell("echo new > .t; mv .t f"), 2},
	} {
		if got := ops(t, n, c.do); got > c.want || got < min(c.want, 1) {
			t.Errorf("%s: %d ops, want %d", c.what, got, c.want)
		}
	}
}

func TestUnlinkWhileOpen(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	path := n.Dir + "/f"
	writeFile(t, path, "kept")
	r, err := os.Open(path)
	must(t, err)
	defer r.Close()
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	must(t, os.Remove(path))
	_, err = w.WriteAt([]byte("more"), 4)
	must(t, err)
	must(t, w.Close())
	b := make([]byte, 100)
	if k, err := r.ReadAt(b, 0); string(b[:k]) != "keptmore" || err != io.EOF {
		t.Errorf("%q, %v", b[:k], err)
	}
	st, err := r.Stat()
	must(t, err)
	if s := st.Sys().(*syscall.Stat_t); s.Nlink != 0 || s.Size != 8 {
		t.Errorf("nlink %d, size %d", s.Nlink, s.Size)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Error(err)
	}
	r.Close()
	fstest.Eventually(t, func() error {
		if d := n.Volume.Stats().OpenDrafts; d > 0 {
			return fmt.Errorf("%d drafts are kept for ever", d)
		}
		return nil
	})
}

func TestRenameOverOpenFile(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	writeFile(t, n.Dir+"/a", "old")
	writeFile(t, n.Dir+"/b", "new")
	f, err := os.Open(n.Dir + "/a")
	must(t, err)
	defer f.Close()
	must(t, os.Rename(n.Dir+"/b", n.Dir+"/a"))
	if b, err := io.ReadAll(f); string(b) != "old" || err != nil {
		t.Errorf("open file: %q %v", b, err)
	}
	expectTree(t, n.Dir, "a=new")
}

func TestHardLinks(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	must(t, os.Mkdir(n.Dir+"/d", 0o755))
	writeFile(t, n.Dir+"/a", "1")
	must(t, os.Link(n.Dir+"/a", n.Dir+"/d/b"))
	writeFile(t, n.Dir+"/d/b", "2")
	expectTree(t, n.Dir, "a=2", "d/", "d/b=2")
	var a, b unix.Stat_t
	must(t, unix.Stat(n.Dir+"/a", &a))
	must(t, unix.Stat(n.Dir+"/d/b", &b))
	if a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("inodes %d and %d, nlink %d", a.Ino, b.Ino, a.Nlink)
	}
	must(t, os.Remove(n.Dir+"/a"))
	must(t, unix.Stat(n.Dir+"/d/b", &b))
	if b.Nlink != 1 {
		t.Errorf("nlink %d", b.Nlink)
	}
}

func TestNames(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	for _, name := range []string{strings.Repeat("n", 255), "\xff\xfe not UTF-8", "new\nline", " ", "ü", "..."} {
		writeFile(t, n.Dir+"/"+name, name)
		if b, err := os.ReadFile(n.Dir + "/" + name); string(b) != name || err != nil {
			t.Errorf("%q: %q %v", name, b, err)
		}
	}
	long := n.Dir + "/" + strings.Repeat("n", 256)
	if err := os.WriteFile(long, nil, 0o644); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Error(err)
	}
	if _, err := os.Stat(long); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Error(err)
	}
	entries, err := os.ReadDir(n.Dir)
	must(t, err)
	if len(entries) != 6 {
		t.Errorf("%d names", len(entries))
	}
}

func TestXattrs(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	path := n.Dir + "/f"
	writeFile(t, path, "")
	must(t, unix.Setxattr(path, "user.a", []byte("value"), unix.XATTR_CREATE))
	must(t, unix.Setxattr(path, "trusted.b", nil, 0))
	buf := make([]byte, 100)
	for _, c := range []struct {
		what string
		do   func() (int, error)
		n    int
		err  error
	}{
		{"get", func() (int, error) { return unix.Getxattr(path, "user.a", buf) }, 5, nil},
		{"size", func() (int, error) { return unix.Getxattr(path, "user.a", nil) }, 5, nil},
		{"short buffer", func() (int, error) { return unix.Getxattr(path, "user.a", buf[:2]) }, -1, unix.ERANGE},
		{"absent", func() (int, error) { return unix.Getxattr(path, "user.b", buf) }, -1, unix.ENODATA},
		{"empty value", func() (int, error) { return unix.Getxattr(path, "trusted.b", buf) }, 0, nil},
		{"list size", func() (int, error) { return unix.Listxattr(path, nil) }, len("trusted.b\x00user.a\x00"), nil},
		{"short list", func() (int, error) { return unix.Listxattr(path, buf[:3]) }, -1, unix.ERANGE},
		{"create again", func() (int, error) { return 0, unix.Setxattr(path, "user.a", nil, unix.XATTR_CREATE) }, 0, unix.EEXIST},
		{"replace absent", func() (int, error) { return 0, unix.Setxattr(path, "user.b", nil, unix.XATTR_REPLACE) }, 0, unix.ENODATA},
		{"remove absent", func() (int, error) { return 0, unix.Removexattr(path, "user.b") }, 0, unix.ENODATA},
		{"too large", func() (int, error) { return 0, unix.Setxattr(path, "user.b", make([]byte, 64<<10+1), 0) }, 0, unix.E2BIG},
		{"ACL, absent", func() (int, error) { return unix.Getxattr(path, "system.posix_acl_access", buf) }, -1, unix.ENODATA},
		{"of the root, absent", func() (int, error) { return unix.Getxattr(n.Dir, "user.x", buf) }, -1, unix.ENODATA},
	} {
		got, err := c.do()
		if err != c.err || err == nil && got != c.n {
			t.Errorf("%s: %d %v, want %d %v", c.what, got, err, c.n, c.err)
		}
	}
	must(t, unix.Removexattr(path, "user.a"))
	if k, _ := unix.Listxattr(path, buf); string(buf[:k]) != "trusted.b\x00" {
		t.Errorf("list %q", buf[:k])
	}
}

// A position in a listing stays what it is while other names come and go.
func TestTelldir(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	for k := range 500 {
		writeFile(t, fmt.Sprintf("%s/f%03d", n.Dir, k), "")
	}
	fd, err := unix.Open(n.Dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(fd)
	var first, rest []string
	buf := make([]byte, 4096)
	k, err := unix.ReadDirent(fd, buf)
	must(t, err)
	_, _, first = unix.ParseDirent(buf[:k], -1, first)
	pos, err := unix.Seek(fd, 0, io.SeekCurrent)
	must(t, err)
	must(t, os.Remove(n.Dir+"/"+first[0]))
	writeFile(t, n.Dir+"/new", "")
	read := func() (names []string) {
		for {
			k, err := unix.ReadDirent(fd, buf)
			must(t, err)
			if k == 0 {
				return names
			}
			_, _, names = unix.ParseDirent(buf[:k], -1, names)
		}
	}
	rest = read()
	_, err = unix.Seek(fd, pos, io.SeekStart)
	must(t, err)
	again := read()
	if !slices.Equal(rest, again) {
		t.Errorf("after seeking back: %d names, before %d", len(again), len(rest))
	}
	seen := map[string]int{}
	for _, name := range append(first, rest...) {
		seen[name]++
	}
	for k := range 500 {
		if name := fmt.Sprintf("f%03d", k); seen[name] != 1 {
			t.Errorf("%s was listed %d times", name, seen[name])
		}
	}
}

func stat(t *testing.T, path string) (s unix.Stat_t) {
	t.Helper()
	must(t, unix.Lstat(path, &s))
	return s
}

// shellIn runs a script in a directory of a mount. The shell goes there by itself:
// a child that did so before it is a program of its own would wait for a mount
// that this process serves, which may wait for the child to collect its garbage.
func shellIn(dir, script string) *exec.Cmd {
	return exec.Command("sh", "-ec", `cd "$0"; `+script, dir)
}

func asNobody(t *testing.T, dir, script string) error {
	t.Helper()
	c := shellIn(dir, script)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return nil
}

// Set-id bits are cleared by others' writes, by truncation and by chown, as on
// a local disk.
func TestSetIDBits(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	must(t, os.Chmod(n.Dir, 0o777))
	must(t, os.Chmod(n.Dir+"/..", 0o755)) // let nobody in
	path := n.Dir + "/f"
	for _, c := range []struct {
		what string
		do   func() error
		mode uint32
		want uint32
	}{
		{"write by nobody", func() error { return asNobody(t, n.Dir, "echo >> f") }, 0o6777, 0o777},
		{"truncate by nobody", func() error { return asNobody(t, n.Dir, ": > f") }, 0o6777, 0o777},
		{"write by root", func() error { return os.WriteFile(path, []byte("x"), 0) }, 0o6777, 0o6777},
		{"chown by root", func() error { return os.Chown(path, 5, 5) }, 0o6777, 0o777},
		{"chown, group may not execute", func() error { return os.Chown(path, 6, 6) }, 0o6767, 0o2767},
	} {
		os.Remove(path)
		writeFile(t, path, "text")
		must(t, unix.Chmod(path, c.mode))
		if err := c.do(); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		if got := stat(t, path).Mode & 0o7777; got != c.want {
			t.Errorf("%s: mode %o, want %o", c.what, got, c.want)
		}
	}
}

func TestSetGIDDirectory(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	d := n.Dir + "/d"
	must(t, os.Mkdir(d, 0o777))
	must(t, os.Chown(d, 0, 77))
	must(t, unix.Chmod(d, 0o2777))
	writeFile(t, d+"/f", "")
	must(t, os.Mkdir(d+"/s", 0o755))
	must(t, os.Symlink("x", d+"/l"))
	must(t, unix.Mknod(d+"/p", unix.S_IFIFO|0o600, 0))
	for name, mode := range map[string]uint32{"f": 0o644, "s": 0o2755, "l": 0o777, "p": 0o600} {
		if s := stat(t, d+"/"+name); s.Gid != 77 || s.Mode&0o7777 != mode {
			t.Errorf("%s: gid %d mode %o, want 77 %o", name, s.Gid, s.Mode&0o7777, mode)
		}
	}
}

func TestSpecialFiles(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	for mode, name := range map[uint32]string{
		unix.S_IFREG: "reg", unix.S_IFIFO: "fifo", unix.S_IFSOCK: "sock", unix.S_IFCHR: "char", unix.S_IFBLK: "block",
	} {
		dev := 0
		if mode == unix.S_IFCHR || mode == unix.S_IFBLK {
			dev = int(unix.Mkdev(1, 3))
		}
		must(t, unix.Mknod(n.Dir+"/"+name, mode|0o640, dev))
		if s := stat(t, n.Dir+"/"+name); s.Mode&unix.S_IFMT != mode || s.Rdev != uint64(dev) || s.Mode&0o777 != 0o640 {
			t.Errorf("%s: mode %o rdev %x", name, s.Mode, s.Rdev)
		}
	}
}

func TestRenameFlags(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	a, b := n.Dir+"/a", n.Dir+"/b"
	writeFile(t, a, "a")
	writeFile(t, b, "b")
	rename := func(flags uint) error { return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, flags) }
	if err := rename(unix.RENAME_NOREPLACE); err != unix.EEXIST {
		t.Error(err)
	}
	must(t, rename(unix.RENAME_EXCHANGE))
	expectTree(t, n.Dir, "a=b", "b=a")
	if err := rename(unix.RENAME_WHITEOUT); err != unix.EINVAL {
		t.Error(err)
	}
	must(t, rename(0))
	expectTree(t, n.Dir, "b=b")
}

func TestTimes(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	path := n.Dir + "/f"
	writeFile(t, path, "x")
	when := []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: 3, Nsec: 123456789}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, when, 0))
	s := stat(t, path)
	if s.Atim != when[0] || s.Mtim != when[1] {
		t.Errorf("atime %v mtime %v", s.Atim, s.Mtim)
	}
	before := stat(t, n.Dir).Mtim
	must(t, os.Mkdir(n.Dir+"/d", 0o755))
	if after := stat(t, n.Dir).Mtim; after == before {
		t.Error("mkdir left the directory's mtime")
	}
	before = stat(t, n.Dir).Mtim
	f, err := os.Create(n.Dir + "/g")
	must(t, err)
	f.Close()
	fstest.Eventually(t, func() error { // published, that is
		if after := stat(t, n.Dir).Mtim; after == before {
			return errors.New("creating a file left the directory's mtime")
		}
		return nil
	})
}

func TestMmap(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	path := n.Dir + "/f"
	writeFile(t, path, strings.Repeat("x", 8192))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	must(t, f.Close())
	copy(m[5000:], "mapped")
	must(t, unix.Msync(m, unix.MS_SYNC))
	must(t, unix.Munmap(m))
	fstest.Eventually(t, func() error {
		if d := n.Volume.Stats().OpenDrafts; d > 0 {
			return errors.New("still open")
		}
		return nil
	})
	b, err := os.ReadFile(path)
	must(t, err)
	if string(b[4999:5007]) != "xmappedx" || len(b) != 8192 {
		t.Errorf("%d bytes, %q", len(b), b[4999:5007])
	}
}

func TestReadOnlyMount(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{Mount: fusefs.Options{ReadOnly: true}})
	_, err := n.Volume.Mknod(store.Request{}, store.NodeID(crdt.RootIno), "f", store.NewNode{Kind: crdt.KindFile, Mode: 0o644})
	must(t, err)
	path := n.Dir + "/f"
	fstest.Eventually(t, func() error { _, err := os.Stat(path); return err })
	expectReadOnly(t, n.Dir)
	if b, err := os.ReadFile(path); len(b) != 0 || err != nil {
		t.Error(b, err)
	}
}
