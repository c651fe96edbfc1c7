package csi_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/csi"
	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/node"
)

func expectCode(t *testing.T, what string, err error, want codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: %v, want %v", what, err, want)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v does not say %q", what, err, word)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// readsAndWrites fails if a volume that is shown in both places is not there.
func readsAndWrites(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		name := filepath.Join(dir, "by-"+filepath.Base(filepath.Dir(dir)))
		if err := os.WriteFile(name, []byte("x"), 0o644); err != nil {
			t.Error(err)
		}
		for _, other := range dirs {
			if _, err := os.ReadFile(filepath.Join(other, filepath.Base(name))); err != nil {
				t.Error(err)
			}
		}
	}
}

func (d *driver) published(volume string, pod any) string {
	d.t.Helper()
	dir, err := d.publish(volume, pod)
	if err != nil {
		d.t.Fatal(err)
	}
	return dir
}

// Field case 26: the old pod's unpublish races with new pods of the same volume, and
// with unstage, which must not take them anything.
func TestPodsOfOneNode(t *testing.T) {
	d := serve(t)
	v := d.create("v")
	must(t, d.stage(v))
	second := d.published(v, 2)
	for round := range 20 {
		first := d.published(v, 1)
		readsAndWrites(t, first, second)
		third := d.target(3)
		var calls errgroup.Group
		for range 2 {
			calls.Go(func() error { return d.unpublish(v, 1) })
			calls.Go(func() error { _, err := d.publish(v, 3); return err })
			calls.Go(func() error {
				if err := d.unstage(v); status.Code(err) != codes.FailedPrecondition {
					return errors.Join(errors.New("unstage of what is published"), err)
				}
				return nil
			})
			calls.Go(func() error { return d.stage(v) })
		}
		must(t, calls.Wait())
		if _, err := os.Stat(first); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("round %d: the target of the old pod is left: %v", round, err)
		}
		readsAndWrites(t, second, third)
		must(t, d.unpublish(v, 3))
	}
	for range 2 {
		must(t, d.unpublish(v, 2))
		must(t, d.unstage(v))
	}
	// And from the beginning.
	must(t, d.stage(v))
	again := d.published(v, 1)
	if _, err := os.ReadFile(again + "/by-2"); err != nil {
		t.Error(err)
	}
}

// What is to go may be in any state, and what is not the driver's stays.
func TestUnpublishAnything(t *testing.T) {
	d := serve(t)
	v := d.create("v")
	must(t, d.stage(v))
	must(t, d.unpublish(v, "no directory"))
	must(t, os.Mkdir(d.target("plain"), 0o755))
	must(t, d.unpublish(v, "plain"))
	must(t, os.MkdirAll(d.target("full")+"/precious", 0o755))
	if err := d.unpublish(v, "full"); err == nil {
		t.Error("a directory with files was unpublished")
	}
	if _, err := os.Stat(d.target("full") + "/precious"); err != nil {
		t.Error(err)
	}
	in := d.published(v, "in use")
	f, err := os.Create(in + "/f")
	must(t, err)
	defer f.Close()
	must(t, d.unpublish(v, "in use"))
	if _, err := f.WriteString("still"); err != nil {
		t.Errorf("write by who used it: %v", err)
	}
	for _, id := range []string{v, "0123456789abcdef0123456789abcdef", "never-heard-of"} {
		if _, err := d.NodeUnpublishVolume(d.ctx(), &spec.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: d.target("gone")}); err != nil {
			t.Errorf("unpublish of %s: %v", id, err)
		}
		if _, err := d.NodeUnstageVolume(d.ctx(), &spec.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: d.target("gone")}); err != nil {
			t.Errorf("unstage of %s: %v", id, err)
		}
	}
}

