package gossip

import (
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
	StateRefused = "refused" // never a peer since the daemon started
)

// A PeerStatus is what this node knows of another one.
type PeerStatus struct {
	Node     string
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
		if p == nil {
			p = &PeerStatus{Node: r.Node, State: StateRefused, LastSeen: r.Last}
			byNode[r.Node] = p
		}
		p.Refusals = r.Count
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

// Problems lists what is wrong with this node itself: batches that cannot be
// merged, content that cannot be fetched, a replica without identity.
func (c *Cluster) Problems() []Refusal {
	return slices.DeleteFunc(c.refusals.all(), func(r Refusal) bool { return r.Node != c.opts.Node })
}

// BadBatches counts the batches and identities refused since the start for a
// bad signature.
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

// WaitAll returns when each peer that is linked and holds the volume has
// applied what is committed here now, sealed or not. A peer that goes away
// meanwhile is not waited for.
func (c *Cluster) WaitAll(ctx context.Context, id store.VolumeID) error {
	hv := c.held(id)
	if hv == nil {
		return fmt.Errorf("wait for peers of volume %v: %w", id, store.ErrNoVolume)
	}
	vector := committed(hv.v)
	return c.waitPeers(ctx, id, func() bool {
		for node, l := range c.links {
			if acked, ok := c.proto.Acked(node, id); ok && l.queue.isOpen() && !acked.Contains(vector) {
				return false
			}
		}
		return true
	})
}

// committed is the vector that the replica will have when its own ops that
// wait are sealed.
func committed(v *store.Volume) crdt.Vector {
	for {
		vector, self := v.Vector(), v.Replica()
		waiting := v.Stats().Unsealed
		if v.Vector()[self].Seq == vector[self].Seq { // nothing was sealed between
			e := vector[self]
			e.Seq += crdt.Seq(waiting)
			if waiting > 0 {
				vector[self] = e
			}
			return vector
		}
	}
}

// WaitPeers returns when each of the peers has applied what vector says.
func (c *Cluster) WaitPeers(ctx context.Context, id store.VolumeID, vector crdt.Vector, peers []string) error {
	return c.waitPeers(ctx, id, func() bool {
		for _, node := range peers {
			if acked, ok := c.proto.Acked(node, id); !ok || !acked.Contains(vector) {
				return false
			}
		}
		return true
	})
}

func (c *Cluster) waitPeers(ctx context.Context, id store.VolumeID, cond func() bool) error {
	if err := c.await(ctx, cond); err != nil {
		return fmt.Errorf("wait for peers of volume %v: %w", id, err)
	}
	return nil
}
