package store

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/synapsefs/synapsefs/internal/mutation"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// collectedRecord is a Collected as it is kept. The key also says that
// tombstones are indexed.
type collectedRecord struct {
	Vector []byte
	Out    map[crdt.ReplicaID]crdt.Seq
	// Trimmed is the newest directory move that went from the log: it begins
	// after that.
	Trimmed crdt.VersionID
}

const (
	collectInodes = 200 // in one transaction
	collectMoves  = 500
	// collectShare of the retention passes between two looks at tombstones.
	collectShare = 64
)

// loadCollected reads what was collected, and makes the index of tombstones
// where an earlier version made none.
func (v *Volume) loadCollected() error {
	var rec collectedRecord
	indexed := false
	if err := v.db.kv.view(func(t txn) (err error) {
		indexed, err = getJSON(t, v.keys.key('z'), &rec)
		return err
	}); err != nil {
		return err
	}
	v.collected = Collected{Vector: crdt.Vector{}, Out: map[crdt.ReplicaID]crdt.Seq{}}
	if indexed {
		vector, err := crdt.DecodeVector(rec.Vector)
		if err != nil {
			return fmt.Errorf("%w: collected: %w", ErrDamaged, err)
		}
		v.collected.Vector, v.trimmed = vector, rec.Trimmed
		maps.Copy(v.collected.Out, rec.Out)
		return nil
	}
	if err := v.indexTombstones(); err != nil {
		return err
	}
	return v.db.kv.update(v.putCollected)
}

func (v *Volume) putCollected(t txn) error {
	return putJSON(t, v.keys.key('z'), collectedRecord{crdt.AppendVector(nil, v.collected.Vector), v.collected.Out, v.trimmed})
}

