package csi_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/synapsefs/synapsefs/csi"
	"github.com/synapsefs/synapsefs/internal/fstest"
	"github.com/synapsefs/synapsefs/internal/node"
)

// inline is what kubelet asks for a volume in a pod's spec.
func (d *driver) inline(pod string, attributes map[string]string) *spec.NodePublishVolumeRequest {
	context := map[string]string{
		"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.namespace": "shop", "csi.storage.k8s.io/pod.name": pod,
	}
	for key, value := range attributes {
		context[key] = value
	}
	return &spec.NodePublishVolumeRequest{
		// As kubelet makes it: longer than a volume's name.
		VolumeId:         "csi-" + pod + "-5f0a8b1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e6f7a8b9c0d1e2f3a4b5c6d7e8f9a",
		TargetPath:       d.target(pod),
		VolumeCapability: capability(spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER),
		VolumeContext:    context,
	}
}

func (d *driver) unpublishInline(r *spec.NodePublishVolumeRequest) error {
	_, err := d.NodeUnpublishVolume(d.ctx(), &spec.NodeUnpublishVolumeRequest{VolumeId: r.VolumeId, TargetPath: r.TargetPath})
	return err
}

func (d *driver) volumes() int {
	d.t.Helper()
	all, err := d.node.ListVolumes(d.ctx())
	if err != nil {
		d.t.Fatal(err)
	}
	return len(all)
}

// A pod's own volume comes and goes with it.
func TestInlinePrivate(t *testing.T) {
	d := serve(t)
	r := d.inline("pod", map[string]string{"history": "0"})
	for range 2 {
		_, err := d.NodePublishVolume(d.ctx(), r)
		must(t, err)
	}
	other := d.inline("other", nil)
	_, err := d.NodePublishVolume(d.ctx(), other)
	must(t, err)
	must(t, os.WriteFile(r.TargetPath+"/f", nil, 0o644))
	if entries, err := os.ReadDir(other.TargetPath); err != nil || len(entries) > 0 {
		t.Errorf("another pod sees %v, %v", entries, err)
	}
	if n := d.volumes(); n != 2 {
		t.Errorf("%d volumes", n)
	}
	list, err := d.ListVolumes(d.ctx(), &spec.ListVolumesRequest{})
	if err != nil || len(list.Entries) != 0 {
		t.Errorf("they are listed: %v, %v", list, err)
	}
	for range 2 {
		must(t, d.unpublishInline(r))
	}
	if _, err := os.Stat(r.TargetPath); !errors.Is(err, os.ErrNotExist) || d.volumes() != 1 {
		t.Errorf("it is left: %v, %d volumes", err, d.volumes())
	}
	for attribute, value := range map[string]string{"size": "1", "replicas": "2", "history": "many"} {
		_, err := d.NodePublishVolume(d.ctx(), d.inline("bad", map[string]string{attribute: value}))
		expectCode(t, "attribute "+attribute, err, codes.InvalidArgument, attribute)
	}
	if n := d.volumes(); n != 1 {
		t.Errorf("%d volumes after refusals", n)
	}
}

// An existing volume is for the namespaces that it says, and is neither made nor
// deleted by that.
func TestInlineShared(t *testing.T) {
	d := serve(t)
	c, err := d.CreateVolume(d.ctx(), &spec.CreateVolumeRequest{
		Name: "configs", VolumeCapabilities: []*spec.VolumeCapability{capability(rwx)},
		Parameters: map[string]string{"replicas": "1", "namespaces": "shop, office"},
	})
	must(t, err)
	must(t, d.stage(c.Volume.VolumeId))
	must(t, os.WriteFile(d.published(c.Volume.VolumeId, "writer")+"/f", []byte("x"), 0o644))
	for _, name := range []string{"configs", c.Volume.VolumeId} {
		r := d.inline("pod", map[string]string{"volume": name})
		_, err := d.NodePublishVolume(d.ctx(), r)
		must(t, err)
		if data, err := os.ReadFile(r.TargetPath + "/f"); err != nil || string(data) != "x" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
		must(t, d.unpublishInline(r))
	}
	d.create("closed")
	for what, tt := range map[string]struct {
		attributes map[string]string
		want       codes.Code
		word       string
	}{
		"another namespace":  {map[string]string{"volume": "configs", "csi.storage.k8s.io/pod.namespace": "cellar"}, codes.PermissionDenied, "cellar"},
		"a volume for none":  {map[string]string{"volume": "closed"}, codes.PermissionDenied, "shop"},
		"no such volume":     {map[string]string{"volume": "nowhere"}, codes.NotFound, "nowhere"},
		"no name":            {map[string]string{"volume": ""}, codes.InvalidArgument, "volume"},
		"options":            {map[string]string{"volume": "configs", "history": "1"}, codes.InvalidArgument, "options"},
		"no podInfoOnMount":  {map[string]string{"volume": "configs", "csi.storage.k8s.io/pod.namespace": ""}, codes.InvalidArgument, "podInfoOnMount"},
		"an empty namespace": {map[string]string{"volume": "closed", "csi.storage.k8s.io/pod.namespace": ""}, codes.InvalidArgument, "podInfoOnMount"},
	} {
		_, err := d.NodePublishVolume(d.ctx(), d.inline("bad", tt.attributes))
		expectCode(t, what, err, tt.want, tt.word)
	}
	if n := d.volumes(); n != 2 {
		t.Errorf("%d volumes", n)
	}
	// Whoever may make pods is not told which volumes there are.
	_, err = d.NodePublishVolume(d.ctx(), d.inline("bad", map[string]string{"volume": "nowhere"}))
	if err == nil || strings.Contains(err.Error(), "closed") {
		t.Errorf("it names others: %v", err)
	}
}

