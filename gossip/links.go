package gossip

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/synapsefs/synapsefs/internal/mutation"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

func (e LinkUp) step(p *Protocol) {
	ps := p.peer(e.Peer)
	ps.up = true
	clear(ps.introduced)
	all := slices.SortedFunc(maps.Keys(p.replicas), compareVolumes)
	first := true
	// A full message says that another one follows.
	for part := range slices.Chunk(all, maxHoldings) {
		m := Holdings{All: first}
		for _, id := range part {
			m.Changed = append(m.Changed, p.replicas[id].holding())
		}
		p.send(ps, m)
		first = false
	}
	if len(all)%maxHoldings == 0 {
		p.send(ps, Holdings{All: first})
	}
	p.linkChanged(ps)
}

func (e LinkDown) step(p *Protocol) {
	ps := p.peers[e.Peer]
	if ps == nil {
		return
	}
	ps.up = false
	p.stopPulls(ps)
	p.linkChanged(ps)
	p.forget(ps)
}

func (e PeerGone) step(p *Protocol) {
	ps := p.peers[e.Peer]
	if ps == nil {
		return
	}
	p.stopPulls(ps)
	p.linkChanged(ps)
	clear(ps.holds)
	ps.told = false
	p.forget(ps)
}

// linkChanged looks again at what this node and the peer have in common, and
// gives a peer that is back another chance at once.
func (p *Protocol) linkChanged(ps *peerState) {
	for _, id := range slices.SortedFunc(maps.Keys(ps.holds), compareVolumes) {
		h := ps.holds[id]
		h.backoff, h.serving, h.next = 0, false, nil
		h.notBefore = p.now
		if v := p.replicas[id]; v != nil {
			v.gap, v.urgent = nil, true
			p.touch(v)
		}
	}
}

// stopPulls gives up what was asked of a peer.
func (p *Protocol) stopPulls(ps *peerState) {
	for _, v := range p.replicas {
		if v.pull != nil && v.pull.peer == ps.name {
			v.pull = nil
		}
	}
}

func (e Overflowed) step(p *Protocol) {
	ps := p.peers[e.Peer]
	if ps == nil {
		return
	}
	clear(ps.introduced) // an identity may have been dropped
	for _, id := range slices.SortedFunc(maps.Keys(ps.holds), compareVolumes) {
		if v := p.replicas[id]; v != nil {
			p.changed(v)
			p.touch(v)
		}
	}
}

func (e Received) step(p *Protocol) {
	e.Message.receive(p, p.peer(e.Peer))
}

func (m Holdings) receive(p *Protocol, from *peerState) {
	if m.All {
		clear(from.holds)
	}
	from.told = len(m.Changed) < maxHoldings
	for _, id := range m.Dropped {
		delete(from.holds, id)
		p.touch(p.replicas[id])
	}
	for _, n := range m.Changed {
		h := from.holds[n.Volume]
		if h == nil && len(from.holds) >= maxHeld {
			continue
		}
		if h == nil {
			h = &holding{vector: crdt.Vector{}, acked: crdt.Vector{}}
			from.holds[n.Volume] = h
		}
		if h.self != n.Replica {
			// It began anew: what it had before says nothing.
			*h = holding{self: n.Replica, vector: crdt.Vector{}, acked: crdt.Vector{}, serving: h.serving}
		}
		h.saw(n.Vector)
		if n.Ready && !h.ready {
			h.target = n.Vector.Clone()
		}
		h.ready = n.Ready
		h.collected = n.Collected
		v := p.replicas[n.Volume]
		if v == nil {
			continue
		}
		p.compare(v, from, h, n.Vector)
		if v.excludes(h) && len(n.Vector) > 0 {
			p.report(from.name, v.id, fmt.Errorf("its replica %v: %w", h.self, store.ErrBehind))
		}
		if len(n.Vector) == 0 || !v.apart(h) {
			p.do(Hear{v.id, []store.Member{{Replica: h.self, Node: from.name}}})
		}
		if from.up {
			if !v.apart(h) {
				p.sendRoster(from, v)
			}
			// It may not have been told what came since this link came up.
			p.send(from, Digest{v.id, v.applied.Clone()})
		}
		v.urgent = true // what a peer had before it linked is not under way
		p.touch(v)
	}
}

// saw notes what the peer said it has applied.
func (h *holding) saw(vector crdt.Vector) {
	h.acked.Max(vector)
	h.vector.Max(vector)
}

