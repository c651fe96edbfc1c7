package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/playground"
)

// A kubelet calls the CSI driver of a node as the real one and the sidecars do.
type kubelet struct {
	csi.ControllerClient
	csi.NodeClient

	nd  *playground.Node
	dir string
}

// kubelets starts a node and its kubelet on each host, or n on loopback.
func kubelets(t *testing.T, w *playground.Network, n int, set func(*playground.Cluster)) (*playground.Cluster, []*kubelet) {
	t.Helper()
	c := prepareWith(t, n, func(c *playground.Cluster) {
		c.CSI = true
		if w != nil {
			c.Hosts = w.Hosts
		}
		set(c)
	})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var all []*kubelet
	for _, nd := range c.Nodes {
		conn, err := grpc.NewClient("unix:"+nd.CSI, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		k := &kubelet{csi.NewControllerClient(conn), csi.NewNodeClient(conn), nd, filepath.Join(filepath.Dir(nd.Mount), "kubelet")}
		t.Cleanup(func() { k.clear(t) }) // before the nodes stop
		all = append(all, k)
	}
	return c, all
}

// clear takes away what is mounted.
func (k *kubelet) clear(t *testing.T) {
	t.Helper()
	for _, kind := range []string{"staging/*", "pods/*/mount"} {
		dirs, err := filepath.Glob(filepath.Join(k.dir, kind))
		for _, dir := range dirs {
			err = errors.Join(err, kernel.Unbind(dir))
		}
		if err != nil {
			t.Error(err)
		}
	}
}

func (k *kubelet) staging(volume string) string { return filepath.Join(k.dir, "staging", volume) }

func (k *kubelet) target(pod string) string { return filepath.Join(k.dir, "pods", pod, "mount") }

const rwx = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER

// capability is that of a pod; group is its fsGroup, if it has one.
func capability(group string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: rwx},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{VolumeMountGroup: group}},
	}
}

// create makes a volume as the provisioner does.
func (k *kubelet) create(ctx context.Context, name string, replicas int) (string, error) {
	r, err := k.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: name, VolumeCapabilities: []*csi.VolumeCapability{capability("")},
		Parameters: map[string]string{"replicas": fmt.Sprint(replicas)},
	})
	return r.GetVolume().GetVolumeId(), err
}

// run does what comes before a pod starts, and returns where it has the volume.
func (k *kubelet) run(ctx context.Context, volume, pod, group string) (string, error) {
	_, err := k.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{
		VolumeId: volume, NodeId: k.nd.Name, VolumeCapability: capability(""),
	})
	if err == nil {
		err = os.MkdirAll(k.staging(volume), 0o750)
	}
	if err == nil {
		_, err = k.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
			VolumeId: volume, StagingTargetPath: k.staging(volume), VolumeCapability: capability(group),
		})
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(k.target(pod)), 0o750)
	}
	if err == nil {
		_, err = k.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
			VolumeId: volume, StagingTargetPath: k.staging(volume), TargetPath: k.target(pod), VolumeCapability: capability(group),
		})
	}
	if err != nil {
		err = fmt.Errorf("run pod %s with volume %s on %s: %w", pod, volume, k.nd.Name, err)
	}
	return k.target(pod), err
}

// end does what comes after the last pod of a volume on a node.
func (k *kubelet) end(ctx context.Context, volume, pod string) error {
	_, err := k.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: k.target(pod)})
	if err == nil {
		_, err = k.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: volume, StagingTargetPath: k.staging(volume)})
	}
	if err == nil {
		if err = os.Remove(k.staging(volume)); errors.Is(err, os.ErrNotExist) { // so does kubelet
			err = nil
		}
	}
	if err == nil {
		_, err = k.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: volume, NodeId: k.nd.Name})
	}
	if err != nil {
		return fmt.Errorf("end pod %s with volume %s on %s: %w", pod, volume, k.nd.Name, err)
	}
	return nil
}
