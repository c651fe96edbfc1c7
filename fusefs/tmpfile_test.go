package fusefs_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

func openTmpfile(t *testing.T, dir string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR|flags, 0o640)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func linkFile(f *os.File, path string) error {
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
}

// A file without a name is nobody else's business, and leaves nothing behind.
func TestTmpfile(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	if got := ops(t, n, func() {
		f := openTmpfile(t, n.Dir, 0)
		_, err := f.WriteString("text")
		must(t, err)
		must(t, f.Chmod(0o600))
		var s unix.Stat_t
		must(t, unix.Fstat(int(f.Fd()), &s))
		if s.Nlink != 0 || s.Size != 4 || s.Mode != unix.S_IFREG|0o600 {
			t.Errorf("links %d, size %d, mode %o", s.Nlink, s.Size, s.Mode)
		}
		expectTree(t, n.Dir)
		must(t, f.Close())
	}); got != 0 {
		t.Errorf("%d ops", got)
	}
}

// Linked, it is one new file, whole at once, on all nodes.
func TestTmpfileLinked(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	must(t, os.Mkdir(p.A.Dir+"/d", 0o755))
	p.Sync()
	w := fstest.NewWatch(t, p.B.Dir+"/d")
	f := openTmpfile(t, p.A.Dir, 0)
	_, err := f.WriteString("text")
	must(t, err)
	must(t, linkFile(f, p.A.Dir+"/d/f"))
	if err := linkFile(f, p.A.Dir+"/d/f"); !errors.Is(err, syscall.EEXIST) {
		t.Error(err)
	}
	expectTree(t, p.A.Dir, "d/", "d/f=text")
	_, err = f.WriteString(" and more")
	must(t, err)
	must(t, f.Close())
	p.Sync()
	w.Expect("CREATE f", "OPEN f", "MODIFY f", "CLOSE_WRITE f")
	expectTree(t, p.B.Dir, "d/", "d/f=text and more")
	if s := stat(t, p.B.Dir+"/d/f"); s.Nlink != 1 || s.Mode&0o777 != 0o640 {
		t.Errorf("links %d, mode %o", s.Nlink, s.Mode)
	}
}

func TestTmpfileExclusive(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	f := openTmpfile(t, n.Dir, os.O_EXCL)
	if err := linkFile(f, n.Dir+"/f"); !errors.Is(err, syscall.ENOENT) {
		t.Error(err)
	}
}

// Its bytes stay as long as somebody has it open, and no longer.
func TestTmpfileHeld(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	f := openTmpfile(t, n.Dir, 0)
	_, err := f.WriteString("text")
	must(t, err)
	r, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	must(t, err)
	must(t, f.Close())
	if b, err := io.ReadAll(r); string(b) != "text" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	must(t, r.Close())
	fstest.Eventually(t, func() error {
		if d := n.Volume.Stats().OpenDrafts; d > 0 {
			return fmt.Errorf("%d drafts are kept for ever", d)
		}
		return nil
	})
}