func (v *Volume) indexTombstones() error {
	var found []crdt.Ino
	if err := v.db.kv.view(func(t txn) error {
		return t.scan(v.keys.key('i'), nil, func(_, value []byte) (bool, error) {
			i, err := crdt.DecodeInode(value)
			if err != nil {
				return false, fmt.Errorf("%w: inode: %w", ErrDamaged, err)
			}
			if i.Tombstones() {
				found = append(found, i.Ino)
			}
			return true, nil
		})
	}); err != nil {
		return err
	}
	for part := range slices.Chunk(found, 2000) {
		if err := v.db.kv.update(func(t txn) error {
			for _, ino := range part {
				if err := t.set(v.keys.key('t', uint64(ino)), nil); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// tombstoned keeps the index of inodes with tombstones.
func (t *tree) tombstoned(ino crdt.Ino) error {
	had, has := t.stoned[ino], t.inodes[ino].Tombstones()
	t.stoned[ino] = has
	switch key := t.keys.key('t', uint64(ino)); {
	case has && !had:
		return t.t.set(key, nil)
	case had && !has:
		return t.t.del(key)
	}
	return nil
}

// horizonLocked is what may be collected; false if nothing, since some replica
// that counts may still take changes of one that does not, or since nobody has
// spoken for this one yet: it may have peers that it does not know.
func (v *Volume) horizonLocked() (*crdt.Horizon, bool) {
	r := &v.roster
	if !v.ready.Load() || v.halfJoined || r.self.Acked == nil || r.self.Node == "" {
		return nil, false
	}
	if mutation.Off(mutation.Retention) {
		return &crdt.Horizon{Stable: v.vector.Clone(), Before: math.MaxInt64}, true
	}
	words := []*Member{&r.self}
	for id, m := range r.members {
		if !r.out[id] {
			words = append(words, m.effective)
		}
	}
	stable := v.vector.Clone()
	for _, w := range words {
		if w == nil {
			return nil, false
		}
		for id := range r.out {
			if !slices.Contains(w.Out, id) || w.Acked[id].Seq > v.vector[id].Seq {
				return nil, false
			}
		}
		stable.Min(w.Acked)
	}
	before := v.db.opts.Now().Add(-v.db.opts.ReplicaRetention)
	return &crdt.Horizon{Stable: stable, Before: crdt.Stamp(before.UnixNano())}, true
}

// planned is what a collection would do.
type planned struct {
	crdt.State
	changed []crdt.Ino
}

func (p *planned) PutInode(i *crdt.Inode) error { return p.remove(i.Ino) }

func (p *planned) remove(ino crdt.Ino) error {
	p.changed = append(p.changed, ino)
	return nil
}

// collect forgets what was removed, is known everywhere to be, and has been for
// the retention.
func (v *Volume) collect() error {
	v.mu.Lock()
	now := v.db.opts.Now()
	due := !now.Before(v.nextCollect)
	h, ok := v.horizonLocked()
	v.mu.Unlock()
	if !due || !ok {
		return nil
	}
	keep := v.openInodes()
	v.frozenInodes(keep)
	var plan planned
	var moves bool
	if err := v.read(func(t *tree) (err error) {
		var inodes []crdt.Ino
		if err := t.t.scan(t.keys.key('t'), nil, func(key, _ []byte) (bool, error) {
			inodes = append(inodes, crdt.Ino(t.keys.tail(key, 0)))
			return true, nil
		}); err != nil {
			return err
		}
		if len(inodes) > 0 {
			if err := t.remembered(keep); err != nil {
				return err
			}
		}
		plan.State = t
		if err := crdt.CollectAll(&plan, inodes, h, func(ino crdt.Ino) bool { return keep[ino] }, plan.remove); err != nil {
			return err
		}
		first, err := t.firstMoves(1)
		moves = err == nil && len(first) > 0 && h.Covers(first[0].ID)
		return err
	}); err != nil {
		return err
	}
	if len(plan.changed) > 0 || moves {
		if err := v.collectInodes(h, plan.changed); err != nil {
			return err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.nextCollect = now.Add(max(v.db.opts.ReplicaRetention/collectShare, time.Millisecond))
	return nil
}

// remembered adds the inodes that history or a conflict record still needs.
func (t *tree) remembered(keep map[crdt.Ino]bool) error {
	if err := t.t.scan(t.keys.key('o'), nil, func(key, value []byte) (bool, error) {
		g, err := t.keys.goneIn(key, value)
		keep[g.Ino], keep[g.Dir] = true, true
		return true, err
	}); err != nil {
		return err
	}
	return t.t.scan(t.keys.key('l', 0), nil, func(key, _ []byte) (bool, error) {
		keep[crdt.Ino(t.keys.tail(key, 1))] = true
		return true, nil
	})
}

// collectInodes says first, for good, what is collected, so that nobody who
// does not know it is let in.
func (v *Volume) collectInodes(h *crdt.Horizon, inodes []crdt.Ino) error {
	v.mu.Lock()
	was := Collected{Vector: v.collected.Vector.Clone(), Out: maps.Clone(v.collected.Out)}
	v.collected.Vector.Max(h.Stable)
	for id := range v.roster.out {
		if _, ok := v.collected.Out[id]; !ok {
			v.collected.Out[id] = v.vector[id].Seq
		}
	}
	err := v.db.kv.update(v.putCollected)
	if err != nil {
		v.collected = was
	}
	v.mu.Unlock()
	if err != nil {
		return err
	}
	for _, fn := range subscribed(v, v.onCollect) {
		fn()
	}
	for part := range slices.Chunk(inodes, collectInodes) {
		if err := v.change(0, func(c *change) error {
			for _, ino := range part {
				if err := c.collect(h, ino); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	for more := true; more; {
		if err := v.change(0, func(c *change) (err error) {
			more, err = c.collectMoves(h)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) collect(h *crdt.Horizon, ino crdt.Ino) error {
	i, err := c.Inode(ino)
	if err != nil || i == nil {
		return err
	}
	now, err := crdt.Collect(c.tree, i, h)
	switch {
	case err != nil || now == i:
		return err
	case now != nil:
		return c.PutInode(now)
	}
	if err := c.forgetAccess(ino); err != nil {
		return err
	}
	if err := c.DeleteInode(ino); err != nil {
		return err
	}
	var keys [][]byte
	for _, tag := range []byte{'c', 'h'} {
		if err := c.t.scan(c.keys.key(tag, uint64(ino)), nil, func(key, _ []byte) (bool, error) {
			keys = append(keys, slices.Clone(key))
			return true, nil
		}); err != nil {
			return err
		}
	}
	for _, k := range keys {
		if err := c.t.del(k); err != nil {
			return err
		}
	}
	return nil
}

// firstMoves returns the oldest of the log of moves.
func (t *tree) firstMoves(n int) (out []crdt.Move, err error) {
	err = t.t.scan(t.keys.key('m'), nil, func(_, value []byte) (bool, error) {
		m, err := crdt.DecodeMove(value)
		if err != nil {
			return false, fmt.Errorf("%w: move: %w", ErrDamaged, err)
		}
		out = append(out, *m)
		return len(out) < n, nil
	})
	return out, err
}

// collectMoves drops moves that no op to come is older than.
func (c *change) collectMoves(h *crdt.Horizon) (more bool, err error) {
	moves, err := c.firstMoves(collectMoves)
	if err != nil {
		return false, err
	}
	all := len(moves) < collectMoves
	if !all { // of its last op there may be more
		op := moves[len(moves)-1].ID
		moves = slices.DeleteFunc(moves, func(m crdt.Move) bool { return m.ID.CompareOp(op) == 0 })
	}
	trim := crdt.Trimmable(moves, h)
	if len(trim) == 0 {
		return false, nil
	}
	last := trim[len(trim)-1].ID
	later, err := c.MovesAfter(last)
	if err != nil {
		return false, err
	}
	if err := crdt.TrimMoves(c.tree, trim, later); err != nil {
		return false, err
	}
	for _, m := range trim {
		if err := c.t.del(c.keys.move(m.ID)); err != nil {
			return false, err
		}
	}
	c.after = append(c.after, func() { c.v.trimmed = last })
	rec := collectedRecord{crdt.AppendVector(nil, c.v.collected.Vector), c.v.collected.Out, last}
	return !all, putJSON(c.t, c.keys.key('z'), rec)
}
