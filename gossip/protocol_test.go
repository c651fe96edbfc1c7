package gossip

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A simNode is a protocol with a pretended store.
type simNode struct {
	name  string
	self  crdt.ReplicaID
	proto *Protocol
	sim   *sim

	vector  crdt.Vector
	journal []*Batch // in the order of merging
	gone    crdt.Vector
	seen    []crdt.Dot // applied since the last own op
	content map[crdt.Hash]bool
	ready   bool

	tasks   []func() // effects with a result, in order
	reports []error
}

type simLink struct{ from, to string }

// A sim is a cluster on a virtual clock.
type sim struct {
	now   time.Time
	nodes map[string]*simNode
	names []string
	wires map[simLink][]Message
	up    map[simLink]bool
	wants map[[32]byte][]crdt.Hash // of batches, by their hash
	blind bool                     // content goes missing unnoticed
}

func newSim(limits Limits, ready ...bool) *sim {
	s := &sim{
		now: time.Unix(1000, 0), nodes: map[string]*simNode{}, wires: map[simLink][]Message{}, up: map[simLink]bool{},
		wants: map[[32]byte][]crdt.Hash{},
	}
	for i, r := range ready {
		n := &simNode{
			name: string(rune('a' + i)), self: crdt.ReplicaID(i + 1), proto: NewProtocol(limits), sim: s,
			vector: crdt.Vector{}, gone: crdt.Vector{}, content: map[crdt.Hash]bool{}, ready: r,
		}
		s.nodes[n.name] = n
		s.names = append(s.names, n.name)
		n.step(VolumeOpened{Holding{Volume: testVolume, Replica: n.self, Ready: r, Vector: n.vector}})
	}
	return s
}

func (s *sim) linkAll() {
	for _, a := range s.names {
		for _, b := range s.names {
			if a != b {
				s.link(a, b)
			}
		}
	}
}

func (s *sim) link(a, b string) {
	if l := (simLink{a, b}); !s.up[l] {
		s.up[l] = true
		s.nodes[a].step(LinkUp{b})
	}
}

func (s *sim) unlink(a, b string) {
	if l := (simLink{a, b}); s.up[l] {
		s.up[l] = false
		s.wires[l] = nil
		s.nodes[a].step(LinkDown{b})
		s.nodes[b].step(PeerGone{a})
	}
}

func (n *simNode) step(e Event) {
	for _, effect := range n.proto.Step(n.sim.now, e) {
		n.perform(effect)
	}
}

func (n *simNode) perform(effect Effect) {
	switch e := effect.(type) {
	case Send:
		if l := (simLink{n.name, e.Peer}); n.sim.up[l] {
			n.sim.wires[l] = append(n.sim.wires[l], e.Message)
		}
	case Report:
		n.reports = append(n.reports, e.Err)
	case Merge:
		n.later(func() { n.merge(e.Batch) })
	case FetchContent:
		n.later(func() { n.step(ContentArrived{testVolume, e.Hash, n.fetch(e)}) })
	case TakeSnapshot:
		n.later(func() { n.takeSnapshot(e.Peer) })
	case BecomeReady:
		n.later(func() { n.ready = true; n.step(ReadySaved{Volume: testVolume}) })
	case Serve:
		n.later(func() { n.step(n.serve(e)) })
	}
}

func (n *simNode) later(fn func()) { n.tasks = append(n.tasks, fn) }

// write makes an own batch of ops ops.
func (n *simNode) write(ops int, size int, wants ...crdt.Hash) *Batch {
	first := n.vector[n.self].Seq + 1
	b := &Batch{
		Origin: n.self, First: first, Last: first + crdt.Seq(ops) - 1, Deps: n.seen,
		Hash: [32]byte{byte(n.self), byte(first), byte(first >> 8)}, Wants: wants, Size: size,
	}
	n.seen = nil
	n.sim.wants[b.Hash] = wants
	for _, h := range wants {
		n.content[h] = true
	}
	n.apply(b)
	n.step(LocalBatch{testVolume, b})
	return b
}

func (n *simNode) apply(b *Batch) {
	n.vector[b.Origin] = b.entry()
	n.journal = append(n.journal, b)
	if b.Origin != n.self {
		n.seen = append(n.seen, crdt.Dot{Replica: b.Origin, Seq: b.Last})
	}
}

