package gossip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/internal/wire"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

const (
	maxStreams   = 64   // of one connection at a time
	maxConns     = 4096 // those being refused included
	maxFetches   = 16   // fetches served at a time
	maxSnapshots = 2    // snapshots served at a time
	pieceSize    = 256 << 10
	// inboundSilence is how long a peer that pings every second may be silent.
	inboundSilence = 30 * time.Second
)

// replicaServer serves the peers.
type replicaServer struct {
	wire.UnimplementedReplicaServer
	cluster   *Cluster
	fetches   chan struct{} // a token for each under way
	snapshots chan struct{}
}

// listenReplica opens the replica service; it answers nobody before serve.
func (c *Cluster) listenReplica() (net.Listener, error) {
	l, err := net.Listen("tcp", c.opts.ReplicaBind)
	if err != nil {
		return nil, fmt.Errorf("replica service on %s: %w", c.opts.ReplicaBind, err)
	}
	c.server = grpc.NewServer(
		grpc.Creds(credentials.NewTLS(serverTLS(c.opts.Keys))),
		grpc.MaxRecvMsgSize(maxFrame), grpc.MaxSendMsgSize(maxFrame), grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(dialTimeout), grpc.WaitForHandlers(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveEvery, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveEvery / 2, PermitWithoutStream: true}),
	)
	wire.RegisterReplicaServer(c.server, &replicaServer{
		cluster: c, fetches: make(chan struct{}, maxFetches), snapshots: make(chan struct{}, maxSnapshots),
	})
	return netutil.LimitListener(l, maxConns), nil
}

// An inbound is a link that a peer dialed.
type inbound struct {
	node string
	end  context.CancelCauseFunc
	life chan struct{} // holds a token if a frame came lately
}

// Exchange receives a peer's frames.
func (s *replicaServer) Exchange(stream grpc.BidiStreamingServer[wire.Frame, wire.Frame]) error {
	node, err := callerOf(stream.Context())
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	c := s.cluster
	ctx, end := context.WithCancelCause(stream.Context())
	defer end(nil)
	in := &inbound{node: node, end: end, life: make(chan struct{}, 1)}
	// Receiving ends only when this handler has returned.
	c.running.Go(func() { end(s.receive(stream, in)) })
	silent := time.NewTimer(inboundSilence)
	defer silent.Stop()
	for {
		select {
		case <-in.life:
			silent.Reset(inboundSilence)
			continue
		case <-silent.C:
			end(errSilent)
		case <-c.ctx.Done():
			end(status.Error(codes.Unavailable, "node stops"))
		case <-ctx.Done():
		}
		c.peerGone(in)
		if err := context.Cause(ctx); !errors.Is(err, io.EOF) {
			return err
		}
		return nil
	}
}

func (s *replicaServer) receive(stream grpc.BidiStreamingServer[wire.Frame, wire.Frame], in *inbound) error {
	c := s.cluster
	f, err := stream.Recv()
	if err != nil {
		return err
	}
	if err := c.checkHello(f.GetHello(), in.node); err != nil {
		if c.refusals.add(in.node, err.Error()) {
			c.log.Error("refused a peer", "peer", in.node, "err", err)
		}
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	if err := c.checkName(f.GetHello()); err != nil {
		// Not for ever: this may be the member, started anew a moment ago.
		return status.Error(codes.AlreadyExists, err.Error())
	}
	if c.isCut(in.node) {
		return status.Error(codes.Unavailable, errCut.Error())
	}
	if err := stream.Send(c.hello()); err != nil {
		return err
	}
	c.peerCame(in)
	for {
		f, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case in.life <- struct{}{}:
		default:
		}
		if p := f.GetPing(); p != nil {
			err = stream.Send(&wire.Frame{Body: &wire.Frame_Pong{Pong: &wire.Pong{Id: p.GetId()}}})
		} else {
			err = c.received(in, f)
		}
		if err != nil {
			return err
		}
	}
}

func (c *Cluster) hello() *wire.Frame {
	return &wire.Frame{Body: &wire.Frame_Hello{Hello: &wire.Hello{
		Cluster: c.opts.Keys.ClusterID, Node: c.opts.Node, MinVersion: minVersion, MaxVersion: maxVersion, Version: maxVersion,
		Instance: c.members.meta.Instance, Second: c.members.second.Load(),
	}}}
}

