package csi_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
)

// createFrom makes a volume of a snapshot or, if that is "", of a volume.
func (d *driver) createFrom(name, snapshot, volume string) (string, error) {
	source := &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Volume{Volume: &spec.VolumeContentSource_VolumeSource{VolumeId: volume}}}
	if snapshot != "" {
		source.Type = &spec.VolumeContentSource_Snapshot{Snapshot: &spec.VolumeContentSource_SnapshotSource{SnapshotId: snapshot}}
	}
	r, err := d.CreateVolume(d.ctx(), &spec.CreateVolumeRequest{
		Name: name, VolumeCapabilities: []*spec.VolumeCapability{capability(rwx)}, VolumeContentSource: source, Parameters: map[string]string{"replicas": "1"},
	})
	return r.GetVolume().GetVolumeId(), err
}

// A snapshot is of its moment, and what is made of it can be written; nothing of
// it needs what it was made from.
func TestSnapshots(t *testing.T) {
	d := serve(t)
	volume := d.create("pvc")
	must(t, d.stage(volume))
	file := func(volume string) string { return filepath.Join(d.published(volume, "pod-"+volume), "f") }
	at := file(volume)
	must(t, os.WriteFile(at, []byte("then"), 0o644))
	ids := make([]string, 4) // at once, as a sidecar that lost its leadership and its successor
	var all errgroup.Group
	for n := range ids {
		all.Go(func() error {
			r, err := d.CreateSnapshot(d.ctx(), &spec.CreateSnapshotRequest{Name: "snapshot-1", SourceVolumeId: volume})
			ids[n] = r.GetSnapshot().GetSnapshotId()
			return err
		})
	}
	must(t, all.Wait())
	snapshot := ids[0]
	for _, id := range ids {
		if id != snapshot {
			t.Errorf("one name, two snapshots: %v", ids)
		}
	}
	must(t, os.WriteFile(at, []byte("now"), 0o644))

	restored, err := d.createFrom("restored", snapshot, "")
	must(t, err)
	cloned, err := d.createFrom("cloned", "", volume)
	must(t, err)
	if again, err := d.createFrom("restored", snapshot, ""); err != nil || again != restored {
		t.Errorf("again: %v, %v", again, err)
	}
	_, err = d.createFrom("cloned", snapshot, "")
	expectCode(t, "the same name of something else", err, codes.AlreadyExists)
	_, err = d.createFrom("other", restored, "")
	expectCode(t, "a volume is no snapshot", err, codes.NotFound)
	_, err = d.createFrom("other", "", snapshot)
	expectCode(t, "a snapshot is no volume", err, codes.NotFound)
	expectCode(t, "to stage a snapshot", d.stage(snapshot), codes.NotFound)
	if _, err := d.DeleteVolume(d.ctx(), &spec.DeleteVolumeRequest{VolumeId: snapshot}); err != nil {
		t.Error(err)
	}
	if _, err := d.GetSnapshot(d.ctx(), &spec.GetSnapshotRequest{SnapshotId: snapshot}); err != nil {
		t.Errorf("deleted as a volume: %v", err)
	}

	must(t, d.unpublish(volume, "pod-"+volume))
	must(t, d.unstage(volume))
	for _, err := range []error{
		second(d.DeleteVolume(d.ctx(), &spec.DeleteVolumeRequest{VolumeId: volume})),
		second(d.DeleteSnapshot(d.ctx(), &spec.DeleteSnapshotRequest{SnapshotId: snapshot})),
		second(d.DeleteSnapshot(d.ctx(), &spec.DeleteSnapshotRequest{SnapshotId: snapshot})),
	} {
		must(t, err)
	}
	for volume, want := range map[string]string{restored: "then", cloned: "now"} {
		must(t, d.stage(volume))
		at := file(volume)
		if b, err := os.ReadFile(at); err != nil || string(b) != want {
			t.Errorf("%q, %v, want %q", b, err, want)
		}
		must(t, os.WriteFile(at, []byte(fmt.Sprint("written in ", volume)), 0o644))
	}
}
