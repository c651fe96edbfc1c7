package csi

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/internal/node"
	"github.com/synapsefs/synapsefs/store"
)

// What kubelet says of an inline volume, if the CSIDriver object has podInfoOnMount.
const (
	ephemeralKey = fromKubernetes + "ephemeral"
	namespaceKey = fromKubernetes + "pod.namespace"
)

// volumeKey names an existing volume, in the attributes of an inline one.
const volumeKey = "volume"

// publishInline shows a volume that a pod asks for without a claim: an existing one,
// if the pod's namespace may have it, or one of the pod's own.
func (d *Driver) publishInline(ctx context.Context, r *spec.NodePublishVolumeRequest, a access) error {
	attributes := map[string]string{}
	for key, value := range r.GetVolumeContext() {
		attributes[key] = value
	}
	named, existing := attributes[volumeKey]
	delete(attributes, volumeKey)
	options, err := optionsOf(attributes)
	if err != nil {
		return err
	}
	request := node.MountRequest{Dir: r.GetTargetPath(), ReadOnly: a.readOnly, Flags: a.flags, Group: a.group}
	// All of it, so that the end of the pod comes before or after, not between.
	return d.under(ctx, r.GetVolumeId(), func() error {
		switch {
		case !existing:
			return d.publishPrivate(ctx, r, options, request)
		case len(options) > 0:
			return invalid("volume %q exists: its options are not a pod's to set", named)
		}
		v, err := d.shared(ctx, named, r.GetVolumeContext()[namespaceKey])
		if err != nil {
			return err
		}
		return d.mount(ctx, v, request)
	})
}

// publishPrivate shows a volume of the pod's own. One that is made for that does
// not stay if it cannot be shown: the end of what never began is asked by nobody.
func (d *Driver) publishPrivate(ctx context.Context, r *spec.NodePublishVolumeRequest, options map[string]string, request node.MountRequest) error {
	v, made, err := d.private(ctx, r, options)
	if err == nil {
		err = d.mount(ctx, v, request)
	}
	if err != nil && made {
		err = errors.Join(err, d.delete(context.WithoutCancel(ctx), v.Listing))
	}
	return err
}

// shared returns an existing volume, if pods of a namespace may mount it inline.
func (d *Driver) shared(ctx context.Context, volume, namespace string) (node.VolumeInfo, error) {
	if namespace == "" {
		return node.VolumeInfo{}, invalid("the pod's namespace is not known: the CSIDriver object must have podInfoOnMount")
	}
	v, err := d.find(ctx, volume)
	if errors.Is(err, store.ErrNoVolume) { // whoever may make pods need not know which there are
		return v, status.Errorf(codes.NotFound, "no volume %q", volume)
	}
	if err != nil {
		return v, err
	}
	o, err := node.ParseOptions(v.Options)
	if err != nil {
		return v, err
	}
	if !slices.Contains(o.Namespaces, namespace) {
		return v, status.Errorf(codes.PermissionDenied,
			"namespace %q may not mount volume %q inline: it is not in the volume's option namespaces", namespace, v.Name)
	}
	return v, nil
}

// private returns the volume of a pod's own, and whether it was made now. It has one replica,
// here: it is not placed.
func (d *Driver) private(ctx context.Context, r *spec.NodePublishVolumeRequest, options map[string]string) (v node.VolumeInfo, made bool, err error) {
	if options["replicas"] != "" {
		return v, false, invalid("parameter replicas: a volume of a pod's own has one replica")
	}
	options["ephemeral"] = r.GetTargetPath()
	name := volumeName(r.GetVolumeId())
	v, err = d.node.CreateVolume(ctx, name, options)
	made = err == nil
	if errors.Is(err, node.ErrVolumeExists) {
		v, err = d.node.FindVolume(ctx, name)
		if err == nil && (v.By != d.node.Name() || v.Options["ephemeral"] != r.GetTargetPath()) {
			err = status.Errorf(codes.AlreadyExists, "volume %q exists, and is not this pod's", name)
		}
	}
	return v, made, err
}

// deleteEphemeral deletes the volume of the pod's own that was published at dir, if
// there is one.
func (d *Driver) deleteEphemeral(ctx context.Context, dir string) error {
	all, err := d.node.Ephemerals()
	for _, l := range all {
		if err == nil && filepath.Clean(l.Options["ephemeral"]) == filepath.Clean(dir) {
			err = d.delete(ctx, l)
		}
	}
	return err
}

func (d *Driver) delete(ctx context.Context, l node.Listing) error {
	_, err := d.node.DeleteVolume(ctx, l.ID.String(), true)
	if errors.Is(err, store.ErrNoVolume) {
		return nil
	}
	return err
}

// sweep deletes the volumes of pods that went while no driver ran here: their
// directories are gone.
func (d *Driver) sweep(ctx context.Context) {
	all, err := d.node.Ephemerals()
	if err != nil {
		d.log.Error("look for volumes of pods that are gone", "err", err)
	}
	for _, l := range all {
		_, err := os.Lstat(filepath.Dir(l.Options["ephemeral"]))
		if !errors.Is(err, os.ErrNotExist) {
			continue
		}
		d.log.Info("the pod of an inline volume is gone", "volume", l.Name)
		if err := d.delete(ctx, l); err != nil {
			d.log.Error("delete the volume of a pod that is gone", "volume", l.Name, "err", err)
		}
	}
}
