package csi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/internal/node"
)

type nodeServer struct {
	spec.UnimplementedNodeServer
	d *Driver
}

var nodeCapabilities = []spec.NodeServiceCapability_RPC_Type{
	spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
	spec.NodeServiceCapability_RPC_GET_VOLUME_STATS,
	spec.NodeServiceCapability_RPC_EXPAND_VOLUME,
	spec.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	spec.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
	spec.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
}

func (*nodeServer) NodeGetCapabilities(context.Context, *spec.NodeGetCapabilitiesRequest) (*spec.NodeGetCapabilitiesResponse, error) {
	r := &spec.NodeGetCapabilitiesResponse{}
	for _, c := range nodeCapabilities {
		r.Capabilities = append(r.Capabilities, &spec.NodeServiceCapability{
			Type: &spec.NodeServiceCapability_Rpc{Rpc: &spec.NodeServiceCapability_RPC{Type: c}},
		})
	}
	return r, nil
}

func (s *nodeServer) NodeGetInfo(context.Context, *spec.NodeGetInfoRequest) (*spec.NodeGetInfoResponse, error) {
	return &spec.NodeGetInfoResponse{NodeId: s.d.node.Name()}, nil
}

func (s *nodeServer) NodeStageVolume(ctx context.Context, r *spec.NodeStageVolumeRequest) (*spec.NodeStageVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("no volume_id is given")
	}
	if err := checkPath("staging_target_path", r.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	a, err := accessOf(r.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	v, err := s.d.find(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	// A lock of its own: it may take long to catch up, and nobody needs to wait for that.
	err = s.d.under(ctx, "staged at "+r.GetStagingTargetPath(), func() error {
		return s.d.mount(ctx, v, node.MountRequest{
			Dir:      r.GetStagingTargetPath(),
			ReadOnly: a.readOnly || readsOnly(a.mode) || r.GetPublishContext()[readOnlyKey] == "true",
			Flags:    a.flags,
		})
	})
	if err != nil {
		return nil, err
	}
	return &spec.NodeStageVolumeResponse{}, nil
}

// mount mounts a volume, unless it is mounted so already. It waits until the
// replica has caught up (P11).
func (d *Driver) mount(ctx context.Context, v node.VolumeInfo, r node.MountRequest) error {
	if err := os.MkdirAll(r.Dir, 0o750); err != nil && !errors.Is(err, os.ErrExist) {
		return err // what is dead there exists, and cannot be asked what it is
	}
	r.Volume, r.AllowOther = v.ID.String(), true
	_, err := d.node.Mount(ctx, r)
	switch {
	case err == nil:
		return nil
	case node.Code(err) == codes.DeadlineExceeded:
		return status.Errorf(codes.DeadlineExceeded, "volume %q has not caught up in time and goes on doing so; call again: %v", v.Name, err)
	case node.Code(err) != codes.AlreadyExists:
		return err
	}
	have, lookErr := d.node.MountOn(r.Dir)
	switch {
	case node.Code(lookErr) == codes.NotFound: // it is nobody's of this daemon
		return err
	case lookErr != nil:
		return status.Errorf(codes.Aborted, "another call is at work: %v", lookErr)
	case have.ID != v.ID || have.ReadOnly != r.ReadOnly:
		return status.Errorf(codes.AlreadyExists, "%s: volume %q is mounted there, read-only: %v", r.Dir, have.Volume, have.ReadOnly)
	case (have.Group == nil) != (r.Group == nil) || r.Group != nil && *have.Group != *r.Group:
		return status.Errorf(codes.AlreadyExists, "%s: volume %q is mounted there for another group", r.Dir, have.Volume)
	}
	return nil
}

func (s *nodeServer) NodeUnstageVolume(ctx context.Context, r *spec.NodeUnstageVolumeRequest) (*spec.NodeUnstageVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("no volume_id is given")
	}
	dir := r.GetStagingTargetPath()
	if err := checkPath("staging_target_path", dir); err != nil {
		return nil, err
	}
	err := s.d.under(ctx, r.GetVolumeId(), func() error {
		if m, err := s.d.node.MountOn(dir); err == nil {
			copies, err := s.d.node.Copies(dir)
			if err != nil {
				return err
			}
			if len(copies) > 0 {
				return status.Errorf(codes.FailedPrecondition, "volume %q is still published at %s", m.Volume, strings.Join(copies, ", "))
			}
		}
		return s.d.node.Unbind(dir)
	})
	if err != nil {
		return nil, err
	}
	return &spec.NodeUnstageVolumeResponse{}, nil
}

func (s *nodeServer) NodePublishVolume(ctx context.Context, r *spec.NodePublishVolumeRequest) (*spec.NodePublishVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("no volume_id is given")
	}
	if err := checkPath("target_path", r.GetTargetPath()); err != nil {
		return nil, err
	}
	a, err := accessOf(r.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	a.readOnly = a.readOnly || r.GetReadonly() || readsOnly(a.mode)
	if r.GetVolumeContext()[ephemeralKey] == "true" {
		err = s.d.publishInline(ctx, r, a)
	} else {
		err = s.d.publish(ctx, r, a)
	}
	if err != nil {
		return nil, err
	}
	return &spec.NodePublishVolumeResponse{}, nil
}

// publish shows a staged volume at its target.
func (d *Driver) publish(ctx context.Context, r *spec.NodePublishVolumeRequest, a access) error {
	if r.GetStagingTargetPath() == "" {
		return status.Error(codes.FailedPrecondition, "no staging_target_path is given: stage the volume first")
	}
	v, err := d.find(ctx, r.GetVolumeId())
	if err != nil {
		return err
	}
	return d.under(ctx, r.GetVolumeId(), func() error {
		staged, err := d.staged(ctx, v, r, a)
		switch {
		case err != nil:
			return err
		case staged.ID != v.ID:
			return status.Errorf(codes.FailedPrecondition, "volume %q, and not %q, is staged at %s", staged.Volume, v.Name, r.GetStagingTargetPath())
		}
		if a.mode == singleNodeSingleWriter {
			if err := d.checkAlone(v, r); err != nil {
				return err
			}
		}
		if a.group == nil {
			return d.node.Bind(r.GetStagingTargetPath(), r.GetTargetPath(), a.readOnly, a.flags)
		}
		return d.mount(ctx, v, node.MountRequest{
			Dir: r.GetTargetPath(), ReadOnly: a.readOnly || staged.ReadOnly, Flags: a.flags, Group: a.group,
		})
	})
}

// staged returns the mount at the staging path. One that died with its daemon is
// made again: kubelet believes that it is there.
func (d *Driver) staged(ctx context.Context, v node.VolumeInfo, r *spec.NodePublishVolumeRequest, a access) (node.MountInfo, error) {
	dir := r.GetStagingTargetPath()
	m, err := d.node.MountOn(dir)
	if node.Code(err) != codes.NotFound {
		return m, err
	}
	if died, err := d.node.Leftover(dir); err != nil {
		return m, err
	} else if !died {
		return m, status.Errorf(codes.FailedPrecondition, "volume %q is not staged at %s", v.Name, dir)
	}
	err = d.mount(ctx, v, node.MountRequest{
		Dir: dir, ReadOnly: readsOnly(a.mode) || r.GetPublishContext()[readOnlyKey] == "true", Flags: a.flags,
	})
	if err != nil {
		return m, err
	}
	return d.node.MountOn(dir)
}

// checkAlone refuses a second pod where there may be one.
func (d *Driver) checkAlone(v node.VolumeInfo, r *spec.NodePublishVolumeRequest) error {
	others, err := d.node.Places(v.ID, r.GetStagingTargetPath(), r.GetTargetPath())
	if err == nil && len(others) > 0 {
		err = status.Errorf(codes.FailedPrecondition, "volume %q is for one pod, and is published at %s", v.Name, strings.Join(others, ", "))
	}
	return err
}

func (s *nodeServer) NodeUnpublishVolume(ctx context.Context, r *spec.NodeUnpublishVolumeRequest) (*spec.NodeUnpublishVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("no volume_id is given")
	}
	dir := r.GetTargetPath()
	if err := checkPath("target_path", dir); err != nil {
		return nil, err
	}
	err := s.d.under(ctx, r.GetVolumeId(), func() error {
		if err := s.d.node.Unbind(dir); err != nil {
			return err
		}
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) { // never what is in it
			return err
		}
		return s.d.deleteEphemeral(ctx, dir)
	})
	if err != nil {
		return nil, err
	}
	return &spec.NodeUnpublishVolumeResponse{}, nil
}