// checkHello checks a peer's first frame against its certificate.
func (c *Cluster) checkHello(h *wire.Hello, node string) error {
	switch {
	case h == nil:
		return fmt.Errorf("%w: no hello", errMalformed)
	case h.GetNode() != node:
		return fmt.Errorf("%w: it says it is node %q, its certificate says %q", ErrIncompatible, h.GetNode(), node)
	case node == c.opts.Node:
		return fmt.Errorf("%w: it has this node's name %q: give it another name and keys", ErrIncompatible, node)
	case h.GetCluster() != c.opts.Keys.ClusterID:
		return fmt.Errorf("%w: it is of cluster %q, this is %q", ErrIncompatible, h.GetCluster(), c.opts.Keys.ClusterID)
	}
	_, err := commonVersion(h.GetMinVersion(), h.GetMaxVersion())
	return err
}

// received takes a frame; an error ends the link.
func (c *Cluster) received(in *inbound, f *wire.Frame) error {
	switch b := f.Body.(type) {
	case *wire.Frame_Push:
		return c.receivedPush(in, b.Push)
	case *wire.Frame_Identities:
		return c.receivedIdentities(in, b.Identities)
	case *wire.Frame_Roster:
		return c.receivedRoster(in, b.Roster)
	case *wire.Frame_Holdings:
		if err := c.checkHoldings(in, b.Holdings); err != nil {
			return err
		}
	}
	m, err := fromWire(f)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if m != nil { // else of a later version
		c.stepFrom(in, Received{in.node, m})
	}
	return nil
}

// receivedPush verifies a batch before the protocol sees it.
func (c *Cluster) receivedPush(in *inbound, w *wire.Push) error {
	var d decoder
	id := d.volume(w.GetVolume())
	if d.err != nil {
		return status.Error(codes.InvalidArgument, d.err.Error())
	}
	hv := c.held(id)
	if hv == nil {
		return nil // closed here meanwhile
	}
	body, err := store.DecodeBatch(w.GetBatch())
	if err != nil || body.Volume != id {
		return c.distrust(in.node, fmt.Errorf("%w: %w", errMalformed, err))
	}
	if len(w.GetIdentity()) > 0 {
		if err := c.learn(in.node, hv, w.GetIdentity()); err != nil {
			return err
		}
	}
	b := batchOf(body, nil)
	switch err := c.identities.check(hv.v, body); {
	case errors.Is(err, errUnknownOrigin):
		c.stepFrom(in, Unverified{in.node, id, []crdt.ReplicaID{body.Origin}})
		return nil
	case errors.Is(err, ErrSignature), errors.Is(err, ErrIdentity):
		return c.distrust(in.node, err)
	case err != nil:
		c.log.Error("verify batch", "volume", hv.v.Name(), "err", err)
		return nil // it is pulled again
	}
	if b.Wants, err = hv.v.Wants(body); err != nil {
		if errors.Is(err, store.ErrBadBatch) {
			c.stepFrom(in, Received{in.node, Push{Volume: id, Batch: b}}) // Merge says so once more
			return nil
		}
		c.log.Error("look for content", "volume", hv.v.Name(), "err", err)
		return nil
	}
	c.stepFrom(in, Received{in.node, Push{Volume: id, Batch: b}})
	return nil
}

// distrust counts something that is not what it says, as a batch or a word with
// a bad signature; the error ends the link.
func (c *Cluster) distrust(node string, err error) error {
	c.badBatches.Add(1)
	if c.refusals.add(node, err.Error()) {
		c.log.Error("bad batch, word or identity: link cut", "peer", node, "err", err)
	}
	return status.Error(codes.PermissionDenied, err.Error())
}

// learn keeps a replica's identity, which a node has sent; an error ends the
// link.
func (c *Cluster) learn(node string, hv *heldVolume, record []byte) error {
	err := c.identities.learn(hv.v, record)
	if errors.Is(err, ErrIdentity) {
		return c.distrust(node, err)
	}
	if err != nil {
		c.log.Error("keep identity", "volume", hv.v.Name(), "err", err)
	}
	return nil
}

func (c *Cluster) receivedIdentities(in *inbound, w *wire.Identities) error {
	var d decoder
	hv := c.held(d.volume(w.GetVolume()))
	d.check(len(w.GetRecords()) <= maxRecords, "too many identities")
	if d.err != nil {
		return status.Error(codes.InvalidArgument, d.err.Error())
	}
	if hv == nil {
		return nil
	}
	for _, record := range w.GetRecords() {
		if err := c.learn(in.node, hv, record); err != nil {
			return err
		}
	}
	c.stepFrom(in, IdentityLearned{in.node, hv.v.ID()})
	return nil
}

