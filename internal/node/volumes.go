package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/synapsefs/synapsefs/fusefs"
	"github.com/synapsefs/synapsefs/gossip"
	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// catalogueWait bounds how long a call waits for the newest catalogue before
// it goes by what is known here.
const catalogueWait = 3 * time.Second

// A VolumeInfo is one volume of the catalogue and, if this node holds it, its
// replica here.
type VolumeInfo struct {
	Listing
	Replica *store.Volume // nil if not held here
	Mounts  int
	Placed  Placed
	Problem string // why a human should look at it, or ""
}

// checkVolumeName says what keeps a name from being a volume's.
func checkVolumeName(name string) error {
	if err := config.CheckLabel(name); err != nil {
		return fmt.Errorf("%w: %w", ErrBadName, err)
	}
	return nil
}

// knowCatalogue returns when the catalogue here is as new as the live peers'.
// Cut off, the one known here must do (P1); never having had one, there is
// nothing to go by.
func (n *Node) knowCatalogue(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, catalogueWait)
	defer cancel()
	if n.catalogue.v.Ready() {
		if !n.looked.Load() && !n.alone() {
			// Once: who is cut off shall not wait at each call.
			n.looked.Store(n.cluster.CaughtUp(ctx, store.CatalogueID) != nil)
		}
		return nil
	}
	if err := n.cluster.WaitReady(ctx, store.CatalogueID); err != nil {
		return n.noCatalogue()
	}
	return nil
}

// alone reports whether this node is all there is of its cluster: it looks for
// no peer and never had one.
func (n *Node) alone() bool {
	return len(n.cfg.Join) == 0 && !slices.ContainsFunc(n.cluster.Peers(), func(p gossip.PeerStatus) bool {
		return p.State != gossip.StateRefused
	})
}

// spread gives the live members a moment to learn of a change of the
// catalogue, so that who goes on on another node finds it there.
func (n *Node) spread(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, catalogueWait)
	defer cancel()
	if _, err := n.cluster.WaitAll(ctx, store.CatalogueID); err != nil {
		n.log.Warn("not all members know of the change yet", "err", err)
	}
}

func (n *Node) noCatalogue() error {
	if len(n.cfg.Join) == 0 {
		return fmt.Errorf("%w; set join to a member's address, or bootstrap if this node founds the cluster", ErrNoCatalogue)
	}
	return fmt.Errorf("%w (join: %s); see synapsefs peers, or set bootstrap if this node founds the cluster",
		ErrNoCatalogue, strings.Join(n.cfg.Join, ", "))
}

// CreateVolume makes a volume whose first replica is here and ready: empty, or
// with what the volume shows that the option source names, by its name or id. A
// copy goes on although ctx ends; the next call for the name waits for it.
func (n *Node) CreateVolume(ctx context.Context, name string, options map[string]string) (VolumeInfo, error) {
	ctx, release := n.scope(ctx)
	defer release()
	info, err := n.createVolume(ctx, name, options)
	if err != nil {
		return info, fmt.Errorf("create volume %q: %w", name, err)
	}
	return info, nil
}

func (n *Node) createVolume(ctx context.Context, name string, options map[string]string) (VolumeInfo, error) {
	if err := checkVolumeName(name); err != nil {
		return VolumeInfo{}, err
	}
	if err := n.knowCatalogue(ctx); err != nil {
		return VolumeInfo{}, err
	}
	options, err := n.checkOptions(ctx, options)
	if err != nil {
		return VolumeInfo{}, err
	}
	var info VolumeInfo
	if from := options["source"]; from == "" {
		info, err = n.makeVolume(name, options)
	} else {
		info, err = n.copyVolume(ctx, name, from, options)
	}
	if err != nil {
		return VolumeInfo{}, err
	}
	n.kick()
	n.spread(ctx)
	n.awaitPlaced(ctx, info.Listing)
	n.log.Info("volume created", "volume", name, "id", info.ID)
	return info, nil
}

