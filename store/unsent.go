package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// unsent is an op that the snapshot lacks.
type unsent struct {
	op       *crdt.Op
	doubtful bool // or may lack
}

// makeAgain makes the ops again that were not yet.
func (a *anew) makeAgain(locked bool) error {
	if !locked {
		a.v.mu.Lock()
	}
	ops, err := a.unsentLocked()
	if !locked {
		a.v.mu.Unlock()
	}
	if err != nil {
		return err
	}
	for _, o := range ops {
		if a.done[o.op.Dot] {
			continue
		}
		if err := a.s.change(0, func(c *change) error {
			a.rebase.S = c.tree
			writes, err := a.rebase.Writes(o.op, o.doubtful)
			if err != nil || len(writes) == 0 {
				return err
			}
			if err := c.commit(writes, hold{}); err != nil {
				return err
			}
			a.rebase.Made(o.op, c.queued[len(c.queued)-1].op)
			return nil
		}); err != nil {
			return fmt.Errorf("make op %v again: %w", o.op.Dot, err)
		}
		a.done[o.op.Dot] = true
		if len(a.s.queue.ops) >= maxBatchOps {
			if err := a.s.sealNow(); err != nil {
				return err
			}
		}
	}
	return nil
}

// unsentLocked lists what the snapshot lacks and nobody else will bring: own ops, and
// those of replicas that are out of sight, in the order of their stamps.
func (a *anew) unsentLocked() (out []unsent, err error) {
	v, theirs := a.v, a.s.vector
	err = v.db.kv.view(func(t txn) error {
		own, err := a.known(t, theirs[v.replica])
		if err != nil {
			return err
		}
		for r := range v.vector {
			seq, silent := theirs[r].Seq, v.silent(r)
			if r == v.replica {
				seq = own
			} else if !silent {
				continue
			}
			if err := v.eachBatch(t, r, 0, func(b *Batch) (bool, error) {
				if b.Last <= seq {
					return true, nil
				}
				ops, err := b.decodeOps()
				for _, op := range ops {
					if op.Dot.Seq > seq {
						out = append(out, unsent{op, r == v.replica && op.Stamp <= theirs[r].Stamp && !a.exact})
					}
				}
				return true, err
			}); err != nil {
				return err
			}
		}
		return nil
	})
	for _, q := range v.queue.ops {
		out = append(out, unsent{op: q.op})
	}
	slices.SortFunc(out, func(x, y unsent) int { return x.op.ID(0).CompareOp(y.op.ID(0)) })
	return out, err
}

// compare finds out where the sender's ops of this replica and those of its own
// journal part, as far as the sender's journal goes.
func (a *anew) compare(ctx context.Context, source SnapshotSource) error {
	v, since := a.v, a.s.Vector()
	v.mu.Lock()
	own, last, first := v.replica, v.vector[v.replica].Seq, v.journal.first[v.replica]
	v.mu.Unlock()
	if first == 0 || since[own].Seq < first {
		return nil // nothing to compare
	}
	since[own] = crdt.VectorEntry{Seq: first - 1}
	start, err := a.compareFrom(ctx, source, since, own, last)
	if a.exact = err == nil && start == nil; a.exact || start[own].Seq < first {
		return err
	}
	since[own] = start[own]
	_, err = a.compareFrom(ctx, source, since, own, last)
	return err
}

