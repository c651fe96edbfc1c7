package fusefs_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/fusefs"
	"github.com/synapsefs/synapsefs/internal/fstest"
)

// readAll reads an open file from its beginning.
func readAll(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	if err != nil {
		t.Errorf("%s: %v", f.Name(), err)
	}
	return string(b)
}

// fresh makes the kernel forget the pages of an open file, so that its next
// reader asks us.
func fresh(t *testing.T, f *os.File) *os.File {
	t.Helper()
	must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	return f
}

func nlink(t *testing.T, f *os.File) uint64 {
	t.Helper()
	var s unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &s))
	return uint64(s.Nlink) //nolint:unconvert // 32 bits on some machines
}

func open(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0o644)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// nothingKept waits until all is published and no old version is left.
func nothingKept(t *testing.T, n *fstest.Node) {
	t.Helper()
	fstest.Eventually(t, func() error {
		if s := n.Volume.Stats(); s.OpenDrafts > 0 || s.Frozen > 0 {
			return fmt.Errorf("%d drafts and %d old versions are kept", s.OpenDrafts, s.Frozen)
		}
		return nil
	})
}

// TestTwoMountsOldVersion: what one mount's kernel has forgotten, another's may
// have open.
func TestTwoMountsOldVersion(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	second := p.A.MountAgain(fusefs.Options{})
	writeFile(t, p.B.Dir+"/f", "version 0")
	p.Sync()
	fstest.Eventually(t, func() error { _, err := os.Stat(second.Dir + "/f"); return err })
	var others []*os.File
	for k := 1; k <= 3; k++ { // the first node id is the inode number, others are not
		here := open(t, p.A.Dir+"/f", os.O_RDONLY)
		others = append(others, open(t, second.Dir+"/f", os.O_RDONLY))
		writeFile(t, p.B.Dir+"/f", fmt.Sprint("version ", k))
		p.Sync()
		fstest.Eventually(t, func() error {
			if !second.Mount.Idle() {
				return errors.New("the second mount does not show all")
			}
			return nil
		})
		if got, want := readAll(t, fresh(t, here)), fmt.Sprint("version ", k-1); got != want {
			t.Errorf("open here: %q, want %q", got, want)
		}
		here.Close()
		fstest.Eventually(t, func() error {
			if s := p.A.Mount.Stats(); s.Frozen > 0 || !p.A.Mount.Idle() {
				return errors.New("the first mount has not forgotten")
			}
			return nil
		})
		for n, f := range others {
			if got, want := readAll(t, fresh(t, f)), fmt.Sprint("version ", n); got != want {
				t.Errorf("open on the other mount: %q, want %q", got, want)
			}
		}
		for _, dir := range []string{p.A.Dir, second.Dir} {
			fstest.Eventually(t, func() error {
				b, err := os.ReadFile(dir + "/f")
				if want := fmt.Sprint("version ", k); string(b) != want {
					return fmt.Errorf("the name shows %q, %v, want %q", b, err, want)
				}
				return nil
			})
		}
	}
	for _, f := range others[1:] {
		f.Close()
	}
	must(t, second.Mount.Unmount(true)) // with a file open still
	others[0].Close()
	must(t, second.Mount.Wait())
	nothingKept(t, p.A)
}

// TestUnlinkedUnpublished: a file that no peer ever knew lives as long as
// somebody has it open, through whichever mount, whoever unlinks or replaces it.
func TestUnlinkedUnpublished(t *testing.T) {
	for _, c := range []struct {
		what   string
		other  bool // the reader is on the other mount
		remove func(dir string) error
	}{
		{"unlinked", false, func(dir string) error { return os.Remove(dir + "/f") }},
		{"replaced", false, func(dir string) error { return os.Rename(dir+"/g", dir+"/f") }},
		{"unlinked, other mount", true, func(dir string) error { return os.Remove(dir + "/f") }},
		{"replaced, other mount", true, func(dir string) error { return os.Rename(dir+"/g", dir+"/f") }},
	} {
		for _, size := range []int{5, 300_000} {
			t.Run(fmt.Sprint(c.what, size), func(t *testing.T) {
				n := fstest.Mount(t, fstest.Options{})
				second := n.MountAgain(fusefs.Options{})
				text := fmt.Sprintf("%*d", size, 1)
				writeFile(t, n.Dir+"/g", "g")
				w := open(t, n.Dir+"/f", os.O_RDWR|os.O_CREATE)
				_, err := w.WriteString(text)
				must(t, err)
				dir := n.Dir
				if c.other {
					dir = second.Dir
				}
				fstest.Eventually(t, func() error { _, err := os.Stat(dir + "/f"); return err })
				r := open(t, dir+"/f", os.O_RDONLY)
				must(t, c.remove(n.Dir))
				must(t, w.Close())
				fstest.Eventually(t, func() error {
					if s := n.Volume.Stats(); s.OpenDrafts > s.Kept || !n.Mount.Idle() || !second.Mount.Idle() {
						return fmt.Errorf("not released: %+v", s)
					}
					return nil
				})
				if got := readAll(t, fresh(t, r)); got != text {
					t.Errorf("reads %d bytes, want %d", len(got), size)
				}
				if nlink(t, r) != 0 {
					t.Errorf("link count %d", nlink(t, r))
				}
				r.Close()
				nothingKept(t, n)
			})
		}
	}
}

