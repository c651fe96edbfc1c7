package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/synapsefs/synapsefs/store"
)

// drainTime is how long Close lets links write what is queued.
const drainTime = 500 * time.Millisecond

// ErrClosed says that the node has left the cluster.
var ErrClosed = errors.New("cluster is closed")

// A Cluster is this node's part in its cluster: the protocol and all that
// moves it.
type Cluster struct {
	// Fixed by Start.
	opts       Options
	log        *slog.Logger
	identities *identities
	refusals   *refusals
	members    *membership
	server     *grpc.Server
	replica    net.Addr // of the replica service
	transfer   Transfer
	fetching   chan struct{} // a token for each content fetched
	serving    chan struct{} // a token for each pull read from a journal
	ctx        context.Context
	cancel     context.CancelFunc
	running    sync.WaitGroup // all goroutines but memberlist's and workers
	alarm      chan struct{}  // holds a token if the protocol's Wake changed
	badBatches atomic.Uint64

	mu       sync.Mutex // guards what follows
	proto    *Protocol
	volumes  map[store.VolumeID]*heldVolume
	links    map[string]*link
	inbounds map[string]*inbound
	cut      map[string]bool // peers that a test keeps away
	wake     time.Time       // of the protocol, as the alarm loop knows it
	changed  chan struct{}   // closed at the next step or wakeUp, if waiting
	waiting  bool
	overflow []string // peers whose queues were full during a step
	closed   bool
}

// Start joins the cluster. Volumes are added later. ctx bounds the start only.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if err := o.setDefaults(); err != nil {
		return nil, fmt.Errorf("start replication: %w", err)
	}
	c := &Cluster{
		opts: o, log: o.Log, identities: newIdentities(o.Keys), refusals: newRefusals(o.Now),
		transfer: o.Transfer, fetching: make(chan struct{}, 8), serving: make(chan struct{}, 4),
		alarm: make(chan struct{}, 1), proto: NewProtocol(o.Limits),
		volumes: map[store.VolumeID]*heldVolume{}, links: map[string]*link{},
		inbounds: map[string]*inbound{}, cut: map[string]bool{}, changed: make(chan struct{}),
	}
	if c.transfer == nil {
		c.transfer = &blockTransfer{db: o.DB, client: c.client}
	}
	if err := c.identities.ownAll(o.DB); err != nil {
		return nil, fmt.Errorf("state directory %s of node %q: %w", o.StateDir, o.Node, err)
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	listener, err := c.listenReplica()
	if err == nil {
		c.replica = listener.Addr()
		c.members, err = startMembership(&c.opts, c.replica, c.refusals, c.accepted)
	}
	if err == nil && ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), c.members.close())
	}
	if err != nil {
		c.cancel()
		if listener != nil {
			listener.Close()
		}
		return nil, fmt.Errorf("start replication of node %q: %w", o.Node, err)
	}
	c.running.Go(func() {
		if err := c.server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			c.log.Error("replica service ended", "err", err)
		}
	})
	c.running.Go(func() { c.members.run(c.ctx) })
	c.running.Go(c.followMembers)
	c.running.Go(c.tick)
	c.running.Go(c.speakLoop)
	c.running.Go(c.watchReady)
	return c, nil
}

// Close leaves the cluster. Own batches that are queued leave first, if that is
// quick.
func (c *Cluster) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	volumes := make([]*heldVolume, 0, len(c.volumes))
	for _, hv := range c.volumes {
		volumes = append(volumes, hv)
	}
	c.mu.Unlock()
	for _, hv := range volumes {
		hv.unsubscribe()
	}
	c.drain()
	c.cancel()
	c.server.Stop()
	for _, hv := range volumes {
		hv.close()
	}
	c.running.Wait()
	return c.members.close()
}

// drain waits a moment for the links to write what is queued.
func (c *Cluster) drain() {
	deadline := time.NewTimer(drainTime)
	defer deadline.Stop()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !c.idle() {
		select {
		case <-deadline.C:
			return
		case <-ticker.C:
		}
	}
}

func (c *Cluster) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.links {
		if !l.queue.idle() {
			return false
		}
	}
	return true
}

// step gives the protocol an event and does what it wants.
func (c *Cluster) step(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stepLocked(e)
}

