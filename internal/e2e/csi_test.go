package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/fstest"
	"github.com/synapsefs/synapsefs/internal/playground"
	"github.com/synapsefs/synapsefs/internal/wire"
)

var (
	csiVolumes  = flag.Int("csi.volumes", 12, "volumes of TestCSIVolumesMove")
	csiParallel = flag.Int("csi.parallel", 8, "volumes that move at once")
)

// Three nodes, and a volume after the other that is made, used on two of them, moves
// to the third with its pod, and is deleted: many at once.
func TestCSIVolumesMove(t *testing.T) {
	c, ks := kubelets(t, network(t, 3), 3, func(*playground.Cluster) {})
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(*csiVolumes)*patience)
	defer cancel()
	begin := time.Now()
	var group errgroup.Group
	group.SetLimit(*csiParallel)
	for i := range *csiVolumes {
		group.Go(func() error { return move(ctx, ks[i%3], ks[(i+1)%3], ks[(i+2)%3], fmt.Sprintf("pvc-%d", i)) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d volumes in %v", *csiVolumes, time.Since(begin))
	for _, k := range ks {
		t.Logf("%s: %d MiB", k.nd.Name, resident(t, k.nd)>>20)
		if left, err := filepath.Glob(filepath.Join(k.dir, "staging", "*")); err != nil || len(left) > 0 {
			t.Errorf("%s: left at %v, %v", k.nd.Name, left, err)
		}
	}
	for _, nd := range c.Nodes {
		fstest.Within(t, patience, func() error { // all is freed
			s := statusOf(t, nd)
			if len(s.Volumes)+len(s.Mounts) > 0 {
				return fmt.Errorf("%d volumes, %d mounts", len(s.Volumes), len(s.Mounts))
			}
			return nil
		})
	}
}

// move is the life of a volume: pods of it write on a and read on b, then the one on
// a goes to c.
func move(ctx context.Context, a, b, c *kubelet, name string) error {
	volume, err := a.create(ctx, name, 2)
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	var on [2]string
	for i, k := range []*kubelet{a, b} {
		if on[i], err = k.run(ctx, volume, name, ""); err != nil {
			return err
		}
	}
	if err := os.WriteFile(on[0]+"/f", []byte(name), 0o644); err != nil {
		return err
	}
	if err := awaitFile(ctx, on[1]+"/f", name); err != nil {
		return err
	}
	if err := a.end(ctx, volume, name); err != nil {
		return err
	}
	moved, err := c.run(ctx, volume, name, "2000")
	if err != nil {
		return err
	}
	if data, err := os.ReadFile(moved + "/f"); err != nil || string(data) != name { // at once: P11
		return fmt.Errorf("after the move: %q, %w", data, errors.Join(err, errors.New("not what was written")))
	}
	if err := os.WriteFile(moved+"/g", []byte(name), 0o644); err != nil {
		return err
	}
	if err := awaitFile(ctx, on[1]+"/g", name); err != nil {
		return err
	}
	if err := errors.Join(b.end(ctx, volume, name), c.end(ctx, volume, name)); err != nil {
		return err
	}
	_, err = b.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: volume})
	return err
}

// awaitFile returns when a file has that content.
func awaitFile(ctx context.Context, path, want string) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		data, err := os.ReadFile(path)
		if err == nil && string(data) == want {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s has %q: %w", path, data, errors.Join(err, ctx.Err()))
		}
	}
}

func statusOf(t *testing.T, nd *playground.Node) (s *wire.NodeStatus) {
	t.Helper()
	err := nd.Call(func(c *admin.Client) (err error) {
		s, err = c.Status(t.Context(), &wire.NodeStatusRequest{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// resident is a daemon's memory in bytes.
func resident(t *testing.T, nd *playground.Node) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", nd.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		if kb, ok := strings.CutPrefix(string(line), "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(kb), "kB")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	return 0
}

// Field case 27: everybody else is away, the daemon is killed with files open, and
// what kubelet then asks of the next one is answered in time. So it is while nobody
// serves the mounts but a keeper: the pods wait and then go on.
func TestCSIKilledAndCutOff(t *testing.T) {
	w := network(t, 2)
	_, ks := kubelets(t, w, 2, func(*playground.Cluster) {})
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	k := ks[1]
	volume, err := ks[0].create(ctx, "v", 2)
	if err != nil {
		t.Fatal(err)
	}
	stays, err := k.run(ctx, volume, "stays", "")
	if err != nil {
		t.Fatal(err)
	}
	grouped, err := k.run(ctx, volume, "grouped", "2000")
	if err != nil {
		t.Fatal(err)
	}
	goes, err := k.run(ctx, volume, "goes", "")
	if err != nil {
		t.Fatal(err)
	}
	cut(t, w.Cut, 1)
	for i := range 100 {
		if err := os.WriteFile(fmt.Sprintf("%s/f%d", goes, i), []byte("x"), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.nd.Kill(); err != nil {
		t.Fatal(err)
	}
	_, err = k.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: goes})
	if status.Code(err) != codes.Unavailable { // kubelet asks again
		t.Errorf("unpublish with the daemon dead: %v", err)
	}
	if err := k.nd.Start(ctx); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if _, err := k.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: goes}, grpc.WaitForReady(true)); err != nil {
		t.Errorf("unpublish after the kill, all peers away: %v", err)
	}
	t.Logf("unpublish took %v", time.Since(begin))
	if _, err := os.Stat(goes); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target is left: %v", err)
	}
	for i := range 100 {
		if data, err := os.ReadFile(fmt.Sprintf("%s/f%d", stays, i)); err != nil || string(data) != "x" {
			t.Fatalf("what was closed before the kill: %q, %v", data, err)
		}
	}
	// The pod of the group has it after the take-over as before.
	var st syscall.Stat_t
	if err := syscall.Stat(grouped+"/f0", &st); err != nil || st.Gid != 2000 || st.Mode&0o777 != 0o660 {
		t.Errorf("group %d, mode %o, %v", st.Gid, st.Mode&0o777, err)
	}
	// What kubelet says again is as it is.
	for _, pod := range []string{"stays", "grouped"} {
		group := map[string]string{"grouped": "2000"}[pod]
		if _, err := k.run(ctx, volume, pod, group); err != nil {
			t.Error(err)
		}
		if _, err := k.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: k.target(pod)}); err != nil {
			t.Error(err)
		}
	}
	if _, err := k.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: volume, StagingTargetPath: k.staging(volume)}); err != nil {
		t.Error(err)
	}
	cut(t, w.Heal, 1)
	onOther, err := ks[0].run(ctx, volume, "other", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := awaitFile(ctx, onOther+"/f99", "x"); err != nil {
		t.Error(err)
	}
}

