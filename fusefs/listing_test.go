package fusefs_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

// A listing is an open directory, read with getdents64 in buffers of a size.
type listing struct {
	t   *testing.T
	fd  int
	buf []byte
}

func openDir(t *testing.T, path string, size int) *listing {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return &listing{t, fd, make([]byte, size)}
}

// some returns the names of one call, none at the end.
func (l *listing) some() (names []string) {
	l.t.Helper()
	for {
		n, err := unix.ReadDirent(l.fd, l.buf)
		must(l.t, err)
		if n == 0 {
			return nil
		}
		if _, _, names = unix.ParseDirent(l.buf[:n], -1, nil); len(names) > 0 { // else "." and ".." alone
			return names
		}
	}
}

func (l *listing) rest() (names []string) {
	l.t.Helper()
	for {
		some := l.some()
		if some == nil {
			return names
		}
		names = append(names, some...)
	}
}

func (l *listing) seek(pos int64, whence int) int64 {
	l.t.Helper()
	pos, err := unix.Seek(l.fd, pos, whence)
	must(l.t, err)
	return pos
}

func count(names []string) map[string]int {
	out := map[string]int{}
	for _, name := range names {
		out[name]++
	}
	return out
}

// expectNames fails the test unless each of the names was listed once, and of
// others none twice.
func expectNames(t *testing.T, listed []string, want func(yield func(string) bool)) {
	t.Helper()
	seen := count(listed)
	missed := 0
	for name := range want {
		if seen[name] == 0 {
			missed++
		}
	}
	for name, n := range seen {
		if n > 1 {
			t.Errorf("%s was listed %d times", name, n)
		}
	}
	if missed > 0 {
		t.Errorf("%d names were missed", missed)
	}
}

func numbered(prefix string, from, to int) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := from; k < to && yield(fmt.Sprint(prefix, k)); k++ {
		}
	}
}

func makeNames(t *testing.T, dir, prefix string, n int) {
	t.Helper()
	for name := range numbered(prefix, 0, n) {
		must(t, unix.Mknod(dir+"/"+name, unix.S_IFREG|0o644, 0))
	}
}

// Whatever the size of the buffer, a listing is whole, and a position can be
// gone back to.
func TestListingBuffers(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	makeNames(t, n.Dir, "a name of some length ", 300)
	want := numbered("a name of some length ", 0, 300)
	for _, size := range []int{64, 100, 1000, 4096, 1 << 20} {
		l := openDir(t, n.Dir, size)
		type point struct {
			pos  int64
			next string
		}
		var points []point
		var names []string
		for {
			pos := l.seek(0, io.SeekCurrent)
			some := l.some()
			if some == nil {
				break
			}
			points = append(points, point{pos, some[0]})
			names = append(names, some...)
		}
		expectNames(t, names, want)
		for k := len(points) - 1; k >= 0; k -= 7 {
			l.seek(points[k].pos, io.SeekStart)
			if some := l.some(); len(some) == 0 || some[0] != points[k].next {
				t.Fatalf("buffer of %d: at %d there was %s, now %v", size, points[k].pos, points[k].next, some)
			}
		}
		l.seek(0, io.SeekStart)
		expectNames(t, l.rest(), want)
	}
}

// rm -rf with a buffer of one entry while another node makes and removes names:
// all that existed at the start is met, and removed (field case 17).
func TestRemoveWhileListing(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	const names = 2000
	d := p.A.Dir + "/d"
	must(t, os.Mkdir(d, 0o755))
	makeNames(t, d, "f", names)
	p.Sync()
	stop := make(chan struct{})
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for k := 0; ; k++ {
			select {
			case <-stop:
				return
			default:
			}
			name := fmt.Sprintf("%s/d/other%d", p.B.Dir, k)
			if err := unix.Mknod(name, unix.S_IFREG|0o644, 0); err != nil {
				t.Error(err)
			}
			if k%2 == 0 {
				if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
					t.Error(err)
				}
			}
		}
	})
	l := openDir(t, d, 64)
	var listed []string
	for some := l.some(); some != nil; some = l.some() {
		for _, name := range some {
			listed = append(listed, name)
			if err := os.Remove(d + "/" + name); err != nil && name[0] == 'f' {
				t.Errorf("remove %s: %v", name, err)
			}
		}
	}
	close(stop)
	tasks.Wait()
	expectNames(t, listed, numbered("f", 0, names))
	left, err := os.ReadDir(d)
	must(t, err)
	for _, e := range left {
		if e.Name()[0] == 'f' {
			t.Errorf("%s is left", e.Name())
		}
	}
	if err := os.Remove(d); err != unix.ENOTEMPTY && len(left) > 0 && !isErr(err, unix.ENOTEMPTY) {
		t.Errorf("rmdir with %d names of the other node: %v", len(left), err)
	}
}