// After a reboot the directories are there and the table of mounts is empty: kubelet
// may unpublish and unstage, or stage and publish, whatever it knows of.
func TestAfterReboot(t *testing.T) {
	dir := shortDir(t)
	cfg := newConfig(t, dir)
	d := &driver{dir: filepath.Join(dir, "kubelet"), socket: filepath.Join(dir, "csi.sock"), t: t}
	d.start(cfg, nil)
	v := d.create("v")
	must(t, d.stage(v))
	target := d.published(v, 1)
	must(t, os.WriteFile(target+"/f", []byte("x"), 0o644))
	for _, goOn := range []func(){
		func() { // the same pod again
			expectCode(t, "publish what is not staged", second(d.publish(v, 1)), codes.FailedPrecondition, "not staged")
			must(t, d.stage(v))
			d.published(v, 1)
		},
		func() { // another one
			must(t, d.unpublish(v, 1))
			must(t, d.unstage(v))
			must(t, d.stage(v))
			d.published(v, 1)
		},
	} {
		d.stopped()
		clear(t, d.dir)
		if _, err := os.Stat(target); err != nil {
			t.Errorf("the directory is to be there: %v", err)
		}
		d.start(cfg, nil)
		goOn()
		if data, err := os.ReadFile(target + "/f"); err != nil || string(data) != "x" {
			t.Errorf("after the reboot: %q, %v", data, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// A daemon that ended without a keeper leaves dead mounts at both paths. They are
// replaced, or go.
func TestOverDeadMounts(t *testing.T) {
	d := serve(t)
	v := d.create("v")
	die := func(pod string) {
		c, err := kernel.Mount(d.staging(v), kernel.Options{FSName: "v", Guard: true})
		must(t, err)
		must(t, os.MkdirAll(d.target(pod), 0o755))
		must(t, c.Bind(d.target(pod), false, kernel.Flags{}))
		c.Close()
	}
	die("1")
	must(t, d.stage(v))
	readsAndWrites(t, d.published(v, "1"))
	must(t, d.unpublish(v, "1"))
	must(t, d.unstage(v))
	die("2")
	must(t, d.unpublish(v, "2"))
	must(t, d.unstage(v))
	// A new pod comes, and kubelet does not know that the staged mount has died.
	die("3")
	readsAndWrites(t, d.published(v, "4"), d.published(v, "3"))
	must(t, d.unpublish(v, "3"))
	must(t, d.unpublish(v, "4"))
	must(t, d.unstage(v))
	if _, err := os.ReadDir(d.staging(v)); err != nil {
		t.Errorf("something is left at the staging path: %v", err)
	}
}

// A volume that is nowhere is not made, whoever asks.
func TestP11UnknownVolume(t *testing.T) {
	d := serve(t)
	v := d.create("known")
	must(t, d.stage(v))
	for _, id := range []string{"0123456789abcdef0123456789abcdef", "never-heard-of", "No Name At All"} {
		r := d.stageRequest("known")
		r.VolumeId = id
		_, err := d.NodeStageVolume(d.ctx(), r)
		expectCode(t, "stage", err, codes.NotFound)
		p := d.publishRequest(v, 1)
		p.VolumeId = id
		_, err = d.NodePublishVolume(d.ctx(), p)
		expectCode(t, "publish", err, codes.NotFound)
		_, err = d.ControllerGetVolume(d.ctx(), &spec.ControllerGetVolumeRequest{VolumeId: id})
		expectCode(t, "get", err, codes.NotFound)
		_, err = d.NodeGetVolumeHealth(d.ctx(), &spec.NodeGetVolumeHealthRequest{VolumeId: id})
		expectCode(t, "health", err, codes.NotFound)
	}
	r, err := d.ListVolumes(d.ctx(), &spec.ListVolumesRequest{})
	if err != nil || len(r.Entries) != 1 {
		t.Errorf("volumes: %v, %v", r, err)
	}
	// By its name it is found: a PersistentVolume that somebody wrote.
	byName := d.stageRequest("known")
	_, err = d.NodeStageVolume(d.ctx(), byName)
	must(t, err)
}

// Who may only read gets a mount that cannot be written to, beside one that can.
func TestReadOnly(t *testing.T) {
	d := serve(t)
	v := d.create("v")
	must(t, d.stage(v))
	writer := d.published(v, "writer")
	must(t, os.WriteFile(writer+"/f", []byte("x"), 0o644))
	for pod, ask := range map[string]func(*spec.NodePublishVolumeRequest){
		"readonly":     func(r *spec.NodePublishVolumeRequest) { r.Readonly = true },
		"mount-option": func(r *spec.NodePublishVolumeRequest) { r.VolumeCapability.GetMount().MountFlags = []string{"ro"} },
		"mode": func(r *spec.NodePublishVolumeRequest) {
			r.VolumeCapability = capability(spec.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)
		},
		"group": func(r *spec.NodePublishVolumeRequest) {
			r.Readonly = true
			r.VolumeCapability.GetMount().VolumeMountGroup = "2000"
		},
	} {
		r := d.publishRequest(v, pod)
		ask(r)
		for range 2 {
			if _, err := d.NodePublishVolume(d.ctx(), r); err != nil {
				t.Fatalf("%s: %v", pod, err)
			}
		}
		_, err := d.NodePublishVolume(d.ctx(), d.publishRequest(v, pod))
		expectCode(t, pod+": to be written to", err, codes.AlreadyExists)
		if err := os.WriteFile(r.TargetPath+"/f", nil, 0o644); !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: write: %v", pod, err)
		}
		if data, err := os.ReadFile(r.TargetPath + "/f"); err != nil || string(data) != "x" {
			t.Errorf("%s: read: %q, %v", pod, data, err)
		}
	}
	must(t, os.WriteFile(writer+"/f", []byte("y"), 0o644))

	// Staged for reading, all of it is.
	w := d.create("w")
	stage := d.stageRequest(w)
	stage.PublishContext = map[string]string{"readOnly": "true"}
	_, err := d.NodeStageVolume(d.ctx(), stage)
	must(t, err)
	if err := os.Mkdir(d.published(w, "w")+"/d", 0o755); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write to what is staged for reading: %v", err)
	}
	expectCode(t, "stage it for writing", d.stage(w), codes.AlreadyExists)
}

// Each pod sees the files as of its own group, and nobody changed them for that.
func TestGroups(t *testing.T) {
	d := serve(t)
	v := d.create("v")
	must(t, d.stage(v))
	plain := d.published(v, "plain")
	must(t, os.WriteFile(plain+"/f", []byte("x"), 0o600))
	expect := func(path string, gid, mode uint32) {
		t.Helper()
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil || st.Gid != gid || st.Mode&0o777 != mode {
			t.Errorf("%s: group %d, mode %o, %v; want %d, %o", path, st.Gid, st.Mode&0o777, err, gid, mode)
		}
	}
	for pod, gid := range map[string]uint32{"2000": 2000, "3000": 3000} {
		r := d.publishRequest(v, pod)
		r.VolumeCapability.GetMount().VolumeMountGroup = pod
		for range 2 {
			_, err := d.NodePublishVolume(d.ctx(), r)
			must(t, err)
		}
		expect(r.TargetPath+"/f", gid, 0o660)
		readsAndWrites(t, r.TargetPath)
		for _, other := range []string{"4000", ""} { // what is there is not that
			r.VolumeCapability.GetMount().VolumeMountGroup = other
			_, err := d.NodePublishVolume(d.ctx(), r)
			expectCode(t, "publish with group "+other, err, codes.AlreadyExists)
		}
	}
	expect(plain+"/f", 0, 0o600)
	for _, gid := range []string{"wheel", "-1", "4294967295"} { // the last is (gid_t)-1: nobody
		r := d.publishRequest(v, "bad")
		r.VolumeCapability.GetMount().VolumeMountGroup = gid
		_, err := d.NodePublishVolume(d.ctx(), r)
		expectCode(t, "group "+gid, err, codes.InvalidArgument, "volume_mount_group")
	}
	must(t, d.unpublish(v, "2000"))
	expect(d.target("3000")+"/f", 3000, 0o660)
	must(t, d.unpublish(v, "3000"))
	must(t, d.unpublish(v, "plain"))
	must(t, d.unstage(v))
}

// stuck hangs where the kernel might.
type stuck struct {
	csi.Node
	dir     string
	arrived chan struct{}
	let     chan struct{}
}

func (s *stuck) Unbind(dir string) error {
	if dir == s.dir {
		s.arrived <- struct{}{}
		<-s.let
	}
	return s.Node.Unbind(dir)
}

// One volume that hangs holds up no other, and each call is answered.
func TestStuckVolume(t *testing.T) {
	dir := shortDir(t)
	d := &driver{dir: filepath.Join(dir, "kubelet"), socket: filepath.Join(dir, "csi.sock"), t: t}
	s := &stuck{arrived: make(chan struct{}, 1), let: make(chan struct{}), dir: d.target("stuck")}
	d.start(newConfig(t, dir), func(n csi.Node) csi.Node { s.Node = n; return s })
	bad, good := d.create("bad"), d.create("good")
	must(t, d.stage(bad))
	must(t, d.stage(good))
	d.published(bad, "stuck")
	call := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := d.NodeUnpublishVolume(ctx, &spec.NodeUnpublishVolumeRequest{VolumeId: bad, TargetPath: s.dir})
		return err
	}
	expectCode(t, "a call that hangs", call(), codes.DeadlineExceeded)
	<-s.arrived
	if err := call(); status.Code(err) != codes.Aborted && status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the next call: %v", err)
	}
	d.published(good, 1)
	must(t, d.unpublish(good, 1))
	must(t, d.unstage(good))
	close(s.let)
	must(t, d.unpublish(bad, "stuck")) // when it goes on, it is as if nothing had been
	must(t, d.unstage(bad))
}

