package store

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/synapsefs/synapsefs/internal/mutation"
	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// Merge applies a peer's batch: all or nothing, and once however often it
// comes. Errors: ErrNotNext if it is not the next of its origin or what it
// depends on is not applied, ErrNoContent if it names content that is not here,
// ErrStamp, ErrBadBatch. The signature must have been verified.
func (v *Volume) Merge(b *Batch) error {
	_, err := v.MergeAll([]*Batch{b})
	return err
}

// MergeAll applies batches one after the other, several of them in one
// transaction where they are small, which is then shown as one change. It
// returns how many are applied; err is that of the next one, see Merge.
func (v *Volume) MergeAll(batches []*Batch) (n int, err error) {
	for n < len(batches) {
		some := batches[n:][:portionOf(batches[n:])]
		if err := v.mergeSome(some); err == nil {
			n += len(some)
			continue
		} else if len(some) == 1 {
			return n, fmt.Errorf("merge batch %v:%d: %w", some[0].Origin, some[0].First, err)
		}
		// One of them is refused: the others are not to suffer.
		if _, err := v.MergeAll(batches[n : n+1]); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// portionOf is how many of the batches one transaction takes, at least one.
func portionOf(batches []*Batch) (n int) {
	ops, bytes := 0, 0
	for _, b := range batches {
		ops += len(b.Ops)
		bytes += b.size()
		if n > 0 && (ops > maxBatchOps || bytes > maxBatchBytes/2) {
			break
		}
		n++
	}
	return n
}

// A mergedBatch is a batch on its way into the state.
type mergedBatch struct {
	*Batch
	ops   []*crdt.Op // those that are not applied yet
	entry crdt.VectorEntry
	grown int // bytes by which the journal grows
}

// mergeSome applies batches in one transaction, all or none.
func (v *Volume) mergeSome(batches []*Batch) error {
	fresh := make([]mergedBatch, len(batches))
	for n, b := range batches {
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
			return ErrNoContent
		}
		fresh[n] = mergedBatch{Batch: b, ops: ops, entry: b.entry()}
	}
	if err := v.db.room(); err != nil {
		return err
	}
	merged, err := v.merge(fresh)
	if err != nil || merged == 0 {
		return err
	}
	v.merged.Add(uint64(merged))
	vector := v.Vector()
	for _, fn := range subscribed(v, v.onMerge) {
		fn(vector)
	}
	return nil
}

// merge returns how many ops were not known.
func (v *Volume) merge(batches []mergedBatch) (ops int, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.wholeLocked(); err != nil {
		return 0, err
	}
	vector := v.vector.Clone()
	fresh := batches[:0]
	for _, b := range batches {
		at := vector[b.Origin].Seq
		if b.Last <= at && !mutation.Off(mutation.Idempotence) {
			continue
		}
		if err := v.checkNextLocked(b.Batch, vector); err != nil {
			return 0, err
		}
		if at >= b.First && b.Last > at {
			b.ops = b.ops[at+1-b.First:]
		}
		vector[b.Origin] = b.entry
		fresh = append(fresh, b)
		ops += len(b.ops)
	}
	if len(fresh) == 0 {
		return 0, nil
	}
	err = v.changeLocked(0, func(c *change) error {
		for n := range fresh {
			if err := c.merge(&fresh[n]); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, crdt.ErrMalformed) {
		err = fmt.Errorf("%w: %w", ErrBadBatch, err)
	}
	if err != nil {
		return 0, err
	}
	for _, b := range fresh {
		v.mergedLocked(b)
	}
	return ops, nil
}

// checkNextLocked says why a batch cannot follow what the vector says is applied.
func (v *Volume) checkNextLocked(b *Batch, vector crdt.Vector) error {
	at := vector[b.Origin]
	limit, out := v.collected.Out[b.Origin]
	switch {
	case b.Last <= at.Seq: // only where a test wants it
	case b.Origin == v.replica:
		return fmt.Errorf("%w: it has this replica's own id", ErrBadBatch)
	case out && b.Last > limit:
		return fmt.Errorf("replica %v: %w", b.Origin, ErrBehind)
	case b.First > at.Seq+1:
		return ErrNotNext
	case !b.follows(at):
		return fmt.Errorf("%w: it does not follow the ops before in the hash chain", ErrBadBatch)
	case b.Stamp > crdt.MaxWall+crdt.MaxStep && b.Stamp > vector.Latest()+crdt.MaxStep:
		// Who has applied more may take it earlier; all take it in the end,
		// or nobody does, since nobody can what it would build on.
		return fmt.Errorf("batch of replica %v, stamped %v: %w", b.Origin, time.Unix(0, int64(b.Stamp)).UTC(), ErrStamp)
	}
	return v.appliedInLocked(vector, b)
}

// appliedInLocked says whether what a batch depends on is in a vector; own ops
// that are in no batch count too.
func (v *Volume) appliedInLocked(vector crdt.Vector, b *Batch) error {
	for _, d := range b.Deps {
		seq := vector[d.Replica].Seq
		if d.Replica == v.replica {
			seq = v.seq
		}
		if seq < d.Seq && !mutation.Off(mutation.CausalWait) {
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

func (c *change) merge(b *mergedBatch) error {
	for _, op := range b.ops {
		e, err := crdt.Apply(c.tree, op)
		if err != nil {
			return err
		}
		c.effects = append(c.effects, e)
	}
	b.grown = b.size()
	if len(b.ops) < len(b.Ops) {
		needless, err := c.v.dropNeedless(c.t, b.Batch)
		if err != nil {
			return err
		}
		b.grown -= needless
	}
	return c.v.putBatch(c.t, b.Batch, b.entry)
}

// mergedLocked takes over what a merged batch changed in memory.
func (v *Volume) mergedLocked(b mergedBatch) {
	v.vector[b.Origin] = b.entry
	v.journaledLocked(b.Batch, b.grown)
	if m := v.roster.members[b.Origin]; m != nil {
		v.noteEffectiveLocked(m)
	}
	v.deps[b.Origin] = b.Last
	v.clock.Observe(b.Stamp)
}

// Wants returns the manifests that the batch names and that are not here with
// all their blocks.
func (v *Volume) Wants(b *Batch) ([]crdt.Hash, error) {
	ops, err := b.decodeOps()
	if err != nil {
		return nil, err
	}
	missing, err := v.wants(ops)
	if len(missing) > 0 {
		v.wanted.add(crdt.Dot{Replica: b.Origin, Seq: b.Last}, contentsOf(ops))
	}
	return missing, err
}

// contentsOf are the manifests that ops name.
func contentsOf(ops []*crdt.Op) (out []crdt.Hash) {
	for _, op := range ops {
		for n := range op.Writes {
			if w := &op.Writes[n]; w.Kind == crdt.WriteContent && w.Content.Manifest {
				out = append(out, w.Content.Hash)
			}
		}
	}
	return out
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
		reached := since.Clone()
		for size := 0; len(next) > 0; {
			if size >= maxBytes {
				more = true
				return nil
			}
			b := nextOf(next, reached)
			out = append(out, b)
			reached[b.Origin] = crdt.VectorEntry{Seq: b.Last}
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

// nextOf is the first of the batches that depend on nothing beyond reached. That is
// mostly the lowest; but between the ops of one that was put together after a power
// loss, another replica may have seen the first of them and written.
func nextOf(batches map[crdt.ReplicaID]*Batch, reached crdt.Vector) *Batch {
	first := lowest(batches)
	for rest, b := batches, first; b != nil; b = lowest(rest) {
		if !slices.ContainsFunc(b.Deps, func(d crdt.Dot) bool { return reached[d.Replica].Seq < d.Seq }) {
			return b
		}
		if b == first {
			rest = maps.Clone(batches)
		}
		delete(rest, b.Origin)
	}
	return first
}

// lowest is the batch whose last op was made first.
func lowest(batches map[crdt.ReplicaID]*Batch) *Batch {
	var best *Batch
	for _, b := range batches {
		if best == nil || b.Stamp < best.Stamp || b.Stamp == best.Stamp && b.Origin < best.Origin {
			best = b
		}
	}
	return best
}

// batchAt reads a batch that has the op, the one that begins there if there is
// one.
func (v *Volume) batchAt(t txn, r crdt.ReplicaID, seq crdt.Seq) (b *Batch, err error) {
	raw, err := t.get(v.keys.key('j', uint64(r), uint64(seq)))
	if err != nil {
		return nil, err
	}
	if raw != nil {
		if b, err = DecodeBatch(raw); err != nil {
			return nil, fmt.Errorf("%w: journal: batch %v:%d: %w", ErrDamaged, r, seq, err)
		}
		return b, nil
	}
	from := crdt.Seq(1)
	if seq > maxBatchOps {
		from = seq - maxBatchOps
	}
	err = v.eachBatch(t, r, from, func(have *Batch) (bool, error) {
		if have.First <= seq && have.Last >= seq {
			b = have
		}
		return b == nil && have.First < seq, nil
	})
	if err == nil && b == nil {
		err = fmt.Errorf("batch %v:%d: %w", r, seq, ErrJournalGone)
	}
	return b, err
}

// dropNeedless takes the batches out of the journal that are not needed once an
// overlapping one is appended, and returns their bytes. So batches end in the order
// in which they begin, and none lies between two that adjoin: whoever goes from
// where one ends to the one that goes on from there leaves none behind.
func (v *Volume) dropNeedless(t txn, b *Batch) (bytes int, err error) {
	var needless []crdt.Seq
	adjoined := false
	if err := v.eachBatch(t, b.Origin, b.First-min(b.First, maxBatchOps), func(have *Batch) (bool, error) {
		if adjoined || have.First >= b.First {
			needless = append(needless, have.First)
			bytes += have.size()
		}
		adjoined = adjoined || have.Last+1 >= b.First
		return true, nil
	}); err != nil {
		return 0, err
	}
	for _, first := range needless {
		if err := t.del(v.keys.key('j', uint64(b.Origin), uint64(first))); err != nil {
			return 0, err
		}
	}
	return bytes, nil
}

// eachBatch calls fn for the journal's batches of a replica that begin at an op
// or later, in order.
func (v *Volume) eachBatch(t txn, r crdt.ReplicaID, from crdt.Seq, fn func(*Batch) (bool, error)) error {
	return t.scan(v.keys.key('j', uint64(r)), v.keys.key('j', uint64(r), uint64(from)), func(_, value []byte) (bool, error) {
		b, err := DecodeBatch(slices.Clone(value))
		if err != nil {
			return false, fmt.Errorf("%w: journal: %w", ErrDamaged, err)
		}
		return fn(b)
	})
}