// stepFrom is for events of an inbound link: one that was replaced has no say.
func (c *Cluster) stepFrom(in *inbound, e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inbounds[in.node] == in {
		c.stepLocked(e)
	}
}

func (c *Cluster) stepLocked(e Event) {
	for _, effect := range c.proto.Step(c.opts.Now(), e) {
		c.performLocked(effect)
	}
	for len(c.overflow) > 0 {
		full := c.overflow
		c.overflow = nil
		for _, node := range full {
			for _, effect := range c.proto.Step(c.opts.Now(), Overflowed{node}) {
				c.performLocked(effect)
			}
		}
	}
	if w := c.proto.Wake(); !w.Equal(c.wake) {
		c.wake = w
		select {
		case c.alarm <- struct{}{}:
		default:
		}
	}
	c.wakeUpLocked()
}

// wakeUp makes those in await look again, after a change that was no step.
func (c *Cluster) wakeUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wakeUpLocked()
}

func (c *Cluster) wakeUpLocked() {
	if c.waiting {
		close(c.changed)
		c.changed, c.waiting = make(chan struct{}), false
	}
}

// await returns when cond holds; cond is called with the lock held.
func (c *Cluster) await(ctx context.Context, cond func() bool) error {
	for {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return ErrClosed
		}
		if cond() {
			c.mu.Unlock()
			return nil
		}
		c.waiting = true
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.ctx.Done():
			return ErrClosed
		}
	}
}

// tick gives the protocol its ticks.
func (c *Cluster) tick() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		c.mu.Lock()
		wake := c.wake
		c.mu.Unlock()
		wait := time.Hour
		if !wake.IsZero() {
			wait = max(wake.Sub(c.opts.Now()), 0)
		}
		timer.Reset(wait)
		select {
		case <-c.ctx.Done():
			return
		case <-c.alarm:
		case <-timer.C:
			c.step(Tick{})
		}
	}
}

// watchReady notices replicas that somebody else declared ready.
func (c *Cluster) watchReady() {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-ticker.C:
		}
		for _, hv := range c.unready() {
			if hv.v.Ready() {
				c.step(ReadySaved{Volume: hv.v.ID()})
			}
		}
	}
}

func (c *Cluster) unready() (out []*heldVolume) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, hv := range c.volumes {
		if !c.proto.Ready(id) {
			out = append(out, hv)
		}
	}
	return out
}

// followMembers keeps a link to each member.
func (c *Cluster) followMembers() {
	for {
		live := c.members.live()
		c.mu.Lock()
		for node, m := range live {
			if l := c.links[node]; l != nil {
				l.update(m, true)
			} else {
				c.links[node] = c.newLink(m)
			}
		}
		for node, l := range c.links {
			if _, ok := live[node]; !ok {
				l.update(member{}, false)
			}
		}
		c.wakeUpLocked()
		c.mu.Unlock()
		select {
		case <-c.ctx.Done():
			return
		case <-c.members.changed:
		}
	}
}

// linkEnded drops a link that gave up.
func (c *Cluster) linkEnded(l *link) {
	c.mu.Lock()
	if c.links[l.node] == l {
		delete(c.links, l.node)
	}
	c.mu.Unlock()
	c.members.signal() // it may have come back just then
}

// peerCame makes an inbound link the one that counts for its node.
func (c *Cluster) peerCame(in *inbound) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.inbounds[in.node]; old != nil {
		old.end(errors.New("replaced by a newer link"))
		c.stepLocked(PeerGone{in.node})
	}
	c.inbounds[in.node] = in
	if l := c.links[in.node]; l != nil {
		select { // it is there: dial it now
		case l.poke <- struct{}{}:
		default:
		}
	}
}

// peerGone ends an inbound link.
func (c *Cluster) peerGone(in *inbound) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inbounds[in.node] == in {
		delete(c.inbounds, in.node)
		c.stepLocked(PeerGone{in.node})
	}
}

// isCut reports whether a test keeps a peer away.
func (c *Cluster) isCut(node string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut[node]
}

// setCut cuts both links with a peer, or lets them come back.
func (c *Cluster) setCut(node string, cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut[node] = cut
	if in := c.inbounds[node]; in != nil && cut {
		in.end(errCut)
	}
	l := c.links[node]
	if l == nil {
		return
	}
	if cut {
		l.breakUp(errCut)
		return
	}
	select {
	case l.poke <- struct{}{}:
	default:
	}
}
