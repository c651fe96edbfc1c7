package csi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/internal/node"
	"github.com/synapsefs/synapsefs/store"
)

// DriverName is the driver's, as the CSIDriver object and StorageClasses have it.
const DriverName = "csi.synapsefs.io"

// Node is what the driver asks of the daemon. *node.Node is one.
type Node interface {
	Name() string
	Knows(node string) bool

	CreateVolume(ctx context.Context, name string, options map[string]string) (node.VolumeInfo, error)
	DeleteVolume(ctx context.Context, volume string, force bool) (node.VolumeInfo, error)
	FindVolume(ctx context.Context, volume string) (node.VolumeInfo, error)
	IsGone(volume string) (bool, error)
	ListVolumes(ctx context.Context) ([]node.VolumeInfo, error)
	SetOptions(ctx context.Context, volume string, change map[string]string) (node.VolumeInfo, error)
	Ephemerals() ([]node.Listing, error)
	Health(v node.VolumeInfo) []node.Finding
	Space() (store.Statfs, error)

	Attachments() (map[store.VolumeID]map[string]node.Attachment, error)
	Attach(ctx context.Context, id store.VolumeID, node string, a node.Attachment) error
	Detach(ctx context.Context, id store.VolumeID, node string) error

	Mount(ctx context.Context, r node.MountRequest) (node.MountInfo, error)
	MountOn(dir string) (node.MountInfo, error)
	Leftover(dir string) (bool, error)
	Bind(from, dir string, readOnly bool, flags node.MountFlags) error
	Unbind(dir string) error
	Copies(dir string) ([]string, error)
	Places(id store.VolumeID, except ...string) ([]string, error)
	Shows(id store.VolumeID, dir string) (bool, error)
}

// limits bound the calls that are not bounded by callTime. Staging waits for the
// replica; what removes a pod must not keep it.
var limits = map[string]time.Duration{
	spec.Node_NodeStageVolume_FullMethodName:           90 * time.Second,
	spec.Node_NodePublishVolume_FullMethodName:         90 * time.Second,
	spec.Node_NodeUnpublishVolume_FullMethodName:       8 * time.Second,
	spec.Node_NodeUnstageVolume_FullMethodName:         8 * time.Second,
	spec.Controller_CreateVolume_FullMethodName:        40 * time.Second,
	spec.Controller_CreateSnapshot_FullMethodName:      40 * time.Second,
	spec.Node_NodeGetVolumeStats_FullMethodName:        8 * time.Second,
	spec.Identity_Probe_FullMethodName:                 time.Second,
	spec.Node_NodeGetCapabilities_FullMethodName:       time.Second,
	spec.Identity_GetPluginInfo_FullMethodName:         time.Second,
	spec.Node_NodeGetVolumeHealth_FullMethodName:       8 * time.Second,
	spec.Node_NodeExpandVolume_FullMethodName:          8 * time.Second,
	spec.Controller_GetCapacity_FullMethodName:         8 * time.Second,
	spec.Identity_GetPluginCapabilities_FullMethodName: time.Second,
}

// callTime bounds a call.
const callTime = 20 * time.Second

// closeGrace is how long calls in progress may take when the driver stops.
const closeGrace = time.Second

// endGrace is how long what was begun for a call may take to end after the call's
// time. What has not ended then hangs in the kernel.
const endGrace = 200 * time.Millisecond

// A Driver serves the CSI services of a node.
type Driver struct {
	// Fixed by Serve.
	node   Node
	log    *slog.Logger
	server *grpc.Server
	locks  locks
	cancel context.CancelFunc // of what is done in the background
	tasks  sync.WaitGroup
	work   sync.WaitGroup // what calls have begun under a lock
}

