package csi_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/synapsefs/synapsefs/internal/fstest"
	"github.com/synapsefs/synapsefs/internal/keys"
	"github.com/synapsefs/synapsefs/internal/node"
	"github.com/synapsefs/synapsefs/internal/playground"
)

// What cannot be had is refused when the volume is made, and the error says which
// word it is.
func TestCreateVolumeRefuses(t *testing.T) {
	d := serve(t)
	for what, tt := range map[string]struct {
		change func(r *spec.CreateVolumeRequest)
		words  []string
	}{
		"an unknown parameter": {func(r *spec.CreateVolumeRequest) { r.Parameters["replica"] = "3" }, []string{`"replica"`, "replicas"}},
		"no number":            {func(r *spec.CreateVolumeRequest) { r.Parameters["replicas"] = "three" }, []string{"replicas", "three"}},
		"none":                 {func(r *spec.CreateVolumeRequest) { r.Parameters["replicas"] = "0" }, []string{"replicas"}},
		"no time":              {func(r *spec.CreateVolumeRequest) { r.Parameters["history-age"] = "1 week" }, []string{"history-age"}},
		"no size":              {func(r *spec.CreateVolumeRequest) { r.Parameters["conflict-limit"] = "much" }, []string{"conflict-limit"}},
		"no namespace":         {func(r *spec.CreateVolumeRequest) { r.Parameters["namespaces"] = "a,B_" }, []string{"namespaces", "B_"}},
		"the driver's own":     {func(r *spec.CreateVolumeRequest) { r.Parameters["ephemeral"] = "/x" }, []string{"ephemeral"}},
		"a mutable one":        {func(r *spec.CreateVolumeRequest) { r.MutableParameters = map[string]string{"history": "-1"} }, []string{"history"}},
		"raw block": {func(r *spec.CreateVolumeRequest) {
			r.VolumeCapabilities[0].AccessType = &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}}
		}, []string{"raw block"}},
		"a file system": {func(r *spec.CreateVolumeRequest) { r.VolumeCapabilities[0].GetMount().FsType = "ext4" }, []string{"ext4"}},
		"a mount option": {func(r *spec.CreateVolumeRequest) {
			r.VolumeCapabilities[0].GetMount().MountFlags = []string{"nfsvers=4"}
		}, []string{"nfsvers=4"}},
		"no access mode":   {func(r *spec.CreateVolumeRequest) { r.VolumeCapabilities[0].AccessMode.Mode = 0 }, []string{"access mode"}},
		"a snapshot":       {func(r *spec.CreateVolumeRequest) { r.VolumeContentSource = &spec.VolumeContentSource{} }, []string{"volume_content_source"}},
		"another capacity": {func(r *spec.CreateVolumeRequest) { r.CapacityRange = &spec.CapacityRange{RequiredBytes: -1} }, []string{"capacity_range"}},
	} {
		r := &spec.CreateVolumeRequest{
			Name: "v", VolumeCapabilities: []*spec.VolumeCapability{capability(rwx)},
			Parameters: map[string]string{"csi.storage.k8s.io/pvc/name": "claim"},
		}
		tt.change(r)
		_, err := d.CreateVolume(d.ctx(), r)
		expectCode(t, what, err, codes.InvalidArgument, tt.words...)
	}
	if n := d.volumes(); n > 0 {
		t.Errorf("%d volumes", n)
	}
}