// A listing that another node changes half-way (field case 16).
func TestListingUnderRemoteChange(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	must(t, os.Mkdir(p.A.Dir+"/d", 0o755))
	makeNames(t, p.A.Dir+"/d", "f", 1000)
	p.Sync()
	b := p.B.Dir + "/d"
	for range 2 { // it is in the kernel's cache then
		expectNames(t, openDir(t, b, 1<<16).rest(), numbered("f", 0, 1000))
	}
	held := openDir(t, b, 4096)
	var listed []string
	for len(listed) < 500 {
		listed = append(listed, held.some()...)
	}
	for k := range 500 {
		must(t, os.Remove(fmt.Sprintf("%s/d/f%d", p.A.Dir, k)))
	}
	makeNames(t, p.A.Dir+"/d", "new", 500)
	for k := 500; k < 510; k++ {
		must(t, os.Rename(fmt.Sprintf("%s/d/f%d", p.A.Dir, k), fmt.Sprintf("%s/moved%d", p.A.Dir, k)))
	}
	p.Sync()
	fresh := openDir(t, b, 1<<16).rest()
	if len(fresh) != 990 {
		t.Errorf("%d names, want 990", len(fresh))
	}
	expectNames(t, fresh, numbered("f", 510, 1000))
	expectNames(t, fresh, numbered("new", 0, 500))
	expectNames(t, append(listed, held.rest()...), numbered("f", 510, 1000))
	held.seek(0, io.SeekStart)
	again := held.rest()
	if len(again) != 990 {
		t.Errorf("after rewinddir %d names, want 990", len(again))
	}
	expectNames(t, again, numbered("new", 0, 500))
}

func TestLargeDirectory(t *testing.T) {
	if testing.Short() {
		t.Skip("100,000 names")
	}
	const names = 100_000
	n := fstest.Mount(t, fstest.Options{})
	makeNames(t, n.Dir, "f", names)
	for _, size := range []int{1 << 10, 1 << 20} {
		listed := openDir(t, n.Dir, size).rest()
		if len(listed) != names {
			t.Errorf("%d names", len(listed))
		}
		expectNames(t, listed, numbered("f", 0, names))
	}
	for _, name := range []string{"f0", "f99999"} {
		must(t, os.Rename(n.Dir+"/"+name, n.Dir+"/g"+name))
		must(t, os.Remove(n.Dir+"/g"+name))
	}
	if s := stat(t, n.Dir); s.Nlink != 2 {
		t.Errorf("%d links", s.Nlink)
	}
}

// Names that are merged, and taken back before they are shown, come and go in no
// listing, whatever is being committed while it is made.
func TestListingWhileMerging(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	a, b := p.A.Dir+"/d", p.B.Dir+"/d"
	must(t, os.Mkdir(a, 0o755))
	makeNames(t, a, "f", 100)
	p.Sync()
	expectNames(t, openDir(t, b, 4096).rest(), numbered("f", 0, 100))
	resume := p.B.Mount.Pause()
	defer resume()
	var stop atomic.Bool
	var tasks sync.WaitGroup
	for k := range 4 {
		tasks.Go(func() {
			for !stop.Load() {
				// A local change, or the kernel would list from its cache.
				local := fmt.Sprintf("%s/local%d", b, k)
				if err := errors.Join(unix.Mknod(local, unix.S_IFREG|0o644, 0), os.Remove(local)); err != nil {
					t.Error(err)
				}
				entries, err := os.ReadDir(b)
				if err != nil {
					t.Error(err)
				}
				n := 0
				for _, e := range entries {
					switch e.Name()[0] {
					case 'f':
						n++
					case 'g':
						t.Errorf("%s is listed", e.Name())
					}
				}
				if n != 100 {
					t.Errorf("%d names", n)
				}
			}
		})
	}
	for k := range 200 {
		from, to := fmt.Sprintf("%s/f%d", a, k%100), fmt.Sprintf("%s/g%d", a, k%100)
		must(t, os.Rename(from, to))
		merged(t, p)
		must(t, os.Rename(to, from))
		merged(t, p)
	}
	stop.Store(true)
	tasks.Wait()
}
