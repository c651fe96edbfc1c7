package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/synapsefs/synapsefs/gossip"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A node is one host: a disk, and while it is up a store and a protocol on it.
type node struct {
	w      *world
	index  int
	name   string
	dir    string
	mem    *store.Memory
	random *rand.ChaCha8
	skew   time.Duration
	boots  int

	up    bool
	life  int // counts starts: events of an earlier life are void
	db    *store.DB
	vol   *store.Volume
	proto *gossip.Protocol
	wake  time.Time // of the protocol, as it is scheduled
	merge time.Duration

	fuse  int  // writes until it is killed, 0 if it is not to be
	after bool // killed after that write, else before
	power bool // with its machine
	dead  bool // killed, and about to be down

	mounted bool
	user    user
}

// mount is the one through which users work.
const mount store.MountID = 1

// A kernel knows every file: one that a peer changes gets a new node.
type kernel struct{}

func (kernel) Prepare(c *store.Changes) (switched []crdt.Ino) {
	for _, i := range c.Inodes {
		if i.Content && c.By == 0 {
			switched = append(switched, i.Ino)
		}
	}
	return switched
}

func (kernel) Committed(*store.Changes) {}
func (kernel) Aborted(*store.Changes)   {}

// Shows says no: what is merged is shown at once.
func (kernel) Shows(crdt.Ino) bool { return false }

// Knows says no: nothing is read from a node whose handles are closed.
func (kernel) Knows(store.NodeID) bool { return false }

// killed is what a node's death panics with.
type killed struct{ n *node }

// clock is the node's: its wall clock is wrong by its skew.
func (n *node) clock() time.Time {
	return reading(epoch+int64(n.w.now+n.skew), int64(n.w.now))
}

// steady is the clock that the protocol sees: it only measures.
func (n *node) steady() time.Time { return reading(epoch, int64(n.w.now)) }

// start opens the store on what is on the disk.
func (n *node) start() {
	n.life++
	n.user.forgetHandles()
	mem := n.mem
	mem.Hook = func(committed bool) {
		if n.fuse > 0 && committed == n.after {
			n.fuse--
			n.dead = n.fuse == 0
		}
		if n.dead || n.mem != mem {
			panic(killed{n}) // a dead process writes no more
		}
	}
	n.guard(func() {
		disk := mem
		if n.w.real {
			disk = nil
		}
		db, err := store.Open(store.Options{
			Dir: n.dir, Memory: disk, Random: n.source(), Now: n.clock, Scheduler: background{n, n.life},
			InlineLimit: inlineLimit, ReserveBytes: 1, Log: n.log(),
		})
		if err != nil {
			n.w.fail("%s: open: %w", n.name, err)
			return
		}
		v := db.Volume(n.w.volume)
		if v == nil {
			if v, err = db.CreateReplica(n.w.volume, "sim", n.index == 0); err != nil {
				n.w.fail("%s: create replica: %w", n.name, err)
				return
			}
			if err := v.Sync(); err != nil {
				n.w.fail("%s: sync: %w", n.name, err)
			}
		}
		n.db, n.vol, n.up, n.merge = db, v, true, n.w.now
		n.checkRestart()
		if n.mounted {
			v.AddViewer(mount, kernel{})
		}
		v.OnSeal(func(b *store.Batch) {
			n.w.ops.add(n.w, b)
			n.checkSealed(b)
			n.step(gossip.LocalBatch{Volume: b.Volume, Batch: batchOf(b, nil)})
		})
		n.proto, n.wake = gossip.NewProtocol(gossip.Limits{SnapshotOver: 3, PullBytes: 4000}), time.Time{}
		n.step(gossip.VolumeOpened{Holding: gossip.Holding{Volume: v.ID(), Replica: v.Replica(), Ready: v.Ready(), Vector: v.Vector()}})
	})
	if n.up {
		n.w.note("%s is up as %v", n.name, n.vol.Replica())
		n.w.relink()
	}
}

// source is where the node's ids come from.
func (n *node) source() io.Reader {
	if n.w.real {
		return nil // it lives more often than its world
	}
	return n.random
}