func (n *simNode) merge(b *Batch) {
	e := Merged{Volume: testVolume, Batch: b, Wants: n.lacks(b)}
	switch {
	case b.Last <= n.vector[b.Origin].Seq:
	case len(e.Wants) > 0:
		e.Err = store.ErrNoContent
	case !b.turn(n.vector):
		e.Err = store.ErrNotNext
	default:
		n.apply(b)
	}
	e.Vector = n.vector.Clone()
	n.step(e)
}

func (n *simNode) lacks(b *Batch) (out []crdt.Hash) {
	for _, h := range n.sim.wants[b.Hash] {
		if !n.content[h] {
			out = append(out, h)
		}
	}
	return out
}

func (n *simNode) fetch(e FetchContent) error {
	for _, peer := range e.Peers {
		if n.sim.up[simLink{n.name, peer}] && n.sim.nodes[peer].content[e.Hash] {
			n.content[e.Hash] = true
			return nil
		}
	}
	return ErrAbsent
}

func (n *simNode) takeSnapshot(peer string) {
	e := SnapshotTaken{Volume: testVolume, Peer: peer, Err: errors.New("not reachable")}
	if p := n.sim.nodes[peer]; n.sim.up[simLink{n.name, peer}] && p.ready {
		for r, entry := range p.vector {
			if entry.Seq > n.vector[r].Seq {
				n.vector[r], n.gone[r] = entry, entry
				n.seen = append(n.seen, crdt.Dot{Replica: r, Seq: entry.Seq})
			}
		}
		maps.Copy(n.content, p.content)
		e.Err = nil
	}
	e.Vector = n.vector.Clone()
	n.step(e)
}

func (n *simNode) serve(e Serve) Served {
	out := Served{Peer: e.Peer, Volume: testVolume}
	for r, entry := range n.gone {
		if e.Since[r].Seq < entry.Seq {
			out.Err = store.ErrJournalGone
			return out
		}
	}
	size := 0
	for _, b := range n.journal {
		if b.First <= e.Since[b.Origin].Seq {
			continue
		}
		if size >= e.MaxBytes {
			out.More = true
			return out
		}
		out.Batches = append(out.Batches, b)
		size += b.Size
	}
	return out
}

// deliver hands over the message at position at of a wire.
func (s *sim) deliver(l simLink, at int) {
	m := s.wires[l][at]
	s.wires[l] = slices.Delete(s.wires[l], at, at+1)
	to := s.nodes[l.to]
	if p, ok := m.(Push); ok {
		b := *p.Batch
		b.Wants = nil
		if !s.blind { // else Merge finds out
			b.Wants = to.lacks(p.Batch)
		}
		m = Push{Volume: p.Volume, Batch: &b}
	}
	to.step(Received{l.from, m})
}

// busy returns the wires with messages.
func (s *sim) busy() (out []simLink) {
	for _, a := range s.names {
		for _, b := range s.names {
			if len(s.wires[simLink{a, b}]) > 0 {
				out = append(out, simLink{a, b})
			}
		}
	}
	return out
}

func (s *sim) advance(d time.Duration) {
	s.now = s.now.Add(d)
	for _, name := range s.names {
		n := s.nodes[name]
		if w := n.proto.Wake(); !w.IsZero() && !w.After(s.now) {
			n.step(Tick{})
		}
	}
}

// drain delivers everything without time passing.
func (s *sim) drain() {
	for {
		busy := s.busy()
		for _, l := range busy {
			s.deliver(l, 0)
		}
		worked := len(busy) > 0
		for _, name := range s.names {
			for n := s.nodes[name]; len(n.tasks) > 0; worked = true {
				task := n.tasks[0]
				n.tasks = n.tasks[1:]
				task()
			}
		}
		if !worked {
			return
		}
	}
}

// settle lets d pass.
func (s *sim) settle(d time.Duration) {
	s.drain()
	for end := s.now.Add(d); s.now.Before(end); {
		s.advance(10 * time.Millisecond)
		s.drain()
	}
}

func (s *sim) converged() error {
	all := crdt.Vector{}
	for _, name := range s.names {
		all.Max(s.nodes[name].vector)
	}
	for _, name := range s.names {
		if n := s.nodes[name]; !n.vector.Contains(all) {
			return fmt.Errorf("%s has %v of %v; reports %v", name, seqs(n.vector), seqs(all), n.reports)
		}
	}
	return nil
}

func seqs(v crdt.Vector) map[crdt.ReplicaID]crdt.Seq {
	out := map[crdt.ReplicaID]crdt.Seq{}
	for r, e := range v {
		out[r] = e.Seq
	}
	return out
}

