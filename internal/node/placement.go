package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/synapsefs/synapsefs/gossip"
	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// Placement: a volume with the option replicas is held by so many nodes, mounted
// or not. Which, each node finds out for itself by rendezvous hashing (Thaler,
// Ravishankar, 1998) over the nodes that are live and not leaving. One that is
// chosen makes a replica as soon as a ready one is reachable. One that is not
// chosen, and does not use its replica, drops it when all that are chosen are
// ready and have what it has.
//
// So nothing is dropped twice: of all nodes that drop, take the one that comes
// first for the volume. The chosen, whom it saw ready, all come before it, and
// so drop nothing; nor does a node that leaves.

const (
	// placeEvery is how often peers are looked at.
	placeEvery = time.Second
	// placeWait bounds how long the creation of a volume waits for its replicas.
	placeWait = 10 * time.Second
)

// A placement is what the catalogue says of where volumes are to be.
type placement struct {
	mu      sync.Mutex // a leaf; guards what follows
	volumes []placedVolume
	leaving map[string]bool
	away    map[string]time.Time // peers that are not live, and since when

	// Of the reconcile loop.
	spare map[store.VolumeID]time.Time // replicas not needed here, and since when
	plan  plan
}

// A plan says where volumes are to be as long as they and the nodes are the same.
type plan struct {
	volumes []placedVolume
	nodes   []string
	placed  [][]string // by volume
}

// of returns which of the nodes are to hold each of the volumes.
func (p *plan) of(volumes []placedVolume, nodes []string) [][]string {
	same := len(volumes) == len(p.volumes) && (len(volumes) == 0 || &volumes[0] == &p.volumes[0])
	if same && slices.Equal(nodes, p.nodes) {
		return p.placed
	}
	*p = plan{volumes: volumes, nodes: nodes}
	for _, l := range volumes {
		p.placed = append(p.placed, rendezvous(l.ID, nodes, l.replicas))
	}
	return p.placed
}

type placedVolume struct {
	Listing
	replicas int
}

// follow takes over what the catalogue says.
func (p *placement) follow(listed []Listing, leaving map[string][]byte) {
	var volumes []placedVolume
	for _, l := range listed {
		if o, _ := ParseOptions(l.Options); o.Replicas > 0 { // limit says what is wrong
			volumes = append(volumes, placedVolume{l, o.Replicas})
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.volumes, p.leaving = volumes, map[string]bool{}
	for node := range leaving {
		p.leaving[node] = true
	}
}

func (p *placement) wanted() []placedVolume {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.volumes
}

// isLeaving reports whether a node was drained.
func (p *placement) isLeaving(node string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.leaving[node]
}

// candidates are the nodes to place volumes on: those that are live, or have
// been away for less than patience, and are not leaving.
func (p *placement) candidates(self string, peers []gossip.PeerStatus, now time.Time, patience time.Duration) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	nodes := []string{self}
	for _, peer := range peers {
		switch peer.State {
		case gossip.StateUp, gossip.StateLinking:
			delete(p.away, peer.Node)
		case gossip.StateGone:
			if _, known := p.away[peer.Node]; !known {
				p.away[peer.Node] = now
			}
			if now.Sub(p.away[peer.Node]) >= patience {
				continue
			}
		default:
			continue
		}
		if peer.Node != "" {
			nodes = append(nodes, peer.Node)
		}
	}
	return slices.DeleteFunc(nodes, func(node string) bool { return p.leaving[node] })
}

// rendezvous returns the first k of the nodes in the order that they have for a
// volume.
func rendezvous(id store.VolumeID, nodes []string, k int) []string {
	weights := make(map[string]uint64, len(nodes))
	for _, node := range nodes {
		sum := sha256.Sum256(append(id[:], node...))
		weights[node] = binary.BigEndian.Uint64(sum[:])
	}
	order := slices.SortedFunc(maps.Keys(weights), func(a, b string) int {
		return cmp.Or(cmp.Compare(weights[b], weights[a]), cmp.Compare(a, b))
	})
	return order[:min(k, len(order))]
}

func (n *Node) candidates(now time.Time) []string {
	return n.placement.candidates(n.cfg.Node, n.cluster.Peers(), now, n.cfg.PlacementDelay)
}

// place makes and drops replicas of this node. It belongs to the reconcile loop.
func (n *Node) place(now time.Time) error {
	spare := map[store.VolumeID]time.Time{}
	volumes := n.placement.wanted()
	var nodes []string
	if len(volumes) > 0 {
		nodes = n.candidates(now)
	}
	placedOn := n.placement.plan.of(volumes, nodes)
	var errs []error
	for i, l := range volumes {
		placed := placedOn[i]
		v, here := n.db.Volume(l.ID), slices.Contains(placed, n.cfg.Node)
		var err error
		switch {
		case here && v == nil:
			err = n.hold(l.Listing)
		case here || v == nil || n.used(l.ID) || n.placement.isLeaving(n.cfg.Node): // it stays
		default:
			since, known := n.placement.spare[l.ID]
			if !known {
				since = now
			}
			spare[l.ID] = since
			if now.Sub(since) >= n.cfg.PlacementDelay {
				err = n.letGo(v, placed)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("place volume %q: %w", l.Name, err))
		}
	}
	n.placement.spare = spare
	return errors.Join(errs...)
}

// hold makes a replica of a volume, if there is one to take its content from:
// who is cut off would else make one of each.
func (n *Node) hold(l Listing) error {
	if !n.hasSource(l.ID) {
		return nil
	}
	_, err := n.replica(l, false)
	if errors.Is(err, store.ErrNoVolume) {
		return nil // deleted
	}
	if err == nil {
		n.log.Info("placed here", "volume", l.Name)
	}
	return err
}

// letGo drops a replica that is not needed here, if all that are to hold the
// volume have what it has.
func (n *Node) letGo(v *store.Volume, placed []string) error {
	dropped, err := n.dropSpare(v, func(vector crdt.Vector) bool { return n.allHave(v, vector, placed) })
	if dropped {
		n.log.Info("replica is not needed here any more: dropped", "volume", v.Name(), "held-by", placed)
	}
	return err
}

// allHave reports whether each of the nodes, of which there must be one, has a
// ready replica with what vector says.
func (n *Node) allHave(v *store.Volume, vector crdt.Vector, nodes []string) bool {
	have := n.cluster.ReadyWith(v.ID(), vector)
	return len(nodes) > 0 && !slices.ContainsFunc(nodes, func(node string) bool { return !slices.Contains(have, node) })
}

// awaitPlaced gives the nodes that are to hold a new volume a moment to do so.
func (n *Node) awaitPlaced(ctx context.Context, l Listing) {
	o, _ := ParseOptions(l.Options)
	if o.Replicas == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, placeWait)
	defer cancel()
	if err := n.cluster.WaitHeld(ctx, l.ID, rendezvous(l.ID, n.candidates(time.Now()), o.Replicas)); err != nil {
		n.log.Warn("the volume has fewer replicas than it is to have", "volume", l.Name, "err", err)
	}
}

