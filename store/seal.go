package store

import (
	"fmt"
	"slices"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// A hold makes an op wait for its other half: an unlink or rename away for the
// name to come back, an overwrite from O_TRUNC for its utimensat. The zero
// hold waits for nothing.
type hold struct {
	dir   crdt.Ino
	name  string   // or
	mtime crdt.Ino // file whose mtime may be set
}

// queued is an own op that is in no batch yet.
type queued struct {
	op    *crdt.Op
	raw   []byte
	size  int // bytes that applying it writes
	hold  hold
	held  bool      // also when the hold is over: its other half is in the same batch
	at    time.Time // when it came
	until time.Time // zero: not held, or no longer
}

// sealQueue decides when the own ops that are waiting leave as a batch. What
// is held and what queues behind it leaves as one, what came before it does not
// wait; nothing is reordered. It knows no clock; guarded by Volume.mu.
type sealQueue struct {
	opts  *Options
	ops   []queued
	bytes int
	flush bool // seal at once, held or not, until the queue is empty
}

func (q *sealQueue) add(o queued, now time.Time) {
	o.at = now
	if o.hold != (hold{}) {
		d := q.opts.Hold
		if o.hold.mtime != 0 {
			d = q.opts.HoldTruncate
		}
		o.held, o.until = true, now.Add(d)
	}
	q.ops = append(q.ops, o)
	q.bytes += o.size
}

// release ends the holds that wait for h, and reports whether any did.
func (q *sealQueue) release(h hold) (any bool) {
	for n := range q.ops {
		if q.ops[n].hold == h {
			q.ops[n].hold, q.ops[n].until = hold{}, time.Time{}
			any = true
		}
	}
	return any
}

// urgent reports whether waiting is of no use any more.
func (q *sealQueue) urgent() bool {
	return q.flush || len(q.ops) >= maxBatchOps || q.bytes >= maxBatchBytes
}

// next says when the first ops of the queue are to leave, and how many; 0 if it
// is empty. Of more than fits in a batch the rest follows.
func (q *sealQueue) next() (at time.Time, n int) {
	if len(q.ops) == 0 {
		return at, 0
	}
	at = q.ops[0].at
	if q.urgent() {
		return at, len(q.ops)
	}
	if n := slices.IndexFunc(q.ops, func(o queued) bool { return o.held }); n > 0 {
		return at, n
	}
	limit := at.Add(q.opts.Hold)
	for _, o := range q.ops {
		if o.until.After(at) {
			at = o.until
		}
	}
	if at.After(limit) {
		at = limit
	}
	return at, len(q.ops)
}

// portion returns those of the first n ops that fit in a batch.
func (q *sealQueue) portion(n int) []queued {
	size := 0
	for i, o := range q.ops[:n] {
		if i == maxBatchOps || size >= maxBatchBytes {
			n = i
			break
		}
		size += o.size
	}
	return slices.Clone(q.ops[:n])
}

// drop takes the first n ops out.
func (q *sealQueue) drop(n int) {
	for _, o := range q.ops[:n] {
		q.bytes -= o.size
	}
	q.ops = slices.Delete(q.ops, 0, n)
	if len(q.ops) == 0 {
		q.flush = false
	}
}

// A volume on which less than one op comes each opInterval sends each at once.
// Of a faster stream opBurst of intervals may be taken ahead; what comes then is
// gathered, the longer the more there is, up to gatherMost: a signature, a
// message and a merge for each small file would cost all nodes more than the
// file does.
const (
	opInterval = 2 * time.Millisecond
	opBurst    = 5 * opInterval
	gatherMost = 20 * time.Millisecond
)

// A pace says when the next batch may leave (a leaky bucket of ops).
type pace struct {
	until time.Time // when the ops so far would have left, evenly spaced
}

// next is the earliest time for the next batch.
func (p *pace) next() time.Time { return p.until.Add(-opBurst) }

// left counts n ops that have left now.
func (p *pace) left(n int, now time.Time) {
	if p.until.Before(now) {
		p.until = now
	}
	p.until = p.until.Add(time.Duration(n) * opInterval)
	if most := now.Add(opBurst + gatherMost); p.until.After(most) {
		p.until = most
	}
}

// dueLocked says when the first ops are to leave, and how many; 0 if there are
// none.
func (v *Volume) dueLocked() (at time.Time, n int) {
	at, n = v.queue.next()
	if n == 0 || v.queue.flush {
		return at, n
	}
	now := v.db.opts.Now()
	v.draftsMu.Lock()
	since, until := v.closingLocked(now, now.Add(1), sealWaits)
	v.draftsMu.Unlock()
	if since.IsZero() {
		return at, n
	}
	before := slices.IndexFunc(v.queue.ops[:n], func(o queued) bool { return !o.at.Before(since) })
	switch {
	case before > 0:
		n = before
	case before == 0 && at.Before(until):
		at = until
	}
	v.closeWaits = before >= 0
	return at, n
}

// startSealer has the queue sealed whenever it is due.
func (v *Volume) startSealer() {
	var pace pace
	v.mu.Lock() // the first turn waits until the sealer can be woken
	defer v.mu.Unlock()
	v.wakeSealer, v.stopSealer = v.db.opts.Scheduler.Loop(func() time.Duration {
		for {
			v.mu.Lock()
			at, n := v.dueLocked()
			urgent := v.queue.urgent()
			v.mu.Unlock()
			if n == 0 {
				return time.Hour
			}
			if next := pace.next(); !urgent && at.Before(next) {
				at = next
			}
			if wait := at.Sub(v.db.opts.Now()); wait > 0 || v.closed.Load() {
				return wait
			}
			left, err := v.seal(false)
			if err != nil {
				v.db.opts.Log.Error("seal batch", "volume", v.Name(), "err", err)
				return time.Second
			}
			pace.left(left, v.db.opts.Now())
		}
	})
}

// sealNow puts all own ops into batches, held or not.
func (v *Volume) sealNow() error {
	for {
		v.mu.Lock()
		n := len(v.queue.ops)
		v.mu.Unlock()
		if n == 0 {
			return nil
		}
		if _, err := v.seal(true); err != nil {
			return err
		}
	}
}

// seal makes one batch of the ops that are due, or of all, hands it to the
// subscribers and returns how many ops it has. No op leaves the node before its
// batch is in the journal.
func (v *Volume) seal(all bool) (int, error) {
	v.sealMu.Lock()
	defer v.sealMu.Unlock()
	v.mu.Lock()
	b, n := v.nextBatchLocked(all)
	v.mu.Unlock()
	if n == 0 {
		return 0, nil
	}
	if v.db.opts.Sign != nil {
		digest := b.Digest()
		b.Signature = v.db.opts.Sign(digest[:])
	}
	v.mu.Lock()
	err := v.journalLocked(b, n)
	v.mu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("seal batch %v:%d: %w", b.Origin, b.First, err)
	}
	for _, fn := range subscribed(v, v.onSeal) {
		fn(b)
	}
	return n, nil
}

