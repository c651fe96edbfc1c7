package gossip

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// Limits bound what the protocol keeps and asks for. Zero fields mean the
// default.
type Limits struct {
	// PendingBatches and PendingBytes bound the batches of one volume that
	// wait for what they depend on. Default 2,048 and 32 MiB. More means
	// less is pulled twice after a disturbance.
	PendingBatches, PendingBytes int
	// TotalBytes bounds what waits in all volumes. Default 128 MiB.
	TotalBytes int
	// MergingBytes bounds what is handed over for merging. Default 8 MiB.
	MergingBytes int
	// PullBytes is how much is asked for at a time. Default 1 MiB.
	PullBytes int
	// SnapshotOver is the number of ops over which an empty joiner takes a
	// snapshot instead of the journal. Default 2,000.
	SnapshotOver uint64
	// Fetches bounds the contents of one volume fetched at a time. Default 4.
	Fetches int
}

func (l *Limits) setDefaults() {
	for _, d := range []struct {
		field *int
		value int
	}{
		{&l.PendingBatches, 2048}, {&l.PendingBytes, 32 << 20}, {&l.TotalBytes, 128 << 20},
		{&l.MergingBytes, 8 << 20}, {&l.PullBytes, 1 << 20}, {&l.Fetches, 4},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if l.SnapshotOver == 0 {
		l.SnapshotOver = 2000
	}
}

// Times of the protocol.
const (
	ackSpacing   = 20 * time.Millisecond  // between digests after merges
	repeatAfter  = 500 * time.Millisecond // between repeated digests
	repeats      = 3                      // of a digest after the last change
	idleRepeat   = time.Minute            // between digests of a quiet volume
	gapGrace     = 100 * time.Millisecond // for pushes that are under way
	pullTimeout  = 5 * time.Second        // without a push of the answer
	leastBackoff = 100 * time.Millisecond
	mostBackoff  = 10 * time.Second
	failureDelay = time.Second // after a merge that failed, before the next pull
)

const (
	maxHoldings = 500     // in one message
	maxHeld     = 1 << 16 // volumes that a peer is believed to hold
)

// ErrTwoReplicas says that two replicas write under one id, as after a restore
// from a backup or with a cloned disk.
var ErrTwoReplicas = errors.New("two replicas write under one id")

// A Protocol is the replication protocol of one node as a state machine. Not
// safe for concurrent use.
type Protocol struct {
	// Fixed by NewProtocol.
	limits Limits

	replicas map[store.VolumeID]*replica
	peers    map[string]*peerState
	names    []string // of peers, in order
	waiting  budget
	wake     time.Time

	// During a step.
	now     time.Time
	effects []Effect
	touched []*replica
}

// A replica is one volume on this node.
type replica struct {
	id       store.VolumeID
	self     crdt.ReplicaID
	applied  crdt.Vector // what the store has
	reached  crdt.Vector // applied, and what was handed over for merging
	pending  pending
	merging  map[*Batch]string // handed over, and the peers they came from
	mergingB int               // their bytes
	fetches  map[crdt.Hash]*fetch

	ready    bool // may be a source of readiness (P11)
	saving   bool // becoming ready
	caughtUp bool // with a live ready peer since the replica was opened
	staging  bool // a snapshot is being taken
	lost     bool // nobody has a content that a batch wants
	forked   bool // a peer has other ops under its id: it must begin anew

	collected store.Collected
	members   []store.Member // as last spoken

	pull       *pull
	gap        crdt.Vector // what was missing at gapSince
	gapSince   time.Time
	urgent     bool // pull without waiting for pushes under way
	retryAfter time.Time

	lastDigest time.Time
	unacked    bool // applied grew by merges since lastDigest
	repeatsDue int
	repeatAt   time.Time

	wake time.Time
}

// A peerState is what is known of a peer.
type peerState struct {
	name  string
	up    bool // messages can be sent
	told  bool // on the present link from it, all that it holds
	holds map[store.VolumeID]*holding
	// Identities sent on the present link.
	introduced map[replicaKey]bool
}

type replicaKey struct {
	volume  store.VolumeID
	replica crdt.ReplicaID
}

// A holding is a peer's replica of a volume, as it told.
type holding struct {
	self      crdt.ReplicaID
	ready     bool
	vector    crdt.Vector // what it has
	acked     crdt.Vector // what it said it has applied; vector may be ahead
	target    crdt.Vector // what it had when it said it was ready
	backoff   time.Duration
	notBefore time.Time // of the next pull
	noJournal bool      // its journal does not cover the gap
	serving   bool      // an answer is being read from the journal
	next      *Pull     // asked meanwhile
	askedAt   time.Time // for identities
	// What it has of our replica's ops, while that is compared with what was
	// made here: until then, nothing is exchanged with it.
	comparing crdt.VectorEntry
	compared  bool // it was, once
	forked    bool // its ops of our replica are not ours
	collected store.Collected
}

// A pull is an answer that is awaited.
type pull struct {
	peer     string
	since    crdt.Vector
	deadline time.Time
}

// NewProtocol returns the protocol of a node without volumes and peers.
func NewProtocol(l Limits) *Protocol {
	l.setDefaults()
	return &Protocol{
		limits: l, replicas: map[store.VolumeID]*replica{}, peers: map[string]*peerState{},
		waiting: budget{limit: l.TotalBytes},
	}
}

// Step takes an event at a time and returns what is to be done.
func (p *Protocol) Step(now time.Time, e Event) []Effect {
	p.now, p.effects, p.touched = now, nil, p.touched[:0]
	e.step(p)
	for _, v := range p.touched {
		if p.replicas[v.id] == v {
			p.settle(v)
		}
	}
	return p.effects
}

// Wake is when the next Tick is due; zero if none is.
func (p *Protocol) Wake() time.Time { return p.wake }

func (p *Protocol) do(e Effect) { p.effects = append(p.effects, e) }

func (p *Protocol) send(to *peerState, m Message) { p.do(Send{to.name, m}) }

func (p *Protocol) report(peer string, v store.VolumeID, err error) { p.do(Report{peer, v, err}) }

// touch settles a replica at the end of the step.
func (p *Protocol) touch(v *replica) {
	if v != nil && !slices.Contains(p.touched, v) {
		p.touched = append(p.touched, v)
	}
}

func (p *Protocol) peer(name string) *peerState {
	ps := p.peers[name]
	if ps == nil {
		ps = &peerState{name: name, holds: map[store.VolumeID]*holding{}, introduced: map[replicaKey]bool{}}
		p.peers[name] = ps
		at, _ := slices.BinarySearch(p.names, name)
		p.names = slices.Insert(p.names, at, name)
	}
	return ps
}

// forget drops a peer of which nothing is known any more.
func (p *Protocol) forget(ps *peerState) {
	if ps.up || ps.told || len(ps.holds) > 0 {
		return
	}
	delete(p.peers, ps.name)
	if at, ok := slices.BinarySearch(p.names, ps.name); ok {
		p.names = slices.Delete(p.names, at, at+1)
	}
}

// holders calls fn for each linked peer that holds the volume, in order.
func (p *Protocol) holders(id store.VolumeID, fn func(*peerState, *holding)) {
	for _, name := range p.names {
		ps := p.peers[name]
		if h := ps.holds[id]; h != nil && ps.up {
			fn(ps, h)
		}
	}
}

// settle does for a replica what its state allows now, and finds out when to
// look again.
func (p *Protocol) settle(v *replica) {
	v.wake = time.Time{}
	p.handOver(v)
	p.fetch(v)
	p.checkReady(v)
	p.announce(v)
	p.seek(v)
	if !v.wake.IsZero() && (p.wake.IsZero() || v.wake.Before(p.wake)) {
		p.wake = v.wake
	}
}

// later makes the replica be looked at again at t.
func (v *replica) later(t time.Time) {
	if v.wake.IsZero() || t.Before(v.wake) {
		v.wake = t
	}
}

// handOver gives the batches whose turn it is to the store.
func (p *Protocol) handOver(v *replica) {
	for !v.staging && !v.forked && v.mergingB < p.limits.MergingBytes {
		b, from := v.pending.next(v.reached)
		if b == nil {
			return
		}
		p.merge(v, b, from)
	}
}

func (p *Protocol) merge(v *replica, b *Batch, from string) {
	v.reached[b.Origin] = b.entry()
	v.pending.prune(v.reached)
	v.merging[b] = from
	v.mergingB += b.Size
	p.do(Merge{v.id, b})
}

// announce sends the digests that are due.
func (p *Protocol) announce(v *replica) {
	if len(v.applied) == 0 {
		return
	}
	due := v.repeatAt
	if v.unacked {
		due = v.lastDigest.Add(ackSpacing)
	}
	if due.After(p.now) {
		v.later(due)
		return
	}
	p.holders(v.id, func(ps *peerState, _ *holding) { p.send(ps, Digest{v.id, v.applied.Clone()}) })
	v.lastDigest, v.unacked = p.now, false
	v.repeatAt = p.now.Add(idleRepeat)
	if v.repeatsDue > 0 {
		v.repeatsDue--
		v.repeatAt = p.now.Add(repeatAfter)
	}
	v.later(v.repeatAt)
}

// changed makes digests go out again for a while.
func (p *Protocol) changed(v *replica) {
	v.repeatsDue = repeats
	if soon := p.now.Add(repeatAfter); v.repeatAt.After(soon) || v.repeatAt.IsZero() {
		v.repeatAt = soon
	}
}

// checkReady sees whether the replica has what a ready peer had.
func (p *Protocol) checkReady(v *replica) {
	for _, name := range p.names {
		if v.caughtUp || v.staging {
			break
		}
		if h := p.peers[name].holds[v.id]; h != nil && h.target != nil && v.applied.Contains(h.target) {
			v.caughtUp = true
		}
	}
	if v.caughtUp && !v.ready && !v.saving {
		v.saving = true
		p.do(BecomeReady{v.id})
	}
}

func (v *replica) holding() Holding {
	return Holding{Volume: v.id, Replica: v.self, Ready: v.ready, Vector: v.applied.Clone(), Collected: v.collected}
}

// tell tells all linked peers of a change in what this node holds.
func (p *Protocol) tell(m Holdings) {
	for _, name := range p.names {
		if ps := p.peers[name]; ps.up {
			p.send(ps, m)
		}
	}
}

func (e VolumeOpened) step(p *Protocol) {
	if old := p.replicas[e.Volume]; old != nil {
		old.pending.clear()
	}
	v := &replica{
		id: e.Volume, self: e.Replica, ready: e.Ready, applied: e.Vector.Clone(), reached: e.Vector.Clone(),
		pending: newPending(&p.limits, &p.waiting), merging: map[*Batch]string{}, fetches: map[crdt.Hash]*fetch{}, urgent: true,
		collected: e.Collected,
	}
	p.replicas[v.id] = v
	// What a peer said before this replica was there does not count: it may
	// have got more since, and told nobody who does not hold the volume.
	for _, ps := range p.peers {
		if h := ps.holds[v.id]; h != nil {
			h.target, h.comparing, h.compared, h.forked = nil, crdt.VectorEntry{}, false, false
			p.compare(v, ps, h, h.acked)
		}
	}
	p.changed(v)
	p.tell(Holdings{Changed: []Holding{v.holding()}})
	p.touch(v)
}

func (e VolumeClosed) step(p *Protocol) {
	v := p.replicas[e.Volume]
	if v == nil {
		return
	}
	v.pending.clear()
	delete(p.replicas, v.id)
	p.tell(Holdings{Dropped: []store.VolumeID{v.id}})
}

func (e Advanced) step(p *Protocol) {
	v := p.replicas[e.Volume]
	if v == nil || v.applied.Contains(e.Vector) {
		return
	}
	v.applied.Max(e.Vector)
	v.reached.Max(e.Vector)
	v.pending.prune(v.reached)
	v.unacked = true
	p.changed(v)
	p.touch(v)
}

func (e LocalBatch) step(p *Protocol) {
	v := p.replicas[e.Volume]
	if v == nil || e.Batch.Last <= v.applied[e.Batch.Origin].Seq && v.applied[e.Batch.Origin].Hash != e.Batch.Hash {
		return
	}
	if v.self != e.Batch.Origin {
		v.self = e.Batch.Origin
		p.renamed(v)
	}
	own := crdt.Vector{v.self: e.Batch.entry()}
	v.applied.Max(own)
	v.reached.Max(own)
	p.partners(v, func(ps *peerState, _ *holding) { p.push(ps, v.id, e.Batch) })
	p.changed(v)
	p.touch(v)
}

// push sends a batch, with its origin's identity the first time.
func (p *Protocol) push(to *peerState, id store.VolumeID, b *Batch) {
	k := replicaKey{id, b.Origin}
	p.send(to, Push{Volume: id, Batch: b, WithIdentity: !to.introduced[k]})
	to.introduced[k] = true
}

func (e Merged) step(p *Protocol) {
	v := p.replicas[e.Volume]
	if v == nil {
		return
	}
	from := v.merging[e.Batch]
	delete(v.merging, e.Batch)
	v.mergingB -= e.Batch.Size
	defer p.touch(v)
	if e.Err == nil {
		v.applied.Max(e.Vector)
		v.reached.Max(v.applied)
		v.unacked = true
		p.changed(v)
		p.ack(v, from)
		return
	}
	// What was handed over behind it may fail too, and is pulled again.
	v.reached = v.applied.Clone()
	switch {
	case errors.Is(e.Err, store.ErrNoContent) && len(e.Wants) > 0:
		v.pending.add(e.Batch, e.Wants, from, v.reached)
	case errors.Is(e.Err, store.ErrNotNext):
	default:
		v.retryAfter = p.now.Add(failureDelay)
		p.report("", v.id, fmt.Errorf("merge batch %v:%d: %w", e.Batch.Origin, e.Batch.First, e.Err))
	}
}

// ack tells the peer that sent a batch at once, as somebody may be waiting
// there, unless more is being merged. The others learn it with announce.
func (p *Protocol) ack(v *replica, from string) {
	ps := p.peers[from]
	if len(v.merging) == 0 && ps != nil && ps.up && ps.holds[v.id] != nil {
		p.send(ps, Digest{v.id, v.applied.Clone()})
	}
}

func (e ReadySaved) step(p *Protocol) {
	v := p.replicas[e.Volume]
	if v == nil {
		return
	}
	v.saving = false
	if e.Err != nil {
		v.caughtUp = false // tried again when something changes
		p.report("", v.id, e.Err)
		return
	}
	if !v.ready {
		v.ready = true
		p.tell(Holdings{Changed: []Holding{v.holding()}})
	}
	p.touch(v)
}

func (Tick) step(p *Protocol) {
	p.wake = time.Time{}
	for _, id := range slices.SortedFunc(maps.Keys(p.replicas), compareVolumes) {
		v := p.replicas[id]
		switch {
		case v.wake.IsZero():
		case v.wake.After(p.now):
			if p.wake.IsZero() || v.wake.Before(p.wake) {
				p.wake = v.wake
			}
		default:
			p.touch(v)
		}
	}
}

func compareVolumes(a, b store.VolumeID) int { return slices.Compare(a[:], b[:]) }

// Ready reports whether this node's replica is ready.
func (p *Protocol) Ready(id store.VolumeID) bool {
	v := p.replicas[id]
	return v != nil && v.ready
}

// Serves reports whether a peer may take this replica's state: one that is not
// ready has none, and one that was restored from a backup may not know it
// before it has heard what the peer has of it.
func (p *Protocol) Serves(id store.VolumeID, peer string) bool {
	v, ps := p.replicas[id], p.peers[peer]
	if v == nil || ps == nil || ps.holds[id] == nil {
		return false
	}
	return v.ready && !v.forked && ps.holds[id].compared
}

// CaughtUp reports whether the replica is ready and has caught up with a live
// ready peer since it was opened.
func (p *Protocol) CaughtUp(id store.VolumeID) bool {
	v := p.replicas[id]
	return v != nil && v.ready && v.caughtUp
}

// Acked is what a peer said it has applied; false if it does not hold the
// volume or is not heard.
func (p *Protocol) Acked(peer string, id store.VolumeID) (crdt.Vector, bool) {
	ps := p.peers[peer]
	if ps == nil || ps.holds[id] == nil {
		return nil, false
	}
	return ps.holds[id].acked, true
}

// Told reports whether a peer that is linked has said all that it holds.
func (p *Protocol) Told(peer string) bool {
	ps := p.peers[peer]
	return ps != nil && ps.told
}

// Lag is how many ops this node has applied that a peer has not said to have.
func (p *Protocol) Lag(peer string, id store.VolumeID) uint64 {
	v := p.replicas[id]
	acked, ok := p.Acked(peer, id)
	if v == nil || !ok {
		return 0
	}
	return missing(acked, v.applied)
}

// missing counts the ops that are in want and not in have.
func missing(have, want crdt.Vector) (n uint64) {
	for r, e := range want {
		if h := have[r].Seq; e.Seq > h {
			n += uint64(e.Seq - h)
		}
	}
	return n
}