// makeVolume makes and lists a volume, or lists one again that is held here.
func (n *Node) makeVolume(name string, options map[string]string) (VolumeInfo, error) {
	n.creations.Lock()
	defer n.creations.Unlock()
	if _, err := n.catalogue.find(name); err == nil {
		return VolumeInfo{}, ErrVolumeExists
	} else if !errors.Is(err, store.ErrNoVolume) {
		return VolumeInfo{}, err
	}
	if info, found, err := n.relist(name, options); found || err != nil {
		return info, err
	}
	l := n.newListing(name, options)
	v, err := n.replica(l, true)
	if err != nil {
		return VolumeInfo{}, err
	}
	return n.listNew(l, v)
}

func (n *Node) newListing(name string, options map[string]string) Listing {
	return Listing{Name: name, ID: store.NewVolumeID(), Options: options, Created: time.Now().UTC(), By: n.cfg.Node}
}

// listNew lists a volume that was made here. That comes last: a listed volume has a
// ready replica, whatever happens.
func (n *Node) listNew(l Listing, v *store.Volume) (VolumeInfo, error) {
	if err := n.catalogue.add(l); err != nil {
		if errors.Is(err, crdt.ErrExist) {
			err = ErrVolumeExists
		}
		return VolumeInfo{}, errors.Join(err, n.drop(v))
	}
	return VolumeInfo{Listing: l, Replica: v}, nil
}

// DeleteVolume deletes a volume on every node, for ever. Without force it is
// refused while the volume is mounted on this node.
func (n *Node) DeleteVolume(ctx context.Context, name string, force bool) (VolumeInfo, error) {
	ctx, release := n.scope(ctx)
	defer release()
	info, err := n.deleteVolume(ctx, name, force)
	if err != nil {
		return info, fmt.Errorf("delete volume %q: %w", name, err)
	}
	return info, nil
}

func (n *Node) deleteVolume(ctx context.Context, name string, force bool) (VolumeInfo, error) {
	l, err := n.findVolume(ctx, name)
	if err != nil {
		return VolumeInfo{}, err
	}
	if dirs := n.mountsOf(l.ID); len(dirs) > 0 && !force {
		return VolumeInfo{}, fmt.Errorf("%w at %s: unmount it first, or use force", ErrVolumeBusy, strings.Join(dirs, ", "))
	}
	if err := n.catalogue.remove(l); err != nil {
		return VolumeInfo{}, err
	}
	defer n.kick()
	n.spread(ctx)
	n.log.Info("volume deleted", "volume", name, "id", l.ID)
	info := VolumeInfo{Listing: l}
	if v := n.db.Volume(l.ID); v != nil {
		return info, n.drop(v)
	}
	return info, nil
}

// FindVolume returns a volume by its name or its id; store.ErrNoVolume if there is
// none, which says nothing if this node has never met the cluster.
func (n *Node) FindVolume(ctx context.Context, name string) (VolumeInfo, error) {
	ctx, release := n.scope(ctx)
	defer release()
	l, err := n.findVolume(ctx, name)
	if err != nil {
		return VolumeInfo{}, fmt.Errorf("find volume %q: %w", name, err)
	}
	return n.infoOfVolume(l), nil
}

// IsGone reports whether a volume that FindVolume does not find is known not to be:
// it was deleted, or this node has heard since its start what a peer knows. Else
// it may have been made where nobody has told this node of it yet.
func (n *Node) IsGone(volume string) (bool, error) {
	if id, err := store.ParseVolumeID(volume); err == nil {
		if gone, err := n.catalogue.deleted(id); gone || err != nil {
			return gone, err
		}
	}
	known := func(p gossip.PeerStatus) bool { return p.State != gossip.StateRefused }
	return !slices.ContainsFunc(n.cluster.Peers(), known) || n.caughtUp(context.Background(), n.catalogue.v, 0), nil
}