// compareFrom is compare with a journal that goes back to since; else it returns
// where that journal begins.
func (a *anew) compareFrom(ctx context.Context, source SnapshotSource, since crdt.Vector, own crdt.ReplicaID, last crdt.Seq) (start crdt.Vector, err error) {
	next, err := source.Read(ctx, SnapshotRequest{Tail: true, Since: since})
	for err == nil {
		var chunk []byte
		if chunk, err = next(); err != nil {
			break
		}
		err = eachRecord(chunk, func(tag byte, body []byte) error {
			switch tag {
			case snapJournal:
				start, err = crdt.DecodeVector(body)
				return err
			case snapBatch:
				b, err := DecodeBatch(body)
				if err != nil || b.Origin != own {
					return err
				}
				return a.compareBatch(b, last)
			}
			return nil
		})
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return start, err
}

// compareBatch compares a peer's batch of own ops with the journal.
func (a *anew) compareBatch(b *Batch, last crdt.Seq) error {
	if b.First > last+1 {
		return nil
	}
	return a.v.db.kv.view(func(t txn) error {
		same := func(seq crdt.Seq) (bool, error) {
			ours, err := a.v.batchAt(t, b.Origin, seq)
			if errors.Is(err, ErrJournalGone) {
				return false, nil
			} else if err != nil {
				return false, err
			}
			return ours.Chain(seq) == b.Chain(seq), nil
		}
		// A chain that has parted does not meet again.
		lo, hi := max(a.agreed, b.First-1), min(b.Last, last)
		for lo < hi {
			mid := hi - (hi-lo)/2
			ok, err := same(mid)
			if err != nil {
				return err
			}
			if ok {
				lo, a.agreed = mid, mid
			} else {
				hi = mid - 1
			}
		}
		if lo == 0 || lo <= a.agreed {
			return nil
		}
		ok, err := same(lo) // what was before the batch
		if ok {
			a.agreed = lo
		}
		return err
	})
}

// known is up to which own op peers have the same: the snapshot's, if it is one
// of this journal, or what some peer was known to have. One that must begin anew
// for the snapshot's sender, as this one, does not bring it; and what the sender
// itself had, under any id, the snapshot says: it may have been restored since.
func (a *anew) known(t txn, theirs crdt.VectorEntry) (most crdt.Seq, err error) {
	v := a.v
	ends := []crdt.VectorEntry{theirs}
	for id, m := range v.roster.members {
		if e := m.Acked[v.replica]; m.Node != a.from && !a.s.roster.out[id] && !a.s.collected.Excludes(id, m.Acked) {
			ends = append(ends, e)
		}
	}
	last := v.vector[v.replica].Seq
	first, ok := v.journal.first[v.replica]
	if !ok {
		first = last + 1
	}
	most = first - 1 // what is compacted, peers have
	for _, e := range ends {
		if e.Seq <= most || e.Seq > last {
			continue
		}
		b, err := v.batchAt(t, v.replica, e.Seq)
		if err != nil {
			return 0, err
		}
		if b.Chain(e.Seq) == e.Hash {
			most = e.Seq
		}
	}
	return max(most, a.agreed), nil
}

// silent reports whether a replica was not heard of for long: it may be gone,
// and what this one has of it be all there is.
func (v *Volume) silent(r crdt.ReplicaID) bool {
	m := v.roster.members[r]
	return m == nil || v.db.opts.Now().Sub(m.heard) > v.db.opts.ReplicaRetention
}

// carryJournal keeps the batches that the new state has applied too, where they
// reach as far as it has: should this replica have to begin anew once more, from
// one that lacks them, they are what there is to make again.
func (a *anew) carryJournal() error {
	for _, r := range a.s.vector.Replicas() {
		keep, err := a.covered(r)
		if err != nil {
			return err
		}
		for len(keep) > 0 {
			if err := a.v.db.kv.update(func(t txn) error {
				c := &countingTxn{txn: t}
				for ; len(keep) > 0 && c.n < saveBytes; keep = keep[1:] {
					raw, err := t.get(a.v.keys.key('j', uint64(r), uint64(keep[0])))
					if err != nil {
						return err
					}
					if err := c.set(a.s.keys.key('j', uint64(r), uint64(keep[0])), raw); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				return err
			}
		}
	}
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	return a.s.db.kv.view(a.s.loadJournal)
}

// covered lists the first ops of a replica's batches up to where the new journal
// begins or, if that has none, to where the new state is.
func (a *anew) covered(r crdt.ReplicaID) (firsts []crdt.Seq, err error) {
	end, reaches := a.s.vector[r], false
	err = a.v.db.kv.view(func(t txn) error {
		if err := a.s.eachBatch(t, r, 0, func(b *Batch) (bool, error) {
			end = crdt.VectorEntry{Seq: b.First - 1, Hash: b.Prev}
			return false, nil
		}); err != nil {
			return err
		}
		return a.v.eachBatch(t, r, 0, func(b *Batch) (bool, error) {
			if b.Last <= end.Seq {
				firsts = append(firsts, b.First)
				reaches = b.Last == end.Seq && b.Chain(b.Last) == end.Hash
			}
			return b.Last < end.Seq, nil
		})
	})
	if !reaches {
		firsts = nil
	}
	return firsts, err
}
