package node

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// What a copy leaves that a daemon died in is never shown under its name (P11), is
// in nobody's way, and goes.
func TestP11HalfCopy(t *testing.T) {
	c := newCluster(t)
	cfg := c.config()
	n := start(t, cfg)
	if _, err := n.CreateVolume(t.Context(), "v", nil); err != nil {
		t.Fatal(err)
	}
	half, err := n.db.CreateReplica(store.NewVolumeID(), "copy", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := half.Mknod(store.Request{}, root, "half", store.NewNode{Kind: crdt.KindFile, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	id := half.ID()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = start(t, cfg)
	info, err := n.CreateVolume(t.Context(), "copy", map[string]string{"source": "v"})
	if err != nil {
		t.Fatal(err)
	}
	if info.ID == id || info.Options["source"] == "v" {
		t.Errorf("made: %+v", info)
	}
	eventually(t, "the half copy to go", func() bool { return n.db.Volume(id) == nil })
	if n.db.Volume(info.ID) == nil {
		t.Error("the whole one has gone, too")
	}
}

// One name is one copy, however many ask at once; what a volume is never changes.
func TestCopiesAtOnce(t *testing.T) {
	c := newCluster(t)
	n := start(t, c.config())
	if _, err := n.CreateVolume(t.Context(), "v", nil); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	results := make([]error, 8)
	for i := range results {
		group.Go(func() {
			_, results[i] = n.CreateVolume(t.Context(), "copy", map[string]string{"source": "v", "snapshot": "true"})
		})
	}
	group.Wait()
	if !slices.Contains(results, nil) {
		t.Errorf("none was made: %v", results)
	}
	for _, err := range results {
		if err != nil && !errors.Is(err, ErrVolumeExists) {
			t.Error(err)
		}
	}
	for what, options := range map[string]map[string]string{
		"a snapshot of nothing":     {"snapshot": "true"},
		"of what is not there":      {"source": "none"},
		"of what cannot be an id":   {"source": "No Name"},
		"no truth value":            {"source": "v", "snapshot": "perhaps"},
		"an option that is not one": {"source": "v", "sauce": "x"},
	} {
		if _, err := n.CreateVolume(t.Context(), "other", options); err == nil {
			t.Errorf("%s: made", what)
		}
	}
	for _, key := range []string{"source", "snapshot"} {
		if _, err := n.SetOptions(t.Context(), "copy", map[string]string{key: ""}); !errors.Is(err, ErrBadName) {
			t.Errorf("%s was changed: %v", key, err)
		}
	}
}
