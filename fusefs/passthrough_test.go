package fusefs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/fusefs"
	"github.com/synapsefs/synapsefs/internal/fstest"
	"github.com/synapsefs/synapsefs/store"
)

// bulk is some MiB that are no other bulk's.
func bulk(c byte, size int) []byte {
	b := bytes.Repeat([]byte{c}, size)
	for off := 0; off < size; off += 1 << 20 {
		b[off] = byte(off >> 20)
	}
	return b
}

const bulkSize = 3<<20 + 5000

// expectFile waits until a file reads as wanted.
func expectFile(t *testing.T, path string, want []byte) {
	t.Helper()
	fstest.Eventually(t, func() error {
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("%s: %d bytes, %v, want %d", path, len(got), err, len(want))
		}
		st, err := os.Stat(path)
		if err != nil || st.Size() != int64(len(want)) {
			return fmt.Errorf("%s: stat %+v, %v, want %d bytes", path, st, err, len(want))
		}
		return nil
	})
}

// holdRead opens a file and maps it, and returns what checks both.
func holdRead(t *testing.T, path string) (check func(what string, want []byte)) {
	t.Helper()
	f := open(t, path, os.O_RDONLY)
	st, err := f.Stat()
	must(t, err)
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	t.Cleanup(func() { unix.Munmap(m) })
	return func(what string, want []byte) {
		t.Helper()
		got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the open file has %d bytes, %v, want %d, equal %v", what, len(got), err, len(want), bytes.Equal(got, want))
		}
		if n := min(len(m), len(want)); !bytes.Equal(m[:n], want[:n]) {
			t.Errorf("%s: the mapping is another file's", what)
		}
	}
}

// TestLargeFiles: what the kernel reads and writes without us is a file as any.
func TestLargeFiles(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	second := p.A.MountAgain(fusefs.Options{})
	a, b := p.A.Dir+"/f", p.B.Dir+"/f"
	v1, v2 := bulk('1', bulkSize), bulk('2', bulkSize)
	must(t, os.WriteFile(a, v1, 0o644))
	p.Sync()
	for _, path := range []string{a, b, second.Dir + "/f"} {
		expectFile(t, path, v1)
	}
	must(t, os.WriteFile(p.A.Dir+"/twin", v1, 0o644)) // of the same blocks
	p.Sync()

	heldA, heldB, held2 := holdRead(t, a), holdRead(t, b), holdRead(t, second.Dir+"/f")
	heldTwin := holdRead(t, p.A.Dir+"/twin")
	for _, n := range []*fstest.Node{p.A, p.B, second} {
		if s := n.Mount.Stats(); s.Direct == 0 {
			t.Errorf("nothing is read past us: %+v", s)
		}
	}
	w := open(t, a, os.O_RDWR)
	_, err := w.WriteAt([]byte("here"), 5)
	must(t, err)
	changed := bytes.Clone(v1)
	copy(changed[5:], "here")
	heldA("written in place here", changed)
	held2("written through the other mount", changed)
	heldTwin("twin", v1)
	heldB("not published", v1)
	expectFile(t, b, v1)
	must(t, w.Close())
	p.Sync()
	expectFile(t, b, changed)
	heldB("published", v1)
	heldA("published", changed)
	expectFile(t, p.A.Dir+"/twin", v1)
	expectFile(t, p.B.Dir+"/twin", v1)

	// Once more: the file that is held is an immutable one again.
	w = open(t, second.Dir+"/f", os.O_WRONLY|os.O_APPEND)
	_, err = w.WriteString("appended")
	must(t, err)
	must(t, w.Close())
	changed = append(changed, "appended"...)
	p.Sync()
	expectFile(t, b, changed)
	heldA("appended through the other mount", changed)

	// A rewrite from elsewhere is another file to those who have this one.
	must(t, os.WriteFile(b, v2, 0o644))
	p.Sync()
	expectFile(t, a, v2)
	heldA("rewritten elsewhere", changed)
	held2("rewritten elsewhere", changed)
	expectTree(t, p.A.Dir, "f="+string(v2), "twin="+string(v1))
}