// findVolume returns the listing of a volume, by its name or its id; the error for one that is not
// there names those that are.
func (n *Node) findVolume(ctx context.Context, name string) (Listing, error) {
	if err := checkVolumeName(name); err != nil {
		return Listing{}, err
	}
	if err := n.knowCatalogue(ctx); err != nil {
		return Listing{}, err
	}
	l, err := n.awaitVolume(ctx, name)
	if !errors.Is(err, store.ErrNoVolume) {
		return l, err
	}
	all, listErr := n.catalogue.list()
	if listErr != nil {
		return Listing{}, listErr
	}
	if len(all) == 0 {
		return Listing{}, fmt.Errorf("%w: the cluster has none yet", err)
	}
	names := make([]string, 0, maxNamed)
	for _, l := range all[:min(len(all), maxNamed)] {
		names = append(names, l.Name)
	}
	if len(all) > maxNamed {
		names = append(names, fmt.Sprintf("%d more", len(all)-maxNamed))
	}
	return Listing{}, fmt.Errorf("%w: there are %s", err, strings.Join(names, ", "))
}

// maxNamed is how many volumes an error names.
const maxNamed = 20

// lookUp finds a volume by its id or its name in the catalogue as it is here.
func (n *Node) lookUp(name string) (Listing, error) {
	if l, err := n.byID(name); !errors.Is(err, store.ErrNoVolume) {
		return l, err
	}
	l, err := n.catalogue.find(name)
	if err == nil {
		err = n.checkOneOfName(l)
	}
	return l, err
}

// newsDelay is how long a volume made on another node a moment ago may take to
// be in the catalogue here: peers notice a gap within a second.
const newsDelay = 1500 * time.Millisecond

