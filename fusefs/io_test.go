package fusefs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

// Appends of several handles, on two mounts, do not overwrite each other's.
func TestAppend(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	path := n.Dir + "/f"
	writeFile(t, path, "")
	var files []*os.File
	for range 3 {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
		must(t, err)
		defer f.Close()
		files = append(files, f)
	}
	var want string
	for k := range 300 {
		_, err := files[k%3].Seek(0, io.SeekStart)
		must(t, err)
		line := fmt.Sprintf("line %d\n", k)
		_, err = files[k%3].WriteString(line)
		must(t, err)
		want += line
	}
	if b, err := os.ReadFile(path); string(b) != want || err != nil {
		t.Errorf("%d bytes of %d, %v", len(b), len(want), err)
	}
}

func TestOpenFlags(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	path := n.Dir + "/f"
	open := func(flags int) error {
		fd, err := unix.Open(path, flags, 0o644)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	for _, c := range []struct {
		what  string
		flags int
		err   error
		text  string
	}{
		{"missing", unix.O_RDWR, unix.ENOENT, "-"},
		{"exclusive", unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL, nil, ""},
		{"exclusive again", unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL, unix.EEXIST, ""},
		{"create again", unix.O_WRONLY | unix.O_CREAT, nil, ""},
		{"directory", unix.O_RDONLY | unix.O_DIRECTORY, unix.ENOTDIR, "text"},
		{"truncate", unix.O_WRONLY | unix.O_TRUNC, nil, ""},
		{"truncate for reading", unix.O_RDONLY | unix.O_TRUNC, nil, ""},
		{"path", unix.O_PATH, nil, "text"},
		{"no time", unix.O_RDONLY | unix.O_NOATIME, nil, "text"},
		{"sync", unix.O_WRONLY | unix.O_SYNC, nil, "text"},
	} {
		if c.text != "-" && c.text != "" {
			writeFile(t, path, c.text)
		}
		if err := open(c.flags); err != c.err {
			t.Errorf("%s: %v, want %v", c.what, err, c.err)
		}
		if b, err := os.ReadFile(path); c.text != "-" && (string(b) != c.text || err != nil) {
			t.Errorf("%s left %q, %v", c.what, b, err)
		}
		if c.text == "" {
			writeFile(t, path, "full")
		}
		if c.what == "exclusive" || c.what == "exclusive again" {
			writeFile(t, path, "")
		}
	}
}

// aligned is a buffer as O_DIRECT wants it.
func aligned(size int) []byte {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	return b
}

// Direct and cached reads and writes see each other.
func TestDirectIO(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	path := n.Dir + "/f"
	const size = 3 << 20
	random := rand.New(rand.NewPCG(1, 2))
	b := aligned(size)
	defer unix.Munmap(b)
	for k := range b {
		b[k] = byte(random.Uint32())
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT, 0o644)
	must(t, err)
	defer unix.Close(fd)
	want := bytes.Clone(b)
	if k, err := unix.Pwrite(fd, b, 0); k != size || err != nil {
		t.Fatal(k, err)
	}
	if got, err := os.ReadFile(path); !bytes.Equal(got, want) || err != nil {
		t.Fatalf("read in the cache: %d bytes, %v", len(got), err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("cached"), 1<<20+5)
	must(t, err)
	copy(want[1<<20+5:], "cached")
	clear(b)
	if k, err := unix.Pread(fd, b, 0); k != size || err != nil || !bytes.Equal(b, want) {
		t.Fatalf("read directly: %d bytes, %v", k, err)
	}
	copy(b, "direct")
	copy(want, "direct")
	if k, err := unix.Pwrite(fd, b[:4096], 0); k != 4096 || err != nil {
		t.Fatal(k, err)
	}
	got := make([]byte, size)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read in the cache after a direct write: %v", err)
	}
}

func TestMmapPrivate(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	path := n.Dir + "/f"
	writeFile(t, path, strings.Repeat("x", 8192))
	closed(t, n)
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	must(t, err)
	copy(m, "private")
	if b, err := os.ReadFile(path); string(b) != strings.Repeat("x", 8192) || err != nil {
		t.Errorf("the file has %.10q, %v", b, err)
	}
	if string(m[:9]) != "privatexx" {
		t.Errorf("the mapping has %.10q", m)
	}
	must(t, unix.Munmap(m))
}

// A shared mapping and write see each other at once, also what is written
// behind the mapping's back on the node's other mount once it is closed.
func TestMmapShared(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	path := n.Dir + "/f"
	writeFile(t, path, strings.Repeat("x", 8192))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(m)
	_, err = f.WriteAt([]byte("written"), 4000)
	must(t, err)
	if string(m[4000:4007]) != "written" {
		t.Errorf("the mapping has %q", m[4000:4007])
	}
	copy(m[5000:], "mapped")
	b := make([]byte, 6)
	if _, err := f.ReadAt(b, 5000); string(b) != "mapped" || err != nil {
		t.Errorf("read %q %v", b, err)
	}
	must(t, unix.Ftruncate(int(f.Fd()), 4100))
	must(t, unix.Ftruncate(int(f.Fd()), 8192))
	if m[4001] != 'r' || m[5000] != 0 {
		t.Errorf("after shrinking and growing the mapping has %q and %q", m[4001], m[5000])
	}
}

// segments are the data extents of an open file.
func segments(t *testing.T, fd int) (out [][2]int64) {
	t.Helper()
	for at := int64(0); ; {
		start, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return out
		}
		must(t, err)
		end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
		must(t, err)
		out = append(out, [2]int64{start, end})
		at = end
	}
}

