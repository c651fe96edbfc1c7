package store

import (
	"testing"

	"github.com/synapsefs/synapsefs/store/crdt"
)

func openTest(t testing.TB, dir string) *DB {
	t.Helper()
	db, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func testVolume(t testing.TB, id VolumeID) *Volume {
	t.Helper()
	v, err := openTest(t, t.TempDir()).CreateReplica(id, "test", true)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func write(t testing.TB, v *Volume, dir NodeID, name, text string) NodeID {
	t.Helper()
	a, _, err := v.Lookup(dir, name)
	var h Handle
	if err == nil {
		h, err = v.OpenWrite(Request{}, a.Node, true)
	} else {
		a, h, err = v.Create(Request{}, dir, name, NewNode{Mode: 0o644})
	}
	if err == nil {
		_, err = v.WriteAt(a.Node, h, []byte(text), 0, false)
	}
	if err == nil {
		err = v.Flush(a.Node, h)
	}
	if err == nil {
		err = v.Release(Request{}, a.Node, h)
	}
	if err != nil {
		t.Fatalf("write %q: %v", name, err)
	}
	return a.Node
}

func read(t testing.TB, v *Volume, dir NodeID, name string) string {
	t.Helper()
	a, _, err := v.Lookup(dir, name)
	if err != nil {
		t.Fatalf("read %q: %v", name, err)
	}
	b := make([]byte, a.Size)
	n, err := v.ReadAt(a.Node, b, 0)
	if err != nil || int64(n) != a.Size {
		t.Fatalf("read %q: %d of %d bytes: %v", name, n, a.Size, err)
	}
	return string(b)
}

const root = NodeID(crdt.RootIno)

func TestWriteReadRename(t *testing.T) {
	v := testVolume(t, NewVolumeID())
	write(t, v, root, "a", "one")
	if _, err := v.Mknod(Request{}, root, "d", NewNode{Kind: crdt.KindDir, Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	d, _, _ := v.Lookup(root, "d")
	if err := v.Rename(Request{}, root, "a", d.Node, "b", 0); err != nil {
		t.Fatal(err)
	}
	if got := read(t, v, d.Node, "b"); got != "one" {
		t.Fatal(got)
	}
	write(t, v, d.Node, "b", "")
	if got := read(t, v, d.Node, "b"); got != "" {
		t.Fatal(got)
	}
	if err := v.Rmdir(Request{}, root, "d"); err != crdt.ErrNotEmpty {
		t.Fatal(err)
	}
}

func pump(t testing.TB, from, to *Volume) {
	t.Helper()
	if err := from.sealNow(); err != nil {
		t.Fatal(err)
	}
	bs, more, err := from.Batches(to.Vector(), 1<<30)
	if err != nil || more {
		t.Fatal(err, more)
	}
	for _, b := range bs {
		raw, err := DecodeBatch(b.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if err := to.Merge(raw); err != nil {
			t.Fatal(err)
		}
	}
}

func TestP4TwoReplicas(t *testing.T) {
	id := NewVolumeID()
	a, b := testVolume(t, id), testVolume(t, id)
	for i := range 100 {
		write(t, a, root, "a"+string(rune('0'+i%10)), "from a")
		write(t, b, root, "b"+string(rune('0'+i%10)), "from b")
	}
	pump(t, a, b)
	pump(t, b, a)
	for _, v := range []*Volume{a, b} {
		n := 0
		if err := v.ReadDir(root, 0, func(DirEntry) bool { n++; return true }); err != nil || n != 20 {
			t.Fatal(n, err)
		}
		read(t, v, root, "a3")
		read(t, v, root, "b3")
	}
}
