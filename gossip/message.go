package gossip

import (
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A Batch is what the protocol knows of a store.Batch. It is not changed after
// it was made.
type Batch struct {
	Origin      crdt.ReplicaID
	First, Last crdt.Seq
	Deps        []crdt.Dot
	Hash        [32]byte     // the origin's hash chain after it
	Wants       []crdt.Hash  // manifests whose content was not here when it came
	Size        int          // bytes
	Body        *store.Batch // nil where nothing is merged for real

	// For the wire, of batches that this node sends.
	encoded, identity []byte
}

// A Message goes from one node's protocol to another's.
type Message interface {
	receive(p *Protocol, from *peerState)
}

// Holding is one replica that the sender holds.
type Holding struct {
	Volume  store.VolumeID
	Replica crdt.ReplicaID
	Ready   bool
	Vector  crdt.Vector
	// Collected is what it may have forgotten.
	Collected store.Collected
}

// Holdings says what the sender holds: all of it as the first message of a
// link, later what changed.
type Holdings struct {
	All     bool
	Changed []Holding
	Dropped []store.VolumeID
}

// Push brings one batch.
type Push struct {
	Volume store.VolumeID
	Batch  *Batch
	// WithIdentity asks whoever sends it to put the origin's identity in.
	WithIdentity bool
}

// Digest is the version vector of the sender's replica, and so an
// acknowledgement.
type Digest struct {
	Volume store.VolumeID
	Vector crdt.Vector
}

// Pull asks for what a replica with this vector lacks.
type Pull struct {
	Volume   store.VolumeID
	Vector   crdt.Vector
	MaxBytes int
}

// PullDone ends the answer to a Pull.
type PullDone struct {
	Volume store.VolumeID
	More   bool // MaxBytes were reached
}

// SnapshotNeeded answers a Pull that the journal does not go back for.
type SnapshotNeeded struct{ Volume store.VolumeID }

// IdentityRequest asks for the identities of replicas.
type IdentityRequest struct {
	Volume   store.VolumeID
	Replicas []crdt.ReplicaID
}
