package gossip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/internal/wire"
)

const (
	// maxFrame bounds every message, in bytes: a batch is at most 512 KiB
	// and one op, a snapshot chunk 256 KiB and one record.
	maxFrame = 8 << 20

	dialTimeout  = 5 * time.Second
	redialFirst  = 50 * time.Millisecond
	redialMost   = 5 * time.Second
	refusedDelay = 10 * time.Second
	pingEvery    = time.Second
	// A link without a pong for silence is cut if memberlist says that the
	// peer is gone, for longSilence in any case: a peer that merges much
	// answers late, and is no better off with a new link. Dead hosts are
	// found by HTTP/2 pings, which do not queue behind frames.
	silence          = 5 * time.Second
	longSilence      = 30 * time.Second
	keepaliveEvery   = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
)

var (
	errSilent   = errors.New("no sign of life")
	errFlooded  = errors.New("too many frames wait for it")
	errCut      = errors.New("cut for a test")
	errNoMember = errors.New("it is no member any more")
)

// A link carries this node's frames to one peer, and its bulk requests. Its
// goroutine dials again until the peer is no member any more.
type link struct {
	// Fixed by newLink.
	cluster *Cluster
	node    string
	log     *slog.Logger
	queue   *queue
	poke    chan struct{} // holds a token: dial now
	stop    context.CancelFunc

	rtt  atomic.Int64 // nanoseconds, of the last ping
	pong atomic.Int64 // Unix nanoseconds, of the last sign of life

	mu      sync.Mutex // guards what follows
	address string     // of the replica service
	peer    uint64     // instance of the member
	far     uint64     // instance at the other end, while up
	member  bool
	up      bool
	err     error // why it is not up
	cut     context.CancelCauseFunc
	bulk    *grpc.ClientConn
}

// newLink starts to link to a member.
func (c *Cluster) newLink(m member) *link {
	ctx, stop := context.WithCancel(c.ctx)
	l := &link{
		cluster: c, node: m.node, log: c.log.With("peer", m.node), queue: newQueue(),
		poke: make(chan struct{}, 1), stop: stop, address: m.replica, peer: m.instance, member: true,
	}
	c.running.Go(func() {
		l.run(ctx)
		stop()
		c.linkEnded(l)
	})
	return l
}

// update takes what memberlist says of the peer now.
func (l *link) update(m member, live bool) {
	l.mu.Lock()
	anew := live && l.peer != m.instance
	moved := live && l.address != m.replica
	news := live && (!l.member || moved || anew)
	moved = moved || anew && l.far != m.instance
	l.member = live
	if live {
		l.address, l.peer = m.replica, m.instance
	}
	cut := l.cut
	l.mu.Unlock()
	if moved && cut != nil {
		cut(fmt.Errorf("peer started anew, at %s", m.replica))
	}
	if news || !live {
		select {
		case l.poke <- struct{}{}:
		default:
		}
	}
}

// why is what keeps the link from being up, nil if nothing is known.
func (l *link) why() error {
	if l == nil {
		return nil // the member came this moment
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *link) isUp() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up
}

// isMember reports whether the peer is one and where to dial it.
func (l *link) isMember() (address string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.address, l.member
}

func (l *link) run(ctx context.Context) {
	delay := redialFirst
	for ctx.Err() == nil {
		address, ok := l.isMember()
		if !ok {
			return
		}
		was, err := l.session(ctx, address)
		if ctx.Err() != nil {
			return
		}
		l.mu.Lock()
		l.err = err
		l.mu.Unlock()
		l.cluster.wakeUp() // who waits for the peer may give it up
		switch {
		case status.Code(err) == codes.FailedPrecondition:
			delay = refusedDelay
			if l.cluster.refusals.add(l.node, "it refused this node: "+status.Convert(err).Message()) {
				l.log.Error("refused by a peer", "err", err)
			}
		case was:
			l.log.Info("link is down", "err", err)
			delay = redialFirst
		default:
			l.log.Debug("dial", "address", address, "err", err)
			delay = min(2*delay, redialMost)
		}
		select {
		case <-ctx.Done():
		case <-l.poke:
			delay = redialFirst
		case <-time.After(delay - time.Duration(rand.Int64N(int64(delay)/4))):
		}
	}
}

// dial makes a connection; nothing is sent before the first call.
func (l *link) dial(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(clientTLS(l.cluster.opts.Keys, l.node))),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxFrame), grpc.MaxCallSendMsgSize(maxFrame)),
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), grpc.WithNoProxy(), grpc.WithIdleTimeout(0),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveEvery, Timeout: keepaliveTimeout}),
	)
}

