package e2e

import (
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/internal/playground"
)

// A nemesis cuts off and kills a node at random until it is told to end, and
// then has it run, connected and mounted.
type nemesis struct {
	t    *testing.T
	r    *rand.Rand
	w    *playground.Network
	c    *playground.Cluster
	node int

	cut          bool
	cuts, deaths int
}

func (n *nemesis) run(end <-chan struct{}) {
	for {
		// Not to wait for anything: faults of all lengths are wanted.
		pause := time.NewTimer(time.Duration(n.r.Int64N(int64(ci(time.Second, 10*time.Second)))))
		select {
		case <-end:
			pause.Stop()
			n.must("heal", n.w.Heal(n.node))
			return
		case <-pause.C:
			n.strike()
		}
	}
}

func (n *nemesis) strike() {
	switch {
	case n.r.IntN(3) == 0:
		n.deaths++
		n.restart()
	case n.cut:
		n.must("heal", n.w.Heal(n.node))
		n.cut = false
	default:
		n.cuts++
		n.must("cut", n.w.Cut(n.node))
		n.cut = true
	}
}

// restart kills the node and starts it again. Cut off, it serves what it has
// only when catch-up-timeout is over.
func (n *nemesis) restart() {
	nd := n.c.Nodes[n.node]
	n.must("kill", nd.Kill())
	n.must("start", nd.Start(n.t.Context()))
	if n.cut && (!*suitesFull || n.r.IntN(2) == 0) {
		n.must("heal", n.w.Heal(n.node))
		n.cut = false
	}
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	n.must("mount", nd.MountVolume(ctx, volume, false))
}

func (n *nemesis) must(what string, err error) {
	if err != nil {
		n.t.Errorf("%s %s: %v", what, n.c.Nodes[n.node].Name, err)
	}
}

// P4: the suites of others once more, on a node whose two peers are cut off and
// killed at random meanwhile. In the end all show what it shows.
func TestP4SuitesUnderFaults(t *testing.T) {
	seed := *programSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-program.seed=%d", seed)
	w := network(t, 3)
	c := startOn(t, w)

	end := make(chan struct{})
	var nemeses sync.WaitGroup
	for _, i := range []int{1, 2} {
		n := &nemesis{t: t, r: rand.New(rand.NewPCG(seed, uint64(i))), w: w, c: c, node: i}
		nemeses.Go(func() {
			n.run(end)
			t.Logf("%s: cut off %d times, killed %d times", c.Nodes[i].Name, n.cuts, n.deaths)
		})
	}
	used := suites[:ci(3, len(suites))]
	for _, s := range used {
		t.Run(s.name, func(t *testing.T) {
			s.need(t)
			if err := os.Mkdir(s.on(c.Nodes[0]), 0o755); err != nil {
				t.Fatal(err)
			}
			s.run(t, s.on(c.Nodes[0]))
		})
	}
	close(end)
	nemeses.Wait()
	until(t, "the nodes to catch up", func() bool {
		_, same := sums(t, c.Nodes)
		return same
	})
	tree := equal(t, c.Nodes...)
	t.Logf("%d files, %d others, %d bytes", tree.Files, tree.Other, tree.Bytes)
	for _, s := range used {
		if s.check != nil {
			s.check(t, s.on(c.Nodes[1]))
		}
	}
	equal(t, c.Nodes...)
}
