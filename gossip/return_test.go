package gossip

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// quickRetention is a week in these tests.
const quickRetention = 1500 * time.Millisecond

// reopenWith opens a node's store again, with a short retention.
func (n *testNode) reopenWith(t testing.TB, dir string) {
	t.Helper()
	if n.db != nil {
		if err := n.db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	db, err := store.Open(store.Options{
		Dir: dir, Sign: n.keys.Sign, Hold: time.Millisecond, Log: testLog(n.name), ReplicaRetention: quickRetention,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	n.db, n.dir, n.v = db, dir, db.Volume(testVolume)
	n.v.SetLimits(store.Limits{HistoryAge: time.Millisecond}) // else history needs what was removed
}

func (n *testNode) tombstones(t testing.TB) uint64 {
	t.Helper()
	k, err := n.v.Keeping()
	if err != nil {
		t.Fatal(err)
	}
	return k.Tombstones
}

// lost lists what has lost its place, by the name it had.
func (n *testNode) lost(t testing.TB) map[string]string {
	t.Helper()
	out := map[string]string{}
	if err := n.v.ReadDir(store.NodeID(crdt.LostIno), 0, func(e store.DirEntry) bool {
		a, err := n.v.AttrOf(e.Entry)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, a.Size)
		if _, err := n.v.ReadAt(a.Node, b, 0); err != nil {
			t.Fatal(err)
		}
		out[e.Name[17:]] = string(b)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestP6ReturnOverRealLinks: a node that was away for longer than the retention
// comes back over real links.
func TestP6ReturnOverRealLinks(t *testing.T) {
	tc := newTestCluster(t)
	a, b, c := tc.node("a", true), tc.node("b", false), tc.node("c", false)
	for _, n := range []*testNode{a, b, c} {
		n.reopenWith(t, n.dir)
	}
	a.start(t)
	b.start(t, a)
	c.start(t, a, b)
	for n := range 10 {
		a.write(t, fmt.Sprint("f", n), []byte("old"))
	}
	all := func(name, want string, nodes ...*testNode) func() bool {
		return func() bool {
			for _, n := range nodes {
				if string(n.read(t, name)) != want {
					return false
				}
			}
			return true
		}
	}
	eventually(t, "all have it", all("f9", "old", a, b, c))
	eventually(t, "all count", func() bool {
		k, _ := a.v.Keeping()
		return k.Counting == 2 && k.Unstable == 0
	})
	for _, n := range []*testNode{a, b} {
		n.cluster.setCut("c", true)
		c.cluster.setCut(n.name, true)
	}
	for n := range 5 {
		if err := a.v.Unlink(store.Request{}, root, fmt.Sprint("f", n)); err != nil {
			t.Fatal(err)
		}
	}
	c.write(t, "f1", []byte("edited while away"))
	c.write(t, "f7", []byte("edited while away"))
	c.write(t, "new", []byte("made while away"))
	old := c.v.Replica()
	eventually(t, "c is out", func() bool {
		ka, _ := a.v.Keeping()
		return ka.Out == 1
	})
	eventually(t, "a and b forget what was removed", func() bool { return a.tombstones(t) == 0 && b.tombstones(t) == 0 })
	for _, n := range []*testNode{a, b} {
		n.cluster.setCut("c", false)
		c.cluster.setCut(n.name, false)
	}
	eventually(t, "c begins anew", func() bool { return c.v.Replica() != old })
	eventually(t, "what c made is everywhere", all("new", "made while away", a, b, c))
	eventually(t, "what c edited is everywhere", all("f7", "edited while away", a, b, c))
	c.write(t, "again", []byte("works on"))
	eventually(t, "c works on", all("again", "works on", a, b, c))
	for _, n := range []*testNode{a, b, c} {
		eventually(t, "trees are equal", func() bool { return n.tree(t) == a.tree(t) })
		for f := range 5 {
			if n.read(t, fmt.Sprint("f", f)) != nil {
				t.Errorf("f%d is back on %s", f, n.name)
			}
		}
		eventually(t, "the edit of a removed file is kept", func() bool { l := n.lost(t); return len(l) == 1 && l["f1"] == "edited while away" })
	}
	eventually(t, "what the old id was does not hold anything up", func() bool {
		k, _ := a.v.Keeping()
		return k.Counting == 2 && k.Unstable == 0
	})
}

// TestP8BackupOverRealLinks: a node whose whole disk was restored from a backup,
// with work of its own since, finds out from its peers.
func TestP8BackupOverRealLinks(t *testing.T) {
	tc := newTestCluster(t)
	a, b := tc.node("a", true), tc.node("b", false)
	a.start(t)
	b.start(t, a)
	b.write(t, "before", []byte("1"))
	eventually(t, "a has it", a.has(t, "before", []byte("1")))
	if err := b.cluster.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.db.Close(); err != nil {
		t.Fatal(err)
	}
	backup := filepath.Join(t.TempDir(), "backup")
	if out, err := exec.Command("cp", "-a", b.dir, backup).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Remove(filepath.Join(backup, "place")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(b.dir, "place"), filepath.Join(backup, "place")); err != nil {
		t.Fatal(err) // a copy of the disk has what looks like the very file
	}
	b.db = nil
	b.reopenWith(t, b.dir)
	b.start(t, a)
	for n := range 3 {
		b.write(t, fmt.Sprint("forgotten", n), []byte("2"))
	}
	eventually(t, "a has it", a.has(t, "forgotten2", []byte("2")))
	if err := b.cluster.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(b.dir); err != nil {
		t.Fatal(err)
	}
	b.db = nil
	b.reopenWith(t, backup)
	for n := range 8 {
		b.write(t, fmt.Sprint("since", n), []byte("3"))
	}
	old := b.v.Replica()
	b.start(t, a)
	eventually(t, "it takes a new id", func() bool { return b.v.Replica() != old })
	eventually(t, "what it made since is on a", a.has(t, "since7", []byte("3")))
	eventually(t, "what it had forgotten is back", b.has(t, "forgotten2", []byte("2")))
	eventually(t, "trees are equal", func() bool { return a.tree(t) == b.tree(t) })
}