// Serve serves on the unix sockets at endpoints, each a path or unix:// and a path. A
// socket that is there is replaced: a driver that still serves it keeps the
// connections that it has.
func Serve(n Node, endpoints []string, log *slog.Logger) (*Driver, error) {
	var listeners []net.Listener
	for _, e := range endpoints {
		l, err := listen(strings.TrimPrefix(e, "unix://"))
		if err != nil {
			for _, l := range listeners {
				err = errors.Join(err, l.Close())
			}
			return nil, fmt.Errorf("CSI endpoint %s: %w", e, err)
		}
		listeners = append(listeners, l)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := &Driver{node: n, log: log, cancel: cancel}
	d.server = grpc.NewServer(grpc.UnaryInterceptor(d.call))
	spec.RegisterIdentityServer(d.server, &identity{})
	spec.RegisterControllerServer(d.server, &controller{d: d})
	spec.RegisterNodeServer(d.server, &nodeServer{d: d})
	for _, l := range listeners {
		d.tasks.Go(func() {
			if err := d.server.Serve(l); err != nil {
				log.Error("serve CSI", "err", err)
			}
		})
	}
	d.tasks.Go(func() { d.sweep(ctx) })
	log.Info("CSI driver is up", "endpoints", endpoints)
	return d, nil
}

// listen makes the socket aside and moves it to its place: there is one at each
// moment, and the last to come has it.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	aside := path + ".new"
	if err := os.Remove(aside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", aside)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // another driver may have the place by then
	err = os.Chmod(aside, 0o600)
	if err == nil {
		err = os.Rename(aside, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close stops serving. The socket stays in its place, dead. nil needs none.
func (d *Driver) Close() {
	if d == nil {
		return
	}
	d.cancel()
	timer := time.AfterFunc(closeGrace, d.server.Stop)
	defer timer.Stop()
	d.server.GracefulStop()
	d.tasks.Wait()
	done := make(chan struct{})
	go func() {
		d.work.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(closeGrace): // it hangs in the kernel
	}
}

// call bounds a call, logs it, and turns its error into a status.
func (d *Driver) call(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	limit, ok := limits[info.FullMethod]
	if !ok {
		limit = callTime
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	begin := time.Now()
	reply, err := next(ctx, req)
	d.log.Debug("CSI call", "method", info.FullMethod, "took", time.Since(begin), "err", err)
	if err != nil {
		return nil, toStatus(err)
	}
	return reply, nil
}

// toStatus is what an error goes as. The caller of what is already one knows best.
func toStatus(err error) error {
	var s interface{ GRPCStatus() *status.Status }
	switch {
	case errors.As(err, &s):
		return s.GRPCStatus().Err()
	case errors.Is(err, node.ErrNoCatalogue), errors.Is(err, store.ErrNotReady), errors.Is(err, node.ErrStopping):
		return status.Error(codes.Unavailable, err.Error()) // for now
	}
	return status.Error(node.Code(err), err.Error())
}

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// find returns a volume by the id that an orchestrator has. What cannot be an id
// is that of no volume.
func (d *Driver) find(ctx context.Context, id string) (node.VolumeInfo, error) {
	if id == "" {
		return node.VolumeInfo{}, invalid("no volume_id is given")
	}
	v, err := d.findAny(ctx, id)
	if err == nil && isSnapshot(v) {
		err = fmt.Errorf("volume %q is a snapshot: %w", id, store.ErrNoVolume)
	}
	return v, err
}

// findAny finds snapshots, too.
func (d *Driver) findAny(ctx context.Context, id string) (node.VolumeInfo, error) {
	v, err := d.node.FindVolume(ctx, id)
	if errors.Is(err, node.ErrBadName) {
		err = fmt.Errorf("volume %q: %w", id, store.ErrNoVolume)
	}
	return v, err
}

// findOrGone is find for what undoes something: gone says that there is no such
// volume. Where the cluster may know one that this node does not, yet, the call is
// to come again: it would never, and what it was to undo would stay.
func (d *Driver) findOrGone(ctx context.Context, id string) (v node.VolumeInfo, gone bool, err error) {
	v, err = d.find(ctx, id)
	if !errors.Is(err, store.ErrNoVolume) {
		return v, false, err
	}
	err = d.checkGone(id)
	return v, err == nil, err
}

// checkGone refuses to take for gone what is not known here.
func (d *Driver) checkGone(id string) error {
	gone, err := d.node.IsGone(id)
	if err == nil && !gone {
		err = status.Errorf(codes.Unavailable, "%q is not known here, and no peer was heard since the start: it may be elsewhere", id)
	}
	return err
}

// under runs do when no other call is at work on the volume, and returns when it
// has ended or, a moment later, ctx has. Then it goes on, and the next call for the
// volume waits.
func (d *Driver) under(ctx context.Context, volume string, do func() error) error {
	unlock, err := d.locks.lock(ctx, volume)
	if err != nil {
		return status.Errorf(codes.Aborted, "another call is at work on volume %s", volume)
	}
	done := make(chan error, 1)
	d.work.Go(func() {
		defer unlock()
		done <- do()
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done: // it has heard that, too, and says more
		return err
	case <-time.After(endGrace):
		return fmt.Errorf("volume %s: the kernel does not answer: %w", volume, ctx.Err())
	}
}

// locks are one for each name.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when it is free
}

func (l *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		held := l.held[name]
		if held == nil {
			if l.held == nil {
				l.held = map[string]chan struct{}{}
			}
			free := make(chan struct{})
			l.held[name] = free
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				delete(l.held, name)
				close(free)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