// shown returns a volume that is shown at a path.
func (s *nodeServer) shown(ctx context.Context, id, name, path string) (node.VolumeInfo, error) {
	v, err := s.d.find(ctx, id)
	if err == nil && path == "" {
		err = invalid("no %s is given", name)
	}
	if err != nil {
		return v, err
	}
	there, err := s.d.node.Shows(v.ID, path)
	if err == nil && !there {
		err = status.Errorf(codes.NotFound, "volume %q is not at %s", v.Name, path)
	}
	return v, err
}

// NodeGetVolumeStats tells the room below the replica, without asking the mount.
func (s *nodeServer) NodeGetVolumeStats(ctx context.Context, r *spec.NodeGetVolumeStatsRequest) (*spec.NodeGetVolumeStatsResponse, error) {
	if r.GetVolumePath() == "" {
		return nil, invalid("no volume_path is given")
	}
	v, err := s.shown(ctx, r.GetVolumeId(), "volume_path", r.GetVolumePath())
	if err != nil {
		return nil, err
	}
	if v.Replica == nil {
		return nil, status.Errorf(codes.NotFound, "volume %q has no replica here", v.Name)
	}
	st, err := v.Replica.Statfs()
	if err != nil {
		return nil, fmt.Errorf("statistics of volume %q: %w", v.Name, err)
	}
	size := int64(st.BlockSize)
	return &spec.NodeGetVolumeStatsResponse{Usage: []*spec.VolumeUsage{{
		Unit: spec.VolumeUsage_BYTES, Total: int64(st.Blocks) * size, Available: int64(st.Available) * size,
		Used: int64(st.Blocks-st.Free) * size,
	}, {
		Unit: spec.VolumeUsage_INODES, Total: int64(st.Files), Available: int64(st.FilesFree), Used: int64(st.Files - st.FilesFree),
	}}}, nil
}