// Placed says where a volume with the option replicas is to be, and is.
type Placed struct {
	Wanted  int      // 0 without the option
	Nodes   []string // that are to hold it, mounted or not
	Without []string // those of them that have no ready replica, or cannot be heard
	Last    bool     // this node is leaving and no other has a ready replica
}

// placedOf says it of a volume, given the candidates.
func (n *Node) placedOf(l Listing, nodes []string) (p Placed) {
	o, _ := ParseOptions(l.Options)
	if p.Wanted = o.Replicas; p.Wanted == 0 {
		return p
	}
	p.Nodes = rendezvous(l.ID, nodes, p.Wanted)
	v := n.db.Volume(l.ID)
	ready := map[string]bool{n.cfg.Node: v != nil && v.Ready()}
	others := false
	for _, h := range n.cluster.Holders(l.ID) {
		ready[h.Node] = h.Ready
		others = others || h.Ready
	}
	p.Last = ready[n.cfg.Node] && !others && n.placement.isLeaving(n.cfg.Node)
	p.Without = slices.DeleteFunc(slices.Clone(p.Nodes), func(node string) bool { return ready[node] })
	return p
}

// Ready is how many of the nodes that are to hold the volume do.
func (p *Placed) Ready() int { return len(p.Nodes) - len(p.Without) }

// problem says in which way the volume is not where it is to be.
func (p *Placed) problem() string {
	switch {
	case p.Last:
		return "this node is leaving and has the only ready replica: do not stop it"
	case p.Ready() == p.Wanted:
		return ""
	case len(p.Without) > 0:
		return fmt.Sprintf("%d of %d replicas are ready: still without: %s", p.Ready(), p.Wanted, strings.Join(p.Without, ", "))
	default:
		return fmt.Sprintf("%d of %d replicas: there are no more nodes to hold one", p.Ready(), p.Wanted)
	}
}

// Drain says that a node is about to leave, or with undo that it is not: its
// volumes are placed on others at once, and it keeps what it has.
func (n *Node) Drain(ctx context.Context, node string, undo bool) error {
	ctx, release := n.scope(ctx)
	defer release()
	err := config.CheckNode(node)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrBadName, err)
	} else if err = n.knowCatalogue(ctx); err == nil && !undo && !n.Knows(node) {
		err = ErrUnknownPeer
	}
	switch {
	case err != nil:
	case undo:
		err = n.catalogue.unmark(leavingDir, node)
	default:
		err = n.catalogue.mark(leavingDir, node, nil)
	}
	if err != nil {
		return fmt.Errorf("drain node %q: %w", node, err)
	}
	n.kick()
	n.spread(ctx)
	return nil
}

// Knows reports whether a node is this one or a peer, live or not.
func (n *Node) Knows(node string) bool {
	return node == n.cfg.Node || slices.ContainsFunc(n.cluster.Peers(), func(p gossip.PeerStatus) bool { return p.Node == node })
}