const mib = 1 << 20

func TestFallocate(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	text := strings.Repeat("0123456789abcdef", 4*mib/16)
	for _, c := range []struct {
		what     string
		mode     uint32
		off, len int64
		err      error
		size     int64
		zero     [2]int64 // the range that reads as zeros
	}{
		{"reserve within", 0, 0, mib, nil, 4 * mib, [2]int64{}},
		{"grow", 0, 4 * mib, mib, nil, 5 * mib, [2]int64{4 * mib, 5 * mib}},
		{"reserve behind the end", unix.FALLOC_FL_KEEP_SIZE, 4 * mib, mib, nil, 4 * mib, [2]int64{}},
		{"punch", unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, mib, 2 * mib, nil, 4 * mib, [2]int64{mib, 3 * mib}},
		{"punch a bit", unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, 5, 7, nil, 4 * mib, [2]int64{5, 12}},
		{"punch behind the end", unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, 9 * mib, mib, nil, 4 * mib, [2]int64{}},
		{"zero", unix.FALLOC_FL_ZERO_RANGE, mib, mib, nil, 4 * mib, [2]int64{mib, 2 * mib}},
		{"zero and grow", unix.FALLOC_FL_ZERO_RANGE, 3 * mib, 3 * mib, nil, 6 * mib, [2]int64{3 * mib, 6 * mib}},
		{"zero over the end", unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, 3 * mib, 3 * mib, nil, 4 * mib, [2]int64{3 * mib, 4 * mib}},
		{"punch with growth", unix.FALLOC_FL_PUNCH_HOLE, 0, 1, unix.EOPNOTSUPP, 4 * mib, [2]int64{}},
		{"collapse", unix.FALLOC_FL_COLLAPSE_RANGE, 0, mib, unix.EOPNOTSUPP, 4 * mib, [2]int64{}},
		{"insert", unix.FALLOC_FL_INSERT_RANGE, 0, mib, unix.EOPNOTSUPP, 4 * mib, [2]int64{}},
		{"nothing", 0, 0, 0, unix.EINVAL, 4 * mib, [2]int64{}},
		{"before the start", 0, -1, 1, unix.EINVAL, 4 * mib, [2]int64{}},
		{"beyond all", 0, 1<<63 - 1, 1, unix.EFBIG, 4 * mib, [2]int64{}},
	} {
		for _, open := range []bool{false, true} { // the bytes are the draft's, or those of the version below
			path := n.Dir + "/f"
			os.Remove(path)
			f, err := os.Create(path)
			must(t, err)
			_, err = f.WriteString(text)
			must(t, err)
			if !open {
				must(t, f.Close())
				closed(t, n)
				f, err = os.OpenFile(path, os.O_RDWR, 0)
				must(t, err)
			}
			if err := unix.Fallocate(int(f.Fd()), c.mode, c.off, c.len); err != c.err {
				t.Errorf("%s: %v, want %v", c.what, err, c.err)
			}
			want := make([]byte, c.size)
			copy(want, text)
			clear(want[min(c.zero[0], c.size):min(c.zero[1], c.size)])
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, open %v: %d bytes, want %d, equal %v, %v", c.what, open, len(got), len(want), bytes.Equal(got, want), err)
			}
			must(t, f.Close())
			closed(t, n)
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, open %v: after the close %d bytes, want %d, %v", c.what, open, len(got), len(want), err)
			}
		}
	}
	f, err := os.Open(n.Dir + "/f")
	must(t, err)
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 1); err != unix.EBADF {
		t.Errorf("of a reader: %v", err)
	}
}