func (s *sim) checkBounds(t rapidTB, l Limits) {
	for _, name := range s.names {
		p := s.nodes[name].proto
		v := p.replicas[testVolume]
		if v.pending.count > l.PendingBatches || v.pending.bytes > l.PendingBytes && v.pending.count > 1 {
			t.Fatalf("%s holds %d batches, %d bytes", name, v.pending.count, v.pending.bytes)
		}
		count, bytes := 0, 0
		for _, ws := range v.pending.byOrigin {
			for _, w := range ws {
				count++
				bytes += w.batch.Size
			}
		}
		if count != v.pending.count || bytes != v.pending.bytes || bytes != p.waiting.used {
			t.Fatalf("%s counts wrong: %d batches of %d bytes, says %d, %d, %d",
				name, count, bytes, v.pending.count, v.pending.bytes, p.waiting.used)
		}
		if v.mergingB > l.MergingBytes+1000 {
			t.Fatalf("%s merges %d bytes", name, v.mergingB)
		}
	}
}

type rapidTB interface {
	Fatalf(format string, args ...any)
}

// Whatever happens to pushes and links, all replicas get everything once there
// is quiet, and buffers stay bounded meanwhile.
func TestP4ConvergeWhateverIsLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := Limits{
			PendingBatches: rapid.IntRange(1, 8).Draw(t, "pending"), PendingBytes: rapid.IntRange(50, 500).Draw(t, "bytes"),
			MergingBytes: rapid.IntRange(1, 300).Draw(t, "merging"), PullBytes: rapid.IntRange(1, 300).Draw(t, "pull"),
			SnapshotOver: 5, Fetches: 2,
		}
		s := newSim(limits, true, rapid.Bool().Draw(t, "b ready"), rapid.Bool().Draw(t, "c ready"), false)
		s.blind = rapid.Bool().Draw(t, "blind")
		s.linkAll()
		limits.setDefaults()
		for range rapid.IntRange(0, 120).Draw(t, "steps") {
			s.act(t)
			s.checkBounds(t, limits)
		}
		s.linkAll()
		s.settle(40 * time.Second)
		if err := s.converged(); err != nil {
			t.Fatal(err)
		}
		for _, name := range s.names {
			if n := s.nodes[name]; !n.ready || !n.proto.CaughtUp(testVolume) {
				t.Fatalf("%s is not ready", name)
			}
		}
	})
}

// act does one random thing.
func (s *sim) act(t *rapid.T) {
	node := func() *simNode { return s.nodes[rapid.SampledFrom(s.names).Draw(t, "node")] }
	busy := s.busy()
	switch what := rapid.IntRange(0, 11).Draw(t, "what"); {
	case what <= 1:
		if n := node(); n.ready {
			n.write(rapid.IntRange(1, 3).Draw(t, "ops"), rapid.IntRange(1, 100).Draw(t, "size"))
		}
	case what == 2:
		if n := node(); n.ready {
			n.write(1, 10, crdt.Hash{byte(len(s.wants)), byte(len(s.wants) >> 8), 1})
		}
	case what <= 6 && len(busy) > 0:
		s.disturb(t, rapid.SampledFrom(busy).Draw(t, "wire"))
	case what <= 8:
		if n := node(); len(n.tasks) > 0 {
			task := n.tasks[0]
			n.tasks = n.tasks[1:]
			task()
		}
	case what == 9:
		s.advance(time.Duration(rapid.IntRange(1, 700).Draw(t, "ms")) * time.Millisecond)
	case what == 10:
		a, b := node(), node()
		if a != b {
			s.unlink(a.name, b.name)
			s.unlink(b.name, a.name)
		}
	default:
		if a, b := node(), node(); a != b {
			s.link(a.name, b.name)
		}
	}
}

// disturb delivers, loses, doubles or reorders what is first on a wire; all but
// delivering is for pushes only.
func (s *sim) disturb(t *rapid.T, l simLink) {
	wire := s.wires[l]
	_, push := wire[0].(Push)
	how := 0
	if push {
		how = rapid.IntRange(0, 4).Draw(t, "how")
	}
	switch how {
	case 2:
		s.wires[l] = wire[1:]
		s.nodes[l.from].step(Overflowed{l.to})
	case 3:
		s.wires[l] = append(slices.Clone(wire), wire[0])
	case 4:
		s.wires[l] = append(slices.Clone(wire[1:]), wire[0])
	default:
		s.deliver(l, 0)
	}
}