// session is one life of the link; up says that it was established.
func (l *link) session(ctx context.Context, address string) (up bool, err error) {
	if l.cluster.isCut(l.node) {
		return false, errCut
	}
	conn, err := l.dial(address)
	if err != nil {
		return false, fmt.Errorf("dial %s: %w", address, err)
	}
	defer conn.Close()
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	stream, hello, err := l.greet(ctx, cut, conn)
	if err != nil {
		return false, fmt.Errorf("link to %s: %w", address, orCause(ctx, err))
	}
	l.setUp(cut, hello.GetInstance())
	defer l.setDown()
	l.cluster.step(LinkUp{l.node})
	defer l.cluster.step(LinkDown{l.node})
	l.log.Info("link is up", "address", address)
	var watching sync.WaitGroup
	watching.Go(func() { cut(l.receive(stream)) })
	watching.Go(func() { l.watch(ctx, cut) })
	err = l.write(ctx, stream)
	cut(err)
	watching.Wait()
	return true, context.Cause(ctx)
}

// orCause returns why ctx ended, if it did, instead of err.
func orCause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (l *link) setUp(cut context.CancelCauseFunc, instance uint64) {
	l.queue.setOpen(true)
	l.pong.Store(l.cluster.opts.Now().UnixNano())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up, l.err, l.cut, l.far = true, nil, cut, instance
	l.cluster.refusals.drop(l.node)
}

func (l *link) setDown() {
	l.queue.setOpen(false)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up, l.cut = false, nil
	if l.bulk != nil {
		l.bulk.Close()
		l.bulk = nil
	}
}

type exchangeClient = grpc.BidiStreamingClient[wire.Frame, wire.Frame]

// greet opens the stream and exchanges Hellos.
func (l *link) greet(ctx context.Context, cut context.CancelCauseFunc, conn *grpc.ClientConn) (exchangeClient, *wire.Hello, error) {
	timer := time.AfterFunc(dialTimeout, func() { cut(errSilent) })
	defer timer.Stop()
	stream, err := wire.NewReplicaClient(conn).Exchange(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := stream.Send(l.cluster.hello()); err != nil && err != io.EOF {
		return nil, nil, err
	}
	f, err := stream.Recv() // after io.EOF from Send it says why
	if err != nil {
		return nil, nil, err
	}
	if err := l.cluster.checkHello(f.GetHello(), l.node); err != nil {
		if l.cluster.refusals.add(l.node, err.Error()) {
			l.log.Error("refused a peer", "err", err)
		}
		return nil, nil, err
	}
	return stream, f.GetHello(), nil
}

// write sends what is queued, as soon as it is.
func (l *link) write(ctx context.Context, stream exchangeClient) error {
	for {
		for _, f := range l.queue.take() {
			if err := stream.Send(f); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-l.queue.ready:
		}
	}
}

// receive takes the answers to pings.
func (l *link) receive(stream exchangeClient) error {
	for {
		f, err := stream.Recv()
		if err != nil {
			return err
		}
		if p := f.GetPong(); p != nil {
			now := l.cluster.opts.Now().UnixNano()
			l.pong.Store(now)
			l.rtt.Store(now - int64(p.GetId()))
		}
	}
}

// watch pings, and cuts a link that is silent.
func (l *link) watch(ctx context.Context, cut context.CancelCauseFunc) {
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := l.cluster.opts.Now()
		quiet := now.Sub(time.Unix(0, l.pong.Load()))
		if _, member := l.isMember(); quiet > longSilence || quiet > silence && !member {
			cut(errSilent)
			return
		}
		l.queue.control(&wire.Frame{Body: &wire.Frame_Ping{Ping: &wire.Ping{Id: uint64(now.UnixNano())}}})
	}
}

// breakUp ends the present session.
func (l *link) breakUp(why error) {
	l.mu.Lock()
	cut := l.cut
	l.mu.Unlock()
	if cut != nil {
		cut(why)
	}
}

// client is for bulk requests, over a connection of their own so that pushes
// do not queue behind them.
func (l *link) client() (wire.ReplicaClient, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.up {
		return nil, fmt.Errorf("no link to peer %q: %w", l.node, orNil(l.err, errNoMember))
	}
	if l.bulk == nil {
		conn, err := l.dial(l.address)
		if err != nil {
			return nil, fmt.Errorf("dial peer %q: %w", l.node, err)
		}
		l.bulk = conn
	}
	return wire.NewReplicaClient(l.bulk), nil
}

func orNil(err, otherwise error) error {
	if err == nil {
		return otherwise
	}
	return err
}
