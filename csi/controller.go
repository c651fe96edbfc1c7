package csi

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/internal/node"
	"github.com/synapsefs/synapsefs/store"
)

type controller struct {
	spec.UnimplementedControllerServer
	d *Driver
}

var controllerCapabilities = []spec.ControllerServiceCapability_RPC_Type{
	spec.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
	spec.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
	spec.ControllerServiceCapability_RPC_PUBLISH_READONLY,
	spec.ControllerServiceCapability_RPC_LIST_VOLUMES,
	spec.ControllerServiceCapability_RPC_LIST_VOLUMES_PUBLISHED_NODES,
	spec.ControllerServiceCapability_RPC_GET_VOLUME,
	spec.ControllerServiceCapability_RPC_GET_CAPACITY,
	spec.ControllerServiceCapability_RPC_EXPAND_VOLUME,
	spec.ControllerServiceCapability_RPC_MODIFY_VOLUME,
	spec.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	spec.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
	spec.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
	spec.ControllerServiceCapability_RPC_GET_SNAPSHOT,
	spec.ControllerServiceCapability_RPC_CLONE_VOLUME,
}

func (*controller) ControllerGetCapabilities(context.Context, *spec.ControllerGetCapabilitiesRequest) (*spec.ControllerGetCapabilitiesResponse, error) {
	r := &spec.ControllerGetCapabilitiesResponse{}
	for _, c := range controllerCapabilities {
		r.Capabilities = append(r.Capabilities, &spec.ControllerServiceCapability{
			Type: &spec.ControllerServiceCapability_Rpc{Rpc: &spec.ControllerServiceCapability_RPC{Type: c}},
		})
	}
	return r, nil
}

// volumeOf is a volume as CSI says it.
func volumeOf(v node.VolumeInfo) *spec.Volume {
	o, _ := node.ParseOptions(v.Options) // what cannot be read is no capacity
	return &spec.Volume{VolumeId: v.ID.String(), CapacityBytes: o.Capacity}
}

func (c *controller) CreateVolume(ctx context.Context, r *spec.CreateVolumeRequest) (*spec.CreateVolumeResponse, error) {
	if r.GetName() == "" {
		return nil, invalid("no name is given")
	}
	if err := checkAll(r.GetVolumeCapabilities()); err != nil {
		return nil, err
	}
	options, err := optionsOf(map[string]string{"replicas": defaultReplicas}, r.GetParameters(), r.GetMutableParameters())
	if err != nil {
		return nil, err
	}
	source, err := c.sourceOf(ctx, r.GetVolumeContentSource())
	if err != nil {
		return nil, err
	}
	size := int64(0)
	if source != nil {
		options["source"], size = source.ID.String(), volumeOf(*source).CapacityBytes
	}
	if size, err = capacityOf(r.GetCapacityRange(), size); err != nil {
		return nil, err
	}
	if size > 0 {
		options["capacity"] = strconv.FormatInt(size, 10)
	}
	v, err := c.d.node.CreateVolume(ctx, volumeName(r.GetName()), options)
	if errors.Is(err, node.ErrVolumeExists) {
		v, err = c.existing(ctx, r, options)
	}
	if err != nil {
		return nil, err
	}
	made := volumeOf(v)
	made.ContentSource = r.GetVolumeContentSource()
	return &spec.CreateVolumeResponse{Volume: made}, nil
}

// existing returns a volume of the name that is there, if it is what is asked for.
func (c *controller) existing(ctx context.Context, r *spec.CreateVolumeRequest, options map[string]string) (node.VolumeInfo, error) {
	v, err := c.d.node.FindVolume(ctx, volumeName(r.GetName()))
	if err != nil {
		return v, err
	}
	capacity := volumeOf(v).CapacityBytes
	limit := r.GetCapacityRange().GetLimitBytes()
	if r.GetCapacityRange() != nil && (capacity < r.GetCapacityRange().GetRequiredBytes() || limit > 0 && capacity > limit) {
		return v, status.Errorf(codes.AlreadyExists, "volume %q exists, with a capacity of %d", v.Name, capacity)
	}
	have := maps.Clone(v.Options)
	for _, all := range []map[string]string{have, options} {
		delete(all, "capacity")
	}
	if !maps.Equal(have, options) {
		return v, status.Errorf(codes.AlreadyExists, "volume %q exists, with other parameters: %v", v.Name, have)
	}
	return v, nil
}

