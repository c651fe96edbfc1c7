package store

import (
	"errors"
	"fmt"

	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// Merge applies a peer's batch: all or nothing, and once however often it
// comes. Errors: ErrNotNext if it is not the next of its origin or what it
// depends on is not applied, ErrNoContent if it names content that is not here,
// ErrBadBatch. The signature must have been verified.
func (v *Volume) Merge(b *Batch) error {
	if b.Volume != v.id {
		return fmt.Errorf("%w: for volume %v", ErrBadBatch, b.Volume)
	}
	ops, err := b.decodeOps()
	if err != nil {
		return err
	}
	if wants, err := v.wants(ops); err != nil {
		return err
	} else if len(wants) > 0 {
		return fmt.Errorf("merge batch %v:%d: %w", b.Origin, b.First, ErrNoContent)
	}
	if err := v.db.room(); err != nil {
		return fmt.Errorf("merge batch %v:%d: %w", b.Origin, b.First, err)
	}
	known, err := v.merge(b, ops)
	if err != nil {
		return fmt.Errorf("merge batch %v:%d: %w", b.Origin, b.First, err)
	}
	if known {
		return nil
	}
	v.merged.Add(uint64(len(ops)))
	vector := v.Vector()
	for _, fn := range subscribed(v, v.onMerge) {
		fn(vector)
	}
	return nil
}

func (v *Volume) merge(b *Batch, ops []*crdt.Op) (known bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.wholeLocked(); err != nil {
		return false, err
	}
	at := v.vector[b.Origin]
	limit, out := v.collected.Out[b.Origin]
	switch {
	case b.Last <= at.Seq:
		return true, nil
	case b.Origin == v.replica:
		return false, fmt.Errorf("%w: it has this replica's own id", ErrBadBatch)
	case out && b.Last > limit:
		return false, fmt.Errorf("replica %v: %w", b.Origin, ErrBehind)
	case b.First != at.Seq+1:
		return false, ErrNotNext
	case b.Prev != at.Hash:
		return false, fmt.Errorf("%w: it does not follow the batch before in the hash chain", ErrBadBatch)
	}
	if err := v.appliedInLocked(v.vector, b); err != nil {
		return false, err
	}
	entry := crdt.VectorEntry{Seq: b.Last, Stamp: b.Stamp, Hash: b.Digest()}
	err = v.changeLocked(0, func(c *change) error {
		for _, op := range ops {
			e, err := crdt.Apply(c.tree, op)
			if err != nil {
				return err
			}
			c.effects = append(c.effects, e)
		}
		return v.putBatch(c.t, b, entry)
	})
	if errors.Is(err, crdt.ErrMalformed) {
		err = fmt.Errorf("%w: %w", ErrBadBatch, err)
	}
	if err != nil {
		return false, err
	}
	v.vector[b.Origin] = entry
	v.journaledLocked(b, b.size())
	if m := v.roster.members[b.Origin]; m != nil {
		v.noteEffectiveLocked(m)
	}
	v.deps[b.Origin] = b.Last
	v.clock.Observe(b.Stamp)
	return false, nil
}

// appliedInLocked says whether what a batch depends on is in a vector; own ops
// that are in no batch count too.
func (v *Volume) appliedInLocked(vector crdt.Vector, b *Batch) error {
	for _, d := range b.Deps {
		seq := vector[d.Replica].Seq
		if d.Replica == v.replica {
			seq = v.seq
		}
		if seq < d.Seq {
			return ErrNotNext
		}
	}
	return nil
}

func (v *Volume) appliedIn(vector crdt.Vector, b *Batch) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.appliedInLocked(vector, b)
}

// Wants returns the manifests that the batch names and that are not here with
// all their blocks.
func (v *Volume) Wants(b *Batch) ([]crdt.Hash, error) {
	ops, err := b.decodeOps()
	if err != nil {
		return nil, err
	}
	return v.wants(ops)
}

func (v *Volume) wants(ops []*crdt.Op) ([]crdt.Hash, error) {
	var out []crdt.Hash
	for _, op := range ops {
		for _, w := range op.Writes {
			if w.Kind != crdt.WriteContent || !w.Content.Manifest {
				continue
			}
			size, have, err := v.db.hasContent(w.Content.Hash)
			if err != nil {
				return nil, err
			}
			if have && size != w.Content.Size {
				return nil, fmt.Errorf("%w: content of %d bytes for a size of %d", ErrBadBatch, size, w.Content.Size)
			}
			if !have {
				out = append(out, w.Content.Hash)
			}
		}
	}
	return out, nil
}

// hasContent reports whether a manifest and all its blocks are here, and the
// file's size.
func (db *DB) hasContent(h crdt.Hash) (size int64, have bool, err error) {
	m, err := db.manifest(h)
	if errors.Is(err, ErrNoContent) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	missing, err := db.content.Missing(m)
	return m.Size(), len(missing) == 0, err
}

func (db *DB) manifest(h crdt.Hash) (*content.Manifest, error) {
	m, ok, err := db.content.Manifest(h)
	if err == nil && !ok {
		err = fmt.Errorf("%w: manifest %x", ErrNoContent, h)
	}
	return m, err
}

// Batches returns what a peer with the given vector lacks, up to about
// maxBytes, in an order in which the batches can be merged one after another.
// more says that there is more. ErrJournalGone means the peer needs a snapshot.
func (v *Volume) Batches(since crdt.Vector, maxBytes int) (out []*Batch, more bool, err error) {
	have := v.Vector()
	err = v.db.kv.view(func(t txn) error {
		next := map[crdt.ReplicaID]*Batch{}
		for r, e := range have {
			if e.Seq > since[r].Seq {
				if next[r], err = v.batchAt(t, r, since[r].Seq+1); err != nil {
					return err
				}
			}
		}
		// A batch depends only on batches whose last stamp is lower.
		for size := 0; len(next) > 0; {
			if size >= maxBytes {
				more = true
				return nil
			}
			b := lowest(next)
			out = append(out, b)
			for _, op := range b.Ops {
				size += len(op)
			}
			delete(next, b.Origin)
			if b.Last < have[b.Origin].Seq {
				if next[b.Origin], err = v.batchAt(t, b.Origin, b.Last+1); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return out, more, err
}

func lowest(batches map[crdt.ReplicaID]*Batch) *Batch {
	var best *Batch
	for _, b := range batches {
		if best == nil || b.Stamp < best.Stamp || b.Stamp == best.Stamp && b.Origin < best.Origin {
			best = b
		}
	}
	return best
}

func (v *Volume) batchAt(t txn, r crdt.ReplicaID, first crdt.Seq) (*Batch, error) {
	raw, err := t.get(v.keys.key('j', uint64(r), uint64(first)))
	if err != nil {
		return nil, err
	}
	if raw == nil {
		return nil, fmt.Errorf("batch %v:%d: %w", r, first, ErrJournalGone)
	}
	b, err := DecodeBatch(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: journal: batch %v:%d: %w", ErrDamaged, r, first, err)
	}
	return b, nil
}