// TestTruncateHeld: in place is in place, for those who have the file open too.
func TestTruncateHeld(t *testing.T) {
	for _, c := range []struct {
		what string
		do   func(path string) error
		want []byte
	}{
		{"truncate", func(p string) error { return os.Truncate(p, 2<<20) }, bulk('1', bulkSize)[:2<<20]},
		{"grow", func(p string) error { return os.Truncate(p, bulkSize+4096) }, append(bulk('1', bulkSize), make([]byte, 4096)...)},
		{"rewrite", func(p string) error { return os.WriteFile(p, bulk('2', bulkSize), 0) }, bulk('2', bulkSize)},
		{"rewrite small", func(p string) error { return os.WriteFile(p, []byte("small"), 0) }, []byte("small")},
	} {
		t.Run(c.what, func(t *testing.T) {
			p := fstest.MountPair(t, fstest.Options{})
			path := p.A.Dir + "/f"
			must(t, os.WriteFile(path, bulk('1', bulkSize), 0o644))
			p.Sync()
			f := open(t, path, os.O_RDONLY)
			must(t, c.do(path))
			if got := readAllOf(t, f); !bytes.Equal(got, c.want) {
				t.Errorf("the open file has %d bytes, want %d", len(got), len(c.want))
			}
			p.Sync()
			expectFile(t, p.B.Dir+"/f", c.want)
			must(t, os.WriteFile(path, []byte("again"), 0))
			if got := readAllOf(t, f); string(got) != "again" {
				t.Errorf("the open file has %d bytes after a second rewrite", len(got))
			}
			f.Close()
			p.Sync()
			expectFile(t, p.B.Dir+"/f", []byte("again"))
			expectFile(t, path, []byte("again"))
		})
	}
}

func readAllOf(t *testing.T, f *os.File) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
	must(t, err)
	return b
}

// TestNoOpWhileHeld: an open for writing without a write is none, whatever
// readers have (fieldcases 15).
func TestNoOpWhileHeld(t *testing.T) {
	for _, size := range []int{5, 100_000, bulkSize} {
		t.Run(fmt.Sprint(size), func(t *testing.T) { testNoOpWhileHeld(t, size) })
	}
}

func testNoOpWhileHeld(t *testing.T, size int) {
	n := fstest.Mount(t, fstest.Options{Store: store.Options{PublishInterval: time.Millisecond}})
	path := n.Dir + "/f"
	ops(t, n, func() { must(t, os.WriteFile(path, bytes.Repeat([]byte("1"), size), 0o644)) })
	before := stat(t, path)
	for _, held := range []bool{false, true} {
		if held {
			holdRead(t, path)
		}
		for range 3 {
			for _, flags := range []int{os.O_RDWR | os.O_APPEND, os.O_WRONLY | os.O_APPEND, os.O_WRONLY} {
				if got := ops(t, n, func() { must(t, open(t, path, flags).Close()) }); got != 0 {
					t.Errorf("held %v, flags %x: %d ops", held, flags, got)
				}
			}
		}
		if after := stat(t, path); after.Mtim != before.Mtim || after.Ctim != before.Ctim {
			t.Errorf("held %v: %+v, was %+v", held, after, before)
		}
	}
	if got := ops(t, n, func() { writeAt(t, path, "x") }); got != 1 {
		t.Errorf("%d ops of a write", got)
	}
}

func writeAt(t *testing.T, path, text string) {
	t.Helper()
	f := open(t, path, os.O_WRONLY)
	_, err := f.WriteAt([]byte(text), 7)
	must(t, err)
	must(t, f.Close())
}

// TestP2MappedAfterClose: what is stored through a mapping after the close is
// in the version, and there is none before the mapping is gone.
func TestP2MappedAfterClose(t *testing.T) {
	for _, size := range []int{8192, bulkSize} {
		p := fstest.MountPair(t, fstest.Options{})
		f := open(t, p.A.Dir+"/f", os.O_RDWR|os.O_CREATE)
		want := bulk('1', size)
		_, err := f.Write(want)
		must(t, err)
		m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(t, err)
		must(t, f.Close())
		writeFile(t, p.A.Dir+"/later", "x") // arrives, and f does not
		fstest.Eventually(t, func() error { _, err := os.Stat(p.B.Dir + "/later"); return err })
		if _, err := os.Stat(p.B.Dir + "/f"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("size %d: published while it is mapped: %v", size, err)
		}
		copy(m[100:], "stored after the close")
		copy(want[100:], "stored after the close")
		must(t, unix.Munmap(m))
		p.Sync()
		expectFile(t, p.B.Dir+"/f", want)
		expectFile(t, p.A.Dir+"/f", want)
	}
}

// TestTimesOfDirectWrites: mtime moves with a write, not with a read or a close,
// and utimensat has the last word.
func TestTimesOfDirectWrites(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	path := p.A.Dir + "/f"
	f := open(t, path, os.O_RDWR|os.O_CREATE)
	made := stat(t, path).Mtim
	_, err := f.WriteString("text")
	must(t, err)
	written := stat(t, path).Mtim
	if written.Nano() < made.Nano() {
		t.Errorf("the write is older than the file: %v, made %v", written, made)
	}
	at := time.Unix(1e9, 123456789)
	must(t, os.Chtimes(path, at, at))
	if got := stat(t, path).Mtim; got.Nano() != at.UnixNano() {
		t.Errorf("set to %v, shows %v", at, got)
	}
	_, err = f.WriteString(" more")
	must(t, err)
	if got := stat(t, path).Mtim; got.Nano() < made.Nano() {
		t.Errorf("written after it was set, shows %v", got)
	}
	must(t, os.Chtimes(path, at, at))
	must(t, f.Close())
	p.Sync()
	for _, dir := range []string{p.A.Dir, p.B.Dir} {
		if got := stat(t, dir+"/f").Mtim; got.Nano() != at.UnixNano() {
			t.Errorf("in the end: %v in %s", got, dir)
		}
	}
}

