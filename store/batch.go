package store

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/blake3"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// Limits of one batch, so that merging it fits in one transaction. The bytes
// are those that its ops write to the database; they are reached, and not
// exceeded by more than one op.
const (
	maxBatchOps   = 1000
	maxBatchBytes = 256 << 10
)

// A Batch is the unit of replication: consecutive ops of one origin, merged
// and shown all or nothing, signed by the origin.
//
// The ops of a replica are a hash chain, whatever batches they travel in: after
// a power loss, ops that had left may be put into other batches than before.
// Where two batches overlap they must agree.
type Batch struct {
	Volume      VolumeID
	Origin      crdt.ReplicaID
	First, Last crdt.Seq
	Stamp       crdt.Stamp // of the last op
	Prev        [32]byte   // the chain before First
	Deps        []crdt.Dot // what must be applied before, besides the ops before
	Ops         [][]byte   // encoded crdt.Op, First to Last
	Signature   []byte     // ed25519 over Digest, by the origin's node

	last *[32]byte // the chain after Last, once it was asked for
}

const batchVersion = 1

// header encodes all but the ops and the signature.
func (b *Batch) header(room int) []byte {
	out := append(make([]byte, 0, batchHeader+16*len(b.Deps)+room), batchVersion)
	out = append(out, b.Volume[:]...)
	out = binary.BigEndian.AppendUint64(out, uint64(b.Origin))
	out = binary.BigEndian.AppendUint64(out, uint64(b.First))
	out = binary.BigEndian.AppendUint64(out, uint64(b.Last))
	out = binary.BigEndian.AppendUint64(out, uint64(b.Stamp))
	out = append(out, b.Prev[:]...)
	out = binary.BigEndian.AppendUint32(out, uint32(len(b.Deps)))
	for _, d := range b.Deps {
		out = binary.BigEndian.AppendUint64(out, uint64(d.Replica))
		out = binary.BigEndian.AppendUint64(out, uint64(d.Seq))
	}
	return out
}

// Chain is the hash chain (BLAKE3) after the op numbered seq, which is of the
// batch or the one before it.
func (b *Batch) Chain(seq crdt.Seq) [32]byte {
	if seq == b.Last && b.last != nil {
		return *b.last
	}
	hash := b.Prev
	h := blake3.New()
	for _, op := range b.Ops[:seq+1-b.First] {
		h.Reset()
		h.Write(hash[:]) //nolint:errcheck // never fails
		h.Write(op)      //nolint:errcheck // never fails
		h.Sum(hash[:0])
	}
	if seq == b.Last {
		b.last = &hash
	}
	return hash
}

// entry is what the version vector says of the origin after the batch. The
// first call must have returned before others read the batch.
func (b *Batch) entry() crdt.VectorEntry {
	return crdt.VectorEntry{Seq: b.Last, Stamp: b.Stamp, Hash: b.Chain(b.Last)}
}

// follows reports whether the batch goes on from, or overlaps and agrees with,
// the ops that the entry is about.
func (b *Batch) follows(at crdt.VectorEntry) bool {
	return b.First <= at.Seq+1 && b.Last > at.Seq && b.Chain(at.Seq) == at.Hash
}

// Digest is what the signature is over: the header, and through the chain all
// ops.
func (b *Batch) Digest() [32]byte {
	chain := b.Chain(b.Last)
	return blake3.Sum256(append(b.header(len(chain)), chain[:]...))
}

// Encode returns the batch's bytes, for the journal and the wire.
func (b *Batch) Encode() []byte {
	out := b.header(b.size())
	for _, op := range b.Ops {
		out = binary.BigEndian.AppendUint32(out, uint32(len(op)))
		out = append(out, op...)
	}
	out = append(out, b.Signature...)
	return append(out, byte(len(b.Signature)))
}

const batchHeader = 1 + 16 + 8*4 + 32 + 4

// DecodeBatch reads a batch; an error is ErrBadBatch. The ops themselves are
// decoded when the batch is merged. The result aliases the input.
func DecodeBatch(in []byte) (*Batch, error) {
	if len(in) < batchHeader+1 || in[0] != batchVersion {
		return nil, fmt.Errorf("%w: header", ErrBadBatch)
	}
	sig := int(in[len(in)-1])
	rest := in[:len(in)-1]
	if len(rest) < batchHeader+sig {
		return nil, fmt.Errorf("%w: signature", ErrBadBatch)
	}
	b := &Batch{Signature: rest[len(rest)-sig:]}
	rest = rest[1 : len(rest)-sig]
	copy(b.Volume[:], rest)
	rest = rest[16:]
	u64 := func() uint64 {
		n := binary.BigEndian.Uint64(rest)
		rest = rest[8:]
		return n
	}
	b.Origin, b.First, b.Last = crdt.ReplicaID(u64()), crdt.Seq(u64()), crdt.Seq(u64())
	b.Stamp = crdt.Stamp(u64())
	copy(b.Prev[:], rest)
	deps := int(binary.BigEndian.Uint32(rest[32:]))
	rest = rest[36:]
	if deps > len(rest)/16 {
		return nil, fmt.Errorf("%w: dependencies", ErrBadBatch)
	}
	for range deps {
		b.Deps = append(b.Deps, crdt.Dot{Replica: crdt.ReplicaID(u64()), Seq: crdt.Seq(u64())})
	}
	for len(rest) > 0 {
		if len(rest) < 4 {
			return nil, fmt.Errorf("%w: op length", ErrBadBatch)
		}
		n := int(binary.BigEndian.Uint32(rest))
		rest = rest[4:]
		if n > len(rest) {
			return nil, fmt.Errorf("%w: op length", ErrBadBatch)
		}
		b.Ops, rest = append(b.Ops, rest[:n:n]), rest[n:]
	}
	if b.Stamp > crdt.MaxStamp {
		return nil, fmt.Errorf("%w: stamp", ErrBadBatch)
	}
	if b.Origin == 0 || b.First == 0 || b.Last < b.First || uint64(b.Last-b.First) != uint64(len(b.Ops)-1) || len(b.Ops) > maxBatchOps {
		return nil, fmt.Errorf("%w: sequence numbers", ErrBadBatch)
	}
	return b, nil
}

// decodeOps decodes the ops and checks that they are what the header says.
func (b *Batch) decodeOps() ([]*crdt.Op, error) {
	ops := make([]*crdt.Op, len(b.Ops))
	last := crdt.Stamp(0)
	for n, raw := range b.Ops {
		op, err := crdt.DecodeOp(raw)
		if err != nil {
			return nil, fmt.Errorf("%w: op %d: %w", ErrBadBatch, n, err)
		}
		want := crdt.Dot{Replica: b.Origin, Seq: b.First + crdt.Seq(n)}
		if op.Dot != want || op.Stamp <= last || op.Stamp > crdt.MaxStamp {
			return nil, fmt.Errorf("%w: op %d: dot %v or stamp out of order", ErrBadBatch, n, op.Dot)
		}
		last, ops[n] = op.Stamp, op
	}
	if last != b.Stamp {
		return nil, fmt.Errorf("%w: stamp", ErrBadBatch)
	}
	return ops, nil
}
