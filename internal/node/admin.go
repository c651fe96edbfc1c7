package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/version"
	"github.com/synapsefs/synapsefs/internal/wire"
)

// stopGrace is how long calls in progress may take when the daemon stops;
// those that wait for peers end at once.
const stopGrace = 2 * time.Second

// answerTime is how long an answer may take to reach the caller.
const answerTime = 100 * time.Millisecond

// adminServer turns calls of the admin API into calls of the node.
type adminServer struct {
	wire.UnimplementedAdminServer
	n *Node
}

func (n *Node) serveAdmin(l net.Listener) {
	n.server = grpc.NewServer(grpc.UnaryInterceptor(n.logCall))
	wire.RegisterAdminServer(n.server, &adminServer{n: n})
	n.loops.Go(func() {
		if err := n.server.Serve(l); err != nil {
			n.log.Error("serve the admin API", "err", err)
		}
	})
}

func stopServer(s *grpc.Server) {
	timer := time.AfterFunc(stopGrace, s.Stop)
	defer timer.Stop()
	s.GracefulStop()
}

// logCall logs each call and turns its error into a status.
func (n *Node) logCall(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	begin := time.Now()
	reply, err := next(ctx, req)
	n.log.Debug("admin call", "method", info.FullMethod, "took", time.Since(begin), "err", err)
	return reply, toStatus(err)
}

func (s *adminServer) Status(context.Context, *wire.NodeStatusRequest) (*wire.NodeStatus, error) {
	volumes, err := s.n.volumes()
	if err != nil {
		return nil, err
	}
	return &wire.NodeStatus{
		Node:           s.n.cfg.Node,
		Cluster:        s.n.cfg.Cluster,
		Version:        version.String(),
		Pid:            int64(os.Getpid()),
		StartedUnixNs:  s.n.started.UnixNano(),
		StateDir:       s.n.cfg.StateDir,
		CatalogueReady: s.n.catalogue.v.Ready(),
		Peers:          s.n.peersToWire(),
		Volumes:        volumesToWire(volumes),
		Mounts:         mountsToWire(s.n.Mounts()),
		Problems:       s.n.problems(),
		Leaving:        s.n.placement.isLeaving(s.n.cfg.Node),
	}, nil
}

func (s *adminServer) Peers(context.Context, *wire.PeersRequest) (*wire.PeersReply, error) {
	return &wire.PeersReply{Peers: s.n.peersToWire()}, nil
}

func (s *adminServer) ForgetPeer(_ context.Context, r *wire.ForgetPeerRequest) (*wire.ForgetPeerReply, error) {
	n, err := s.n.ForgetPeer(r.Node)
	if err != nil {
		return nil, err
	}
	return &wire.ForgetPeerReply{Replicas: uint32(n)}, nil
}

func (s *adminServer) DrainPeer(ctx context.Context, r *wire.DrainPeerRequest) (*wire.DrainPeerReply, error) {
	return &wire.DrainPeerReply{}, s.n.Drain(ctx, r.Node, r.Undo)
}

func (s *adminServer) ListVolumes(ctx context.Context, _ *wire.ListVolumesRequest) (*wire.ListVolumesReply, error) {
	volumes, err := s.n.ListVolumes(ctx)
	if err != nil {
		return nil, err
	}
	return &wire.ListVolumesReply{Volumes: volumesToWire(volumes)}, nil
}

func (s *adminServer) CreateVolume(ctx context.Context, r *wire.CreateVolumeRequest) (*wire.VolumeStatus, error) {
	info, err := s.n.CreateVolume(ctx, r.Name, r.Options)
	if err != nil {
		return nil, err
	}
	return info.toWire(), nil
}

func (s *adminServer) DeleteVolume(ctx context.Context, r *wire.DeleteVolumeRequest) (*wire.VolumeStatus, error) {
	info, err := s.n.DeleteVolume(ctx, r.Name, r.Force)
	if err != nil {
		return nil, err
	}
	return info.toWire(), nil
}

func (s *adminServer) Upgrade(ctx context.Context, r *wire.UpgradeRequest) (*wire.UpgradeReply, error) {
	version, err := s.n.Upgrade(ctx, r.Binary)
	if err != nil {
		return nil, err
	}
	return &wire.UpgradeReply{Version: version}, nil
}

func (s *adminServer) Mount(ctx context.Context, r *wire.MountVolumeRequest) (*wire.MountStatus, error) {
	info, err := s.n.Mount(ctx, MountRequest{
		Volume: r.Volume, Dir: string(r.Dir), Create: r.Create,
		ReadOnly: r.ReadOnly, AllowOther: r.AllowOther, Flags: flagsOf(r.Flags),
	})
	if err != nil {
		return nil, err
	}
	return info.toWire(), nil
}

func (s *adminServer) Remount(_ context.Context, r *wire.RemountRequest) (*wire.MountStatus, error) {
	info, err := s.n.Remount(string(r.Dir), r.ReadOnly, flagsOf(r.Flags))
	if err != nil {
		return nil, err
	}
	return info.toWire(), nil
}