// Fetch serves manifests or blocks.
func (s *replicaServer) Fetch(r *wire.FetchRequest, stream grpc.ServerStreamingServer[wire.FetchChunk]) error {
	hv, release, err := s.admit(stream.Context(), r.GetVolume(), s.fetches)
	if err != nil {
		return err
	}
	defer release()
	hashes, err := hashesFromWire(r.GetHashes())
	if err != nil || len(hashes) > maxRecords {
		return status.Error(codes.InvalidArgument, "hashes")
	}
	db := hv.v.DB()
	for _, h := range hashes {
		var b []byte
		var ok bool
		if r.GetManifests() {
			b, ok, err = db.Index().Manifest(h)
		} else {
			b, err = db.Content().Block(h)
			ok = err == nil
			if err != nil {
				if missing := new(content.MissingBlockError); errors.As(err, &missing) {
					s.cluster.log.Debug("serve block", "err", err)
				} else {
					s.cluster.report(Report{Err: fmt.Errorf("content that a peer asks for is damaged here: %w", err)}, hv)
				}
				err = nil // another peer may have it
			}
		}
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		if err := sendPieces(stream, h, b, ok); err != nil {
			return err
		}
	}
	return nil
}

func sendPieces(stream grpc.ServerStreamingServer[wire.FetchChunk], h crdt.Hash, b []byte, ok bool) error {
	if !ok || len(b) == 0 {
		return stream.Send(&wire.FetchChunk{Hash: h[:], Absent: true, Last: true})
	}
	sent := 0
	for piece := range slices.Chunk(b, pieceSize) {
		sent += len(piece)
		if err := stream.Send(&wire.FetchChunk{Hash: h[:], Data: piece, Last: sent == len(b)}); err != nil {
			return err
		}
	}
	return nil
}

// Snapshot serves a part of the state of a ready replica.
func (s *replicaServer) Snapshot(r *wire.SnapshotRequest, stream grpc.ServerStreamingServer[wire.SnapshotChunk]) error {
	hv, release, err := s.admit(stream.Context(), r.GetVolume(), s.snapshots)
	if err != nil {
		return err
	}
	defer release()
	if !hv.v.Ready() {
		return status.Error(codes.FailedPrecondition, store.ErrNotReady.Error())
	}
	node, err := callerOf(stream.Context())
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	s.cluster.mu.Lock()
	serves := s.cluster.proto.Serves(hv.v.ID(), node)
	s.cluster.mu.Unlock()
	if !serves {
		return status.Error(codes.Unavailable, "not linked yet, or about to begin anew")
	}
	if err := s.cluster.checkReplica(node, hv, crdt.ReplicaID(r.GetReplica()), r.GetIdentity()); err != nil {
		return err
	}
	hv.v.Know(crdt.ReplicaID(r.GetReplica()), node)
	var d decoder
	part := store.SnapshotRequest{After: r.GetAfter(), Until: r.GetUntil(), Tail: r.GetTail(), Since: d.vector(r.GetSince())}
	if err := hv.v.WriteSnapshot(stream.Context(), part, func(chunk []byte) error {
		return stream.Send(&wire.SnapshotChunk{Data: chunk})
	}); err != nil {
		s.cluster.log.Warn("serve snapshot", "volume", hv.v.Name(), "err", err)
		return status.Error(codes.Internal, err.Error())
	}
	return stream.Send(&wire.SnapshotChunk{End: true})
}

// admit checks a bulk request and waits for its turn.
func (s *replicaServer) admit(ctx context.Context, volume []byte, slots chan struct{}) (*heldVolume, func(), error) {
	node, err := callerOf(ctx)
	if err != nil {
		return nil, nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if s.cluster.isCut(node) {
		return nil, nil, status.Error(codes.Unavailable, errCut.Error())
	}
	var d decoder
	id := d.volume(volume)
	if d.err != nil {
		return nil, nil, status.Error(codes.InvalidArgument, d.err.Error())
	}
	hv := s.cluster.held(id)
	if hv == nil {
		return nil, nil, status.Error(codes.NotFound, store.ErrNoVolume.Error())
	}
	// One volume's removal waits for the calls it serves.
	if !hv.enter() {
		return nil, nil, status.Error(codes.NotFound, store.ErrNoVolume.Error())
	}
	select {
	case slots <- struct{}{}:
		return hv, func() { <-slots; hv.leave() }, nil
	case <-ctx.Done():
	case <-hv.ctx.Done():
	case <-s.cluster.ctx.Done():
	}
	hv.leave()
	return nil, nil, status.Error(codes.Unavailable, "node or volume stops")
}
