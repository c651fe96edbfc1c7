package gossip

import (
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// An Event is something that happened to a node. See the methods of Protocol
// of the same name in lower case for what each does.
type Event interface {
	step(p *Protocol)
}

type (
	// VolumeOpened says that this node holds a replica from now on.
	VolumeOpened struct{ Holding }
	// VolumeClosed says that it does no longer.
	VolumeClosed struct{ Volume store.VolumeID }
	// Advanced says that the store has applied this, however it came.
	Advanced struct {
		Volume store.VolumeID
		Vector crdt.Vector
	}
	// LocalBatch is a batch of this node's own replica.
	LocalBatch struct {
		Volume store.VolumeID
		Batch  *Batch
	}

	// LinkUp says that messages can be sent to a peer; LinkDown, that they
	// can no longer, and those sent last may be lost.
	LinkUp   struct{ Peer string }
	LinkDown struct{ Peer string }
	// PeerGone says that no more messages come from a peer until it links
	// again.
	PeerGone struct{ Peer string }
	// Received is a message, whose signatures were good, and whose Holdings
	// were the peer's.
	Received struct {
		Peer    string
		Message Message
	}
	// Unverified says that something was thrown away because the identities of
	// replicas are not known: a batch, or what is said of them in a roster.
	Unverified struct {
		Peer    string
		Volume  store.VolumeID
		Origins []crdt.ReplicaID
	}
	// IdentityLearned says that batches thrown away before may be pulled.
	IdentityLearned struct {
		Peer   string
		Volume store.VolumeID
	}
	// Overflowed says that pushes to a peer were dropped because it is slow.
	Overflowed struct{ Peer string }

	// Merged is the result of the effect Merge: Vector is the replica's after it.
	Merged struct {
		Volume store.VolumeID
		Batch  *Batch
		Vector crdt.Vector
		Err    error
		Wants  []crdt.Hash // if Err is store.ErrNoContent
	}
	// ContentArrived is the result of FetchContent.
	ContentArrived struct {
		Volume store.VolumeID
		Hash   crdt.Hash
		Err    error
	}
	// SnapshotTaken is the result of TakeSnapshot.
	SnapshotTaken struct {
		Volume store.VolumeID
		Peer   string
		Vector crdt.Vector
		Err    error
		// Anew says that the replica has a new id, and Vector is not a later
		// one than before.
		Anew      bool
		Self      crdt.ReplicaID
		Collected store.Collected
	}
	// ReadySaved is the result of BecomeReady, or says that the replica was
	// declared ready by somebody else.
	ReadySaved struct {
		Volume store.VolumeID
		Err    error
	}
	// Served is the result of Serve.
	Served struct {
		Peer    string
		Volume  store.VolumeID
		Batches []*Batch
		More    bool
		Err     error // store.ErrJournalGone if a snapshot is needed
	}
	// Tick says that the time of Protocol.Wake has come.
	Tick struct{}
)

// An Effect is something the protocol wants done. Effects are done in order;
// none may take long, but those that have a result event may be done later.
type Effect interface{ effect() }

type (
	// Send sends a message; messages to one peer arrive in order or not at all.
	Send struct {
		Peer    string
		Message Message
	}
	// Merge merges a batch. Merges of one volume are done in order.
	Merge struct {
		Volume store.VolumeID
		Batch  *Batch
	}
	// FetchContent brings a manifest and its blocks here, from any of the
	// peers; the first is the likeliest to have it.
	FetchContent struct {
		Volume store.VolumeID
		Hash   crdt.Hash
		Peers  []string
	}
	// TakeSnapshot takes a peer's state: into the present one or, anew, in its
	// place. No merge is under way meanwhile.
	TakeSnapshot struct {
		Volume store.VolumeID
		Peer   string
		Anew   bool
	}
	// BecomeReady records that the replica has caught up with a ready one.
	BecomeReady struct{ Volume store.VolumeID }
	// Serve reads from the journal what a peer lacks.
	Serve struct {
		Peer     string
		Volume   store.VolumeID
		Since    crdt.Vector
		MaxBytes int
	}
	// ServeIdentities sends identities to a peer.
	ServeIdentities struct {
		Peer     string
		Volume   store.VolumeID
		Replicas []crdt.ReplicaID
	}
	// Report is something people should know.
	Report struct {
		Peer   string // or ""
		Volume store.VolumeID
		Err    error
	}
)

func (Send) effect()            {}
func (Merge) effect()           {}
func (FetchContent) effect()    {}
func (TakeSnapshot) effect()    {}
func (BecomeReady) effect()     {}
func (Serve) effect()           {}
func (ServeIdentities) effect() {}
func (Report) effect()          {}
