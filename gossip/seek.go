package gossip

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// seek asks for what peers have and this replica lacks.
func (p *Protocol) seek(v *replica) {
	if v.pull != nil {
		if p.now.Before(v.pull.deadline) {
			v.later(v.pull.deadline)
			return
		}
		p.slower(p.peers[v.pull.peer], v)
		v.pull = nil
	}
	if v.staging {
		return
	}
	if p.anew(v) || p.passOver(v) {
		return
	}
	held := v.held()
	if !p.missed(v, held) {
		return
	}
	if v.retryAfter.After(p.now) {
		v.later(v.retryAfter)
		return
	}
	ps, h := p.source(v, held)
	if ps == nil {
		return
	}
	if p.needsSnapshot(v, h) {
		if len(v.merging) == 0 { // else when they are done
			v.staging = true
			p.do(TakeSnapshot{Volume: v.id, Peer: ps.name})
		}
		return
	}
	v.gap, v.urgent = nil, false
	v.pull = &pull{peer: ps.name, since: held, deadline: p.now.Add(pullTimeout)}
	v.later(v.pull.deadline)
	p.send(ps, Pull{Volume: v.id, Vector: held, MaxBytes: p.limits.PullBytes})
}

// passOver takes a snapshot if nobody has what a batch wants. What was overwritten
// since is then only history, and holds up nothing; else the snapshot fails like
// the batch, and says so.
func (p *Protocol) passOver(v *replica) bool {
	if !v.lost || len(v.merging) > 0 || v.retryAfter.After(p.now) {
		return false
	}
	reached := v.reached.Clone()
	reached[v.self] = crdt.VectorEntry{Seq: math.MaxUint64}
	ps, h := p.source(v, reached)
	if ps == nil || !h.ready {
		return false
	}
	v.lost, v.staging = false, true
	p.do(TakeSnapshot{Volume: v.id, Peer: ps.name})
	return true
}

// held is what need not be pulled: what is here, and all of this replica's own.
func (v *replica) held() crdt.Vector {
	held := v.pending.extend(v.reached)
	held[v.self] = crdt.VectorEntry{Seq: math.MaxUint64}
	return held
}

// missed reports whether something is missing that is not merely under way:
// it was missing already gapGrace ago.
func (p *Protocol) missed(v *replica, held crdt.Vector) bool {
	if v.gap != nil && held.Contains(v.gap) {
		v.gap = nil
	}
	if v.gap == nil {
		all := crdt.Vector{}
		p.partners(v, func(_ *peerState, h *holding) { all.Max(h.vector) })
		if held.Contains(all) {
			v.urgent = false
			return false
		}
		v.gap, v.gapSince = all, p.now
	}
	if due := v.gapSince.Add(gapGrace); !v.urgent && p.now.Before(due) {
		v.later(due)
		return false
	}
	return true
}

// source picks the linked peer that has most of what is missing, a ready one
// if there is any. It leaves out those that were no help lately.
func (p *Protocol) source(v *replica, held crdt.Vector) (best *peerState, hold *holding) {
	most, ready := uint64(0), false
	p.partners(v, func(ps *peerState, h *holding) {
		n := missing(held, h.vector)
		if n == 0 {
			return
		}
		if h.notBefore.After(p.now) {
			v.later(h.notBefore)
			return
		}
		if best == nil || h.ready && !ready || h.ready == ready && n > most {
			best, hold, most, ready = ps, h, n, h.ready
		}
	})
	return best, hold
}

func (p *Protocol) needsSnapshot(v *replica, h *holding) bool {
	if !h.ready {
		return false // a staging replica is no source, and one never ready may be one
	}
	return h.noJournal || !v.ready && len(v.applied) == 0 && missing(nil, h.vector) > p.limits.SnapshotOver
}

// slower makes a peer wait longer before it is asked again.
func (p *Protocol) slower(ps *peerState, v *replica) {
	if ps == nil || ps.holds[v.id] == nil {
		return
	}
	h := ps.holds[v.id]
	h.backoff = min(max(2*h.backoff, leastBackoff), mostBackoff)
	h.notBefore = p.now.Add(h.backoff)
	v.later(h.notBefore)
}

func (m PullDone) receive(p *Protocol, from *peerState) {
	v := p.replicas[m.Volume]
	if v == nil || v.pull == nil || v.pull.peer != from.name {
		return
	}
	defer p.touch(v)
	helped := missing(v.pull.since, v.held()) > 0
	v.pull = nil
	h := from.holds[m.Volume]
	switch {
	case h == nil:
	case !helped:
		p.slower(from, v)
	default:
		h.backoff = 0
		v.urgent = m.More
	}
}

func (m SnapshotNeeded) receive(p *Protocol, from *peerState) {
	v := p.replicas[m.Volume]
	if v == nil || v.pull == nil || v.pull.peer != from.name {
		return
	}
	v.pull = nil
	h := from.holds[m.Volume]
	if h == nil {
		return
	}
	h.noJournal = true
	if h.ready {
		v.urgent = true
	} else {
		p.slower(from, v)
	}
	p.touch(v)
}