func flagsOf(f *wire.MountFlags) kernel.Flags {
	return kernel.Flags{
		Suid: f.GetSuid(), Dev: f.GetDev(), NoExec: f.GetNoExec(),
		NoAtime: f.GetNoAtime(), NoDirAtime: f.GetNoDirAtime(), NoSymFollow: f.GetNoSymFollow(),
	}
}

func (s *adminServer) Unmount(_ context.Context, r *wire.UnmountRequest) (*wire.UnmountReply, error) {
	left, err := s.n.Unmount(string(r.Dir), r.Force)
	if err != nil {
		return nil, err
	}
	return &wire.UnmountReply{LeftMounts: uint32(left.Dead), LeftGuards: uint32(left.Guards)}, nil
}

func (s *adminServer) Mounts(context.Context, *wire.MountsRequest) (*wire.MountsReply, error) {
	return &wire.MountsReply{Mounts: mountsToWire(s.n.Mounts())}, nil
}

func (s *adminServer) Wait(ctx context.Context, r *wire.WaitRequest) (*wire.WaitReply, error) {
	begin := time.Now()
	if deadline, ok := ctx.Deadline(); ok {
		// Before the caller's: it shall still hear for whom it waited.
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-min(time.Until(deadline)/10, answerTime)))
		defer cancel()
	}
	nodes, err := s.n.Wait(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	return &wire.WaitReply{TookNs: int64(time.Since(begin)), Nodes: nodes}, nil
}

func (i MountInfo) toWire() *wire.MountStatus {
	return &wire.MountStatus{
		Volume: i.Volume, Dir: []byte(i.Dir), ReadOnly: i.ReadOnly, Stale: i.Stale,
		SinceUnixNs: i.Since.UnixNano(), Created: i.Created,
		Kept: i.Kept, Generation: i.Generation, Resent: i.Resent, Repeated: i.Repeated,
	}
}

func mountsToWire(infos []MountInfo) []*wire.MountStatus {
	out := make([]*wire.MountStatus, len(infos))
	for n, i := range infos {
		out[n] = i.toWire()
	}
	return out
}

func (i VolumeInfo) toWire() *wire.VolumeStatus {
	s := &wire.VolumeStatus{
		Name: i.Name, Id: i.ID.String(), Options: i.Options,
		CreatedUnixNs: i.Created.UnixNano(), CreatedBy: i.By,
		Mounts: uint32(i.Mounts), Problem: i.Problem,
		ReplicasWanted: uint32(i.Placed.Wanted), ReplicasReady: uint32(i.Placed.Ready()), Placed: i.Placed.Nodes,
	}
	if i.Created.IsZero() {
		s.CreatedUnixNs = 0
	}
	if v := i.Replica; v != nil {
		stats := v.Stats()
		s.Held, s.Ready, s.Replica = true, v.Ready(), v.Replica().String()
		s.Ops, s.Merged, s.Unsealed = stats.Ops, stats.Merged, uint64(stats.Unsealed)
		s.OpenDrafts, s.Unfinished = uint64(stats.OpenDrafts), uint64(stats.Unfinished)
		k, err := v.Keeping()
		if err != nil && s.Problem == "" {
			s.Problem = err.Error()
		}
		s.JournalBytes, s.JournalLimit, s.Unstable = uint64(k.JournalBytes), uint64(k.JournalLimit), k.Unstable
		s.Counting, s.Out = uint32(k.Counting), uint32(k.Out)
		s.Tombstones, s.Lost = k.Tombstones, k.Lost
		s.Conflicts, s.ForcedOut = countRecords(v), stats.ForcedOut
		if stats.Full && s.Problem == "" {
			s.Problem = "the disk is full: changes are refused"
		}
		if stats.ForcedOut > 0 && s.Problem == "" {
			s.Problem = fmt.Sprintf("conflict-limit reached: the %d oldest conflicts were dismissed", stats.ForcedOut)
		}
	}
	return s
}

func volumesToWire(infos []VolumeInfo) []*wire.VolumeStatus {
	out := make([]*wire.VolumeStatus, len(infos))
	for n, i := range infos {
		out[n] = i.toWire()
	}
	return out
}

func (n *Node) peersToWire() []*wire.PeerStatus {
	var out []*wire.PeerStatus
	for _, p := range n.cluster.Peers() {
		s := &wire.PeerStatus{
			Node: p.Node, Address: p.Address, State: p.State, Error: p.Error,
			RttNs: int64(p.RTT), Refusals: p.Refusals, Leaving: n.placement.isLeaving(p.Node),
		}
		if !p.LastSeen.IsZero() {
			s.LastSeenUnixNs = p.LastSeen.UnixNano()
		}
		for _, lag := range p.Lag {
			s.Lag += lag
		}
		out = append(out, s)
	}
	return out
}

// problems lists what is wrong with this node itself.
func (n *Node) problems() []string {
	var all []string
	for _, p := range n.cluster.Problems() {
		all = append(all, p.Reason)
	}
	n.mu.Lock()
	for _, err := range n.unserved {
		all = append(all, err.Error())
	}
	n.mu.Unlock()
	return append(all, n.clocks.problems()...)
}