// NodeExpandVolume has nothing to do: a volume is as large as the catalogue says.
func (s *nodeServer) NodeExpandVolume(ctx context.Context, r *spec.NodeExpandVolumeRequest) (*spec.NodeExpandVolumeResponse, error) {
	v, err := s.shown(ctx, r.GetVolumeId(), "volume_path", r.GetVolumePath())
	if err != nil {
		return nil, err
	}
	return &spec.NodeExpandVolumeResponse{CapacityBytes: volumeOf(v).CapacityBytes}, nil
}

func (s *nodeServer) NodeGetVolumeHealth(ctx context.Context, r *spec.NodeGetVolumeHealthRequest) (*spec.NodeGetVolumeHealthResponse, error) {
	v, err := s.d.find(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	h := &spec.VolumeHealth{VolumeId: r.GetVolumeId()}
	for _, f := range s.d.node.Health(v) {
		e := &spec.VolumeHealth_VolumeHealthEntry{Status: spec.VolumeHealthErrorType_DEGRADED, Reason: f.Reason, Message: f.Detail}
		if f.Bad {
			e.Status = spec.VolumeHealthErrorType_INACCESSIBLE
		}
		h.HealthStatuses = append(h.HealthStatuses, e)
	}
	return &spec.NodeGetVolumeHealthResponse{VolumeHealth: h}, nil
}
