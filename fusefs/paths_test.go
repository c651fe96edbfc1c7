package fusefs_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/fusefs"
	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/fstest"
)

func isErr(err error, want syscall.Errno) bool { return errors.Is(err, want) }

// Each error that a path or the state of a tree can cause.
func TestErrors(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	at := func(name string) string { return n.Dir + "/" + name }
	writeFile(t, at("f"), "text")
	must(t, os.MkdirAll(at("d/s"), 0o755))
	writeFile(t, at("d/f"), "")
	must(t, os.Mkdir(at("empty"), 0o755))
	must(t, os.Symlink("l", at("l")))
	must(t, os.Symlink("nowhere", at("dangling")))
	must(t, os.Symlink("d", at("dir")))
	must(t, unix.Mknod(at("dev"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	long := strings.Repeat("n", 256)
	open := func(name string, flags int) error {
		fd, err := unix.Open(at(name), flags, 0o644)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	rename := func(from, to string) error { return unix.Rename(at(from), at(to)) }
	exchange := func(from, to string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, at(from), unix.AT_FDCWD, at(to), flags)
	}
	for k, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{open("missing", unix.O_RDONLY), unix.ENOENT},
		{open("missing/f", unix.O_RDONLY), unix.ENOENT},
		{open("dangling", unix.O_RDONLY), unix.ENOENT},
		{open("f/x", unix.O_RDONLY), unix.ENOTDIR},
		{open("f/x", unix.O_RDWR|unix.O_CREAT), unix.ENOTDIR},
		{open("d", unix.O_WRONLY), unix.EISDIR},
		{open("d", unix.O_RDWR|unix.O_CREAT), unix.EISDIR},
		{open("l", unix.O_RDONLY), unix.ELOOP},
		{open("dangling", unix.O_RDONLY|unix.O_NOFOLLOW), unix.ELOOP},
		{open(long, unix.O_RDWR|unix.O_CREAT), unix.ENAMETOOLONG},
		{open("f", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL), unix.EEXIST},
		{open("dangling", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL), unix.EEXIST},
		{open("dev", unix.O_RDONLY), unix.EACCES}, // mounted without dev
		{unix.Mkdir(at("d"), 0o755), unix.EEXIST},
		{unix.Mkdir(at("f/x"), 0o755), unix.ENOTDIR},
		{unix.Mkdir(at(long), 0o755), unix.ENAMETOOLONG},
		{unix.Rmdir(at("d")), unix.ENOTEMPTY},
		{unix.Rmdir(at("f")), unix.ENOTDIR},
		{unix.Rmdir(at("dir")), unix.ENOTDIR},
		{unix.Rmdir(at("empty/.")), unix.EINVAL},
		{unix.Unlink(at("d")), unix.EISDIR},
		{unix.Unlink(at("missing")), unix.ENOENT},
		{unix.Unlink(at("f/x")), unix.ENOTDIR},
		{unix.Link(at("d"), at("x")), unix.EPERM},
		{unix.Link(at("f"), at("d/f")), unix.EEXIST},
		{unix.Link(at("missing"), at("x")), unix.ENOENT},
		{unix.Link(at("f"), at(long)), unix.ENAMETOOLONG},
		{unix.Link(at("f"), t.TempDir()+"/x"), unix.EXDEV},
		{unix.Symlink("", at("x")), unix.ENOENT},
		{unix.Symlink("x", at("f")), unix.EEXIST},
		{unix.Symlink(strings.Repeat("x", 4096), at("x")), unix.ENAMETOOLONG},
		{rename("missing", "x"), unix.ENOENT},
		{rename("f", "missing/x"), unix.ENOENT},
		{rename("f", "d"), unix.EISDIR},
		{rename("d", "f"), unix.ENOTDIR},
		{rename("empty", "d"), unix.ENOTEMPTY},
		{rename("d", "d/s/x"), unix.EINVAL},
		{rename("d", "d/s"), unix.EINVAL},
		{rename("f", long), unix.ENAMETOOLONG},
		{exchange("f", "missing", unix.RENAME_EXCHANGE), unix.ENOENT},
		{exchange("d", "d/s", unix.RENAME_EXCHANGE), unix.EINVAL},
		{exchange("f", "d", unix.RENAME_NOREPLACE), unix.EEXIST},
		{exchange("f", "x", unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE), unix.EINVAL},
		{unix.Truncate(at("d"), 0), unix.EISDIR},
		{unix.Truncate(at("f"), -1), unix.EINVAL},
		{unix.Truncate(at("missing"), 0), unix.ENOENT},
		{unix.Mknod(at("f"), unix.S_IFREG, 0), unix.EEXIST},
		{unix.Mknod(at("x"), unix.S_IFDIR, 0), unix.EPERM},
		{unix.Setxattr(at("f"), "user."+long, nil, 0), unix.ERANGE},
		{unix.Lsetxattr(at("l"), "user.a", nil, 0), unix.EPERM},
		{unix.Setxattr(at("f"), "unknown.a", nil, 0), unix.EOPNOTSUPP},
		{unix.Access(at("f"), unix.X_OK), unix.EACCES},
	} {
		if c.err != c.want {
			t.Errorf("case %d: %v, want %v", k, c.err, c.want)
		}
	}
	f, err := os.OpenFile(at("f"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 1<<63-2); err == nil {
		t.Error("a write at the end of all offsets succeeded")
	}
	if err := os.Chdir(at("empty")); err == nil {
		must(t, unix.Rmdir(at("empty")))
		if fd, err := unix.Open("x", unix.O_RDWR|unix.O_CREAT, 0o644); err != unix.ENOENT {
			t.Errorf("creation in a removed directory: %d %v", fd, err)
		}
		must(t, os.Chdir("/"))
	}
}

// Permissions are checked as on a local disk, for others than root.
func TestPermissions(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	must(t, os.Chmod(n.Dir, 0o755))
	must(t, os.Chmod(n.Dir+"/..", 0o755))
	for dir, mode := range map[string]uint32{"open": 0o777, "sticky": 0o1777, "closed": 0o755, "dark": 0o700} {
		must(t, os.Mkdir(n.Dir+"/"+dir, 0o777))
		writeFile(t, n.Dir+"/"+dir+"/f", "text")
		must(t, unix.Chmod(n.Dir+"/"+dir, mode))
	}
	must(t, asNobody(t, n.Dir, "echo > sticky/own"))
	for script, works := range map[string]bool{
		"cat dark/f":                              false,
		"ls dark":                                 false,
		"cat closed/f":                            true,
		"echo > closed/f":                         false,
		"touch closed/x":                          false,
		"rm -f closed/f":                          false,
		"mv closed/f closed/g":                    false,
		"chmod 777 closed/f":                      false,
		"chown 65534 closed/f":                    false,
		"touch -d @0 closed/f":                    false,
		"rm -f sticky/f":                          false,
		"mv sticky/f sticky/g":                    false,
		"mv -f open/f open/g && mv open/g open/f": true,
		"echo > open/x && chmod 600 open/x && touch -d @0 open/x && rm open/x": true,
		"mv sticky/own sticky/mine && rm sticky/mine":                          true,
		"setfattr -n trusted.a -v 1 open/f":                                    false,
		"mknod open/null c 1 3":                                                false,
	} {
		if err := asNobody(t, n.Dir, script); (err == nil) != works {
			t.Errorf("%s: %v", script, err)
		}
	}
}

// Names have up to 255 bytes, and paths as many as the kernel takes.
func TestLongPaths(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	dir := p.A.Dir
	name := strings.Repeat("ü", 127) + "n" // 255 bytes
	for unix.PathMax-2-len(dir) > 255 {
		dir += "/" + name
		must(t, os.Mkdir(dir, 0o755))
	}
	path := dir + "/" + strings.Repeat("f", unix.PathMax-1-len(dir)-1)
	if len(path) != unix.PathMax-1 {
		t.Fatal(len(path))
	}
	writeFile(t, path, "deep")
	if err := os.WriteFile(path+"f", nil, 0o644); !isErr(err, unix.ENAMETOOLONG) {
		t.Error(err)
	}
	p.Sync()
	if b, err := os.ReadFile(p.B.Dir + path[len(p.A.Dir):]); string(b) != "deep" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	// Deeper than any path, step by step.
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	for range 20 {
		must(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	p.Sync()
	must(t, os.RemoveAll(p.B.Dir+"/"+name))
	p.Sync()
	expectTree(t, p.A.Dir)
}

// Target, name and mode of special files travel; so do devices that work where
// the mount lets them.
func TestDevices(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{Mount: fusefs.Options{Flags: kernel.Flags{Dev: true, Suid: true}}})
	path := n.Dir + "/zero"
	must(t, unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	b := []byte("1234")
	if k, err := f.Read(b); k != 4 || string(b) != "\x00\x00\x00\x00" || err != nil {
		t.Errorf("%d %q %v", k, b, err)
	}
	if s := stat(t, path); s.Size != 0 || s.Rdev != unix.Mkdev(1, 5) {
		t.Errorf("size %d, device %x", s.Size, s.Rdev)
	}
}

func TestStatfs(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	var s, below unix.Statfs_t
	must(t, unix.Statfs(n.Dir, &s))
	must(t, unix.Statfs(os.TempDir(), &below))
	if s.Namelen != 255 || s.Bsize == 0 || s.Blocks != below.Blocks || s.Bavail > s.Bfree || s.Bfree > s.Blocks || s.Files == 0 || s.Bavail == 0 {
		t.Errorf("%+v", s)
	}
}

// Extended attributes up to the kernel's limits, of every kind of file.
func TestXattrLimits(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	n := p.A
	path := n.Dir + "/f"
	writeFile(t, path, "")
	longest := "user." + strings.Repeat("n", 250)
	value := []byte(strings.Repeat("v", 64<<10))
	must(t, unix.Setxattr(path, longest, value, 0))
	buf := make([]byte, 1<<17)
	if k, err := unix.Getxattr(path, longest, buf); k != len(value) || err != nil {
		t.Error(k, err)
	}
	must(t, unix.Setxattr(path, longest, []byte("short"), unix.XATTR_REPLACE))
	must(t, unix.Setxattr(path, longest, value, 0)) // replaced, not added
	must(t, unix.Setxattr(path, longest, value[1:], 0))
	for k := 0; ; k++ {
		err := unix.Setxattr(path, fmt.Sprint("user.", k), value[:30<<10], 0)
		if err == unix.ENOSPC && k >= 1 {
			break
		}
		if err != nil || k > 10 {
			t.Fatalf("attribute %d: %v", k, err)
		}
	}
	must(t, unix.Mkfifo(n.Dir+"/p", 0o600))
	must(t, os.Symlink("x", n.Dir+"/l"))
	for _, name := range []string{"trusted.a", "security.a"} {
		for _, file := range []string{"f", "p", "l", ""} {
			must(t, unix.Lsetxattr(n.Dir+"/"+file, name, []byte(file+name), 0))
		}
	}
	p.Sync()
	for _, name := range []string{"trusted.a", "security.a"} {
		for _, file := range []string{"f", "p", "l", ""} {
			k, err := unix.Lgetxattr(p.B.Dir+"/"+file, name, buf)
			if err != nil || string(buf[:k]) != file+name {
				t.Errorf("%s of %q: %v", name, file, err)
			}
		}
	}
	if k, err := unix.Getxattr(p.B.Dir+"/f", longest, buf); k != len(value)-1 || err != nil {
		t.Error(k, err)
	}
	must(t, unix.Removexattr(p.B.Dir+"/f", longest))
	p.Sync()
	if _, err := unix.Getxattr(path, longest, buf); err != unix.ENODATA {
		t.Error(err)
	}
}