func (v *Volume) nextBatchLocked(all bool) (*Batch, int) {
	at, n := v.dueLocked()
	switch {
	case all:
		n = len(v.queue.ops)
	case v.db.opts.Now().Before(at): // what was due has left meanwhile
		n = 0
	}
	if n == 0 {
		return nil, 0
	}
	ops := v.queue.portion(n)
	last := ops[len(ops)-1].op
	b := &Batch{
		Volume: v.id, Origin: v.replica, First: ops[0].op.Dot.Seq, Last: last.Dot.Seq,
		Stamp: last.Stamp, Prev: v.vector[v.replica].Hash,
	}
	deps := map[crdt.ReplicaID]crdt.Seq{}
	for _, o := range ops {
		b.Ops = append(b.Ops, o.raw)
		for _, d := range o.op.Deps {
			deps[d.Replica] = max(deps[d.Replica], d.Seq)
		}
	}
	for r, seq := range deps {
		b.Deps = append(b.Deps, crdt.Dot{Replica: r, Seq: seq})
	}
	slices.SortFunc(b.Deps, func(a, b crdt.Dot) int {
		if a.Replica < b.Replica {
			return -1
		}
		return 1
	})
	return b, len(ops)
}

// journalLocked moves n ops from the queue into the journal.
func (v *Volume) journalLocked(b *Batch, n int) error {
	entry := b.entry()
	err := v.db.kv.update(func(t txn) error {
		for seq := b.First; seq <= b.Last; seq++ {
			if err := t.del(v.keys.key('u', uint64(seq))); err != nil {
				return err
			}
		}
		return v.putBatch(t, b, entry)
	})
	if err != nil {
		return err
	}
	v.vector[b.Origin] = entry
	v.journaledLocked(b, b.size())
	v.queue.drop(n)
	v.wakeSealer() // if somebody else sealed, it waits for what is gone
	return nil
}

// putBatch journals a batch and moves the version vector.
func (v *Volume) putBatch(t txn, b *Batch, entry crdt.VectorEntry) error {
	if err := t.set(v.keys.key('j', uint64(b.Origin), uint64(b.First)), b.Encode()); err != nil {
		return err
	}
	return t.set(v.keys.key('a', uint64(b.Origin)), crdt.AppendVectorEntry(nil, entry))
}

// Flush lets held ops leave at once.
func (v *Volume) flushHolds() {
	v.mu.Lock()
	v.queue.flush = len(v.queue.ops) > 0
	v.mu.Unlock()
	v.wakeSealer()
}