func TestSeekHole(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	path := n.Dir + "/f"
	f, err := os.Create(path)
	must(t, err)
	for _, at := range []int64{2 * mib, 7 * mib} {
		_, err := f.WriteAt(bytes.Repeat([]byte("x"), mib), at)
		must(t, err)
	}
	must(t, f.Truncate(10*mib))
	want := [][2]int64{{2 * mib, 3 * mib}, {7 * mib, 8 * mib}}
	if got := segments(t, int(f.Fd())); !slices.Equal(got, want) {
		t.Errorf("of a draft: %v", got)
	}
	must(t, f.Close())
	closed(t, n)
	f, err = os.Open(path)
	must(t, err)
	defer f.Close()
	fd := int(f.Fd())
	if got := segments(t, fd); !slices.Equal(got, want) {
		t.Errorf("of a version: %v", got)
	}
	for _, c := range []struct {
		off, want int64
		whence    int
		err       error
	}{
		{0, 0, unix.SEEK_HOLE, nil},
		{2*mib + 1, 2*mib + 1, unix.SEEK_DATA, nil},
		{2*mib + 1, 3 * mib, unix.SEEK_HOLE, nil},
		{8 * mib, 0, unix.SEEK_DATA, unix.ENXIO},
		{9 * mib, 9 * mib, unix.SEEK_HOLE, nil},
		{10 * mib, 0, unix.SEEK_HOLE, unix.ENXIO},
		{-1, 0, unix.SEEK_DATA, unix.ENXIO},
	} {
		if got, err := unix.Seek(fd, c.off, c.whence); err != c.err || err == nil && got != c.want {
			t.Errorf("seek(%d, %d): %d %v, want %d %v", c.off, c.whence, got, err, c.want, c.err)
		}
	}
	if blocks := stat(t, path).Blocks; blocks != 2*mib/512 {
		t.Errorf("%d blocks", blocks)
	}
	// Programs look at the blocks first.
	out, err := exec.Command("cp", "--sparse=auto", path, n.Dir+"/g").CombinedOutput()
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
	closed(t, n)
	if s := stat(t, n.Dir+"/g"); s.Size != 10*mib || s.Blocks != 2*mib/512 {
		t.Errorf("the copy has %d bytes in %d blocks", s.Size, s.Blocks)
	}
}

func TestBlocks(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	path := n.Dir + "/f"
	for _, size := range []int{0, 1, 4096, 4097, 70_000, 3*mib + 1} {
		writeFile(t, path, strings.Repeat("x", size))
		closed(t, n)
		if s := stat(t, path); s.Blocks != int64(size+4095)/4096*8 {
			t.Errorf("%d bytes in %d blocks", size, s.Blocks)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("changed"), mib)
	must(t, err)
	if s := stat(t, path); s.Blocks < 3*mib/512 || s.Blocks > 3*mib/512+24 {
		t.Errorf("a draft over a version of 3 MiB: %d blocks", s.Blocks)
	}
	must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 8*mib, 2*mib))
	if s := stat(t, path); s.Blocks < 5*mib/512 {
		t.Errorf("with 2 MiB reserved: %d blocks", s.Blocks)
	}
}

func TestCopyFileRange(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	from, to := n.Dir+"/from", n.Dir+"/to"
	text := strings.Repeat("0123456789abcdef", 2*mib/16)
	writeFile(t, from, text)
	r, err := os.Open(from)
	must(t, err)
	defer r.Close()
	w, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	for off := int64(0); off < int64(len(text)); {
		k, err := unix.CopyFileRange(int(r.Fd()), &off, int(w.Fd()), nil, len(text), 0)
		must(t, err)
		if k == 0 {
			t.Fatalf("nothing copied at %d", off)
		}
	}
	in, out := int64(5), int64(100)
	if k, err := unix.CopyFileRange(int(w.Fd()), &in, int(w.Fd()), &out, 10, 0); k != 10 || err != nil {
		t.Error(k, err)
	}
	in, out = 0, 5
	if _, err := unix.CopyFileRange(int(w.Fd()), &in, int(w.Fd()), &out, 10, 0); err != unix.EINVAL {
		t.Errorf("overlapping: %v", err)
	}
	must(t, w.Close())
	closed(t, n)
	want := text[:100] + text[5:15] + text[110:]
	if b, err := os.ReadFile(to); string(b) != want || err != nil {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// Special files work: what one end of a FIFO or socket writes, the other reads.
func TestFifosAndSockets(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	must(t, unix.Mkfifo(n.Dir+"/p", 0o600))
	if _, err := unix.Open(n.Dir+"/p", unix.O_WRONLY|unix.O_NONBLOCK, 0); err != unix.ENXIO {
		t.Errorf("a FIFO without readers: %v", err)
	}
	r, err := unix.Open(n.Dir+"/p", unix.O_RDONLY|unix.O_NONBLOCK, 0)
	must(t, err)
	defer unix.Close(r)
	must(t, os.WriteFile(n.Dir+"/p", []byte("piped"), 0))
	b := make([]byte, 10)
	if k, err := unix.Read(r, b); string(b[:max(k, 0)]) != "piped" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	fds := [2]int{}
	for k := range fds {
		fds[k], err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		must(t, err)
		defer unix.Close(fds[k])
	}
	addr := &unix.SockaddrUnix{Name: n.Dir + "/s"}
	must(t, unix.Bind(fds[0], addr))
	must(t, unix.Listen(fds[0], 1))
	must(t, unix.Connect(fds[1], addr))
	if s := stat(t, addr.Name); s.Mode&unix.S_IFMT != unix.S_IFSOCK {
		t.Errorf("mode %o", s.Mode)
	}
	must(t, os.Remove(addr.Name))
	if err := unix.Connect(fds[1], addr); !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.EISCONN) {
		t.Error(err)
	}
}