func (c *controller) DeleteVolume(ctx context.Context, r *spec.DeleteVolumeRequest) (*spec.DeleteVolumeResponse, error) {
	v, gone, err := c.d.findOrGone(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if gone {
		return &spec.DeleteVolumeResponse{}, nil
	}
	all, err := c.d.node.Attachments()
	if err != nil {
		return nil, err
	}
	if nodes := slices.Sorted(maps.Keys(all[v.ID])); len(nodes) > 0 {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %q is published to %s", v.Name, strings.Join(nodes, ", "))
	}
	_, err = c.d.node.DeleteVolume(ctx, v.ID.String(), false)
	if err != nil && !errors.Is(err, store.ErrNoVolume) {
		return nil, err
	}
	return &spec.DeleteVolumeResponse{}, nil
}

// readOnlyKey is in the context of what is published for reading only.
const readOnlyKey = "readOnly"

func (c *controller) ControllerPublishVolume(ctx context.Context, r *spec.ControllerPublishVolumeRequest) (*spec.ControllerPublishVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetNodeId() == "" {
		return nil, invalid("volume_id and node_id must be given")
	}
	a, err := accessOf(r.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	v, err := c.d.find(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if !c.d.node.Knows(r.GetNodeId()) {
		return nil, status.Errorf(codes.NotFound, "node %q is not known", r.GetNodeId())
	}
	want := node.Attachment{ReadOnly: r.GetReadonly(), Mode: a.mode.String()}
	err = c.d.under(ctx, "attachments of "+v.ID.String(), func() error {
		return c.attach(ctx, v, r.GetNodeId(), a.mode, want)
	})
	if err != nil {
		return nil, err
	}
	return &spec.ControllerPublishVolumeResponse{PublishContext: map[string]string{readOnlyKey: strconv.FormatBool(want.ReadOnly)}}, nil
}

func (c *controller) attach(ctx context.Context, v node.VolumeInfo, to string, mode accessMode, want node.Attachment) error {
	all, err := c.d.node.Attachments()
	if err != nil {
		return err
	}
	for _, other := range slices.Sorted(maps.Keys(all[v.ID])) {
		have := all[v.ID][other]
		alone := onOneNode(mode) || onOneNode(accessMode(spec.VolumeCapability_AccessMode_Mode_value[have.Mode]))
		switch {
		case other == to && have == want:
			return nil
		case other == to:
			return status.Errorf(codes.AlreadyExists, "volume %q is published to node %q in another way: %+v", v.Name, to, have)
		case alone:
			return status.Errorf(codes.FailedPrecondition, "volume %q is published to node %q as %s, and is asked for as %v", v.Name, other, have.Mode, mode)
		}
	}
	return c.d.node.Attach(ctx, v.ID, to, want)
}

func (c *controller) ControllerUnpublishVolume(ctx context.Context, r *spec.ControllerUnpublishVolumeRequest) (*spec.ControllerUnpublishVolumeResponse, error) {
	v, gone, err := c.d.findOrGone(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if gone {
		return &spec.ControllerUnpublishVolumeResponse{}, nil
	}
	nodes := []string{r.GetNodeId()}
	if r.GetNodeId() == "" { // from all
		all, err := c.d.node.Attachments()
		if err != nil {
			return nil, err
		}
		nodes = slices.Sorted(maps.Keys(all[v.ID]))
	}
	for _, node := range nodes {
		if err := c.d.node.Detach(ctx, v.ID, node); err != nil {
			return nil, err
		}
	}
	return &spec.ControllerUnpublishVolumeResponse{}, nil
}

func (c *controller) ValidateVolumeCapabilities(ctx context.Context, r *spec.ValidateVolumeCapabilitiesRequest) (*spec.ValidateVolumeCapabilitiesResponse, error) {
	if r.GetVolumeId() == "" || len(r.GetVolumeCapabilities()) == 0 {
		return nil, invalid("volume_id and volume_capabilities must be given")
	}
	if _, err := c.d.find(ctx, r.GetVolumeId()); err != nil {
		return nil, err
	}
	_, err := optionsOf(r.GetParameters(), r.GetMutableParameters())
	if err = errors.Join(checkAll(r.GetVolumeCapabilities()), err); err != nil {
		return &spec.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil
	}
	return &spec.ValidateVolumeCapabilitiesResponse{Confirmed: &spec.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: r.GetVolumeContext(), VolumeCapabilities: r.GetVolumeCapabilities(),
		Parameters: r.GetParameters(), MutableParameters: r.GetMutableParameters(),
	}}, nil
}

// afterName begins a token: the name of the last volume follows. So volumes may
// come and go between two pages.
const afterName = "after "

// page returns at most so many of the volumes that are asked for, those behind a
// token, and the token of the next page.
func page(volumes []node.VolumeInfo, token string, most int32, wanted func(node.VolumeInfo) bool) (some []node.VolumeInfo, next string, err error) {
	after, ok := strings.CutPrefix(token, afterName)
	switch {
	case token != "" && !ok:
		return nil, "", status.Errorf(codes.Aborted, "starting_token %q is none of ours: begin anew", token)
	case most < 0:
		return nil, "", invalid("max_entries is negative")
	}
	for _, v := range volumes {
		if v.Name <= after || v.Created.IsZero() || !wanted(v) { // without a time it is no volume of the catalogue
			continue
		}
		if most > 0 && len(some) == int(most) {
			return some, afterName + some[most-1].Name, nil
		}
		some = append(some, v)
	}
	return some, "", nil
}

func (c *controller) ListVolumes(ctx context.Context, r *spec.ListVolumesRequest) (*spec.ListVolumesResponse, error) {
	volumes, err := c.d.node.ListVolumes(ctx)
	if err != nil {
		return nil, err
	}
	attached, err := c.d.node.Attachments()
	if err != nil {
		return nil, err
	}
	some, next, err := page(volumes, r.GetStartingToken(), r.GetMaxEntries(), func(v node.VolumeInfo) bool {
		o, _ := node.ParseOptions(v.Options)
		return o.Ephemeral == "" && !o.Snapshot
	})
	if err != nil {
		return nil, err
	}
	reply := &spec.ListVolumesResponse{NextToken: next}
	for _, v := range some {
		reply.Entries = append(reply.Entries, &spec.ListVolumesResponse_Entry{
			Volume: volumeOf(v),
			Status: &spec.ListVolumesResponse_VolumeStatus{PublishedNodeIds: slices.Sorted(maps.Keys(attached[v.ID]))},
		})
	}
	return reply, nil
}

func (c *controller) ControllerGetVolume(ctx context.Context, r *spec.ControllerGetVolumeRequest) (*spec.ControllerGetVolumeResponse, error) {
	v, err := c.d.find(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	attached, err := c.d.node.Attachments()
	if err != nil {
		return nil, err
	}
	return &spec.ControllerGetVolumeResponse{
		Volume: volumeOf(v),
		Status: &spec.ControllerGetVolumeResponse_VolumeStatus{PublishedNodeIds: slices.Sorted(maps.Keys(attached[v.ID]))},
	}, nil
}

// GetCapacity tells the room on this node's disk: that of the others is not known
// here.
func (c *controller) GetCapacity(_ context.Context, r *spec.GetCapacityRequest) (*spec.GetCapacityResponse, error) {
	for _, capability := range r.GetVolumeCapabilities() {
		if _, err := accessOf(capability); err != nil {
			return &spec.GetCapacityResponse{}, nil // none of that kind
		}
	}
	s, err := c.d.node.Space()
	if err != nil {
		return nil, err
	}
	return &spec.GetCapacityResponse{AvailableCapacity: int64(s.Available) * int64(s.BlockSize)}, nil
}

func (c *controller) ControllerExpandVolume(ctx context.Context, r *spec.ControllerExpandVolumeRequest) (*spec.ControllerExpandVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetCapacityRange() == nil {
		return nil, invalid("volume_id and capacity_range must be given")
	}
	v, err := c.d.find(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	size, err := capacityOf(r.GetCapacityRange(), volumeOf(v).CapacityBytes)
	if err == nil {
		_, err = c.d.node.SetOptions(ctx, v.ID.String(), map[string]string{"capacity": strconv.FormatInt(size, 10)})
	}
	if err != nil {
		return nil, err
	}
	return &spec.ControllerExpandVolumeResponse{CapacityBytes: size}, nil
}

func (c *controller) ControllerModifyVolume(ctx context.Context, r *spec.ControllerModifyVolumeRequest) (*spec.ControllerModifyVolumeResponse, error) {
	v, err := c.d.find(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	change, err := optionsOf(r.GetMutableParameters())
	if err == nil {
		_, err = c.d.node.SetOptions(ctx, v.ID.String(), change)
	}
	if err != nil {
		return nil, err
	}
	return &spec.ControllerModifyVolumeResponse{}, nil
}
