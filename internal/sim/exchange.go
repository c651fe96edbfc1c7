package sim

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"github.com/synapsefs/synapsefs/gossip"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// step gives the protocol an event and does what it wants.
func (n *node) step(e gossip.Event) {
	if !n.up || n.proto == nil {
		return
	}
	for _, effect := range n.proto.Step(n.steady(), e) {
		n.perform(effect)
	}
	if w := n.proto.Wake(); !w.IsZero() && !w.Equal(n.wake) {
		n.wake = w
		n.later(w.Sub(n.steady()), func() {
			if n.wake.Equal(w) {
				n.wake = time.Time{}
				n.step(gossip.Tick{})
			}
		})
	}
}

func (n *node) perform(effect gossip.Effect) {
	switch e := effect.(type) {
	case gossip.Send:
		if to := n.w.find(e.Peer); to != nil {
			n.w.wires[[2]int{n.index, to.index}].send(e.Message)
		}
	case gossip.Report:
		n.report(e)
	case gossip.Merge:
		n.arrived = append(n.arrived, e.Batch)
		n.inOrder(n.mergeArrived)
	case gossip.Hear:
		n.later(n.w.between(0, time.Millisecond), func() { n.vol.Hear(e.Members) })
	case gossip.Verify:
		n.later(n.w.between(0, time.Millisecond), func() { n.verify(e) })
	case gossip.BecomeReady:
		n.inOrder(func() { n.step(gossip.ReadySaved{Volume: n.w.volume, Err: n.vol.SetReady()}) })
	case gossip.TakeSnapshot:
		n.inOrder(func() { n.takeSnapshot(e.Peer, e.Anew) })
	case gossip.FetchContent:
		n.later(n.w.between(0, 20*time.Millisecond), func() {
			n.step(gossip.ContentArrived{Volume: e.Volume, Hash: e.Hash, Err: n.fetchAny(e.Peers, e.Hash)})
		})
	case gossip.Serve:
		n.later(n.w.between(0, time.Millisecond), func() { n.serve(e) })
	}
}

// inOrder does what the protocol wants done in order.
func (n *node) inOrder(fn func()) {
	n.merge = max(n.merge, n.w.now+n.w.between(0, time.Millisecond))
	n.later(n.merge-n.w.now, fn)
}

