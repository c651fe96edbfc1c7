package gossip

import (
	"fmt"
	"time"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

type (
	// Spoke brings what a replica says of itself and knows of the others, the
	// replica itself last, and what it has collected.
	Spoke struct {
		Volume    store.VolumeID
		Members   []store.Member
		Collected store.Collected
	}
	// Verified is the result of Verify.
	Verified struct {
		Volume  store.VolumeID
		Peer    string
		Replica crdt.ReplicaID // that this one was when it was asked for
		Entry   crdt.VectorEntry
		Forked  bool // the peer has other ops of this replica than were made here
		Err     error
	}

	// Hear gives the store what a peer said of the replicas.
	Hear struct {
		Volume  store.VolumeID
		Members []store.Member
	}
	// Verify compares what a peer has of this replica's ops with the journal.
	Verify struct {
		Volume  store.VolumeID
		Peer    string
		Replica crdt.ReplicaID
		Entry   crdt.VectorEntry
	}

	// Roster says which replicas of a volume there are.
	Roster struct {
		Volume  store.VolumeID
		Members []store.Member
		// WithIdentity asks whoever sends it to put the identities of these in.
		WithIdentity []crdt.ReplicaID
	}
)

func (Hear) effect()   {}
func (Verify) effect() {}

// apart reports whether a peer's replica and ours exchange no ops, since one may
// not know what the other has collected.
func (v *replica) apart(h *holding) bool { return v.excludes(h) || v.excluded(h) }

func (v *replica) excludes(h *holding) bool { return v.collected.Excludes(h.self, h.acked) }

func (v *replica) excluded(h *holding) bool { return h.collected.Excludes(v.self, v.applied) }

// beginsAnew reports whether this replica must take the peer's state for its
// own. Of two that exclude each other the one that collected less does.
func (p *Protocol) beginsAnew(v *replica, h *holding) bool {
	if v.forked {
		return h.forked || !p.knowsFork(v)
	}
	if !v.excluded(h) {
		return false
	}
	mine, theirs := v.collected.Weight(), h.collected.Weight()
	return !v.excludes(h) || mine < theirs || mine == theirs && v.self > h.self
}

// knowsFork reports whether a linked peer has the ops that were not made here.
func (p *Protocol) knowsFork(v *replica) (some bool) {
	p.holders(v.id, func(_ *peerState, h *holding) { some = some || h.forked && h.ready })
	return some
}

// partners calls fn for each linked peer with whose replica ops are exchanged.
func (p *Protocol) partners(v *replica, fn func(*peerState, *holding)) {
	p.holders(v.id, func(ps *peerState, h *holding) {
		if !v.apart(h) && !v.forked && h.compared {
			fn(ps, h)
		}
	})
}

// anew takes the state of a peer that this replica cannot merge with by ops; it
// reports whether there is one.
func (p *Protocol) anew(v *replica) (needed bool) {
	p.holders(v.id, func(ps *peerState, h *holding) {
		if needed || !h.ready || !p.beginsAnew(v, h) {
			return
		}
		if h.notBefore.After(p.now) {
			v.later(h.notBefore)
			return
		}
		needed = true
		if v.retryAfter.After(p.now) {
			v.later(v.retryAfter)
		} else if len(v.merging) == 0 { // else when they are done
			v.staging = true
			// An empty one may join with the id it has, unless that is out.
			_, out := h.collected.Out[v.self]
			p.do(TakeSnapshot{Volume: v.id, Peer: ps.name, Anew: out || len(v.applied) > 0})
		}
	})
	return needed
}

func (e Spoke) step(p *Protocol) {
	v := p.replicas[e.Volume]
	if v == nil {
		return
	}
	v.members = e.Members
	if news := !sameCollected(&v.collected, &e.Collected); news {
		v.collected = e.Collected
		p.tell(Holdings{Changed: []Holding{v.holding()}})
		p.touch(v)
	}
	p.partners(v, func(ps *peerState, _ *holding) { p.sendRoster(ps, v) })
}

const (
	// maxMembers and rosterBytes bound what of a roster goes in one frame: each
	// member names every replica that ever wrote.
	maxMembers  = maxRecords / 4
	rosterBytes = maxFrame / 8
)

// sendRoster sends the members in their order, in as many frames as it takes.
func (p *Protocol) sendRoster(to *peerState, v *replica) {
	for rest := v.members; len(rest) > 0; {
		n := 0
		var fresh []crdt.ReplicaID
		for bytes := 0; n < len(rest) && n < maxMembers && bytes < rosterBytes; n++ {
			m := &rest[n]
			bytes += 128 + len(m.Node) + vectorEntrySize*len(m.Acked) + 10*len(m.Out)
			if k := (replicaKey{v.id, m.Replica}); !to.introduced[k] {
				to.introduced[k] = true
				fresh = append(fresh, m.Replica)
			}
		}
		p.send(to, Roster{v.id, rest[:n:n], fresh})
		rest = rest[n:]
	}
}

// vectorEntrySize is that of an entry of what a member has applied, in bytes:
// replica, sequence, stamp and hash.
const vectorEntrySize = 8 + 8 + 8 + 32

func sameCollected(a, b *store.Collected) bool {
	if !a.Vector.Contains(b.Vector) || !b.Vector.Contains(a.Vector) || len(a.Out) != len(b.Out) {
		return false
	}
	for id, limit := range a.Out {
		if l, ok := b.Out[id]; !ok || l != limit {
			return false
		}
	}
	return true
}

func (m Roster) receive(p *Protocol, from *peerState) {
	v, h := p.replicas[m.Volume], from.holds[m.Volume]
	if v != nil && h != nil && !v.apart(h) {
		p.do(Hear{m.Volume, m.Members})
	}
}

func (e Verified) step(p *Protocol) {
	v, ps := p.replicas[e.Volume], p.peers[e.Peer]
	if v == nil || ps == nil || e.Replica != v.self {
		return
	}
	h := ps.holds[e.Volume]
	if h == nil || h.comparing != e.Entry {
		return // it has said more since
	}
	h.comparing, h.compared = crdt.VectorEntry{}, !e.Forked && e.Err == nil
	switch {
	case e.Err != nil: // compared again when it says more
		p.report(ps.name, v.id, fmt.Errorf("compare with the journal what it has of this replica: %w", e.Err))
	case !e.Forked:
		v.urgent = true
		p.pullNext(ps, h)
	case !h.forked:
		// They were not made here, or are forgotten.
		v.forked, h.forked, v.pull = true, true, nil
		p.report(ps.name, v.id, fmt.Errorf(
			"%w: peer has other ops of this replica %v, up to %d: restored from a backup or a cloned disk; it takes a new id and a snapshot",
			ErrTwoReplicas, v.self, e.Entry.Seq))
		p.holders(v.id, p.pullNext) // none can be served any more
	}
	p.touch(v)
}

// speakLoop tells the peers, time and again, which replicas there are.
func (c *Cluster) speakLoop() {
	ticker := time.NewTicker(c.opts.DB.TurnEvery())
	defer ticker.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-ticker.C:
		}
		c.mu.Lock()
		for _, hv := range c.volumes {
			hv.serves.add(func() { c.speak(hv) })
		}
		c.mu.Unlock()
	}
}

// speak tells the peers of a volume which replicas it has.
func (c *Cluster) speak(hv *heldVolume) {
	members, err := hv.v.Speak(c.opts.Node)
	if err != nil {
		hv.log.Error("roster", "err", err)
		return
	}
	c.stepFor(hv, Spoke{hv.v.ID(), c.provable(hv, members), hv.v.Collected()})
}

func (c *Cluster) verify(hv *heldVolume, e Verify) {
	forked, err := hv.v.Forked(e.Replica, e.Entry.Seq, func(hash [32]byte) bool { return sameHash(hash, e.Entry.Hash) })
	c.stepFor(hv, Verified{hv.v.ID(), e.Peer, e.Replica, e.Entry, forked, err})
}

// Forget says that a node will not come back: none of its replicas counts any
// more. It returns how many it had.
func (c *Cluster) Forget(node string) (n int, err error) {
	c.mu.Lock()
	volumes := make([]*heldVolume, 0, len(c.volumes))
	for _, hv := range c.volumes {
		volumes = append(volumes, hv)
	}
	c.mu.Unlock()
	for _, hv := range volumes {
		m, err := hv.v.Forget(node)
		if err != nil {
			return n, err
		}
		n += m
		c.speak(hv)
	}
	return n, nil
}
