package csi

import (
	"context"
	"errors"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/synapsefs/synapsefs/internal/node"
	"github.com/synapsefs/synapsefs/store"
)

// A snapshot is a volume with that option. No call for volumes finds it.

func isSnapshot(v node.VolumeInfo) bool {
	o, _ := node.ParseOptions(v.Options)
	return o.Snapshot
}

// findSnapshot is find for snapshots.
func (d *Driver) findSnapshot(ctx context.Context, id string) (node.VolumeInfo, error) {
	if id == "" {
		return node.VolumeInfo{}, invalid("no snapshot_id is given")
	}
	v, err := d.findAny(ctx, id)
	if err == nil && !isSnapshot(v) {
		err = store.ErrNoVolume
	}
	if errors.Is(err, store.ErrNoVolume) {
		return v, status.Errorf(codes.NotFound, "no snapshot %q", id)
	}
	return v, err
}

func snapshotOf(v node.VolumeInfo) *spec.Snapshot {
	o, _ := node.ParseOptions(v.Options)
	return &spec.Snapshot{
		SnapshotId: v.ID.String(), SourceVolumeId: o.Source.String(), SizeBytes: o.Capacity,
		CreationTime: timestamppb.New(v.Created), ReadyToUse: true,
	}
}

// sourceOf returns what a new volume is to be a copy of, nil if of nothing.
func (c *controller) sourceOf(ctx context.Context, s *spec.VolumeContentSource) (v *node.VolumeInfo, err error) {
	var found node.VolumeInfo
	switch {
	case s == nil:
		return nil, nil
	case s.GetSnapshot() != nil:
		found, err = c.d.findSnapshot(ctx, s.GetSnapshot().GetSnapshotId())
	case s.GetVolume() != nil:
		found, err = c.d.find(ctx, s.GetVolume().GetVolumeId())
	default:
		err = invalid("the volume_content_source names neither a snapshot nor a volume")
	}
	return &found, err
}

func (c *controller) CreateSnapshot(ctx context.Context, r *spec.CreateSnapshotRequest) (*spec.CreateSnapshotResponse, error) {
	if r.GetName() == "" || r.GetSourceVolumeId() == "" {
		return nil, invalid("name and source_volume_id must be given")
	}
	for key := range r.GetParameters() {
		if !strings.HasPrefix(key, fromKubernetes) {
			return nil, invalid("no parameter %q: a snapshot has none", key)
		}
	}
	v, err := c.snapshot(ctx, volumeName(r.GetName()), r.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	return &spec.CreateSnapshotResponse{Snapshot: snapshotOf(v)}, nil
}

func (c *controller) snapshot(ctx context.Context, name, from string) (node.VolumeInfo, error) {
	source, err := c.d.find(ctx, from)
	if err == nil {
		options := map[string]string{"source": source.ID.String(), "snapshot": "true"}
		for _, key := range []string{"replicas", "capacity"} {
			if value := source.Options[key]; value != "" {
				options[key] = value
			}
		}
		var v node.VolumeInfo
		if v, err = c.d.node.CreateVolume(ctx, name, options); err == nil {
			return v, nil
		}
	}
	if !errors.Is(err, node.ErrVolumeExists) && !errors.Is(err, store.ErrNoVolume) {
		return node.VolumeInfo{}, err
	}
	// It was made by an earlier call, since which the source may have gone.
	have, e := c.d.node.FindVolume(ctx, name)
	switch {
	case errors.Is(e, store.ErrNoVolume):
		return have, err
	case e != nil:
		return have, e
	case !isSnapshot(have) || snapshotOf(have).GetSourceVolumeId() != from:
		return have, status.Errorf(codes.AlreadyExists, "%q exists, and is no snapshot of volume %s", name, from)
	}
	return have, nil
}

func (c *controller) DeleteSnapshot(ctx context.Context, r *spec.DeleteSnapshotRequest) (*spec.DeleteSnapshotResponse, error) {
	v, err := c.d.findSnapshot(ctx, r.GetSnapshotId())
	if err == nil {
		_, err = c.d.node.DeleteVolume(ctx, v.ID.String(), false)
	}
	if err != nil && status.Code(err) != codes.NotFound && !errors.Is(err, store.ErrNoVolume) {
		return nil, err
	}
	return &spec.DeleteSnapshotResponse{}, nil
}

func (c *controller) GetSnapshot(ctx context.Context, r *spec.GetSnapshotRequest) (*spec.GetSnapshotResponse, error) {
	v, err := c.d.findSnapshot(ctx, r.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	return &spec.GetSnapshotResponse{Snapshot: snapshotOf(v)}, nil
}

func (c *controller) ListSnapshots(ctx context.Context, r *spec.ListSnapshotsRequest) (*spec.ListSnapshotsResponse, error) {
	volumes, err := c.d.node.ListVolumes(ctx)
	if err != nil {
		return nil, err
	}
	some, next, err := page(volumes, r.GetStartingToken(), r.GetMaxEntries(), func(v node.VolumeInfo) bool {
		return isSnapshot(v) && (r.GetSnapshotId() == "" || r.GetSnapshotId() == v.ID.String()) &&
			(r.GetSourceVolumeId() == "" || r.GetSourceVolumeId() == snapshotOf(v).GetSourceVolumeId())
	})
	if err != nil {
		return nil, err
	}
	reply := &spec.ListSnapshotsResponse{NextToken: next}
	for _, v := range some {
		reply.Entries = append(reply.Entries, &spec.ListSnapshotsResponse_Entry{Snapshot: snapshotOf(v)})
	}
	return reply, nil
}
