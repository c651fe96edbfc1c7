package gossip

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// States of a peer.
const (
	StateUp      = "up"      // linked both ways
	StateLinking = "linking" // a member, but not linked both ways
	StateGone    = "gone"    // no member any more, or not yet again
	StateRefused = "refused" // no peer: one of the two refuses the other
)

// A PeerStatus is what this node knows of another one.
type PeerStatus struct {
	Node     string // "" if it is known by its address alone
	Address  string // of the replica service, or of the membership gossip if it is gone
	State    string
	Error    string // why it is not up, or why it was refused last; "" if all is well
	RTT      time.Duration
	LastSeen time.Time
	Refusals uint64 // how often something of it was refused
	// Lag is, for each volume that both hold, how many ops the peer has not
	// yet said to have applied.
	Lag map[store.VolumeID]uint64
}

// Peers lists the nodes known, this one not.
func (c *Cluster) Peers() []PeerStatus {
	byNode := map[string]*PeerStatus{}
	for node, p := range c.members.known() {
		byNode[node] = &PeerStatus{Node: node, Address: p.Address, State: StateGone, LastSeen: p.Seen}
	}
	for node, m := range c.members.live() {
		byNode[node] = &PeerStatus{Node: node, Address: m.replica, State: StateLinking, LastSeen: byNode[node].seen()}
	}
	c.linkStatus(byNode)
	for _, r := range c.refusals.all() {
		if r.Node == c.opts.Node {
			continue
		}
		p := byNode[r.Node]
		if r.Node == "" {
			p = goneFrom(byNode, r.Address)
		}
		if p == nil {
			p = &PeerStatus{Node: r.Node, Address: r.Address, State: StateRefused, LastSeen: r.Last}
			byNode[cmp.Or(r.Node, r.Address)] = p
		}
		p.Refusals += r.Count
		if p.Error == "" || p.State == StateRefused {
			p.Error = r.Reason
		}
	}
	out := make([]PeerStatus, 0, len(byNode))
	for _, node := range slices.Sorted(maps.Keys(byNode)) {
		out = append(out, *byNode[node])
	}
	return out
}

// goneFrom returns the peer that was at an address of the membership gossip.
func goneFrom(byNode map[string]*PeerStatus, address string) *PeerStatus {
	for _, p := range byNode {
		if p.Address == address && p.State == StateGone {
			return p
		}
	}
	return nil
}

func (p *PeerStatus) seen() time.Time {
	if p == nil {
		return time.Time{}
	}
	return p.LastSeen
}

func (c *Cluster) linkStatus(byNode map[string]*PeerStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for node, l := range c.links {
		p := byNode[node]
		if p == nil {
			continue
		}
		l.mu.Lock()
		up, err := l.up, l.err
		l.mu.Unlock()
		if err != nil {
			p.Error = err.Error()
		}
		if isRefusal(err) {
			p.State = StateRefused
		}
		p.RTT = time.Duration(l.rtt.Load())
		if n := l.pong.Load(); n > 0 {
			p.LastSeen = time.Unix(0, n)
		}
		if !up || c.inbounds[node] == nil {
			continue
		}
		p.State = StateUp
		p.Lag = map[store.VolumeID]uint64{}
		for id := range c.volumes {
			if _, ok := c.proto.Acked(node, id); ok {
				p.Lag[id] = c.proto.Lag(node, id)
			}
		}
	}
}

// A Holder is a peer that holds a volume.
type Holder struct {
	Node  string
	Ready bool
	// Lag is how many ops of this node's replica the peer has not yet said to
	// have applied; 0 if this node has none.
	Lag uint64
}

// Holders lists the peers that are up and hold a volume, by name, whether this
// node holds it or not.
func (c *Cluster) Holders(id store.VolumeID) (out []Holder) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proto.holders(id, func(ps *peerState, h *holding) {
		if c.linkedLocked(ps.name) {
			out = append(out, Holder{ps.name, h.ready, c.proto.Lag(ps.name, id)})
		}
	})
	return out
}

// ReadyWith lists the peers that are up, have a ready replica of a volume, and
// have said to have applied what vector says. Unlike a Lag, that does not depend
// on whether the cluster was told of a change here yet.
func (c *Cluster) ReadyWith(id store.VolumeID, vector crdt.Vector) (nodes []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proto.holders(id, func(ps *peerState, h *holding) {
		if c.linkedLocked(ps.name) && h.ready && h.acked.Contains(vector) {
			nodes = append(nodes, ps.name)
		}
	})
	return nodes
}

// linkedLocked reports whether a peer is linked both ways.
func (c *Cluster) linkedLocked(node string) bool {
	l := c.links[node]
	return l != nil && l.isUp() && c.inbounds[node] != nil
}

// Problems lists what is wrong with this node itself: batches that cannot be
// merged, content that cannot be fetched, a gossip key that others do not have, a
// name that another node has.
func (c *Cluster) Problems() []Refusal {
	return slices.DeleteFunc(c.refusals.all(), func(r Refusal) bool { return r.Node != "" && r.Node != c.opts.Node })
}

// BadBatches counts what was refused since the start for a bad signature, or as
// another node's: batches, words and identities.
func (c *Cluster) BadBatches() uint64 { return c.badBatches.Load() }

// Address is where the membership gossip of this node is reached, for Join.
func (c *Cluster) Address() string { return c.members.list.LocalNode().Address() }

// ReplicaAddr is where the replica service listens.
func (c *Cluster) ReplicaAddr() net.Addr { return c.replica }

// WaitReady returns when this node's replica of the volume is ready: it may
// serve (P11).
func (c *Cluster) WaitReady(ctx context.Context, id store.VolumeID) error {
	return c.awaitVolume(ctx, id, "ready", func(hv *heldVolume) bool { return hv.v.Ready() || c.proto.Ready(id) })
}

// CaughtUp returns when the replica is ready and has, since it was added, once
// caught up with a live ready peer. Whoever may go without gives ctx a
// deadline.
func (c *Cluster) CaughtUp(ctx context.Context, id store.VolumeID) error {
	return c.awaitVolume(ctx, id, "caught up", func(*heldVolume) bool { return c.proto.CaughtUp(id) })
}

func (c *Cluster) awaitVolume(ctx context.Context, id store.VolumeID, what string, cond func(*heldVolume) bool) error {
	gone := false
	err := c.await(ctx, func() bool {
		hv := c.volumes[id]
		gone = hv == nil
		return gone || cond(hv)
	})
	if err == nil && gone {
		err = store.ErrNoVolume
	}
	if err != nil {
		return fmt.Errorf("wait until volume %v is %s: %w", id, what, err)
	}
	return nil
}