// awaitVolume looks a volume up, and again as the catalogue changes, before it
// says that there is none.
func (n *Node) awaitVolume(ctx context.Context, name string) (Listing, error) {
	changed := make(chan struct{}, 1)
	cancel := n.catalogue.v.OnMerge(func(crdt.Vector) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	defer cancel()
	limit := time.After(newsDelay)
	for {
		l, err := n.lookUp(name)
		if !errors.Is(err, store.ErrNoVolume) || !n.linked() {
			return l, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return l, err
		case <-limit:
			return l, err
		}
	}
}

// linked reports whether some peer could bring news.
func (n *Node) linked() bool {
	return slices.ContainsFunc(n.cluster.Peers(), func(p gossip.PeerStatus) bool {
		return p.State == gossip.StateUp || p.State == gossip.StateLinking
	})
}

// ForgetPeer says that a node will not come back. One that is here cannot be
// forgotten.
func (n *Node) ForgetPeer(node string) (int, error) {
	for _, p := range n.cluster.Peers() {
		if p.Node == node && p.State != gossip.StateGone && p.State != gossip.StateRefused {
			return 0, fmt.Errorf("forget peer %q: %w", node, ErrPeerHere)
		}
	}
	count, err := n.cluster.Forget(node)
	if err == nil && count == 0 {
		err = fmt.Errorf("forget peer %q: %w", node, ErrUnknownPeer)
	}
	return count, err
}

// ListVolumes returns the catalogue, and what is held here without being in
// it: a volume whose name another one took.
func (n *Node) ListVolumes(ctx context.Context) ([]VolumeInfo, error) {
	ctx, release := n.scope(ctx)
	defer release()
	if err := n.knowCatalogue(ctx); err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	return n.volumes()
}

func (n *Node) volumes() ([]VolumeInfo, error) {
	listed, err := n.catalogue.list()
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	nodes := n.candidates(time.Now())
	var all []VolumeInfo
	seen := map[store.VolumeID]bool{store.CatalogueID: true}
	for _, l := range listed {
		seen[l.ID] = true
		all = append(all, n.infoAmong(l, nodes))
	}
	for _, v := range n.db.Volumes() {
		if !seen[v.ID()] {
			all = append(all, VolumeInfo{
				Listing: Listing{Name: v.Name(), ID: v.ID()}, Replica: v, Mounts: len(n.mountsOf(v.ID())),
				Problem: n.problemOf(v),
			})
		}
	}
	return all, nil
}

// infoOfVolume is what this node knows of a volume that is listed.
func (n *Node) infoOfVolume(l Listing) VolumeInfo { return n.infoAmong(l, n.candidates(time.Now())) }

// infoAmong is it given the nodes that volumes are placed on.
func (n *Node) infoAmong(l Listing, nodes []string) VolumeInfo {
	i := VolumeInfo{Listing: l, Replica: n.db.Volume(l.ID), Mounts: len(n.mountsOf(l.ID)), Placed: n.placedOf(l, nodes)}
	i.Problem = i.Placed.problem()
	return i
}

// replica returns this node's replica of a volume, made if need be, and
// store.ErrNoVolume if it was deleted meanwhile: who deletes it here has marked it
// before he drops what there is. Only the call that creates the volume may say that
// it is ready.
func (n *Node) replica(l Listing, ready bool) (*store.Volume, error) {
	n.replicas.Lock()
	defer n.replicas.Unlock()
	if v := n.db.Volume(l.ID); v != nil {
		return v, nil
	}
	gone, err := n.catalogue.deleted(l.ID)
	if err == nil && gone {
		err = store.ErrNoVolume
	}
	if err != nil {
		return nil, err
	}
	v, err := n.db.CreateReplica(l.ID, l.Name, ready)
	if err != nil {
		return nil, fmt.Errorf("create replica: %w", err)
	}
	if o, err := ParseOptions(l.Options); err == nil {
		v.SetLimits(o.Limits)
	}
	n.join(v)
	return v, nil
}

// drop takes a volume's mounts and its replica away from this node. The guards
// of the mounts stay: whoever deleted the volume, what works in a directory
// here must not take it for one that was emptied (P11).
func (n *Node) drop(v *store.Volume) error {
	n.replicas.Lock()
	defer n.replicas.Unlock()
	if n.db.Volume(v.ID()) == nil {
		return nil // dropped meanwhile
	}
	var errs []error
	for _, dir := range n.mountsOf(v.ID()) {
		n.log.Warn("the volume mounted here is gone: the directory answers with an error until synapsefs umount",
			"volume", v.Name(), "dir", dir)
		errs = append(errs, n.unmount(dir, true, func(m *fusefs.Mounted, _ bool) error { return m.Abort() }))
	}
	n.cluster.RemoveVolume(v.ID())
	errs = append(errs, n.db.DeleteReplica(v.ID()))
	return errors.Join(errs...)
}

// dropSpare drops a replica if others have what it has, a vector, unless somebody
// has begun to use it or to change it. It returns whether it did.
func (n *Node) dropSpare(v *store.Volume, have func(crdt.Vector) bool) (bool, error) {
	n.replicas.Lock()
	defer n.replicas.Unlock()
	if n.db.Volume(v.ID()) == nil || n.used(v.ID()) {
		return false, nil
	}
	vector := v.Vector()
	if !settled(v) || !have(vector) {
		return false, nil
	}
	n.cluster.RemoveVolume(v.ID())
	if now := v.Vector(); !settled(v) || !vector.Contains(now) { // a restore, say
		n.join(v)
		return false, nil
	}
	return true, n.db.DeleteReplica(v.ID())
}

// settled reports whether all that was ever changed here has left.
func settled(v *store.Volume) bool {
	s := v.Stats()
	return s.Unsealed == 0 && s.OpenDrafts == 0 && s.Unfinished == 0
}

// Wait returns when all live peers that hold the volume have what was there
// when it was called, and names them. With none it is ErrNoPeer, unless this
// node has no peer and looks for none.
func (n *Node) Wait(ctx context.Context, name string) (nodes []string, err error) {
	ctx, release := n.scope(ctx)
	defer release()
	if nodes, err = n.wait(ctx, name); err != nil {
		return nil, fmt.Errorf("wait for volume %q: %w", name, err)
	}
	return nodes, nil
}

func (n *Node) wait(ctx context.Context, name string) ([]string, error) {
	l, err := n.findVolume(ctx, name)
	if err != nil {
		return nil, err
	}
	v := n.db.Volume(l.ID)
	if v == nil {
		return nil, fmt.Errorf("%w: this node holds no replica of it", store.ErrNoVolume)
	}
	if err := v.Settle(); err != nil {
		return nil, err
	}
	nodes, err := n.cluster.WaitAll(ctx, l.ID)
	if err == nil && len(nodes) == 0 && !n.alone() {
		err = ErrNoPeer
	}
	return nodes, err
}
