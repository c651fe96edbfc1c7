package node

import (
	"context"
	"fmt"
	"slices"
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
	if stale, mounted := n.shows(v.ID()); mounted {
		return stale, nil
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

// shows reports whether a volume is mounted here, and then whether what is shown
// is stale: so is it in each of its mounts.
func (n *Node) shows(id store.VolumeID) (stale, mounted bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.mounts {
		if m.fs != nil && m.volume == id {
			stale, mounted = stale || m.info.Stale, true
		}
	}
	return stale, mounted
}

func (n *Node) caughtUp(ctx context.Context, v *store.Volume, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return n.cluster.CaughtUp(ctx, v.ID()) == nil
}

// becomeReady waits until a replica that never was ready is. It gives up when
// no live peer has a ready one for catch-up-timeout.
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
		case !n.hasSource(v.ID()):
			return fmt.Errorf("%w: no live peer has a ready replica of the volume; see synapsefs peers", store.ErrNotReady)
		}
	}
}

// hasSource reports whether some peer that is up has a ready replica.
func (n *Node) hasSource(id store.VolumeID) bool {
	return slices.ContainsFunc(n.cluster.Holders(id), func(h gossip.Holder) bool { return h.Ready })
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
