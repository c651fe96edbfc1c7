package gossip

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// loseContent damages all large content of a node.
func (n *testNode) loseContent(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(n.dir, "content", "files"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		return os.Truncate(path, 1)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestP4LostContent: what nobody has the bytes of keeps a peer from what came
// after, and that is said; until it is overwritten.
func TestP4LostContent(t *testing.T) {
	_, x, y := pair(t)
	noise := rand.NewChaCha8([32]byte{4})
	data := make([]byte, 300_000)
	for _, lost := range [][]string{{"f"}, {"f", "g"}} {
		x.cluster.setCut(y.name, true)
		for _, name := range lost {
			noise.Read(data)
			x.write(t, name, data)
		}
		eventually(t, "it is sealed", func() bool { return x.v.Stats().Unsealed == 0 })
		x.loseContent(t)
		x.write(t, "after", data[:10])
		for _, n := range []*testNode{x, y} {
			n.cluster.refusals.drop(n.name)
		}
		x.cluster.setCut(y.name, false)
		eventually(t, "it is said", func() bool { return len(x.cluster.refusals.all()) > 0 && len(y.cluster.refusals.all()) > 0 })
		for _, name := range lost {
			if bytes.Equal(y.read(t, "after"), data[:10]) {
				t.Errorf("%q is not waited for", name)
			}
			x.write(t, name, data[:70_000+len(name)])
		}
		same(t, x, y)
	}
}

// TestP4LostIsPassedOver: once nobody had a content time and again, a snapshot is
// tried from who has the batch and is ready; when that fails, at the next time.
func TestP4LostIsPassedOver(t *testing.T) {
	s := newScript(t, true, at(1), "b")
	s.get("b", holds(true, at(1, 1)))
	want := crdt.Hash{7}
	b := batch(2, 1, 1, 100)
	b.Wants = []crdt.Hash{want}
	s.want(s.get("b", Push{Volume: testVolume, Batch: b}), "FetchContent")
	for round := range 3 {
		for n := 1; ; n++ {
			// That the link was down for a moment does not count.
			s.do(ContentArrived{testVolume, want, errors.New("the link broke")})
			s.now = s.now.Add(mostBackoff)
			s.do(Tick{})
			for range absentOften - 1 {
				s.want(s.do(ContentArrived{testVolume, want, ErrAbsent}), "Report")
				s.now = s.now.Add(mostBackoff)
				s.want(s.do(Tick{}), "FetchContent")
			}
			if n == 2 {
				break
			}
		}
		s.want(s.do(ContentArrived{testVolume, want, ErrAbsent}), "Report", "TakeSnapshot")
		if round < 2 {
			s.want(s.do(SnapshotTaken{Volume: testVolume, Peer: "b", Err: errors.Join(store.ErrNoContent)}), "Report")
			s.now = s.now.Add(mostBackoff)
			s.want(s.do(Tick{}), "FetchContent")
		}
	}
	s.do(SnapshotTaken{Volume: testVolume, Peer: "b", Vector: at(1, 1)})
	if n := s.p.replicas[testVolume].pending.count; n > 0 {
		t.Errorf("%d batches wait", n)
	}
}

// TestP4NobodyIsAskedWhileNoneIsLinked: of content whose holders are away nothing
// is fetched, nor said; it is when one comes back.
func TestP4NobodyIsAskedWhileNoneIsLinked(t *testing.T) {
	s := newScript(t, true, at(1), "b")
	s.get("b", holds(true, at(1, 1)))
	b := batch(2, 1, 1, 100)
	b.Wants = []crdt.Hash{{7}}
	s.want(s.get("b", Push{Volume: testVolume, Batch: b}), "FetchContent")
	s.do(LinkDown{"b"})
	s.do(PeerGone{"b"})
	s.want(s.do(ContentArrived{testVolume, crdt.Hash{7}, errors.New("the link broke")}), "Report")
	s.now = s.now.Add(mostBackoff)
	s.want(s.do(Tick{}))
	s.do(LinkUp{"b"})
	if got := effectNames(s.get("b", holds(true, at(1, 1)))); !slices.Contains(got, "FetchContent") {
		t.Errorf("effects are %q", got)
	}
}