// TestP2AppendsArePublished: of a file that is appended to and never closed, what
// was there at some moment is published time and again, and never more than was
// written, nor out of order.
func TestP2AppendsArePublished(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{Store: store.Options{PublishInterval: 20 * time.Millisecond}})
	path := p.A.Dir + "/log"
	writeFile(t, path, "line 0000000\n")
	p.Sync()
	f := open(t, path, os.O_WRONLY|os.O_APPEND)
	var lines atomic.Int64
	var stop atomic.Bool
	var writer sync.WaitGroup
	writer.Go(func() {
		for n := int64(1); !stop.Load(); n++ {
			if _, err := fmt.Fprintf(f, "line %07d\n", n); err != nil {
				t.Error(err)
				return
			}
			lines.Store(n)
		}
	})
	seen := 0
	fstest.Eventually(t, func() error {
		b, err := os.ReadFile(p.B.Dir + "/log")
		must(t, err)
		for n, line := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
			if want := fmt.Sprintf("line %07d", n); line != want && !strings.HasPrefix(want, line) {
				t.Fatalf("line %d is %q", n, line)
			}
		}
		if len(b) > 13 {
			seen++
		}
		if seen < 5 {
			return fmt.Errorf("%d bytes arrived, %d lines are written", len(b), lines.Load())
		}
		return nil
	})
	stop.Store(true)
	writer.Wait()
	must(t, f.Close())
	p.Sync()
	b, err := os.ReadFile(p.B.Dir + "/log")
	must(t, err)
	if want := 13 * (lines.Load() + 1); int64(len(b)) != want {
		t.Errorf("%d bytes, want %d", len(b), want)
	}
}

// TestLargeFilesChangedInPlace: a file that nobody reads is changed in place by
// all ways of opening it, and no other version or file of its bytes with it.
func TestLargeFilesChangedInPlace(t *testing.T) {
	for _, flags := range []int{os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_APPEND, os.O_WRONLY | syscall.O_DSYNC} {
		for _, size := range []int{100, 200_000, bulkSize} {
			t.Run(fmt.Sprintf("%x %d", flags, size), func(t *testing.T) {
				p := fstest.MountPair(t, fstest.Options{})
				path, want := p.A.Dir+"/f", bulk('1', size)
				must(t, os.WriteFile(path, want, 0o644))
				must(t, os.WriteFile(p.A.Dir+"/twin", want, 0o644))
				p.Sync()
				old := holdRead(t, p.B.Dir+"/f")
				for n := range 3 {
					f := open(t, path, flags)
					text := fmt.Sprintf("change %d", n)
					_, err := f.WriteString(text)
					must(t, err)
					must(t, f.Close())
					if flags&os.O_APPEND != 0 {
						want = append(bytes.Clone(want), text...)
					} else {
						want = append([]byte(text), want[len(text):]...)
					}
					p.Sync()
					expectFile(t, path, want)
					expectFile(t, p.B.Dir+"/f", want)
				}
				old("elsewhere", bulk('1', size))
				expectFile(t, p.A.Dir+"/twin", bulk('1', size))
				expectFile(t, p.B.Dir+"/twin", bulk('1', size))
			})
		}
	}
}

// TestStateDirectories: whatever the state directory is on, files are as on any;
// of an overlay, as containers have it, and of kernels before 6.9 the kernel has
// no file for us, and all goes through the daemon.
func TestStateDirectories(t *testing.T) {
	fstest.NeedMount(t)
	for _, c := range []struct {
		kind, options string
	}{{"tmpfs", "size=256m"}, {"overlay", "lowerdir=%[1]s/l,upperdir=%[1]s/u,workdir=%[1]s/w"}} {
		t.Run(c.kind, func(t *testing.T) {
			base, dir := t.TempDir(), t.TempDir()
			options := c.options
			if strings.Contains(options, "%") {
				for _, d := range []string{"l", "u", "w"} {
					must(t, os.Mkdir(base+"/"+d, 0o755))
				}
				options = fmt.Sprintf(options, base)
			}
			must(t, unix.Mount("test", dir, c.kind, 0, options))
			t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
			n := fstest.Mount(t, fstest.Options{Backed: dir})
			path := n.Dir + "/f"
			want := bulk('1', bulkSize)
			must(t, os.WriteFile(path, want, 0o644))
			expectFile(t, path, want)
			check := holdRead(t, path)
			f := open(t, path, os.O_WRONLY|os.O_APPEND)
			_, err := f.WriteString("appended")
			must(t, errors.Join(err, f.Close()))
			want = append(want, "appended"...)
			expectFile(t, path, want)
			check("after an append", want)
		})
	}
}
