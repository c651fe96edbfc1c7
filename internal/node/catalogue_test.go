package node

import (
	"errors"
	"maps"
	"path/filepath"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

func openCatalogue(t *testing.T, dir string) (*catalogue, *store.DB) {
	t.Helper()
	db, err := store.Open(store.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	v := db.Volume(store.CatalogueID)
	if v == nil {
		if v, err = db.CreateReplica(store.CatalogueID, "catalogue", true); err != nil {
			t.Fatal(err)
		}
	}
	return &catalogue{v: v}, db
}

func names(t *testing.T, c *catalogue) (all []string) {
	t.Helper()
	list, err := c.list()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		all = append(all, l.Name)
	}
	return all
}

func TestCatalogue(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	c, db := openCatalogue(t, dir)
	if got := names(t, c); len(got) != 0 {
		t.Errorf("a new catalogue lists %v", got)
	}
	if _, err := c.find("configs"); !errors.Is(err, store.ErrNoVolume) {
		t.Errorf("find in a new catalogue: %v", err)
	}
	want := Listing{
		Name: "configs", ID: store.NewVolumeID(), By: "node1",
		Options: map[string]string{"mtime-step": "1s"}, Created: time.Now().UTC(),
	}
	if err := c.add(want); err != nil {
		t.Fatal(err)
	}
	if err := c.add(Listing{Name: "art", ID: store.NewVolumeID()}); err != nil {
		t.Fatal(err)
	}
	second := want
	second.ID = store.NewVolumeID()
	if err := c.add(second); !errors.Is(err, crdt.ErrExist) {
		t.Errorf("second volume of one name: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	c, db = openCatalogue(t, dir)
	defer db.Close()
	got, err := c.find("configs")
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != want.ID || got.Name != want.Name || got.By != want.By ||
		!got.Created.Equal(want.Created) || !maps.Equal(got.Options, want.Options) {
		t.Errorf("read back %+v, want %+v", got, want)
	}
	if got := names(t, c); len(got) != 2 || got[0] != "art" || got[1] != "configs" {
		t.Errorf("lists %v", got)
	}
}

// P6: an id that was deleted is refused for ever; its name is free again.
func TestP6DeletedIDStaysDeleted(t *testing.T) {
	c, db := openCatalogue(t, filepath.Join(t.TempDir(), "state"))
	defer db.Close()
	old := Listing{Name: "configs", ID: store.NewVolumeID()}
	if err := c.add(old); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time changes nothing
		if err := c.remove(old); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.add(Listing{Name: "configs", ID: store.NewVolumeID()}); err != nil {
		t.Fatal(err)
	}
	l, err := c.find("configs")
	if err != nil || l.ID == old.ID {
		t.Errorf("found %v, %v", l.ID, err)
	}
	for id, want := range map[store.VolumeID]bool{old.ID: true, l.ID: false} {
		if gone, err := c.deleted(id); err != nil || gone != want {
			t.Errorf("deleted(%v) = %v, %v", id, gone, err)
		}
	}
}

// P6: what is said of a volume while it is being deleted, here or on a node that
// does not know of that yet, does not bring it back, and leaves its name free.
func TestP6ChangeOfDeletedVolume(t *testing.T) {
	c, db := openCatalogue(t, filepath.Join(t.TempDir(), "state"))
	defer db.Close()
	old := Listing{Name: "configs", ID: store.NewVolumeID()}
	for _, do := range []func(Listing) error{c.add, c.remove} {
		if err := do(old); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.replace(old); !errors.Is(err, store.ErrNoVolume) {
		t.Errorf("change here: %v", err)
	}
	// As a merge has it: an edit beats a delete that did not know of it.
	if err := c.putLocked(old, crdt.RenameReplace); err != nil {
		t.Fatal(err)
	}
	if l, err := c.find(old.Name); !errors.Is(err, store.ErrNoVolume) {
		t.Errorf("find the deleted volume: %v, %v", l, err)
	}
	if all := names(t, c); len(all) > 0 {
		t.Errorf("listed: %v", all)
	}
	young := Listing{Name: old.Name, ID: store.NewVolumeID()}
	if err := c.add(young); err != nil {
		t.Fatal(err)
	}
	if err := c.replace(old); !errors.Is(err, store.ErrNoVolume) {
		t.Errorf("change, when another has the name: %v", err)
	}
	if l, err := c.find(old.Name); err != nil || l.ID != young.ID {
		t.Errorf("a late change of the deleted one: the name is that of %v, %v, not %v", l.ID, err, young.ID)
	}
}
