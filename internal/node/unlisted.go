package node

import (
	"errors"
	"fmt"
	"time"

	"github.com/synapsefs/synapsefs/store"
)

// A replica is unlisted if its volume is not in the catalogue and was not
// deleted: another volume of its name was created where nobody knew of it, as
// by a cluster that is founded anew, or the node that created it died before it
// could list it. One that is not ready is none: it holds nothing of its own.

// unlisted returns a replica of this node of that name that is unlisted, or nil.
func (n *Node) unlisted(name string) (*store.Volume, error) {
	listed, err := n.catalogue.find(name)
	if err != nil && !errors.Is(err, store.ErrNoVolume) {
		return nil, err
	}
	for _, v := range n.db.Volumes() {
		if v.Name() != name || v.ID() == listed.ID || v.ID() == store.CatalogueID || !v.Ready() {
			continue
		}
		if gone, err := n.catalogue.deleted(v.ID()); err != nil || !gone {
			return v, err
		}
	}
	return nil, nil
}

// checkOneOfName refuses a name by which somebody here may mean another volume
// than the one listed: what is mounted in its place would look empty (P11).
func (n *Node) checkOneOfName(l Listing) error {
	v, err := n.unlisted(l.Name)
	if err != nil || v == nil {
		return err
	}
	return fmt.Errorf("%w: %s", ErrTwoVolumes, replaced(v, l))
}

// replaced says what to do about an unlisted replica whose name l has.
func replaced(v *store.Volume, l Listing) string {
	return fmt.Sprintf("this node holds volume %v, but the catalogue lists %v, created by %s at %s, maybe of a cluster founded anew. "+
		"Commands take ids: mount each to see which is right. To drop the old one: volumes delete %v. "+
		"To have it back: volumes delete %v, then on this node volumes create %s, which lists it again",
		v.ID(), l.ID, l.By, l.Created.Format(time.RFC3339), v.ID(), l.ID, l.Name)
}

// problemOf says why a replica that is not in the catalogue is not.
func (n *Node) problemOf(v *store.Volume) string {
	switch l, err := n.catalogue.find(v.Name()); {
	case err == nil:
		return ErrTwoVolumes.Error() + ": " + replaced(v, l)
	case errors.Is(err, store.ErrNoVolume):
		return fmt.Sprintf("not in the catalogue: volumes create %s on this node lists it again, volumes delete %v drops it", v.Name(), v.ID())
	default:
		return err.Error()
	}
}

// relist lists an unlisted replica of a name that is free, if there is one.
func (n *Node) relist(name string, options map[string]string) (info VolumeInfo, found bool, err error) {
	v, err := n.unlisted(name)
	if err != nil || v == nil {
		return VolumeInfo{}, false, err
	}
	l := Listing{Name: name, ID: v.ID(), Options: options, Created: time.Now().UTC(), By: n.cfg.Node}
	if err := n.catalogue.add(l); err != nil {
		return VolumeInfo{}, false, err
	}
	n.log.Warn("volume was held here without being listed: listed again", "volume", name, "id", l.ID)
	return VolumeInfo{Listing: l, Replica: v}, true, nil
}

// byID finds a volume that is listed, or held here without being listed, by its
// id in hex.
func (n *Node) byID(text string) (Listing, error) {
	id, err := store.ParseVolumeID(text)
	if err != nil || id == store.CatalogueID {
		return Listing{}, store.ErrNoVolume
	}
	listed, err := n.catalogue.list()
	if err != nil {
		return Listing{}, err
	}
	for _, l := range listed {
		if l.ID == id {
			return l, nil
		}
	}
	v := n.db.Volume(id)
	if gone, err := n.catalogue.deleted(id); err != nil || gone || v == nil {
		return Listing{}, errors.Join(store.ErrNoVolume, err)
	}
	return Listing{Name: v.Name(), ID: id}, nil
}

// warnUnlisted logs the replicas whose name another volume has, each once. It
// belongs to the reconcile loop.
func (n *Node) warnUnlisted(warned map[store.VolumeID]bool) error {
	for _, v := range n.db.Volumes() {
		l, err := n.catalogue.find(v.Name())
		if errors.Is(err, store.ErrNoVolume) || v.ID() == store.CatalogueID {
			continue
		}
		gone, deletedErr := n.catalogue.deleted(v.ID())
		if err := errors.Join(err, deletedErr); err != nil {
			return err
		}
		if l.ID != v.ID() && !gone && !warned[v.ID()] {
			warned[v.ID()] = true
			n.log.Error(ErrTwoVolumes.Error(), "volume", v.Name(), "err", replaced(v, l))
		}
	}
	return nil
}
