package gossip

import (
	"fmt"
	"strings"
	"testing"
)

func TestNameConflictIsReported(t *testing.T) {
	c, x, _ := alone(t)
	y := c.node("y", true)
	y.start(t, x)
	eventually(t, "links", linked(x, y))
	again := c.node("y", true)
	again.start(t, x)
	eventually(t, "conflict is listed", func() bool {
		for _, p := range x.cluster.Peers() {
			if p.Node == "y" && p.Refusals > 0 && strings.Contains(p.Error, "two live nodes") {
				return true
			}
		}
		return false
	})
}

// clean reports whether no node sees anything wrong with another or itself.
func clean(nodes ...*testNode) func() bool {
	return func() bool {
		for _, n := range nodes {
			for _, p := range n.cluster.Peers() {
				if p.Error != "" {
					return false
				}
			}
			if len(n.cluster.Problems()) > 0 {
				return false
			}
		}
		return true
	}
}

// kept waits until n is kept out of its cluster and says why.
func kept(t *testing.T, n *testNode) {
	t.Helper()
	eventually(t, "the newcomer is kept out", n.cluster.members.second.Load)
	eventually(t, "it says why", func() bool {
		p := n.cluster.Problems()
		return len(p) > 0 && strings.Contains(p[0].Reason, "two live nodes are named")
	})
	eventually(t, "it says that members refuse it", func() bool {
		for _, p := range n.cluster.Peers() {
			if strings.Contains(p.Error, errNameTaken.Error()) {
				return p.State == StateLinking && !n.cluster.accepted()
			}
		}
		return false
	})
}

// inboundOf is the link that y dialed to x.
func inboundOf(x, y *testNode) *inbound {
	x.cluster.mu.Lock()
	defer x.cluster.mu.Unlock()
	return x.cluster.inbounds[y.name]
}

// The first node of a name keeps its links whatever a second one does, and the
// second takes its place when the first is gone.
func TestTwoNodesOfOneName(t *testing.T) {
	c, x, y, z := trioOf(t, true)
	before := inboundOf(x, y)
	for _, crash := range []bool{true, false} {
		second := c.node("y", false)
		second.patient = true
		second.start(t, x)
		kept(t, second)
		eventually(t, "members say so", func() bool { return !clean(x)() && !clean(z)() })
		second.write(t, "stray", []byte("1"))
		y.write(t, "f", fmt.Append(nil, crash))
		same(t, x, y, z)
		second.cluster.members.crash = crash
		if err := second.cluster.Close(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is forgotten", clean(x, y, z))
		if !linked(x, y, z)() || inboundOf(x, y) != before {
			t.Error("the first lost its link")
		}
	}
	if x.read(t, "stray") != nil {
		t.Error("a change of the second came through")
	}
}

func TestSecondOfItsNameTakesOver(t *testing.T) {
	for name, crash := range map[string]bool{"the first crashes": true, "the first leaves": false} {
		t.Run(name, func(t *testing.T) {
			c, x, y, z := trio(t)
			second := c.node("y", false)
			second.start(t, x)
			kept(t, second)
			y.cluster.members.crash = crash
			if err := y.cluster.Close(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "links", linked(x, second, z))
			x.write(t, "f", []byte("1"))
			same(t, x, second, z)
			eventually(t, "nothing is wrong", clean(x, second, z))
		})
	}
}

// A member that starts anew meets the second first, and does not take it in.
func TestSecondOfItsNameIsNotTakenInByOthers(t *testing.T) {
	c, x, y, z := trioOf(t, true)
	second := c.node("y", false)
	second.start(t, x)
	kept(t, second)
	w := c.node("w", true)
	w.patient, second.patient = true, true
	w.start(t, second)
	eventually(t, "links", linked(x, y, z, w))
	if second.cluster.accepted() {
		t.Error("somebody accepts the second")
	}
}

// A daemon that was killed and starts again at its address is no second.
func TestCrashAndComeBackAtOnce(t *testing.T) {
	_, x, y, z := trio(t)
	z.cluster.members.crash = true
	address := z.cluster.Address()
	if err := z.cluster.Close(); err != nil {
		t.Fatal(err)
	}
	x.write(t, "while away", []byte("2"))
	z.startAt(t, address, nil)
	eventually(t, "links", linked(x, y, z))
	same(t, x, y, z)
	if z.cluster.members.second.Load() {
		t.Error("it takes itself for the second of its name")
	}
	eventually(t, "nothing is wrong", clean(x, y, z))
}
