package csi

import (
	"context"

	spec "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/synapsefs/synapsefs/internal/version"
)

type identity struct {
	spec.UnimplementedIdentityServer
}

func (*identity) GetPluginInfo(context.Context, *spec.GetPluginInfoRequest) (*spec.GetPluginInfoResponse, error) {
	return &spec.GetPluginInfoResponse{Name: DriverName, VendorVersion: version.String()}, nil
}

func (*identity) GetPluginCapabilities(context.Context, *spec.GetPluginCapabilitiesRequest) (*spec.GetPluginCapabilitiesResponse, error) {
	return &spec.GetPluginCapabilitiesResponse{Capabilities: []*spec.PluginCapability{
		{Type: &spec.PluginCapability_Service_{Service: &spec.PluginCapability_Service{
			Type: spec.PluginCapability_Service_CONTROLLER_SERVICE,
		}}},
		{Type: &spec.PluginCapability_VolumeExpansion_{VolumeExpansion: &spec.PluginCapability_VolumeExpansion{
			Type: spec.PluginCapability_VolumeExpansion_ONLINE,
		}}},
	}}, nil
}

// Probe says that the daemon is up. Whether it has met its cluster is no reason to
// start it again.
func (*identity) Probe(context.Context, *spec.ProbeRequest) (*spec.ProbeResponse, error) {
	return &spec.ProbeResponse{}, nil
}
