package gossip

import (
	"cmp"
	"maps"
	"slices"

	"github.com/synapsefs/synapsefs/internal/mutation"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A waiter is a batch in the pending buffer.
type waiter struct {
	batch *Batch
	from  string      // the peer that sent it
	wants []crdt.Hash // content that is still missing
	order uint64      // of arrival
}

// turn reports whether all but content is there to merge the batch.
func (b *Batch) turn(reached crdt.Vector) bool {
	if at := reached[b.Origin].Seq; b.First > at+1 || b.Last <= at {
		return false
	}
	for _, d := range b.Deps {
		if reached[d.Replica].Seq < d.Seq && !mutation.Off(mutation.CausalWait) {
			return false
		}
	}
	return true
}

// A budget bounds the bytes that all buffers of a node hold.
type budget struct{ limit, used int }

// pending holds the batches of one volume that came out of order, lack what
// they depend on, or wait for content. It is bounded: what does not fit is
// dropped, newest first, and pulled again later. One batch always fits, and
// one whose turn it is drives out others, so that a full buffer never stops
// the volume.
type pending struct {
	// Fixed.
	maxCount, maxBytes int
	all                *budget

	byOrigin map[crdt.ReplicaID][]*waiter // by First
	count    int
	bytes    int
	arrivals uint64
}

func newPending(l *Limits, all *budget) pending {
	return pending{maxCount: l.PendingBatches, maxBytes: l.PendingBytes, all: all, byOrigin: map[crdt.ReplicaID][]*waiter{}}
}

func (q *pending) fits(b *Batch) bool {
	return q.count == 0 || q.count < q.maxCount && q.bytes+b.Size <= q.maxBytes && q.all.used+b.Size <= q.all.limit
}

// add keeps a batch; false if it does not fit.
func (q *pending) add(b *Batch, wants []crdt.Hash, from string, reached crdt.Vector) bool {
	at, there := q.search(b)
	if there {
		return true
	}
	if !q.fits(b) && b.turn(reached) {
		q.makeRoom(b, reached)
		at, _ = q.search(b)
	}
	if !q.fits(b) {
		return false
	}
	q.arrivals++
	w := &waiter{batch: b, from: from, wants: slices.Clone(wants), order: q.arrivals}
	q.byOrigin[b.Origin] = slices.Insert(q.byOrigin[b.Origin], at, w)
	q.account(b, 1)
	return true
}

func (q *pending) search(b *Batch) (int, bool) {
	return slices.BinarySearchFunc(q.byOrigin[b.Origin], b.First, func(w *waiter, first crdt.Seq) int {
		return cmp.Compare(w.batch.First, first)
	})
}

// makeRoom drops the newest batches whose turn it is not.
func (q *pending) makeRoom(b *Batch, reached crdt.Vector) {
	var idle []*waiter
	for _, ws := range q.byOrigin {
		for _, w := range ws {
			if !w.batch.turn(reached) {
				idle = append(idle, w)
			}
		}
	}
	slices.SortFunc(idle, func(a, b *waiter) int { return cmp.Compare(b.order, a.order) })
	for _, w := range idle {
		if q.fits(b) {
			return
		}
		q.remove(w.batch)
	}
}

func (q *pending) remove(b *Batch) {
	at, there := q.search(b)
	if !there {
		return
	}
	ws := slices.Delete(q.byOrigin[b.Origin], at, at+1)
	q.byOrigin[b.Origin] = ws
	if len(ws) == 0 {
		delete(q.byOrigin, b.Origin)
	}
	q.account(b, -1)
}

func (q *pending) account(b *Batch, sign int) {
	q.count += sign
	q.bytes += sign * b.Size
	q.all.used += sign * b.Size
}

// next takes out a batch that can be merged on top of reached, or returns nil.
func (q *pending) next(reached crdt.Vector) (b *Batch, from string) {
	for _, origin := range q.origins() {
		for _, w := range q.byOrigin[origin] {
			if w.batch.First > reached[origin].Seq+1 {
				break
			}
			if w.batch.turn(reached) && len(w.wants) == 0 {
				q.remove(w.batch)
				return w.batch, w.from
			}
		}
	}
	return nil, ""
}

// prune drops what is reached without it.
func (q *pending) prune(reached crdt.Vector) {
	for origin, ws := range q.byOrigin {
		for len(ws) > 0 && ws[0].batch.Last <= reached[origin].Seq {
			q.remove(ws[0].batch)
			ws = q.byOrigin[origin]
		}
	}
}

// extend returns reached, raised by the batches here that go on from it: what need
// not be pulled.
func (q *pending) extend(reached crdt.Vector) crdt.Vector {
	out := reached.Clone()
	for origin, ws := range q.byOrigin {
		for _, w := range ws {
			if at := out[origin].Seq; w.batch.First <= at+1 && w.batch.Last > at {
				out[origin] = w.batch.entry()
			}
		}
	}
	return out
}

// arrived notes that content is here.
func (q *pending) arrived(h crdt.Hash) (found bool) {
	for _, ws := range q.byOrigin {
		for _, w := range ws {
			if n := slices.Index(w.wants, h); n >= 0 {
				w.wants = slices.Delete(w.wants, n, n+1)
				found = true
			}
		}
	}
	return found
}

// wanting returns the batches that wait for content, in order of origin and
// sequence.
func (q *pending) wanting() (out []*waiter) {
	for _, origin := range q.origins() {
		for _, w := range q.byOrigin[origin] {
			if len(w.wants) > 0 {
				out = append(out, w)
			}
		}
	}
	return out
}

// clear gives the buffer's share of the budget back.
func (q *pending) clear() {
	q.all.used -= q.bytes
	q.byOrigin, q.count, q.bytes = map[crdt.ReplicaID][]*waiter{}, 0, 0
}

func (q *pending) origins() []crdt.ReplicaID {
	if len(q.byOrigin) == 0 {
		return nil
	}
	return slices.Sorted(maps.Keys(q.byOrigin))
}

func (b *Batch) entry() crdt.VectorEntry { return crdt.VectorEntry{Seq: b.Last, Hash: b.Hash} }
