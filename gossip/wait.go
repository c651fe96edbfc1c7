package gossip

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// WaitAll returns when each live member that holds the volume has applied what
// is committed here now, sealed or not, and names those that have: maybe none.
// A member that has not yet told what it holds is waited for, as it may hold
// the volume. One that goes away meanwhile is not, nor is one that refuses this
// node or is refused.
func (c *Cluster) WaitAll(ctx context.Context, id store.VolumeID) (have []string, err error) {
	hv := c.held(id)
	if hv == nil {
		return nil, fmt.Errorf("wait for peers of volume %v: %w", id, store.ErrNoVolume)
	}
	vector := committed(hv.v)
	var behind []string
	gone := false
	err = c.await(ctx, func() bool {
		gone = c.volumes[id] != hv
		have, behind = c.progressLocked(id, vector)
		return gone || len(behind) == 0
	})
	switch {
	case gone:
		err = store.ErrNoVolume
	case err != nil && len(behind) > 0:
		err = fmt.Errorf("%w: still without it: %s", err, strings.Join(behind, ", "))
	}
	if err != nil {
		return nil, fmt.Errorf("wait for peers of volume %v: %w", id, err)
	}
	return have, nil
}

// progressLocked says which live members have applied the vector, and which
// have not or may yet turn out to hold the volume, with the reason.
func (c *Cluster) progressLocked(id store.VolumeID, vector crdt.Vector) (have, behind []string) {
	for _, node := range slices.Sorted(maps.Keys(c.members.live())) {
		acked, holds := c.proto.Acked(node, id)
		err := c.links[node].why()
		switch {
		case holds && acked.Contains(vector):
			have = append(have, node)
		case isRefusal(err):
		case holds:
			behind = append(behind, node)
		case !c.proto.Told(node):
			behind = append(behind, fmt.Sprintf("%s (%s: %v)", node, StateLinking, orNil(err, errNotYet)))
		}
	}
	return have, behind
}

// errNotYet is why a member is not a peer that nothing is known against.
var errNotYet = errors.New("it has not yet said what it holds")

// isRefusal reports whether an error of a link will stand until somebody
// changes one of the two nodes.
func isRefusal(err error) bool {
	return errors.Is(err, ErrIncompatible) || status.Code(err) == codes.FailedPrecondition
}

// committed is the vector that the replica will have when its own ops that
// wait are sealed.
func committed(v *store.Volume) crdt.Vector {
	for {
		vector, self := v.Vector(), v.Replica()
		waiting := v.Stats().Unsealed
		if v.Vector()[self].Seq == vector[self].Seq { // nothing was sealed between
			e := vector[self]
			e.Seq += crdt.Seq(waiting)
			if waiting > 0 {
				vector[self] = e
			}
			return vector
		}
	}
}

// WaitPeers returns when each of the peers has applied what vector says.
func (c *Cluster) WaitPeers(ctx context.Context, id store.VolumeID, vector crdt.Vector, peers []string) error {
	err := c.await(ctx, func() bool {
		return !slices.ContainsFunc(peers, func(node string) bool {
			acked, ok := c.proto.Acked(node, id)
			return !ok || !acked.Contains(vector)
		})
	})
	if err != nil {
		return fmt.Errorf("wait for peers of volume %v: %w", id, err)
	}
	return nil
}

// WaitHeld returns when each of the nodes that is a live member, this one
// included, has a ready replica of the volume.
func (c *Cluster) WaitHeld(ctx context.Context, id store.VolumeID, nodes []string) error {
	var without []string
	err := c.await(ctx, func() bool {
		without = c.withoutLocked(id, nodes)
		return len(without) == 0
	})
	if err != nil {
		return fmt.Errorf("wait for replicas of volume %v: %w: still without one: %s", id, err, strings.Join(without, ", "))
	}
	return nil
}

// withoutLocked returns those of the nodes that are live and have no ready replica.
func (c *Cluster) withoutLocked(id store.VolumeID, nodes []string) (without []string) {
	ready := map[string]bool{c.opts.Node: c.proto.Ready(id)}
	c.proto.holders(id, func(ps *peerState, h *holding) { ready[ps.name] = h.ready })
	live := c.members.live()
	for _, node := range nodes {
		if _, ok := live[node]; (ok || node == c.opts.Node) && !ready[node] {
			without = append(without, node)
		}
	}
	return without
}