// compare looks for signs that two replicas write under one id. Only the
// journal can tell whether what the peer has of this replica's ops was made
// here: it may have more than this protocol knows of, if it was served before
// the event came.
func (p *Protocol) compare(v *replica, from *peerState, h *holding, theirs crdt.Vector) {
	e, own := theirs[v.self], v.applied[v.self]
	switch {
	case e.Seq == 0, e.Seq == own.Seq && sameHash(e.Hash, own.Hash):
		if !h.compared && h.comparing.Seq == 0 {
			h.compared, v.urgent = true, true
			p.pullNext(from, h)
		}
	case (e.Seq >= own.Seq || !h.compared) && e.Seq > h.comparing.Seq:
		h.comparing, h.compared = e, false
		p.do(Verify{v.id, from.name, v.self, e})
	}
	for r, e := range theirs {
		if ours := v.applied[r]; r != v.self && ours.Seq == e.Seq && e.Seq > 0 && !sameHash(ours.Hash, e.Hash) {
			p.report(from.name, v.id, fmt.Errorf("%w: %v at %d", ErrTwoReplicas, r, e.Seq))
		}
	}
}

// sameHash compares as much of two hashes as travels in digests.
func sameHash(a, b [32]byte) bool { return [8]byte(a[:8]) == [8]byte(b[:8]) }

func (m Digest) receive(p *Protocol, from *peerState) {
	h, v := from.holds[m.Volume], p.replicas[m.Volume]
	if h == nil {
		return
	}
	h.saw(m.Vector)
	if v != nil {
		if h.ready && h.target == nil {
			h.target = m.Vector.Clone()
			v.urgent = true // it had that before we asked
		}
		p.compare(v, from, h, m.Vector)
		p.touch(v)
	}
}

func (m Push) receive(p *Protocol, from *peerState) {
	v, b := p.replicas[m.Volume], m.Batch
	if v == nil {
		return
	}
	defer p.touch(v)
	if h := from.holds[m.Volume]; h != nil {
		if v.apart(h) || v.forked {
			return
		}
		// It has applied what it sends, and so all that depends on.
		h.vector.Max(crdt.Vector{b.Origin: b.entry()})
		for _, d := range b.Deps {
			h.vector.Max(crdt.Vector{d.Replica: {Seq: d.Seq}})
		}
		if !h.compared {
			return // it is pulled when that is done
		}
	}
	if v.pull != nil && v.pull.peer == from.name {
		v.pull.deadline = p.now.Add(pullTimeout)
	}
	switch {
	case b.Last <= v.reached[b.Origin].Seq && mutation.Off(mutation.Idempotence):
		p.merge(v, b, from.name)
	case b.Last <= v.reached[b.Origin].Seq, b.Origin == v.self: // known
	case len(b.Wants) == 0 && !v.staging && v.mergingB < p.limits.MergingBytes && b.turn(v.reached):
		p.merge(v, b, from.name)
	default:
		v.pending.add(b, b.Wants, from.name, v.reached)
	}
}

func (e Unverified) step(p *Protocol) {
	ps := p.peer(e.Peer)
	h := ps.holds[e.Volume]
	if h == nil || !ps.up || p.now.Before(h.askedAt.Add(repeatAfter)) {
		return
	}
	h.askedAt = p.now
	p.send(ps, IdentityRequest{e.Volume, e.Origins})
}

func (m IdentityRequest) receive(p *Protocol, from *peerState) {
	if from.up && p.replicas[m.Volume] != nil {
		p.do(ServeIdentities{from.name, m.Volume, m.Replicas})
	}
}

func (e IdentityLearned) step(p *Protocol) {
	ps, v := p.peers[e.Peer], p.replicas[e.Volume]
	if ps == nil || v == nil || ps.holds[e.Volume] == nil {
		return
	}
	h := ps.holds[e.Volume]
	h.backoff, h.notBefore, h.askedAt = 0, p.now, p.now.Add(-repeatAfter)
	v.urgent = true
	p.touch(v)
}

func (m Pull) receive(p *Protocol, from *peerState) {
	v, h := p.replicas[m.Volume], from.holds[m.Volume]
	switch {
	case !from.up:
	case v == nil || h == nil || v.staging || v.forked:
		p.send(from, PullDone{Volume: m.Volume})
	case v.apart(h):
		p.send(from, SnapshotNeeded{m.Volume})
	case h.serving || !h.compared:
		h.next = &m
	default:
		h.serving = true
		p.do(Serve{from.name, m.Volume, m.Vector, min(m.MaxBytes, p.limits.PullBytes)})
	}
}

func (e Served) step(p *Protocol) {
	ps := p.peers[e.Peer]
	if ps == nil || ps.holds[e.Volume] == nil {
		return
	}
	h := ps.holds[e.Volume]
	h.serving = false
	if !ps.up {
		return
	}
	for _, b := range e.Batches {
		p.push(ps, e.Volume, b)
	}
	if errors.Is(e.Err, store.ErrJournalGone) {
		p.send(ps, SnapshotNeeded{e.Volume})
	} else {
		if e.Err != nil {
			p.report(e.Peer, e.Volume, fmt.Errorf("serve pull: %w", e.Err))
		}
		p.send(ps, PullDone{e.Volume, e.More})
	}
	p.pullNext(ps, h)
}

// pullNext takes up what a peer asked for when it could not be served yet.
func (p *Protocol) pullNext(ps *peerState, h *holding) {
	if m := h.next; m != nil {
		h.next = nil
		m.receive(p, ps)
	}
}
