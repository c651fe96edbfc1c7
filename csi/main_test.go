package csi_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/synapsefs/synapsefs/csi"
	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/internal/fstest"
	"github.com/synapsefs/synapsefs/internal/keys"
	"github.com/synapsefs/synapsefs/internal/node"
	"github.com/synapsefs/synapsefs/internal/playground"
)

func TestMain(m *testing.M) {
	if kernel.IsHelper() {
		if err := kernel.RunHelper(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m,
		// Ginkgo listens for signals to the end of the process.
		goleak.IgnoreAnyFunction("github.com/onsi/ginkgo/v2/internal/interrupt_handler.(*InterruptHandler).registerForInterrupts.func2"),
		// memberlist does not wait for a probe of a dead peer, which ends by itself.
		goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

// A driver under test, and how kubelet and the sidecars speak to it.
type driver struct {
	spec.IdentityClient
	spec.ControllerClient
	spec.NodeClient

	node    *node.Node
	dir     string // of kubelet, say
	socket  string
	t       *testing.T
	stopped func()

	closeDriver func() // alone; stopped does it, too
}

// newConfig is that of a node below dir, alone in its cluster. Its mounts end with
// it: the test program is no keeper.
func newConfig(t *testing.T, dir string) *config.Config {
	t.Helper()
	cfg := config.Default()
	cfg.Keeper = false
	cfg.Node, cfg.Cluster, cfg.StateDir, cfg.Keys = "node1", "test", filepath.Join(dir, "state"), filepath.Join(dir, "keys")
	cfg.AdminSocket = filepath.Join(dir, "admin.sock")
	if err := keys.InitCA(filepath.Join(dir, "ca"), "test"); err != nil {
		t.Fatal(err)
	}
	if err := keys.Issue(filepath.Join(dir, "ca"), cfg.Keys, cfg.Node); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []*string{&cfg.Bind, &cfg.ReplicaBind} {
		var err error
		if *addr, err = playground.FreeAddress(); err != nil {
			t.Fatal(err)
		}
	}
	return cfg
}

// shortDir is a directory whose path fits a socket's; nothing may be mounted in it
// in the end.
func shortDir(t *testing.T) string {
	t.Helper()
	fstest.NeedMount(t)
	dir, err := os.MkdirTemp("", "csi")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		clear(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// clear takes away what is mounted below dir.
func clear(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if e != nil && !e.IsDir() {
			return nil
		}
		if err := kernel.Unbind(path); err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func logger(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// serve starts a node and its driver until the end of the test.
func serve(t *testing.T) *driver {
	t.Helper()
	dir := shortDir(t)
	d := &driver{dir: filepath.Join(dir, "kubelet"), socket: filepath.Join(dir, "csi.sock"), t: t}
	if err := os.Mkdir(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d.start(newConfig(t, dir), nil)
	return d
}

// start starts the node, and the driver on what wrap makes of it.
func (d *driver) start(cfg *config.Config, wrap func(csi.Node) csi.Node) {
	d.t.Helper()
	n, err := node.Start(d.t.Context(), cfg, logger(d.t))
	if err != nil {
		d.t.Fatal(err)
	}
	d.node = n
	var served csi.Node = n
	if wrap != nil {
		served = wrap(n)
	}
	driver, err := csi.Serve(served, []string{"unix://" + d.socket, d.socket + ".second"}, logger(d.t))
	if err != nil {
		d.t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix:"+d.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		d.t.Fatal(err)
	}
	d.IdentityClient, d.ControllerClient, d.NodeClient = spec.NewIdentityClient(conn), spec.NewControllerClient(conn), spec.NewNodeClient(conn)
	d.closeDriver = sync.OnceFunc(driver.Close)
	running := true
	d.stopped = func() {
		if !running {
			return
		}
		running = false
		conn.Close()
		d.closeDriver()
		clear(d.t, d.dir) // or each mount would be awaited for its copies
		if err := n.Close(); err != nil {
			d.t.Error(err)
		}
	}
	d.t.Cleanup(d.stopped)
}

// patience bounds a call; the driver's own bounds are shorter.
const patience = 2 * time.Minute

func (d *driver) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	d.t.Cleanup(cancel)
	return ctx
}

func capability(mode spec.VolumeCapability_AccessMode_Mode) *spec.VolumeCapability {
	return &spec.VolumeCapability{
		AccessMode: &spec.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{}},
	}
}

const rwx = spec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER

// create makes a volume.
func (d *driver) create(name string) string {
	d.t.Helper()
	r, err := d.CreateVolume(d.ctx(), &spec.CreateVolumeRequest{
		Name: name, VolumeCapabilities: []*spec.VolumeCapability{capability(rwx)}, Parameters: map[string]string{"replicas": "1"},
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return r.Volume.VolumeId
}

func (d *driver) staging(volume string) string {
	dir := filepath.Join(d.dir, "staging", volume)
	if err := os.MkdirAll(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) { // what is dead there exists
		d.t.Fatal(err)
	}
	return dir
}

func (d *driver) target(pod any) string {
	dir := filepath.Join(d.dir, "pods", fmt.Sprint(pod))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		d.t.Fatal(err)
	}
	return filepath.Join(dir, "mount")
}

func (d *driver) stageRequest(volume string) *spec.NodeStageVolumeRequest {
	return &spec.NodeStageVolumeRequest{VolumeId: volume, StagingTargetPath: d.staging(volume), VolumeCapability: capability(rwx)}
}

func (d *driver) publishRequest(volume string, pod any) *spec.NodePublishVolumeRequest {
	return &spec.NodePublishVolumeRequest{
		VolumeId: volume, StagingTargetPath: d.staging(volume), TargetPath: d.target(pod), VolumeCapability: capability(rwx),
	}
}

func (d *driver) stage(volume string) error {
	_, err := d.NodeStageVolume(d.ctx(), d.stageRequest(volume))
	return err
}

func (d *driver) unstage(volume string) error {
	_, err := d.NodeUnstageVolume(d.ctx(), &spec.NodeUnstageVolumeRequest{VolumeId: volume, StagingTargetPath: d.staging(volume)})
	return err
}

// publish returns where.
func (d *driver) publish(volume string, pod any) (string, error) {
	r := d.publishRequest(volume, pod)
	_, err := d.NodePublishVolume(d.ctx(), r)
	return r.TargetPath, err
}

func (d *driver) unpublish(volume string, pod any) error {
	_, err := d.NodeUnpublishVolume(d.ctx(), &spec.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: d.target(pod)})
	return err
}