// The daemon is killed, or hands over, in the middle of whatever calls there are;
// kubelet makes them again, and in the end all is as it was asked for.
func TestCSIRestartedMidway(t *testing.T) {
	_, ks := kubelets(t, nil, 2, func(*playground.Cluster) {})
	ctx, cancel := context.WithTimeout(t.Context(), 5*patience)
	defer cancel()
	k := ks[1]
	const volumes = 6
	stop := make(chan struct{})
	var group errgroup.Group
	ids := make([]string, volumes)
	for i := range volumes {
		group.Go(func() error {
			pod := fmt.Sprintf("pod%d", i)
			if err := again(ctx, func() (err error) { ids[i], err = k.create(ctx, pod, 2); return err }); err != nil {
				return err
			}
			for {
				err := again(ctx, func() error { _, err := k.run(ctx, ids[i], pod, []string{"", "2000"}[i%2]); return err })
				select {
				case <-stop: // and it stays
					return err
				default:
				}
				if err == nil {
					err = again(ctx, func() error { return k.end(ctx, ids[i], pod) })
				}
				if err != nil {
					return err
				}
			}
		})
	}
	for round := range 6 {
		end := k.nd.Kill
		if round%2 == 1 {
			end = k.nd.HandOver
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if err := k.nd.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for i, id := range ids {
		pod := fmt.Sprintf("pod%d", i)
		if err := os.WriteFile(k.target(pod)+"/f", []byte(pod), 0o644); err != nil {
			t.Error(err)
		}
		on, err := ks[0].run(ctx, id, pod, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := awaitFile(ctx, on+"/f", pod); err != nil {
			t.Error(err)
		}
		if err := errors.Join(k.end(ctx, id, pod), ks[0].end(ctx, id, pod)); err != nil {
			t.Error(err)
		}
		if _, err := k.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
			t.Error(err)
		}
	}
	if s := statusOf(t, k.nd); len(s.Mounts)+len(s.Volumes) > 0 {
		t.Errorf("left: %v, %v", s.Mounts, s.Volumes)
	}
}

// again makes a call until it is done, as kubelet does.
func again(ctx context.Context, call func() error) error {
	for {
		err := call()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("to the end: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// With no live node that has the volume, a node that never had it stages nothing,
// says so, and does so when there is one.
func TestP11CSIStageWithoutSource(t *testing.T) {
	_, ks := kubelets(t, nil, 2, func(*playground.Cluster) {})
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	holder, other := ks[0], ks[1]
	err := holder.nd.Call(func(c *admin.Client) error { // without the option replicas
		_, err := c.CreateVolume(ctx, &wire.CreateVolumeRequest{Name: volume})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := holder.run(ctx, volume, "writer", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/f", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := holder.end(ctx, volume, "writer"); err != nil {
		t.Fatal(err)
	}
	fstest.Within(t, patience, func() error { // the other one knows of it
		if len(statusOf(t, other.nd).Volumes) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	if err := holder.nd.HandOver(); err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(ctx, 3*time.Second)
	_, err = other.run(short, volume, "reader", "")
	stop()
	if code := status.Code(err); code != codes.Unavailable && code != codes.DeadlineExceeded {
		t.Errorf("staged without a source: %v", err)
	}
	if entries, err := os.ReadDir(other.staging(volume)); err != nil || len(entries) > 0 {
		t.Errorf("the staging path has %v, %v", entries, err)
	}
	if err := holder.nd.Start(ctx); err != nil {
		t.Fatal(err)
	}
	dir, err = other.run(ctx, volume, "reader", "")
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(dir + "/f"); err != nil || string(data) != "x" {
		t.Errorf("%q, %v", data, err)
	}
}
