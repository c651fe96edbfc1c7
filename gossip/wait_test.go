package gossip

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// waited runs WaitAll on n and wants these peers to be named.
func (n *testNode) waited(t *testing.T, want ...string) {
	t.Helper()
	have, err := n.cluster.WaitAll(timeout(t), testVolume)
	if err != nil || !slices.Equal(have, want) {
		t.Errorf("wait on %s: %q, %v, want %q", n.name, have, err, want)
	}
}

// pair is two linked nodes, both ready.
func pair(t *testing.T) (*testCluster, *testNode, *testNode) {
	c := newTestCluster(t)
	x, y := c.node("x", true), c.node("y", true)
	x.start(t)
	y.start(t, x)
	eventually(t, "links", linked(x, y))
	return c, x, y
}

// part cuts the links of two members, or lets them come back; memberlist goes on.
func part(cut bool, a, b *testNode) {
	a.cluster.setCut(b.name, cut)
	b.cluster.setCut(a.name, cut)
}

func TestWaitAllNamesWhoHasIt(t *testing.T) {
	c, x, y := pair(t)
	x.waited(t, "y")
	z := c.node("z", false)
	z.start(t, x)
	eventually(t, "links", linked(x, y, z))
	x.write(t, "f", []byte("1"))
	x.waited(t, "y", "z")
	y.cluster.RemoveVolume(testVolume) // who does not hold it is not waited for
	eventually(t, "x knows", func() bool {
		x.cluster.mu.Lock()
		defer x.cluster.mu.Unlock()
		_, holds := x.cluster.proto.Acked("y", testVolume)
		return !holds
	})
	x.waited(t, "z")
}

func TestWaitAllAlone(t *testing.T) {
	_, x, _ := alone(t)
	x.waited(t)
}

// A member is waited for until its link is up, and the error names it.
func TestWaitAllWaitsForLinking(t *testing.T) {
	_, x, y := pair(t)
	part(true, x, y)
	eventually(t, "cut", func() bool { return x.cluster.Peers()[0].State == StateLinking })
	x.write(t, "f", []byte("1"))
	short, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	have, err := x.cluster.WaitAll(short, testVolume)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "y (linking") {
		t.Errorf("while a member links: %q, %v", have, err)
	}
	part(false, x, y)
	x.waited(t, "y")
	if y.read(t, "f") == nil {
		t.Error("it was said to have the file")
	}
}

func TestWaitAllGivesUpTheDead(t *testing.T) {
	_, x, y, z := trio(t)
	part(true, x, y)
	eventually(t, "cut", func() bool { return x.cluster.Peers()[0].State == StateLinking })
	done := make(chan struct{})
	go func() {
		defer close(done)
		x.waited(t, "z")
	}()
	y.cluster.members.crash = true
	if err := y.cluster.Close(); err != nil {
		t.Error(err)
	}
	<-done
	same(t, x, z)
}

func TestWaitAllGivesUpTheRefused(t *testing.T) {
	_, x, y := pair(t)
	part(true, x, y)
	eventually(t, "cut", func() bool { return x.cluster.Peers()[0].State == StateLinking })
	eventually(t, "cut", func() bool { return y.cluster.Peers()[0].State == StateLinking })
	other := *y.keys
	other.ClusterID = "zz"
	y.cluster.opts.Keys = &other
	part(false, x, y)
	x.waited(t)
	if p := x.cluster.Peers()[0]; p.State != StateRefused || !strings.Contains(p.Error, "zz") {
		t.Errorf("peer is %+v", p)
	}
}
