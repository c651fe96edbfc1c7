package gossip

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/synapsefs/synapsefs/internal/wire"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// errMalformed says that a peer's frame is none.
var errMalformed = errors.New("malformed frame")

const (
	// maxRecords bounds lists in a frame that cost work for each element.
	maxRecords = 1024
	// maxNames and maxNode bound what one member says: it is kept, and passed
	// on, and must fit in a transaction.
	maxNames = 8192 // replicas
	maxNode  = 255  // bytes
)

// toWire encodes a message other than Push, whose batch is encoded once for all
// peers.
func toWire(m Message) *wire.Frame {
	switch m := m.(type) {
	case Holdings:
		w := &wire.Holdings{All: m.All}
		for _, h := range m.Changed {
			w.Changed = append(w.Changed, &wire.Holding{
				Volume: h.Volume[:], Replica: uint64(h.Replica), Ready: h.Ready, Vector: vectorToWire(h.Vector),
				Collected: vectorToWire(h.Collected.Vector), Out: outToWire(h.Collected.Out),
			})
		}
		for _, id := range m.Dropped {
			w.Dropped = append(w.Dropped, id[:])
		}
		return &wire.Frame{Body: &wire.Frame_Holdings{Holdings: w}}
	case Digest:
		return &wire.Frame{Body: &wire.Frame_Digest{Digest: &wire.Digest{Volume: m.Volume[:], Vector: vectorToWire(m.Vector)}}}
	case Pull:
		return &wire.Frame{Body: &wire.Frame_Pull{Pull: &wire.Pull{
			Volume: m.Volume[:], Vector: vectorToWire(m.Vector), MaxBytes: uint32(m.MaxBytes),
		}}}
	case PullDone:
		return &wire.Frame{Body: &wire.Frame_PullDone{PullDone: &wire.PullDone{Volume: m.Volume[:], More: m.More}}}
	case SnapshotNeeded:
		return &wire.Frame{Body: &wire.Frame_SnapshotNeeded{SnapshotNeeded: &wire.SnapshotNeeded{Volume: m.Volume[:]}}}
	case Roster:
		w := &wire.Roster{Volume: m.Volume[:]}
		for _, x := range m.Members {
			w.Members = append(w.Members, memberToWire(x))
		}
		return &wire.Frame{Body: &wire.Frame_Roster{Roster: w}}
	case IdentityRequest:
		w := &wire.IdentityRequest{Volume: m.Volume[:]}
		for _, r := range m.Replicas {
			w.Replicas = append(w.Replicas, uint64(r))
		}
		return &wire.Frame{Body: &wire.Frame_IdentityRequest{IdentityRequest: w}}
	}
	panic(fmt.Sprintf("gossip: no wire form for %T", m))
}

// fromWire decodes what toWire encoded; nil if the frame is of another kind.
func fromWire(f *wire.Frame) (Message, error) {
	var d decoder
	var m Message
	switch b := f.Body.(type) {
	case *wire.Frame_Holdings:
		m = d.holdings(b.Holdings)
	case *wire.Frame_Digest:
		m = Digest{d.volume(b.Digest.GetVolume()), d.vector(b.Digest.GetVector())}
	case *wire.Frame_Pull:
		w := b.Pull
		m = Pull{d.volume(w.GetVolume()), d.vector(w.GetVector()), int(min(w.GetMaxBytes(), 1<<30))}
	case *wire.Frame_PullDone:
		m = PullDone{d.volume(b.PullDone.GetVolume()), b.PullDone.GetMore()}
	case *wire.Frame_SnapshotNeeded:
		m = SnapshotNeeded{d.volume(b.SnapshotNeeded.GetVolume())}
	case *wire.Frame_Roster:
		m = d.roster(b.Roster)
	case *wire.Frame_IdentityRequest:
		w := b.IdentityRequest
		r := IdentityRequest{Volume: d.volume(w.GetVolume())}
		d.check(len(w.GetReplicas()) <= maxRecords, "too many replicas")
		for _, id := range w.GetReplicas() {
			r.Replicas = append(r.Replicas, crdt.ReplicaID(id))
		}
		m = r
	default:
		return nil, nil
	}
	return m, d.err
}

// pushFrame encodes a batch that this node sends.
func pushFrame(m Push) *wire.Frame {
	w := &wire.Push{Volume: m.Volume[:], Batch: m.Batch.encoded}
	if m.WithIdentity {
		w.Identity = m.Batch.identity
	}
	return &wire.Frame{Body: &wire.Frame_Push{Push: w}}
}

// A decoder remembers the first thing that was wrong.
type decoder struct{ err error }

func (d *decoder) check(ok bool, what string) {
	if !ok && d.err == nil {
		d.err = fmt.Errorf("%w: %s", errMalformed, what)
	}
}

