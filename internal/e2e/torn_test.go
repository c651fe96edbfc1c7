package e2e

import (
	encoding "encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/playground"
)

var tornReplacements = flag.Int("torn.replacements", 300, "remote replacements in TestP2TornReads")

// versionSizes are the sizes of successive versions: inline, one block, some.
var versionSizes = []int{100 << 10, 60 << 10, 300 << 10, 4 << 10, 1<<20 + 5<<10, 60 << 10, 2 << 20, 100 << 10}

// version is the content of the n-th version: its number, again and again. So
// its bytes alone tell whether they are those of one version, and all of it.
func version(n int) []byte {
	b := make([]byte, versionSizes[n%len(versionSizes)])
	for off := 0; off < len(b); off += 8 {
		encoding.BigEndian.PutUint64(b[off:], uint64(n))
	}
	return b
}

// checkVersion returns which version the bytes are.
func checkVersion(b []byte) (int, error) {
	if len(b) < 8 {
		return 0, fmt.Errorf("short: %d bytes", len(b))
	}
	n := encoding.BigEndian.Uint64(b)
	for off := 0; off+8 <= len(b); off += 8 {
		if m := encoding.BigEndian.Uint64(b[off:]); m != n {
			return 0, fmt.Errorf("mixed: %d bytes, version %d at first, %d at %d", len(b), n, m, off)
		}
	}
	if want := versionSizes[n%uint64(len(versionSizes))]; len(b) != want {
		return 0, fmt.Errorf("version %d has %d bytes, not %d", n, len(b), want)
	}
	return int(n), nil
}

// A readWay reads all of an open file.
type readWay struct {
	name  string
	flags int
	read  func(f *os.File) ([]byte, error)
}

var readWays = []readWay{
	{"buffered", 0, readBuffered},
	{"mmap", 0, readMapped},
	{"direct", unix.O_DIRECT, readDirect},
	{"sendfile", 0, readSent},
}

func readBuffered(f *os.File) ([]byte, error) { return readWith(f, make([]byte, 16<<10)) }

func readDirect(f *os.File) ([]byte, error) {
	buf := make([]byte, 68<<10)
	skip := -int(uintptr(unsafe.Pointer(&buf[0]))) & 4095
	return readWith(f, buf[skip:][:64<<10])
}

func readWith(f *os.File, buf []byte) ([]byte, error) {
	var all []byte
	for off := int64(0); ; {
		n, err := unix.Pread(int(f.Fd()), buf, off)
		all, off = append(all, buf[:n]...), off+int64(n)
		if n == 0 || err != nil {
			return all, err
		}
	}
}

// readMapped copies from a mapping. A page that is not there is an error.
func readMapped(f *os.File) (all []byte, err error) {
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return nil, err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(m)
	return copyMapped(m)
}

func copyMapped(m []byte) (all []byte, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("SIGBUS: %v", p)
		}
	}()
	return append([]byte{}, m...), nil
}

func readSent(f *os.File) ([]byte, error) {
	fd, err := unix.MemfdCreate("sent", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	to := os.NewFile(uintptr(fd), "sent")
	defer to.Close()
	for off := int64(0); ; {
		n, err := unix.Sendfile(fd, int(f.Fd()), &off, 1<<20)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return io.ReadAll(io.NewSectionReader(to, 0, 1<<40))
		}
	}
}

// The names at which versions are read: a file that is changed in place and one
// that is replaced by renames, each with a second link.
var (
	tornInPlace = []string{"in-place", "links/in-place"}
	tornRenamed = []string{"renamed", "links/renamed"}
)