// held makes volumes late, or mounts none.
type held struct {
	csi.Node
	arrived, let chan struct{}
	made         atomic.Bool
	mountErr     error
}

func (h *held) CreateVolume(ctx context.Context, name string, options map[string]string) (node.VolumeInfo, error) {
	if h.let != nil {
		h.arrived <- struct{}{}
		<-h.let
	}
	defer h.made.Store(true)
	return h.Node.CreateVolume(ctx, name, options)
}

func (h *held) Mount(ctx context.Context, r node.MountRequest) (node.MountInfo, error) {
	if h.mountErr != nil {
		return node.MountInfo{}, h.mountErr
	}
	return h.Node.Mount(ctx, r)
}

// A pod's own volume that cannot be shown does not stay: nobody asks for an end
// of what never began. Nor does one whose pod was given up meanwhile.
func TestInlinePrivateFails(t *testing.T) {
	dir := shortDir(t)
	d := &driver{dir: filepath.Join(dir, "kubelet"), socket: filepath.Join(dir, "csi.sock"), t: t}
	h := &held{mountErr: errors.New("no luck")}
	d.start(newConfig(t, dir), func(n csi.Node) csi.Node { h.Node = n; return h })
	r := d.inline("pod", nil)
	if _, err := d.NodePublishVolume(d.ctx(), r); err == nil {
		t.Error("it is mounted")
	}
	if n := d.volumes(); n != 0 {
		t.Errorf("%d volumes after a publish that failed", n)
	}

	h.mountErr, h.arrived, h.let = nil, make(chan struct{}), make(chan struct{})
	h.made.Store(false)
	ctx, cancel := context.WithCancel(d.ctx())
	done := make(chan error, 2)
	go func() {
		_, err := d.NodePublishVolume(ctx, r)
		done <- err
	}()
	<-h.arrived
	cancel() // kubelet is started again, say
	expectCode(t, "publish", <-done, codes.Canceled)
	short, cancel := context.WithTimeout(d.ctx(), 300*time.Millisecond)
	defer cancel()
	_, err := d.NodeUnpublishVolume(short, &spec.NodeUnpublishVolumeRequest{VolumeId: r.VolumeId, TargetPath: r.TargetPath})
	close(h.let)
	if err != nil { // it comes again until it is through
		must(t, d.unpublishInline(r))
	}
	fstest.Until(t, 10*time.Second, "the volume to go", func() bool { return h.made.Load() && d.volumes() == 0 })
}

// A pod that went while no driver ran leaves nothing; one that is there keeps what
// it has.
func TestInlineSweep(t *testing.T) {
	dir := shortDir(t)
	cfg := newConfig(t, dir)
	d := &driver{dir: filepath.Join(dir, "kubelet"), socket: filepath.Join(dir, "csi.sock"), t: t}
	d.start(cfg, nil)
	gone, there := d.inline("gone", nil), d.inline("there", nil)
	for _, r := range []*spec.NodePublishVolumeRequest{gone, there} {
		_, err := d.NodePublishVolume(d.ctx(), r)
		must(t, err)
		must(t, os.WriteFile(r.TargetPath+"/f", []byte("x"), 0o644))
	}
	d.stopped()
	clear(t, d.dir)
	must(t, os.RemoveAll(filepath.Dir(gone.TargetPath)))
	d.start(cfg, nil)
	fstest.Until(t, 30*time.Second, "the volume to go", func() bool { return d.volumes() == 1 })
	_, err := d.NodePublishVolume(d.ctx(), there)
	must(t, err)
	if data, err := os.ReadFile(there.TargetPath + "/f"); err != nil || string(data) != "x" {
		t.Errorf("%q, %v", data, err)
	}
	must(t, d.unpublishInline(there))
}