func (d *decoder) volume(b []byte) (id store.VolumeID) {
	d.check(copy(id[:], b) == len(id) && len(b) == len(id), "volume id")
	return id
}

func (d *decoder) vector(entries []*wire.VectorEntry) crdt.Vector {
	v := make(crdt.Vector, len(entries))
	for _, w := range entries {
		e := crdt.VectorEntry{Seq: crdt.Seq(w.GetSeq())}
		binary.BigEndian.PutUint64(e.Hash[:], w.GetHash())
		v[crdt.ReplicaID(w.GetReplica())] = e
	}
	return v
}

func (d *decoder) holdings(w *wire.Holdings) Holdings {
	m := Holdings{All: w.GetAll()}
	for _, h := range w.GetChanged() {
		m.Changed = append(m.Changed, Holding{
			Volume: d.volume(h.GetVolume()), Replica: crdt.ReplicaID(h.GetReplica()),
			Ready: h.GetReady(), Vector: d.vector(h.GetVector()),
			Collected: store.Collected{Vector: d.vector(h.GetCollected()), Out: d.out(h.GetOut())},
		})
	}
	for _, id := range w.GetDropped() {
		m.Dropped = append(m.Dropped, d.volume(id))
	}
	return m
}

func (d *decoder) out(entries []*wire.VectorEntry) map[crdt.ReplicaID]crdt.Seq {
	d.check(len(entries) <= maxNames, "too many replicas are out")
	out := make(map[crdt.ReplicaID]crdt.Seq, len(entries))
	for _, w := range entries {
		out[crdt.ReplicaID(w.GetReplica())] = crdt.Seq(w.GetSeq())
	}
	return out
}

func outToWire(out map[crdt.ReplicaID]crdt.Seq) (w []*wire.VectorEntry) {
	for _, id := range slices.Sorted(maps.Keys(out)) {
		w = append(w, &wire.VectorEntry{Replica: uint64(id), Seq: uint64(out[id])})
	}
	return w
}

func (d *decoder) roster(w *wire.Roster) Roster {
	m := Roster{Volume: d.volume(w.GetVolume())}
	d.check(len(w.GetMembers()) <= maxRecords, "too many members")
	for _, x := range w.GetMembers() {
		acked, err := crdt.DecodeVector(x.GetAcked())
		d.check(err == nil && len(acked) <= maxNames && len(x.GetOut()) <= maxNames, "vector")
		d.check(len(x.GetNode()) <= maxNode, "name of a node")
		d.check(len(x.GetSignature()) <= ed25519.SignatureSize, "signature")
		in := store.Member{
			Replica: crdt.ReplicaID(x.GetReplica()), Node: x.GetNode(), At: x.GetAt(),
			Acked: acked, Committed: crdt.Seq(x.GetCommitted()), Signature: x.GetSignature(),
		}
		for _, id := range x.GetOut() {
			in.Out = append(in.Out, crdt.ReplicaID(id))
		}
		m.Members = append(m.Members, in)
	}
	return m
}

func memberToWire(m store.Member) *wire.Member {
	w := &wire.Member{
		Replica: uint64(m.Replica), Node: m.Node, At: m.At, Acked: crdt.AppendVector(nil, m.Acked), Committed: uint64(m.Committed),
		Signature: m.Signature,
	}
	for _, id := range m.Out {
		w.Out = append(w.Out, uint64(id))
	}
	return w
}

func vectorToWire(v crdt.Vector) []*wire.VectorEntry {
	out := make([]*wire.VectorEntry, 0, len(v))
	for _, r := range v.Replicas() {
		e := v[r]
		out = append(out, &wire.VectorEntry{
			Replica: uint64(r), Seq: uint64(e.Seq), Hash: binary.BigEndian.Uint64(e.Hash[:]),
		})
	}
	return out
}

// hashesToWire and hashesFromWire carry content hashes.
func hashesToWire(hashes []crdt.Hash) [][]byte {
	out := make([][]byte, len(hashes))
	for n := range hashes {
		out[n] = hashes[n][:]
	}
	return out
}

func hashesFromWire(in [][]byte) ([]crdt.Hash, error) {
	out := make([]crdt.Hash, len(in))
	for n, b := range in {
		if copy(out[n][:], b) != len(b) || len(b) != len(out[n]) {
			return nil, fmt.Errorf("%w: hash", errMalformed)
		}
	}
	return out, nil
}

// batchOf wraps a store's batch for the protocol.
func batchOf(b *store.Batch, wants []crdt.Hash) *Batch {
	size := 256 + 16*len(b.Deps)
	for _, op := range b.Ops {
		size += len(op) + 32
	}
	return &Batch{
		Origin: b.Origin, First: b.First, Last: b.Last, Deps: slices.Clone(b.Deps),
		Hash: b.Chain(b.Last), Wants: wants, Size: size, Body: b,
	}
}