// TestP2TornReads: whatever is done to a file on one node, and however it is
// read on another, a reader gets all bytes of one version and no others.
// In every second replacement a reader has the file open, and mapped.
func TestP2TornReads(t *testing.T) {
	c := start(t, 2)
	a, b := c.Nodes[0], c.Nodes[1]
	w := tornWriter{dir: a.Mount}
	if err := os.Mkdir(filepath.Join(a.Mount, "links"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{tornInPlace[0], tornRenamed[0]} {
		if err := os.WriteFile(filepath.Join(a.Mount, name), version(0), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(filepath.Join(a.Mount, name), filepath.Join(a.Mount, "links", name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range append(tornInPlace, tornRenamed...) {
		until(t, name, func() bool { _, err := os.Stat(filepath.Join(b.Mount, name)); return err == nil })
	}
	var stop atomic.Bool
	var readers sync.WaitGroup
	reads := make([]int, len(readWays))
	for i, way := range readWays {
		readers.Go(func() {
			for !stop.Load() && !t.Failed() {
				for _, name := range append(tornInPlace, tornRenamed...) {
					if err := tornRead(filepath.Join(b.Mount, name), way); err != nil {
						t.Errorf("%s of %s: %v", way.name, name, err)
					}
					reads[i]++
				}
			}
		})
	}
	held := 0
	for n := 1; n <= *tornReplacements && !t.Failed(); n++ {
		if n%2 == 0 {
			if err := w.replace(n); err != nil {
				t.Fatal(err)
			}
			continue
		}
		holdThrough(t, b, w.names(n), n, func() error { return w.replace(n) })
		held++
	}
	stop.Store(true)
	readers.Wait()
	for i, way := range readWays {
		t.Logf("%d reads: %s", reads[i], way.name)
	}
	t.Logf("%d replacements, in %d of which a reader had the file open", *tornReplacements, held)
	equal(t, a, b)
}

// tornRead opens, reads and closes, in one way.
func tornRead(path string, way readWay) error {
	f, err := os.OpenFile(path, os.O_RDONLY|way.flags, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	all, err := way.read(f)
	if err != nil {
		return err
	}
	_, err = checkVersion(all)
	return err
}

// holdThrough has the names open and mapped on a node while a replacement
// arrives there. What was open shows the old version to the end, whole.
func holdThrough(t *testing.T, nd *playground.Node, names []string, n int, replace func() error) {
	t.Helper()
	var files []*os.File
	var maps [][]byte
	defer func() {
		for i, f := range files {
			unix.Munmap(maps[i])
			f.Close()
		}
	}()
	old := make([]int, len(names))
	for i, name := range names {
		f, err := os.Open(filepath.Join(nd.Mount, name))
		if err != nil {
			t.Error(err)
			return
		}
		st, err := f.Stat()
		if err != nil {
			t.Error(err)
			return
		}
		m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			t.Error(err)
			return
		}
		files, maps = append(files, f), append(maps, m)
		if old[i], err = checkVersion(m[:len(m):len(m)]); err != nil {
			t.Errorf("%s before replacement %d: %v", name, n, err)
		}
	}
	if err := replace(); err != nil {
		t.Error(err)
		return
	}
	for i, name := range names {
		until(t, fmt.Sprintf("replacement %d of %s", n, name), func() bool {
			got, err := versionAt(filepath.Join(nd.Mount, name))
			return err == nil && got >= n
		})
		for _, way := range readWays {
			all, err := way.read(files[i])
			if way.name == "mmap" {
				all, err = copyMapped(maps[i])
			}
			if err == nil {
				var got int
				if got, err = checkVersion(all); err == nil && got != old[i] {
					err = fmt.Errorf("version %d, was %d", got, old[i])
				}
			}
			if err != nil {
				t.Errorf("%s, open through replacement %d, %s: %v", name, n, way.name, err)
			}
		}
	}
}

// versionAt is the version that a name shows.
func versionAt(path string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	head := make([]byte, 8)
	_, err = f.ReadAt(head, 0)
	return int(encoding.BigEndian.Uint64(head)), err
}

// A tornWriter replaces one of the two files by its next version.
type tornWriter struct{ dir string }

// names are those that the n-th replacement concerns.
func (w tornWriter) names(n int) []string {
	if n/2%2 == 0 {
		return tornInPlace
	}
	return tornRenamed
}

func (w tornWriter) replace(n int) error {
	if n/2%2 == 0 {
		return w.inPlace(filepath.Join(w.dir, tornInPlace[0]), n)
	}
	return w.byRename(n)
}

// inPlace truncates and writes, or writes over what is there, in steps.
func (w tornWriter) inPlace(path string, n int) error {
	flags := os.O_WRONLY
	if n/4%2 == 0 {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	b := version(n)
	for off := 0; off < len(b) && err == nil; off += 64 << 10 {
		_, err = f.WriteAt(b[off:min(off+64<<10, len(b))], int64(off))
	}
	return errors.Join(err, f.Truncate(int64(len(b))), f.Close())
}

// byRename replaces the file, and then its second link by one to the new file.
func (w tornWriter) byRename(n int) error {
	tmp, link := filepath.Join(w.dir, "tmp"), filepath.Join(w.dir, "links", "tmp")
	to := filepath.Join(w.dir, tornRenamed[0])
	if err := os.WriteFile(tmp, version(n), 0o644); err != nil {
		return err
	}
	if err := os.Rename(tmp, to); err != nil {
		return err
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(to, link); err != nil {
		return err
	}
	return os.Rename(link, filepath.Join(w.dir, tornRenamed[1]))
}
