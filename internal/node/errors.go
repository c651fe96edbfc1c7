package node

import (
	"context"
	"errors"
	"os"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/fusefs"
	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// Errors beyond those of the store, which are returned as they are.
var (
	ErrBadName      = errors.New("bad argument")
	ErrVolumeExists = errors.New("volume exists")
	// ErrSnapshot: only a copy of it can be written.
	ErrSnapshot    = errors.New("it is a snapshot: mount it read-only, or make a volume of it (volumes create NAME --from SNAPSHOT)")
	ErrTwoVolumes  = errors.New("two volumes have that name")
	ErrVolumeBusy  = errors.New("volume is mounted on this node")
	ErrNoCatalogue = errors.New("this node does not know the cluster's volumes yet: it has met no member that does")
	ErrNoPeer      = errors.New("no live peer holds the volume: nobody but this host is known to have what it has; see synapsefs peers")
	ErrRunning     = errors.New("a daemon is running already")
	ErrUnknownPeer = errors.New("no replica of such a node is known")
	ErrPeerHere    = errors.New("the node is a member: stop it first")
	ErrStopping    = errors.New("the daemon is stopping")
)

// statusCodes says as what an error goes over gRPC: the only table.
var statusCodes = []struct {
	err  error
	code codes.Code
}{
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
	{os.ErrDeadlineExceeded, codes.DeadlineExceeded},
	{ErrBadName, codes.InvalidArgument},
	{kernel.ErrNotDirectory, codes.InvalidArgument},
	{kernel.ErrNotMounted, codes.NotFound},
	{store.ErrNoRecord, codes.NotFound},
	{store.ErrNoVersion, codes.NotFound},
	{crdt.ErrNotExist, codes.NotFound},
	{crdt.ErrExist, codes.AlreadyExists},
	{crdt.ErrIsDir, codes.AlreadyExists},
	{crdt.ErrNotDir, codes.AlreadyExists},
	{crdt.ErrInvalid, codes.InvalidArgument},
	{crdt.ErrClock, codes.FailedPrecondition},
	{store.ErrNoContent, codes.FailedPrecondition},
	{store.ErrNoVolume, codes.NotFound},
	{ErrUnknownPeer, codes.NotFound},
	{kernel.ErrMountpointMissing, codes.NotFound},
	{ErrVolumeExists, codes.AlreadyExists},
	{ErrSnapshot, codes.FailedPrecondition},
	{kernel.ErrMounted, codes.AlreadyExists},
	{kernel.ErrNotLikeThat, codes.AlreadyExists},
	{ErrTwoVolumes, codes.FailedPrecondition},
	{ErrVolumeBusy, codes.FailedPrecondition},
	{ErrNoCatalogue, codes.FailedPrecondition},
	{ErrNoPeer, codes.FailedPrecondition},
	{ErrPeerHere, codes.FailedPrecondition},
	{ErrStopping, codes.FailedPrecondition},
	{store.ErrNotReady, codes.FailedPrecondition},
	{fusefs.ErrNotServed, codes.FailedPrecondition},
	{kernel.ErrServed, codes.FailedPrecondition},
	{kernel.ErrBusy, codes.FailedPrecondition},
	{kernel.ErrStaysReadOnly, codes.FailedPrecondition},
	{kernel.ErrRemountNeedsRoot, codes.PermissionDenied},
	{kernel.ErrNotEmpty, codes.FailedPrecondition},
	{store.ErrNoSpace, codes.ResourceExhausted},
	{os.ErrPermission, codes.PermissionDenied},
}

// toStatus is what the admin API answers for an error.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(Code(err), err.Error())
}

// Code is what an error goes as over gRPC.
func Code(err error) codes.Code {
	for _, row := range statusCodes {
		if errors.Is(err, row.err) {
			return row.code
		}
	}
	return codes.Internal
}
