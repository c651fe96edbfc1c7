package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sync/singleflight"

	"github.com/synapsefs/synapsefs/store"
)

// A copy of a volume is a volume like any other, that shares large content on the
// nodes that hold both, and does not need the other one afterwards. A snapshot is a
// copy that is mounted read-only alone.

// copies are the volumes that are being made as copies.
type copies struct {
	calls singleflight.Group // by name

	// Guarded by Node.mu.
	from map[store.VolumeID]int  // how many are made of a volume
	to   map[store.VolumeID]bool // filled, and not listed yet
}

// checkOptions checks the options of a new volume, and has source be an id.
func (n *Node) checkOptions(ctx context.Context, options map[string]string) (map[string]string, error) {
	options = maps.Clone(options)
	if from := options["source"]; from != "" {
		l, err := n.findVolume(ctx, from)
		if err != nil {
			return nil, fmt.Errorf("source: %w", err)
		}
		options["source"] = l.ID.String()
	}
	o, err := ParseOptions(options)
	if err == nil && o.Snapshot && o.Source == (store.VolumeID{}) {
		err = fmt.Errorf("%w: volume option snapshot without source", ErrBadName)
	}
	return options, err
}

// copyVolume makes and lists a copy of a volume.
func (n *Node) copyVolume(ctx context.Context, name, from string, options map[string]string) (VolumeInfo, error) {
	done := n.copies.calls.DoChan(name, func() (any, error) {
		if n.isStopping() {
			return VolumeInfo{}, ErrStopping
		}
		ctx, release := n.scope(context.WithoutCancel(ctx))
		defer release()
		return n.makeCopy(ctx, name, from, options)
	})
	select {
	case r := <-done:
		return r.Val.(VolumeInfo), r.Err
	case <-ctx.Done():
		return VolumeInfo{}, fmt.Errorf("it is being copied: %w", context.Cause(ctx))
	}
}

func (n *Node) makeCopy(ctx context.Context, name, from string, options map[string]string) (VolumeInfo, error) {
	if _, err := n.catalogue.find(name); err == nil {
		return VolumeInfo{}, ErrVolumeExists
	} else if !errors.Is(err, store.ErrNoVolume) {
		return VolumeInfo{}, err
	}
	source, err := n.byID(from)
	if err != nil {
		return VolumeInfo{}, err
	}
	l := n.newListing(name, options)
	defer n.copying(source.ID, l.ID)()
	src, err := n.replica(source, false)
	if err == nil {
		_, err = n.catchUp(ctx, src)
	}
	if err != nil {
		return VolumeInfo{}, fmt.Errorf("source volume %q: %w", source.Name, err)
	}
	v, err := n.db.CreateReplica(l.ID, l.Name, false)
	if err != nil {
		return VolumeInfo{}, err
	}
	if err = v.CopyFrom(ctx, src); err == nil {
		err = v.SetReady()
	}
	if err != nil {
		return VolumeInfo{}, errors.Join(err, n.db.DeleteReplica(l.ID))
	}
	if o, err := ParseOptions(options); err == nil {
		v.SetLimits(o.Limits)
	}
	n.replicas.Lock()
	n.join(v)
	n.replicas.Unlock()
	n.creations.Lock()
	defer n.creations.Unlock()
	return n.listNew(l, v)
}

// copying notes a copy until the function that it returns is called: the source
// stays here, and the other one is no remainder of a daemon that died.
func (n *Node) copying(from, to store.VolumeID) (end func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := &n.copies
	if c.from == nil {
		c.from, c.to = map[store.VolumeID]int{}, map[store.VolumeID]bool{}
	}
	c.from[from]++
	c.to[to] = true
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if c.from[from]--; c.from[from] == 0 {
			delete(c.from, from)
		}
		delete(c.to, to)
	}
}

// dropHalfCopies drops what is left of copies that a daemon died in. listed are all
// volumes, read after the replicas were. It belongs to the reconcile loop.
func (n *Node) dropHalfCopies(replicas []*store.Volume, listed []Listing) error {
	var errs []error
	for _, v := range replicas {
		n.mu.Lock()
		made := n.copies.to[v.ID()]
		n.mu.Unlock()
		if made || v.Ready() || v.ID() == store.CatalogueID || slices.ContainsFunc(listed, func(l Listing) bool { return l.ID == v.ID() }) {
			continue
		}
		n.log.Info("dropping a copy that was not finished", "volume", v.Name(), "id", v.ID())
		errs = append(errs, n.drop(v))
	}
	return errors.Join(errs...)
}

func (l *Listing) isSnapshot() bool {
	o, _ := ParseOptions(l.Options) // what cannot be read is another option
	return o.Snapshot
}

// mayWrite returns ErrSnapshot if a volume is one.
func (n *Node) mayWrite(id store.VolumeID) error {
	l, err := n.byID(id.String())
	if errors.Is(err, store.ErrNoVolume) { // there is nothing to protect any more
		return nil
	}
	if err == nil && l.isSnapshot() {
		err = ErrSnapshot
	}
	return err
}
