package fusefs_test

import (
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/fusefs"
	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/fstest"
)

func writes(path string) func() error {
	return func() error { return os.WriteFile(path, []byte("written"), 0o644) }
}

func expectErr(t *testing.T, what string, do func() error, want error) {
	t.Helper()
	if err := do(); !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// P10: a read-only mount shows what others do with the events of any mount,
// also by a helper that was started after it became read-only.
func TestP10ReadOnlyMountHasEvents(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	a, b := makeStart(t, p)
	must(t, p.B.Mount.Remount(true, kernel.Flags{}))
	w := fstest.NewWatch(t, b)
	writeFile(t, a+"/n", "new")
	p.Sync()
	w.Expect("CREATE n", "OPEN n", "MODIFY n", "CLOSE_WRITE n")
	p.B.Mount.KillHelper()
	fstest.Eventually(t, func() error {
		writeFile(t, a+"/b", "again")
		p.Sync()
		if !slices.Contains(w.Events(), "CLOSE_WRITE b") {
			return errors.New("the helper did not come back")
		}
		return nil
	})
	expectErr(t, "write", writes(b+"/n"), syscall.EROFS)
}

// Remount, there and back; a file open for writing is in the way.
func TestRemount(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	path := n.Dir + "/f"
	must(t, writes(path)())
	for range 2 {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		must(t, err)
		expectErr(t, "remount while a file is open", func() error { return n.Mount.Remount(true, kernel.Flags{}) }, kernel.ErrBusy)
		must(t, writes(path)())
		must(t, f.Close())
		must(t, n.Mount.Remount(true, kernel.Flags{}))
		expectErr(t, "write", writes(path), syscall.EROFS)
		var s unix.Statfs_t
		must(t, unix.Statfs(n.Dir, &s))
		if s.Flags&unix.ST_RDONLY == 0 {
			t.Errorf("statfs shows flags %x", s.Flags)
		}
		must(t, n.Mount.Remount(false, kernel.Flags{}))
		must(t, writes(path)())
	}
}

// What refuses is the filesystem, not only the mountpoint: a bind mount that
// somebody made writable does not get through.
func TestReadOnlyThroughBindMount(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	bound := t.TempDir()
	must(t, unix.Mount(n.Dir, bound, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(bound, 0)) })
	must(t, writes(bound+"/f")())
	must(t, n.Mount.Remount(true, kernel.Flags{}))
	expectReadOnly(t, bound)
	must(t, n.Mount.Remount(false, kernel.Flags{}))
	must(t, writes(bound+"/f")())
}

// expectReadOnly tries all that changes something. The directory has a file f.
func expectReadOnly(t *testing.T, dir string) {
	t.Helper()
	path := dir + "/f"
	for what, do := range map[string]func() error{
		"create":   func() error { return os.WriteFile(dir+"/g", nil, 0o644) },
		"write":    func() error { return os.WriteFile(path, nil, 0o644) },
		"mkdir":    func() error { return os.Mkdir(dir+"/d", 0o755) },
		"symlink":  func() error { return os.Symlink("x", dir+"/l") },
		"link":     func() error { return os.Link(path, dir+"/l") },
		"unlink":   func() error { return os.Remove(path) },
		"rename":   func() error { return os.Rename(path, dir+"/g") },
		"chmod":    func() error { return os.Chmod(path, 0o600) },
		"truncate": func() error { return os.Truncate(path, 0) },
		"setxattr": func() error { return unix.Setxattr(path, "user.a", nil, 0) },
	} {
		expectErr(t, what, do, syscall.EROFS)
	}
}

// Of a mount that was read-only from the beginning the kernel tells no opens.
func TestRemountOfReadOnlyMount(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{Mount: fusefs.Options{ReadOnly: true, Flags: kernel.Flags{NoExec: true}}})
	must(t, n.Mount.Remount(true, kernel.Flags{}))
	expectErr(t, "remount", func() error { return n.Mount.Remount(false, kernel.Flags{}) }, kernel.ErrStaysReadOnly)
	expectErr(t, "create", writes(n.Dir+"/f"), syscall.EROFS)
}
