package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/synapsefs/synapsefs/internal/wire"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A heldVolume is one replica that this node replicates.
type heldVolume struct {
	// Fixed by AddVolume.
	v      *store.Volume
	log    *slog.Logger
	ctx    context.Context // ends with the volume
	cancel context.CancelFunc
	merges worker // merges, snapshots, readiness: in order
	serves worker // reads from the journal
	own    ownIdentities
	words  words

	unsubscribe func()

	mu      sync.Mutex // guards what follows
	ended   bool
	active  sync.WaitGroup // calls served and contents fetched
	arrived []*Batch       // to be merged
}

// ownIdentities are the encoded identities of this node's replica, under all ids
// that it had. The lock is a leaf.
type ownIdentities struct {
	mu      sync.Mutex
	records map[crdt.ReplicaID][]byte
}

func (o *ownIdentities) of(r crdt.ReplicaID) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.records[r]
}

// enter keeps the volume from being closed until leave; false if it is.
func (hv *heldVolume) enter() bool {
	hv.mu.Lock()
	defer hv.mu.Unlock()
	if !hv.ended {
		hv.active.Add(1)
	}
	return !hv.ended
}

func (hv *heldVolume) leave() { hv.active.Done() }

// close returns when nothing uses the volume any more.
func (hv *heldVolume) close() {
	hv.unsubscribe()
	hv.mu.Lock()
	hv.ended = true
	hv.mu.Unlock()
	hv.cancel()
	hv.merges.close()
	hv.serves.close()
	hv.active.Wait()
}

// AddVolume begins to replicate a volume. Adding one again does nothing.
func (c *Cluster) AddVolume(v *store.Volume) {
	c.mu.Lock()
	if c.closed || c.volumes[v.ID()] != nil {
		c.mu.Unlock()
		return
	}
	hv := &heldVolume{v: v, log: c.log.With("volume", v.Name())}
	hv.own.records, hv.words.last = map[crdt.ReplicaID][]byte{}, map[crdt.ReplicaID]word{}
	hv.ctx, hv.cancel = context.WithCancel(c.ctx)
	// Batches sealed before the protocol knows the volume are in its vector.
	onSeal := v.OnSeal(func(b *store.Batch) { c.sealed(hv, b) })
	onCollect := v.OnCollect(func() { hv.serves.add(func() { c.speak(hv) }) })
	hv.unsubscribe = func() { onSeal(); onCollect() }
	c.volumes[v.ID()] = hv
	c.mu.Unlock()
	if _, err := c.introduce(hv, v.Replica()); err != nil {
		hv.log.Error("identity of this replica: peers will refuse its changes", "err", err)
		c.refusals.add(c.opts.Node, err.Error())
	}
	opened := VolumeOpened{Holding{Volume: v.ID(), Replica: v.Replica(), Ready: v.Ready(), Vector: v.Vector(), Collected: v.Collected()}}
	c.stepFor(hv, opened)
	hv.serves.add(func() { c.speak(hv) })
	// What was sealed between reading the vector and that step was ignored.
	c.stepFor(hv, Advanced{v.ID(), v.Vector()})
}

// RemoveVolume ends the replication of a volume and returns when nothing uses
// it any more.
func (c *Cluster) RemoveVolume(id store.VolumeID) {
	c.mu.Lock()
	hv := c.volumes[id]
	delete(c.volumes, id)
	if hv != nil {
		c.stepLocked(VolumeClosed{id})
	}
	c.mu.Unlock()
	if hv != nil {
		hv.close()
	}
}

// held returns a volume that is replicated here, or nil.
func (c *Cluster) held(id store.VolumeID) *heldVolume {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.volumes[id]
}

// introduce returns the identity record of this node's replica r, making it if
// need be.
func (c *Cluster) introduce(hv *heldVolume, r crdt.ReplicaID) ([]byte, error) {
	if record := hv.own.of(r); record != nil {
		return record, nil
	}
	if err := c.identities.own(hv.v, r); err != nil {
		return nil, err
	}
	record, err := hv.v.Identity(r)
	if err != nil {
		return nil, err
	}
	hv.own.mu.Lock()
	defer hv.own.mu.Unlock()
	hv.own.records[r] = record
	return record, nil
}

// sealed pushes a batch of this node's replica. It is the store's callback.
func (c *Cluster) sealed(hv *heldVolume, body *store.Batch) {
	b := batchOf(body, nil)
	b.encoded = body.Encode()
	var err error
	if b.identity, err = c.introduce(hv, body.Origin); err != nil {
		hv.log.Error("identity of this replica", "err", err)
	}
	c.stepFor(hv, LocalBatch{hv.v.ID(), b})
}

// stepFor is for events of a volume, unless it was removed meanwhile.
func (c *Cluster) stepFor(hv *heldVolume, e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.volumes[hv.v.ID()] == hv {
		c.stepLocked(e)
	}
}