func (w *world) find(name string) *node {
	for _, n := range w.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

// report takes what people should know: much of it should not be.
func (n *node) report(e gossip.Report) {
	n.w.note("%s reports: %v", n.name, e.Err)
	for _, bad := range []error{store.ErrBadBatch, store.ErrDamaged, crdt.ErrMalformed, gossip.ErrTwoReplicas} {
		restored := len(n.w.doubted) > 0 && bad == gossip.ErrTwoReplicas
		if errors.Is(e.Err, bad) && !restored {
			n.w.fail("%s: %w", n.name, e.Err)
		}
	}
}

// batchOf is what the protocol knows of a batch.
func batchOf(b *store.Batch, wants []crdt.Hash) *gossip.Batch {
	size := 256
	for _, op := range b.Ops {
		size += len(op)
	}
	return &gossip.Batch{
		Origin: b.Origin, First: b.First, Last: b.Last, Deps: b.Deps, Hash: b.Chain(b.Last), Wants: wants, Size: size, Body: b,
	}
}

// receive takes a message off a wire.
func (n *node) receive(from *node, m gossip.Message) {
	if !n.up {
		return
	}
	n.guard(func() {
		if p, ok := m.(gossip.Push); ok {
			n.w.ops.add(n.w, p.Batch.Body)
			n.w.ops.got[p.Batch.Origin] = max(n.w.ops.got[p.Batch.Origin], p.Batch.Last)
			wants, err := n.vol.Wants(p.Batch.Body)
			if err != nil {
				n.w.fail("%s: wants of batch %v:%d: %w", n.name, p.Batch.Origin, p.Batch.First, err)
			}
			b := *p.Batch
			b.Wants = wants
			m = gossip.Push{Volume: p.Volume, Batch: &b}
		}
		n.step(gossip.Received{Peer: from.name, Message: m})
	})
}

// mergeArrived merges some of what has arrived by now, in one go: later calls,
// one for each batch, merge the rest.
func (n *node) mergeArrived() {
	if len(n.arrived) == 0 {
		return
	}
	batches := n.arrived[:1+n.w.rand.IntN(len(n.arrived))]
	n.arrived = n.arrived[len(batches):]
	bodies := make([]*store.Batch, len(batches))
	for k, b := range batches {
		bodies[k] = b.Body
	}
	for len(batches) > 0 {
		k, err := n.vol.MergeAll(bodies)
		for _, b := range batches[:k] {
			n.w.ops.merged(n, b.Body)
			n.merged(b, nil)
		}
		if err != nil {
			n.merged(batches[k], err)
			k++
		}
		batches, bodies = batches[k:], bodies[k:]
	}
}

// merged tells the protocol what came of a batch.
func (n *node) merged(b *gossip.Batch, err error) {
	e := gossip.Merged{Volume: n.w.volume, Batch: b, Err: err}
	if errors.Is(e.Err, store.ErrNoContent) {
		var err error
		if e.Wants, err = n.vol.Wants(b.Body); err != nil {
			e.Err = err
		}
	}
	e.Vector = n.vol.Vector()
	n.w.note("%s merges %v:%d-%d: %v", n.name, b.Origin, b.First, b.Last, e.Err)
	n.w.ops.checkCausal(n)
	n.step(e)
}

func (n *node) serve(e gossip.Serve) {
	out := gossip.Served{Peer: e.Peer, Volume: e.Volume}
	var bodies []*store.Batch
	bodies, out.More, out.Err = n.vol.Batches(e.Since, e.MaxBytes)
	for _, b := range bodies {
		out.Batches = append(out.Batches, batchOf(b, nil))
	}
	n.step(out)
}

var errUnreachable = errors.New("not reachable")

func (n *node) takeSnapshot(peer string, anew bool) {
	take, as := n.vol.JoinSnapshot, n.vol.Replica()
	if anew {
		take, as = n.vol.BeginAnew, n.vol.Next()
		n.user.beginning = as
	}
	err := errUnreachable
	if from := n.w.find(peer); from != nil && n.w.reaches(n, from) && from.proto.Serves(n.w.volume, n.name) {
		n.checkReason(from, anew)
		err = take(context.Background(), &snapshotSource{n, from, as})
	}
	n.w.note("%s takes a snapshot of %s, anew: %v: %v", n.name, peer, anew, err)
	if err != nil && !errors.Is(err, errUnreachable) && !errors.Is(err, gossip.ErrAbsent) {
		n.w.fail("%s: snapshot: %w", n.name, err)
	}
	if anew && err == nil {
		n.begunAnew()
	}
	n.w.ops.checkCausal(n)
	n.step(gossip.SnapshotTaken{
		Volume: n.w.volume, Peer: peer, Vector: n.vol.Vector(), Err: err,
		Anew: anew, Self: n.vol.Replica(), Collected: n.vol.Collected(),
	})
	if err == nil {
		n.speak()
	}
}

// A snapshotSource is another node that a snapshot is taken from.
type snapshotSource struct {
	n, from *node
	as      crdt.ReplicaID // that will have it
}

// Node implements store.SnapshotSource.
func (s *snapshotSource) Node() string { return s.from.name }

// Read implements store.SnapshotSource.
func (s *snapshotSource) Read(ctx context.Context, r store.SnapshotRequest) (func() ([]byte, error), error) {
	var chunks [][]byte
	var err error
	if !s.from.guard(func() {
		s.from.vol.Know(s.as, s.n.name)
		err = s.from.vol.WriteSnapshot(ctx, r, func(c []byte) error { chunks = append(chunks, bytes.Clone(c)); return nil })
	}) {
		return nil, errUnreachable
	}
	if err != nil {
		return nil, err
	}
	keep := len(chunks)
	if w := s.n.w; !w.calm && w.chance(20) {
		keep = w.rand.IntN(len(chunks) + 1)
	}
	return func() ([]byte, error) {
		if len(chunks) == 0 {
			return nil, io.EOF
		}
		if keep--; keep < 0 {
			return nil, errUnreachable
		}
		c := chunks[0]
		chunks = chunks[1:]
		return c, nil
	}, nil
}

// Content implements store.SnapshotSource.
func (s *snapshotSource) Content(_ context.Context, h crdt.Hash) error {
	return s.n.copyContent(s.from, h)
}

// Verify implements store.SnapshotSource.
func (s *snapshotSource) Verify(*store.Batch) error { return nil }

func (n *node) fetchAny(peers []string, h crdt.Hash) error {
	for _, peer := range peers {
		if from := n.w.find(peer); from != nil && n.w.reaches(n, from) {
			if err := n.copyContent(from, h); err == nil || !errors.Is(err, store.ErrNoContent) {
				return err
			}
		}
	}
	return gossip.ErrAbsent
}

// copyContent copies a manifest and its blocks from another node.
func (n *node) copyContent(from *node, h crdt.Hash) error {
	m, ok, err := from.db.Content().Manifest(h)
	if err != nil {
		return err
	}
	if !ok {
		return store.ErrNoContent
	}
	missing, err := n.db.Content().Missing(m)
	if err != nil {
		return err
	}
	in, err := n.db.Content().NewIncoming()
	if err != nil {
		return err
	}
	defer in.Abort()
	for _, block := range missing {
		b, err := from.db.Content().Block(block)
		if err == nil {
			err = in.Put(block, b)
		}
		if err != nil {
			return err
		}
	}
	encoded, _ := m.Encode()
	return errors.Join(in.Commit(), n.db.Index().PutManifest(h, encoded))
}