// Creating a volume again gives the same one, if it is what is asked for.
func TestCreateVolumeAgain(t *testing.T) {
	d := serve(t)
	request := func(name string, size int64, parameters map[string]string) *spec.CreateVolumeRequest {
		return &spec.CreateVolumeRequest{
			Name: name, VolumeCapabilities: []*spec.VolumeCapability{capability(rwx)},
			CapacityRange: &spec.CapacityRange{RequiredBytes: size}, Parameters: parameters,
		}
	}
	long := "PVC " + strings.Repeat("ä", 60)
	ids := map[string]string{}
	for _, name := range []string{"pvc-1", long, "Upper", "upper"} {
		for range 2 {
			r, err := d.CreateVolume(d.ctx(), request(name, 5, map[string]string{"history": "3"}))
			must(t, err)
			if ids[name] == "" {
				ids[name] = r.Volume.VolumeId
			}
			if ids[name] != r.Volume.VolumeId || r.Volume.CapacityBytes != 5 {
				t.Errorf("%s: %v", name, r.Volume)
			}
		}
	}
	if n := d.volumes(); n != 4 {
		t.Errorf("%d volumes", n)
	}
	_, err := d.CreateVolume(d.ctx(), request("pvc-1", 6, map[string]string{"history": "3"}))
	expectCode(t, "larger", err, codes.AlreadyExists, "5")
	_, err = d.CreateVolume(d.ctx(), request("pvc-1", 5, map[string]string{"history": "4"}))
	expectCode(t, "other parameters", err, codes.AlreadyExists, "history")

	// It grows, and its options change; neither makes another of it.
	_, err = d.ControllerExpandVolume(d.ctx(), &spec.ControllerExpandVolumeRequest{VolumeId: ids["pvc-1"], CapacityRange: &spec.CapacityRange{RequiredBytes: 9}})
	must(t, err)
	_, err = d.ControllerExpandVolume(d.ctx(), &spec.ControllerExpandVolumeRequest{VolumeId: ids["pvc-1"], CapacityRange: &spec.CapacityRange{RequiredBytes: 1, LimitBytes: 8}})
	expectCode(t, "shrink", err, codes.OutOfRange)
	_, err = d.ControllerModifyVolume(d.ctx(), &spec.ControllerModifyVolumeRequest{VolumeId: ids["pvc-1"], MutableParameters: map[string]string{"replicas": "2"}})
	must(t, err)
	_, err = d.ControllerModifyVolume(d.ctx(), &spec.ControllerModifyVolumeRequest{VolumeId: ids["pvc-1"], MutableParameters: map[string]string{"capacity": "2"}})
	expectCode(t, "modify what is not a parameter", err, codes.InvalidArgument, "capacity")
	v, err := d.node.FindVolume(d.ctx(), ids["pvc-1"])
	if err != nil || v.Options["replicas"] != "2" || v.Options["capacity"] != "9" || v.Options["history"] != "3" {
		t.Errorf("options %v, %v", v.Options, err)
	}
	if r := v.Replica.Limits(); r.History != 3 {
		t.Errorf("limits %+v", r)
	}
}

// A listing in pages has all volumes that are there throughout, once each.
func TestListVolumesInPages(t *testing.T) {
	d := serve(t)
	var want []string
	for i := range 10 {
		want = append(want, d.create(fmt.Sprintf("v%d", i)))
	}
	var got []string
	token := ""
	for page := 0; page == 0 || token != ""; page++ {
		r, err := d.ListVolumes(d.ctx(), &spec.ListVolumesRequest{MaxEntries: 3, StartingToken: token})
		must(t, err)
		for _, e := range r.Entries {
			got = append(got, e.Volume.VolumeId)
		}
		if token = r.NextToken; page == 0 {
			// The last of the page goes, and one comes that was before it.
			_, err := d.DeleteVolume(d.ctx(), &spec.DeleteVolumeRequest{VolumeId: got[2]})
			must(t, err)
			d.create("a")
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// What this node cannot know yet it does not call gone: nobody would ask again, and
// the volume would stay for ever.
func TestDeleteUnknownVolume(t *testing.T) {
	dir := shortDir(t)
	cfg := newConfig(t, dir)
	d := &driver{dir: filepath.Join(dir, "kubelet"), socket: filepath.Join(dir, "csi.sock"), t: t}
	d.start(cfg, nil)
	deleted, unknown := d.create("v"), "00112233445566778899aabbccddeeff"
	both := func(id string) (errs []error) {
		_, err := d.DeleteVolume(d.ctx(), &spec.DeleteVolumeRequest{VolumeId: id})
		_, err2 := d.ControllerUnpublishVolume(d.ctx(), &spec.ControllerUnpublishVolumeRequest{VolumeId: id, NodeId: "node1"})
		return []error{err, err2}
	}
	for _, id := range []string{deleted, deleted, unknown, "no-id"} {
		for _, err := range both(id) {
			must(t, err)
		}
	}

	other := *cfg
	other.Node, other.Keys, other.StateDir = "node2", filepath.Join(dir, "keys2"), filepath.Join(dir, "state2")
	other.AdminSocket, other.Join = filepath.Join(dir, "admin2.sock"), []string{cfg.Bind}
	must(t, keys.Issue(filepath.Join(dir, "ca"), other.Keys, other.Node))
	for _, addr := range []*string{&other.Bind, &other.ReplicaBind} {
		var err error
		*addr, err = playground.FreeAddress()
		must(t, err)
	}
	n, err := node.Start(t.Context(), &other, logger(t))
	must(t, err)
	fstest.Until(t, 30*time.Second, "the other node to know the cluster", func() bool { return d.node.Knows("node2") })
	fstest.Until(t, 30*time.Second, "this node to have what the other has", func() bool {
		gone, err := d.node.IsGone(unknown)
		return gone && err == nil
	})
	must(t, n.Close())
	for _, id := range []string{deleted, unknown} { // it has what the other had
		for _, err := range both(id) {
			must(t, err)
		}
	}
	d.stopped()
	d.start(cfg, nil) // now it may have missed something
	for _, err := range both(deleted) {
		must(t, err)
	}
	for _, err := range both(unknown) {
		expectCode(t, "a volume of which this node may not have heard", err, codes.Unavailable)
	}
}
