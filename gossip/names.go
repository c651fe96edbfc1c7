package gossip

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/synapsefs/synapsefs/internal/wire"
)

// Two live nodes of one name: every member keeps the one that it knew first,
// which is memberlist's rule, and refuses the links of the other. A node that
// hears of another one of its name, and that no member accepts, is the second. It
// says so in its metadata and its hellos, so that no member takes it in even if
// it has not heard of the first, and asks every second whether the first is still there.
// When it is not, the second drops the mark and joins.

// clashLasts is how long a clash of names is reported after it was last seen.
const clashLasts = 5 * time.Second

var (
	errSecond = errors.New("another live node has its name")
	// errNameTaken says that a link is refused as its node is not the member.
	errNameTaken = errors.New("another live node has that name: give one of the two another name and keys")
)

// NotifyConflict tells of two live nodes of one name; memberlist's lock is held.
func (m *membership) NotifyConflict(existing, other *memberlist.Node) {
	if existing.Name == m.self {
		m.clashed.Store(true)
	}
	m.clash(other)
}

// clash reports a node that has the name of another one, or of this.
func (m *membership) clash(other *memberlist.Node) {
	f := Refusal{Node: other.Name, Reason: fmt.Sprintf(
		"two live nodes are named %q, the other one at %s: members keep the one they knew first; give the other another name and keys, or stop it",
		other.Name, other.Address())}
	if other.Name == m.self {
		f.Node, f.Address = "", other.Address() // or it would be no peer
	}
	if m.refusals.put("name of "+other.Address(), f, clashLasts) {
		m.log.Error("name conflict", "peer", other.Name, "err", f.Reason)
	}
}

// settleName finds out, after a round in which somebody answered, whether this
// node is the second of its name, and reports whether that is news.
func (m *membership) settleName() (changed bool) {
	second := m.clashed.Load() && !m.alone() && !m.linked()
	if m.second.Swap(second) == second {
		return false
	}
	if second {
		m.log.Error("this node is kept out of the cluster: another live node has its name", "node", m.self)
	} else {
		m.log.Info("the name is free: this node joins the cluster", "node", m.self)
	}
	if err := m.list.UpdateNode(leaveTimeout); err != nil {
		m.log.Debug("spread metadata", "err", err) // the next round does
	}
	return true
}

// checkName refuses a node that is not the one of its name that is a member.
func (c *Cluster) checkName(h *wire.Hello) error {
	m, ok := c.members.live()[h.GetNode()]
	if !ok && h.GetSecond() {
		return errNameTaken
	}
	if !ok || m.instance == 0 || h.GetInstance() == 0 || m.instance == h.GetInstance() {
		return nil
	}
	return fmt.Errorf("node %q at %s is a member: %w", m.node, m.address, errNameTaken)
}

// accepted reports whether some peer takes this node's frames.
func (c *Cluster) accepted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.links {
		if l.isUp() {
			return true
		}
	}
	return false
}
