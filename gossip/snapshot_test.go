package gossip

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A cuttingTransfer cuts the link to the peer it fetches from, once.
type cuttingTransfer struct {
	Transfer
	at  int64 // the fetch at which it cuts
	n   atomic.Int64
	cut func(peer string)
}

func (c *cuttingTransfer) Fetch(ctx context.Context, v store.VolumeID, peers []string, manifest crdt.Hash) error {
	if c.n.Add(1) == c.at {
		c.cut(peers[0])
		return errors.New("the link is cut")
	}
	return c.Transfer.Fetch(ctx, v, peers, manifest)
}

// TestP11SnapshotGoesOnFromAnotherPeer cuts the link in the middle of a
// snapshot, for good: another peer, which has something else besides, gives the
// rest, while both are written to.
func TestP11SnapshotGoesOnFromAnotherPeer(t *testing.T) {
	c := newTestCluster(t)
	nodes := map[string]*testNode{"x": c.node("x", true), "w": c.node("w", true)}
	x, w, y := nodes["x"], nodes["w"], c.node("y", false)
	noise := rand.NewChaCha8([32]byte{3})
	for i := range 700 {
		data := make([]byte, 4000)
		if i%20 == 0 {
			data = make([]byte, 70_000) // not inline
		}
		noise.Read(data)
		x.write(t, fmt.Sprintf("f%d", i), data)
		for range 3 {
			x.write(t, "often", data[:10])
		}
	}
	x.start(t)
	w.start(t, x)
	same(t, x, w)
	cluster, err := Start(context.Background(), Options{
		Node: y.name, Bind: "127.0.0.1:0", ReplicaBind: "127.0.0.1:0", Join: []string{x.cluster.Address()}, Keys: y.keys,
		StateDir: y.dir, DB: y.db, Log: testLog(y.name), tuneMembership: quick,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Close(); err != nil {
			t.Error(err)
		}
	})
	y.cluster = cluster
	var cut atomic.Pointer[testNode]
	cutting := &cuttingTransfer{Transfer: cluster.transfer, at: 15, cut: func(peer string) {
		n := nodes[peer]
		cut.Store(n)
		y.cluster.setCut(peer, true)
		n.cluster.setCut(y.name, true)
		x.write(t, "x now", []byte("x"))
		w.write(t, "w now", []byte("w"))
	}}
	cluster.transfer = cutting
	eventually(t, "links", linked(x, w, y))
	cluster.AddVolume(y.v)
	if err := y.cluster.WaitReady(timeout(t), testVolume); err != nil {
		t.Fatal(err)
	}
	if cut.Load() == nil {
		t.Fatal("nothing was cut")
	}
	if n := cutting.n.Load(); n > 35+1 {
		t.Errorf("%d contents were fetched of 35", n)
	}
	same(t, x, w, y)
}