func (n *node) log() *slog.Logger {
	if n.w.verbose == nil {
		return nil
	}
	return slog.New(slog.NewTextHandler(n.w.verbose, nil)).With("node", n.name)
}

// guard runs what the node does; if it is killed doing it, it is down. It
// reports whether it came to the end.
func (n *node) guard(fn func()) (whole bool) {
	defer func() {
		if e := recover(); e != nil {
			if k, ok := e.(killed); !ok || k.n != n {
				panic(e)
			}
			n.died()
		}
	}()
	fn()
	return true
}

// died leaves on the disk what the kill left, and starts the node again later.
func (n *node) died() {
	w := n.w
	w.note("%s is killed, power loss: %v", n.name, n.power)
	n.user.died(n.power)
	if n.power {
		w.lossy = true
		n.boots++
		n.mem = n.mem.AfterPowerLoss(fmt.Sprint("boot", n.boots))
	} else {
		n.mem = n.mem.AfterKill()
	}
	n.fuse, n.dead = 0, false
	n.down()
	life := n.life
	w.after(w.between(0, 2*time.Second), func() {
		if n.life == life && !n.up {
			n.start()
		}
	})
}

// down takes the node off the network.
func (n *node) down() {
	n.up, n.db, n.vol, n.proto = false, nil, nil, nil
	n.life++
	n.w.eachWire(func(l *wire) {
		if l.from == n || l.to == n {
			l.end()
		}
	})
}

// stop closes the store, if the node is up.
func (n *node) stop() {
	if !n.up {
		return
	}
	db := n.db
	whole := n.guard(func() {
		if err := db.Close(); err != nil {
			n.w.fail("%s: close: %w", n.name, err)
		}
	})
	if whole {
		n.user.died(false)
		n.user.synced = n.user.acked
		n.mem = n.mem.AfterKill()
		n.down()
	}
}

// later has fn called when d is over, if the node is not restarted before.
func (n *node) later(d time.Duration, fn func()) {
	life := n.life
	n.w.after(d, func() {
		if n.life == life {
			n.guard(fn)
		}
	})
}

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
		n.inOrder(func() { n.mergeBatch(e.Batch) })
	case gossip.BecomeReady:
		n.inOrder(func() { n.step(gossip.ReadySaved{Volume: n.w.volume, Err: n.vol.SetReady()}) })
	case gossip.TakeSnapshot:
		n.inOrder(func() { n.takeSnapshot(e.Peer) })
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
		if errors.Is(e.Err, bad) {
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
		Origin: b.Origin, First: b.First, Last: b.Last, Deps: b.Deps, Hash: b.Digest(), Wants: wants, Size: size, Body: b,
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

func (n *node) mergeBatch(b *gossip.Batch) {
	e := gossip.Merged{Volume: n.w.volume, Batch: b, Err: n.vol.Merge(b.Body)}
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

func (n *node) takeSnapshot(peer string) {
	err := n.joinSnapshot(peer)
	n.w.note("%s takes a snapshot of %s: %v", n.name, peer, err)
	if err != nil && !errors.Is(err, errUnreachable) && !errors.Is(err, gossip.ErrAbsent) {
		n.w.fail("%s: snapshot: %w", n.name, err)
	}
	n.w.ops.checkCausal(n)
	n.step(gossip.SnapshotTaken{Volume: n.w.volume, Peer: peer, Vector: n.vol.Vector(), Err: err})
}

func (n *node) joinSnapshot(peer string) error {
	from := n.w.find(peer)
	if from == nil || !n.w.reaches(n, from) {
		return errUnreachable
	}
	return n.vol.JoinSnapshot(context.Background(), &snapshotSource{n, from})
}

// A snapshotSource is another node that a snapshot is taken from.
type snapshotSource struct{ n, from *node }

// Read implements store.SnapshotSource.
func (s *snapshotSource) Read(ctx context.Context, r store.SnapshotRequest) (func() ([]byte, error), error) {
	var chunks [][]byte
	var err error
	if !s.from.guard(func() {
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
