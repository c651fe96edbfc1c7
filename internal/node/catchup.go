package node

import (
	"context"
	"fmt"
	"time"

	"github.com/synapsefs/synapsefs/gossip"
	"github.com/synapsefs/synapsefs/store"
)

// tellTime is how long peers that are up may take to tell which volumes they
// hold.
const tellTime = time.Second

// catchUp returns when the replica has what a live ready peer has (P11). One
// that was ready before needs none: after catch-up-timeout it serves its own
// data, stale.
func (n *Node) catchUp(ctx context.Context, v *store.Volume) (stale bool, err error) {
	if !v.Ready() {
		return false, n.becomeReady(ctx, v)
	}
	if n.alone() || n.caughtUp(ctx, v, min(tellTime, n.cfg.CatchUpTimeout)) || n.onlyHolder(v.ID()) {
		return false, nil
	}
	if n.caughtUp(ctx, v, n.cfg.CatchUpTimeout-tellTime) {
		return false, nil
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	n.log.Warn("no ready peer in time: serving what this node has, stale", "volume", v.Name())
	return true, nil
}

func (n *Node) caughtUp(ctx context.Context, v *store.Volume, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return n.cluster.CaughtUp(ctx, v.ID()) == nil
}

// becomeReady waits until a replica that never was ready is. It gives up when
// no live peer holds the volume for catch-up-timeout.
func (n *Node) becomeReady(ctx context.Context, v *store.Volume) error {
	patience := max(n.cfg.CatchUpTimeout, tellTime)
	for {
		bounded, cancel := context.WithTimeout(ctx, patience)
		err := n.cluster.WaitReady(bounded, v.ID())
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case n.holders(v.ID()) == 0:
			return fmt.Errorf("%w: no live peer holds the volume; see synapsefs peers", store.ErrNotReady)
		}
	}
}

// holders counts the peers that are up and hold a volume.
func (n *Node) holders(id store.VolumeID) (count int) {
	for _, p := range n.cluster.Peers() {
		if _, holds := p.Lag[id]; holds {
			count++
		}
	}
	return count
}

// onlyHolder reports whether every peer known is up and none holds the volume:
// there is nobody to catch up with.
func (n *Node) onlyHolder(id store.VolumeID) bool {
	for _, p := range n.cluster.Peers() {
		if _, holds := p.Lag[id]; holds || p.State != gossip.StateUp && p.State != gossip.StateRefused {
			return false
		}
	}
	return true
}