// performLocked begins an effect. Nothing here blocks.
func (c *Cluster) performLocked(effect Effect) {
	switch e := effect.(type) {
	case Send:
		c.sendLocked(e)
	case Report:
		c.report(e, c.volumes[e.Volume])
	case Merge:
		hv := c.volumes[e.Volume]
		hv.mu.Lock()
		hv.arrived = append(hv.arrived, e.Batch)
		hv.mu.Unlock()
		hv.merges.add(func() { c.merge(hv) })
	case FetchContent:
		c.fetchLocked(c.volumes[e.Volume], e)
	case TakeSnapshot:
		hv := c.volumes[e.Volume]
		hv.merges.add(func() { c.takeSnapshot(hv, e.Peer, e.Anew) })
	case Hear:
		hv := c.volumes[e.Volume]
		hv.serves.add(func() { hv.v.Hear(e.Members) })
	case Verify:
		hv := c.volumes[e.Volume]
		hv.serves.add(func() { c.verify(hv, e) })
	case BecomeReady:
		hv := c.volumes[e.Volume]
		hv.merges.add(func() { c.step(ReadySaved{hv.v.ID(), hv.v.SetReady()}) })
	case Serve:
		hv := c.volumes[e.Volume]
		hv.serves.add(func() { c.serve(hv, e) })
	case ServeIdentities:
		hv := c.volumes[e.Volume]
		hv.serves.add(func() { c.serveIdentities(hv, e) })
	}
}

func (c *Cluster) sendLocked(e Send) {
	l := c.links[e.Peer]
	if l == nil {
		return
	}
	switch m := e.Message.(type) {
	case Push:
		if !l.queue.push(pushFrame(m), m.Batch.Size) {
			c.overflow = append(c.overflow, e.Peer)
		}
	case Digest:
		l.queue.digest(m.Volume, toWire(m))
	default:
		if !l.queue.control(c.proveLocked(m, toWire(m))) {
			l.breakUp(errFlooded)
		}
	}
}

func (c *Cluster) report(e Report, hv *heldVolume) {
	log := c.log
	if hv != nil {
		log = hv.log
	}
	node := e.Peer
	if node == "" {
		node = c.opts.Node
	}
	if errors.Is(e.Err, context.Canceled) {
		return // the volume is being closed
	}
	if c.refusals.add(node, e.Err.Error()) {
		log.Error("replication", "peer", e.Peer, "err", e.Err)
	}
}

// merge merges what has arrived by now: the more has, the cheaper each is.
func (c *Cluster) merge(hv *heldVolume) {
	hv.mu.Lock()
	batches := hv.arrived
	hv.arrived = nil
	hv.mu.Unlock()
	bodies := make([]*store.Batch, len(batches))
	for n, b := range batches {
		bodies[n] = b.Body
	}
	for len(batches) > 0 {
		n, err := hv.v.MergeAll(bodies)
		for _, b := range batches[:n] {
			c.step(Merged{Volume: hv.v.ID(), Batch: b, Vector: hv.v.Vector()})
		}
		if err != nil {
			c.refused(hv, batches[n], err)
			n++
		}
		batches, bodies = batches[n:], bodies[n:]
	}
}

// refused tells the protocol of a batch that could not be merged.
func (c *Cluster) refused(hv *heldVolume, b *Batch, err error) {
	e := Merged{Volume: hv.v.ID(), Batch: b, Err: err, Vector: hv.v.Vector()}
	if errors.Is(err, store.ErrNoContent) {
		if e.Wants, err = hv.v.Wants(b.Body); err != nil {
			e.Err = err
		}
	}
	c.step(e)
}

// serve reads what a peer lacks.
func (c *Cluster) serve(hv *heldVolume, e Serve) {
	select {
	case c.serving <- struct{}{}:
		defer func() { <-c.serving }()
	case <-hv.ctx.Done():
		return
	}
	out := Served{Peer: e.Peer, Volume: e.Volume}
	var bodies []*store.Batch
	bodies, out.More, out.Err = hv.v.Batches(e.Since, e.MaxBytes)
	identities := map[crdt.ReplicaID][]byte{}
	for _, body := range bodies {
		b := batchOf(body, nil)
		b.encoded = body.Encode()
		record, ok := identities[b.Origin]
		if !ok {
			var err error
			if record, err = hv.v.Identity(b.Origin); err != nil {
				hv.log.Error("read identity", "err", err)
			}
			identities[b.Origin] = record
		}
		b.identity = record
		out.Batches = append(out.Batches, b)
	}
	c.step(out)
}

func (c *Cluster) serveIdentities(hv *heldVolume, e ServeIdentities) {
	w := &wire.Identities{Volume: e.Volume[:]}
	for _, r := range e.Replicas {
		record, err := hv.v.Identity(r)
		if err != nil {
			hv.log.Error("read identity", "err", err)
		}
		if record != nil {
			w.Records = append(w.Records, record)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.links[e.Peer]; l != nil && !l.queue.control(&wire.Frame{Body: &wire.Frame_Identities{Identities: w}}) {
		l.breakUp(errFlooded)
	}
}

// fetchLocked brings content here in a goroutine of its own.
func (c *Cluster) fetchLocked(hv *heldVolume, e FetchContent) {
	if !hv.enter() {
		return
	}
	go func() {
		defer hv.leave()
		c.step(ContentArrived{e.Volume, e.Hash, c.fetch(hv, e)})
	}()
}

func (c *Cluster) fetch(hv *heldVolume, e FetchContent) error {
	select {
	case c.fetching <- struct{}{}:
		defer func() { <-c.fetching }()
	case <-hv.ctx.Done():
		return context.Cause(hv.ctx)
	}
	return c.transfer.Fetch(hv.ctx, e.Volume, e.Peers, e.Hash)
}

// client is for bulk requests to a peer.
func (c *Cluster) client(node string) (wire.ReplicaClient, error) {
	c.mu.Lock()
	l := c.links[node]
	c.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("no link to peer %q: %w", node, errNoMember)
	}
	return l.client()
}
