package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/internal/fstest"
	"github.com/synapsefs/synapsefs/internal/playground"
)

// until waits for a condition, looking again as fast as it can be looked at.
func until(t *testing.T, what string, met func() bool) {
	t.Helper()
	fstest.Until(t, patience, what, met)
}

func shows(nd *playground.Node, name, text string) func() bool {
	return func() bool {
		b, err := os.ReadFile(filepath.Join(nd.Mount, name))
		return err == nil && string(b) == text
	}
}

// A file that is still being written delays no other, and shows nothing of
// itself; nor does a temporary file that is renamed over its target before it
// is closed: the target stays as it was.
func TestP2OpenFilesDelayNoOthers(t *testing.T) {
	c := start(t, 2)
	a, b := c.Nodes[0], c.Nodes[1]
	write(t, a, "target", "old")
	until(t, "target", shows(b, "target", "old"))

	slow, err := os.Create(filepath.Join(a.Mount, "slow.car"))
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	tmp, err := os.Create(filepath.Join(a.Mount, "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	defer tmp.Close()
	if _, err := tmp.WriteString("new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp.Name(), filepath.Join(a.Mount, "target")); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if _, err := slow.Write(bytes.Repeat([]byte{byte(i)}, 1<<20)); err != nil {
			t.Fatal(err)
		}
		name := string(rune('a' + i))
		write(t, a, name, "x")
		until(t, "a file written beside open ones", shows(b, name, "x"))
	}
	if !shows(b, "target", "old")() {
		t.Error("the target changed before the temporary file was closed")
	}
	if _, err := os.Stat(filepath.Join(b.Mount, "slow.car")); !os.IsNotExist(err) {
		t.Errorf("an open file shows: %v", err)
	}
	if err := tmp.Close(); err != nil {
		t.Fatal(err)
	}
	until(t, "the replacement", shows(b, "target", "new"))
	if err := slow.Close(); err != nil {
		t.Fatal(err)
	}
	until(t, "the slow file", func() bool {
		st, err := os.Stat(filepath.Join(b.Mount, "slow.car"))
		return err == nil && st.Size() == 5<<20
	})
}

// Appending to a large file costs what is appended, not what is there.
func TestAppendToLargeFile(t *testing.T) {
	c := start(t, 2)
	path := filepath.Join(c.Nodes[0].Mount, "large")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	const size = 10 << 30
	if _, err := f.WriteAt([]byte("end"), size-3); err != nil { // sparse: the disk need not hold it
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	barrier(t, c.Nodes[0])
	before := used(t, c.Nodes[0])
	begun := time.Now()
	if f, err = os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("!")); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("open, append, close: %v", time.Since(begun))
	until(t, "the appended byte", func() bool {
		st, err := os.Stat(filepath.Join(c.Nodes[1].Mount, "large"))
		return err == nil && st.Size() == size+1
	})
	if grown := used(t, c.Nodes[0]) - before; grown > 4<<20 {
		t.Errorf("appending a byte took %d bytes of disk", grown)
	}
	got := make([]byte, 8)
	g, err := os.Open(filepath.Join(c.Nodes[1].Mount, "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if n, err := g.ReadAt(got, size-3); n != 4 || string(got[:n]) != "end!" {
		t.Errorf("the end reads %q, %v", got[:n], err)
	}
}

// used is how much disk a node's content takes.
func used(t *testing.T, nd *playground.Node) (n int64) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(filepath.Dir(nd.Mount), "state", "content"), func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it went while it was looked at
		}
		if info, err := e.Info(); err == nil {
			n += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