// TestReplacedByUnpublished: a file that is open still and unpublished takes
// the name of another: locally that one is gone at once, and what is written to
// it is gone with its last close.
func TestReplacedByUnpublished(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	x, tmp := p.A.Dir+"/x", p.A.Dir+"/tmp"
	for k := range 30 {
		writeFile(t, x, "old")
		old := open(t, x, os.O_RDWR)
		must(t, os.Link(x, p.A.Dir+"/hard"))
		w := open(t, tmp, os.O_RDWR|os.O_CREATE)
		_, err := w.WriteString("new")
		must(t, err)
		must(t, os.Rename(tmp, x))
		if n := nlink(t, old); n != 1 {
			t.Fatalf("round %d: link count %d with another name", k, n)
		}
		must(t, os.Remove(p.A.Dir+"/hard"))
		if n := nlink(t, old); n != 0 {
			t.Fatalf("round %d: link count %d", k, n)
		}
		_, err = old.WriteAt([]byte("late"), 0)
		must(t, err)
		must(t, old.Close())
		must(t, w.Close())
		p.Sync()
		for _, n := range []*fstest.Node{p.A, p.B} {
			expectTree(t, n.Dir, "x=new")
		}
		must(t, os.Remove(x))
	}
	nothingKept(t, p.A)
}

// TestTwoMountsOneWriter: what is written through one mount shows on the other,
// to those who have the file open too, as two processes on a local disk see it.
func TestTwoMountsOneWriter(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	second := n.MountAgain(fusefs.Options{})
	writeFile(t, n.Dir+"/f", "first")
	fstest.Eventually(t, func() error { _, err := os.Stat(second.Dir + "/f"); return err })
	r := open(t, second.Dir+"/f", os.O_RDONLY)
	want := func(what, text string) {
		t.Helper()
		fstest.Eventually(t, func() error {
			for _, dir := range []string{n.Dir, second.Dir} {
				b, err := os.ReadFile(dir + "/f")
				if string(b) != text || err != nil {
					return fmt.Errorf("%s: %s shows %q, %v", what, dir, b, err)
				}
				st, err := os.Stat(dir + "/f")
				if err != nil || st.Size() != int64(len(text)) || st.Sys().(*syscall.Stat_t).Nlink != 1 {
					return fmt.Errorf("%s: stat in %s: %+v, %v", what, dir, st, err)
				}
			}
			if got := readAll(t, r); got != text || nlink(t, r) != 1 {
				return fmt.Errorf("%s: the open file reads %q", what, got)
			}
			return nil
		})
	}
	want("at first", "first")
	writeFile(t, n.Dir+"/f", "second text")
	want("rewritten here", "second text")
	writeFile(t, second.Dir+"/f", "third")
	want("rewritten there", "third")
	f := open(t, n.Dir+"/f", os.O_WRONLY|os.O_APPEND)
	_, err := f.WriteString(" and more")
	must(t, err)
	must(t, f.Close())
	want("appended", "third and more")
	at := time.Unix(1e9, 5)
	must(t, os.Chtimes(n.Dir+"/f", at, at))
	want("touched", "third and more")
	fstest.Eventually(t, func() error {
		for _, dir := range []string{n.Dir, second.Dir} {
			if st, err := os.Stat(dir + "/f"); err != nil || !st.ModTime().Equal(at) {
				return fmt.Errorf("touched: %v in %s, %v", st.ModTime(), dir, err)
			}
		}
		return nil
	})
	r.Close()
	nothingKept(t, n)
}