func (e SnapshotTaken) step(p *Protocol) {
	v := p.replicas[e.Volume]
	if v == nil || !v.staging {
		return
	}
	v.staging = false
	defer p.touch(v)
	if e.Err != nil {
		v.retryAfter = p.now.Add(failureDelay)
		p.slower(p.peers[e.Peer], v) // another may do better
		p.report(e.Peer, v.id, fmt.Errorf("take snapshot: %w", e.Err))
		return
	}
	if e.Anew {
		v.begin(e)
		p.tell(Holdings{Changed: []Holding{v.holding()}})
	}
	v.applied.Max(e.Vector)
	v.reached.Max(v.applied)
	v.pending.prune(v.reached)
	for _, ps := range p.peers {
		if h := ps.holds[v.id]; h != nil {
			h.noJournal = false
		}
	}
	if e.Anew {
		p.renamed(v)
	}
	v.gap, v.urgent, v.unacked = nil, true, true
	p.changed(v)
}

// renamed says that the replica has a new id, of which nobody has anything.
func (p *Protocol) renamed(v *replica) {
	for _, name := range p.names {
		ps := p.peers[name]
		if h := ps.holds[v.id]; h != nil {
			h.forked, h.comparing, h.compared = false, crdt.VectorEntry{}, true
			p.pullNext(ps, h)
		}
	}
}

// begin makes the replica one that has just the snapshot.
func (v *replica) begin(e SnapshotTaken) {
	v.self, v.collected, v.members, v.forked = e.Self, e.Collected, nil, false
	v.applied, v.reached = e.Vector.Clone(), e.Vector.Clone()
	v.pending.clear()
}

// A fetch is content that batches wait for.
type fetch struct {
	active  bool
	retryAt time.Time
	delay   time.Duration
	absent  int // how often in a row nobody had it
}

// absentOften is how often that is to be so before it is believed: who has it may
// be away for a moment.
const absentOften = 3

// fetch asks for the content that waiting batches want, a few at a time.
func (p *Protocol) fetch(v *replica) {
	if len(v.fetches) == 0 && v.pending.count == 0 {
		return
	}
	active := 0
	wanted := map[crdt.Hash]bool{}
	for _, f := range v.fetches {
		if f.active {
			active++
		}
	}
	for _, w := range v.pending.wanting() {
		for _, h := range w.wants {
			wanted[h] = true
			f := v.fetches[h]
			switch {
			case f != nil && f.active:
				continue
			case f != nil && f.retryAt.After(p.now):
				v.later(f.retryAt)
				continue
			case active >= p.limits.Fetches:
				continue
			}
			from := p.sources(v, h)
			if len(from) == 0 {
				continue // until one is linked
			}
			if f == nil {
				f = &fetch{}
				v.fetches[h] = f
			}
			f.active = true
			active++
			p.do(FetchContent{v.id, h, from})
		}
	}
	maps.DeleteFunc(v.fetches, func(h crdt.Hash, f *fetch) bool { return !f.active && !wanted[h] })
}

// sources lists the peers that have applied a batch that waits for a content,
// those that sent one first.
func (p *Protocol) sources(v *replica, content crdt.Hash) (out []string) {
	var waiters []*waiter
	for _, w := range v.pending.wanting() {
		if slices.Contains(w.wants, content) {
			waiters = append(waiters, w)
		}
	}
	sent := func(name string) bool {
		return slices.ContainsFunc(waiters, func(w *waiter) bool { return w.from == name })
	}
	p.holders(v.id, func(ps *peerState, h *holding) {
		if slices.ContainsFunc(waiters, func(w *waiter) bool { return h.vector[w.batch.Origin].Seq >= w.batch.Last }) {
			out = append(out, ps.name)
		}
	})
	slices.SortStableFunc(out, func(a, b string) int {
		switch {
		case sent(a) == sent(b):
			return 0
		case sent(a):
			return -1
		}
		return 1
	})
	return out
}

func (e ContentArrived) step(p *Protocol) {
	if v := p.replicas[e.Volume]; v != nil && v.fetches[e.Hash] != nil {
		f := v.fetches[e.Hash]
		f.active = false
		if e.Err != nil {
			f.delay = min(max(2*f.delay, 5*leastBackoff), mostBackoff)
			f.retryAt = p.now.Add(f.delay)
			if f.absent++; !errors.Is(e.Err, ErrAbsent) {
				f.absent = 0
			}
			err := e.Err
			if f.absent >= absentOften {
				v.lost = true
				err = fmt.Errorf("%w; later changes wait until its file is overwritten or removed, or a node has it again", err)
			}
			p.report("", v.id, err)
		} else {
			delete(v.fetches, e.Hash)
		}
		p.touch(v)
	}
	if e.Err != nil {
		return
	}
	// Volumes of a node share their content.
	for _, id := range slices.SortedFunc(maps.Keys(p.replicas), compareVolumes) {
		if v := p.replicas[id]; v.pending.arrived(e.Hash) {
			p.touch(v)
		}
	}
}