// hung hangs where the kernel might, outside of a lock.
type hung struct {
	csi.Node
	arrived, let chan struct{}
}

func (h *hung) Mount(ctx context.Context, r node.MountRequest) (node.MountInfo, error) {
	close(h.arrived)
	<-h.let
	return node.MountInfo{}, ctx.Err()
}

// A call that hangs keeps no driver from being closed: the mounts would not be
// handed over.
func TestCloseWithHungCall(t *testing.T) {
	dir := shortDir(t)
	d := &driver{dir: filepath.Join(dir, "kubelet"), socket: filepath.Join(dir, "csi.sock"), t: t}
	h := &hung{arrived: make(chan struct{}), let: make(chan struct{})}
	d.start(newConfig(t, dir), func(n csi.Node) csi.Node { h.Node = n; return h })
	v, done := d.create("v"), make(chan error, 1)
	go func() { done <- d.stage(v) }()
	<-h.arrived
	closed := make(chan struct{})
	go func() {
		d.closeDriver()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("it is not closed")
	}
	close(h.let)
	<-closed
	if err := <-done; err == nil {
		t.Error("it is staged")
	}
}

// A second pod of a volume that is for one is refused; the first may come again.
func TestSinglePod(t *testing.T) {
	d := serve(t)
	v := d.create("v")
	must(t, d.stage(v))
	one := capability(spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER)
	first := d.publishRequest(v, 1)
	first.VolumeCapability = one
	for range 2 {
		_, err := d.NodePublishVolume(d.ctx(), first)
		must(t, err)
	}
	for _, group := range []string{"", "2000"} {
		r := d.publishRequest(v, 2)
		r.VolumeCapability = capability(one.AccessMode.Mode)
		r.VolumeCapability.GetMount().VolumeMountGroup = group
		_, err := d.NodePublishVolume(d.ctx(), r)
		expectCode(t, "a second pod", err, codes.FailedPrecondition, first.TargetPath)
	}
	must(t, d.unpublish(v, 1))
	r := d.publishRequest(v, 2)
	r.VolumeCapability = one
	_, err := d.NodePublishVolume(d.ctx(), r)
	must(t, err)
}
