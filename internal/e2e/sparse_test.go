package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/playground"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// segments are where the data of a file begins and ends, in turn.
func segments(t *testing.T, path string) (out []int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at := int64(0); ; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return out
		}
		if err == nil {
			at, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, start, at)
	}
}

// onDisk is what a directory takes on the disk, in bytes.
func onDisk(t *testing.T, dir string) (sum int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		sum += st.Blocks * 512
		if os.IsNotExist(err) { // gone meanwhile
			err = nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// A large file of holes stays one: on the disk of who writes it, on that of a
// peer, and of one that joins later.
func TestP13SparseFiles(t *testing.T) {
	c := start(t, 2)
	a, b := c.Nodes[0], c.Nodes[1]
	path := filepath.Join(a.Mount, "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("sparse! "), mib/8)
	for _, at := range []int64{gib, 9 * gib} {
		if _, err := f.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(10 * gib); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 9*gib, 2*mib); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	whole := func(nd *playground.Node) {
		t.Helper()
		path := filepath.Join(nd.Mount, "sparse")
		until(t, "the sparse file on "+nd.Name, func() bool {
			st, err := os.Stat(path)
			return err == nil && st.Size() == 10*gib
		})
		if got, want := segments(t, path), []int64{gib, gib + mib}; !slices.Equal(got, want) {
			t.Errorf("%s: data at %v, want %v", nd.Name, got, want)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		if st.Blocks*512 > 2*mib {
			t.Errorf("%s: %d blocks", nd.Name, st.Blocks)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got := make([]byte, 2*mib)
		if _, err := f.ReadAt(got, gib-mib/2); err != nil || !bytes.Equal(got[mib/2:mib/2+mib], data) {
			t.Errorf("%s: other bytes, %v", nd.Name, err)
		}
		if n := onDisk(t, filepath.Dir(nd.Mount)+"/state"); n > 200*mib {
			t.Errorf("%s: the state takes %d MiB", nd.Name, n/mib)
		}
	}
	barrier(t, a)
	whole(a)
	whole(b)
	late, err := c.Add()
	if err != nil {
		t.Fatal(err)
	}
	if err := late.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	mount(t, late, false)
	whole(late)
}
