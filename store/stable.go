package store

import (
	"fmt"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// journal is how much of it there is. Guarded by Volume.mu.
type journal struct {
	bytes int64
	first map[crdt.ReplicaID]crdt.Seq // no batch before it is there
}

const (
	// keepTail bytes of the journal stay although all have them: a peer that
	// joins then, or lost a little, needs no snapshot.
	keepTail = 4 << 20
	// compactBatches and compactBytes bound what one transaction looks at.
	compactBatches = 500
	compactBytes   = 4 << 20
	mostTurn       = 30 * time.Second
	leastTurn      = 20 * time.Millisecond
)

// TurnEvery is how often replicas tell each other what they have, and drop what
// all of them have.
func (db *DB) TurnEvery() time.Duration {
	return max(min(db.opts.ReplicaRetention/16, mostTurn), leastTurn)
}

// keep keeps journal and tombstones within their bounds, again and again.
func (v *Volume) keep() time.Duration {
	if err := v.Tidy(); err != nil {
		v.db.opts.Log.Error("tidy volume", "volume", v.Name(), "err", err)
	}
	return v.db.TurnEvery()
}

// Tidy drops what all replicas have and nobody needs any more: now, instead of
// in a while.
func (v *Volume) Tidy() error {
	if v.closed.Load() {
		return nil
	}
	v.mu.Lock()
	err := v.speakLocked()
	v.mu.Unlock()
	if err != nil {
		return fmt.Errorf("roster: %w", err)
	}
	if err := v.compactJournal(); err != nil {
		return fmt.Errorf("compact journal: %w", err)
	}
	if err := v.collect(); err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	return nil
}

// loadJournal measures the journal.
func (v *Volume) loadJournal(t txn) error {
	v.journal = journal{first: map[crdt.ReplicaID]crdt.Seq{}}
	return t.scan(v.keys.key('j'), nil, func(key, value []byte) (bool, error) {
		r := crdt.ReplicaID(v.keys.tail(key, 0))
		if _, ok := v.journal.first[r]; !ok {
			v.journal.first[r] = crdt.Seq(v.keys.tail(key, 1))
		}
		v.journal.bytes += int64(len(value))
		return true, nil
	})
}

// journaledLocked counts a batch that was appended.
func (v *Volume) journaledLocked(b *Batch, size int) {
	v.journal.bytes += int64(size)
	if first, ok := v.journal.first[b.Origin]; !ok || b.First < first {
		v.journal.first[b.Origin] = b.First
	}
}

// stableLocked is what every replica that counts has applied.
func (v *Volume) stableLocked() crdt.Vector {
	stable := v.vector.Clone()
	v.countsLocked(func(m *member) { stable.Min(m.Acked) })
	return stable
}

// sentLocked is how far own ops are known to be with some other replica; all of
// them if there never was another. alone says that no other counts.
func (v *Volume) sentLocked() (most crdt.Seq, alone bool) {
	if len(v.roster.members) == 0 {
		return v.seq, true
	}
	alone = true
	for id, m := range v.roster.members {
		alone = alone && v.roster.out[id]
		most = max(most, m.Acked[v.replica].Seq)
	}
	return most, alone
}

func (v *Volume) compactJournal() error {
	// A replica that begins anew carries its journal over.
	if !v.joinMu.TryLock() {
		return nil
	}
	defer v.joinMu.Unlock()
	return v.compactJournalTo(0)
}

// compactJournalTo is compactJournal with its tail: of what was made until then
// no more stays than must. The caller holds joinMu.
func (v *Volume) compactJournalTo(until crdt.Stamp) error {
	for more := true; more; {
		var err error
		v.mu.Lock()
		if more, err = v.compactSomeLocked(until); err != nil || v.closed.Load() {
			more = false
		}
		v.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// compactSomeLocked drops the oldest batches that all have, but for a tail that
// is younger than until; and over the limit also others, whose receivers will take a snapshot. Own ops that
// nobody else has stay in any case while somebody counts: should this replica
// have to begin anew from a snapshot, they are what is left of its work.
func (v *Volume) compactSomeLocked(until crdt.Stamp) (more bool, err error) {
	limit := v.db.opts.JournalLimit
	if v.halfJoined || until == 0 && v.journal.bytes <= min(keepTail, limit) || v.roster.self.Node == "" {
		return false, nil
	}
	stable := v.stableLocked()
	sent, alone := v.sentLocked()
	may := func(b *Batch) bool {
		switch unsent := b.Origin == v.replica && b.Last > sent; {
		case unsent && !alone:
			return false
		case unsent:
			return v.journal.bytes > limit || b.Stamp <= until
		case b.Last <= stable[b.Origin].Seq:
			return v.journal.bytes > min(keepTail, limit) || b.Stamp <= until
		}
		return v.journal.bytes > limit
	}
	first, bytes := v.journal.first, v.journal.bytes
	v.journal.first = map[crdt.ReplicaID]crdt.Seq{}
	for r, seq := range first {
		v.journal.first[r] = seq
	}
	err = v.db.kv.update(func(t txn) error {
		more, err = v.dropOldest(t, may)
		return err
	})
	if err != nil {
		v.journal.first, v.journal.bytes = first, bytes
	}
	return more, err
}

func (v *Volume) dropOldest(t txn, may func(*Batch) bool) (more bool, err error) {
	next := map[crdt.ReplicaID]*Batch{}
	for r, first := range v.journal.first {
		if next[r], err = v.batchAt(t, r, first); err != nil {
			return false, err
		}
	}
	for looked, bytes := 0, 0; len(next) > 0; looked++ {
		if looked == compactBatches || bytes > compactBytes {
			return true, nil
		}
		b := lowest(next)
		delete(next, b.Origin)
		if !may(b) {
			continue // those behind it are newer
		}
		if err := t.del(v.keys.key('j', uint64(b.Origin), uint64(b.First))); err != nil {
			return false, err
		}
		size := b.size()
		bytes += size
		v.journal.bytes -= int64(size)
		if b.Last == v.vector[b.Origin].Seq {
			delete(v.journal.first, b.Origin)
			continue
		}
		v.journal.first[b.Origin] = b.Last + 1
		if next[b.Origin], err = v.batchAt(t, b.Origin, b.Last+1); err != nil {
			return false, err
		}
	}
	return false, nil
}

// size is the length of the encoded batch.
func (b *Batch) size() int {
	n := batchHeader + 16*len(b.Deps) + len(b.Signature) + 1
	for _, op := range b.Ops {
		n += 4 + len(op)
	}
	return n
}

// Keeping is what status shows of a replica's bounds.
type Keeping struct {
	JournalBytes int64
	JournalLimit int64
	Unstable     uint64 // ops that some replica that counts has not
	Counting     int    // other replicas that count
	Out          int    // that must take a snapshot
	Tombstones   uint64 // inodes with something removed that is not yet collected
	Lost         uint64 // names in LostIno
}

// Keeping returns how the replica's bounds are kept.
func (v *Volume) Keeping() (Keeping, error) {
	k := v.keeping()
	err := v.read(func(t *tree) error {
		if err := t.t.scan(t.keys.key('t'), nil, func(_, _ []byte) (bool, error) {
			k.Tombstones++
			return true, nil
		}); err != nil {
			return err
		}
		return t.EachName(crdt.LostIno, func(string, []crdt.Claim) error {
			k.Lost++
			return nil
		})
	})
	return k, err
}

func (v *Volume) keeping() Keeping {
	v.mu.Lock()
	defer v.mu.Unlock()
	k := Keeping{JournalBytes: v.journal.bytes, JournalLimit: v.db.opts.JournalLimit}
	v.countsLocked(func(*member) { k.Counting++ })
	k.Out = len(v.roster.members) - k.Counting
	stable := v.stableLocked()
	for r, e := range v.vector {
		k.Unstable += uint64(e.Seq - stable[r].Seq)
	}
	return k
}
