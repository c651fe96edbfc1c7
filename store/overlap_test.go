package store

import (
	"context"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// inOneBatch returns a batch of n ops that all depend on each other.
func inOneBatch(t testing.TB, id VolumeID, n int) *Batch {
	t.Helper()
	o := longHold
	o.Memory = NewMemory()
	a := volumeWith(t, id, o)
	write(t, a, root, "f0", "x")
	for n := range n - 1 {
		check(t, a.Rename(Request{}, root, fmt.Sprint("f", n), root, fmt.Sprint("f", n+1), 0), nil)
	}
	bs := batches(t, a, nil)
	whole := *bs[0]
	whole.last = nil
	for _, b := range bs[1:] {
		whole.Ops, whole.Last, whole.Stamp = append(whole.Ops, b.Ops...), b.Last, b.Stamp
	}
	if len(whole.Ops) != n {
		t.Fatalf("%d ops", len(whole.Ops))
	}
	return &whole
}

// part makes a batch of some of the ops of one, as their origin could have.
func (b *Batch) part(first, last crdt.Seq) *Batch {
	c := *b
	c.First, c.Last, c.Prev, c.last = first, last, b.Chain(first-1), nil
	c.Ops = b.Ops[first-b.First:][:last+1-first]
	op, err := crdt.DecodeOp(c.Ops[len(c.Ops)-1])
	if err != nil {
		panic(err)
	}
	c.Stamp = op.Stamp
	return &c
}

// after makes a batch that goes on from an op, and may overlap what is before.
func (b *Batch) after(t *rapid.T, at crdt.Seq) *Batch {
	last := at + crdt.Seq(rapid.IntRange(1, 4).Draw(t, "ops"))
	first := at + 1 - min(at, crdt.Seq(rapid.IntRange(0, 6).Draw(t, "overlap")))
	return b.part(first, min(last, b.Last))
}

// TestP8JournalOfOverlappingBatches: whatever batches the ops of a replica came
// in, the journal brings a peer from anywhere to the end, is as large as it is
// said to be, and can be dropped from its beginning, batch by batch.
func TestP8JournalOfOverlappingBatches(t *testing.T) {
	const ops = 12
	whole := inOneBatch(t, NewVolumeID(), ops)
	rapid.Check(t, func(rt *rapid.T) {
		o := Options{Memory: NewMemory()}
		v := volumeWith(t, whole.Volume, o)
		for at := crdt.Seq(0); at < ops; {
			b := whole.after(rt, at)
			if err := v.Merge(b); err != nil {
				rt.Fatalf("merge %d to %d: %v", b.First, b.Last, err)
			}
			at = b.Last
		}
		if start := must(v.journalStart())[whole.Origin].Seq; start != 0 {
			rt.Errorf("it begins after %d", start)
		}
		wholeJournal(rt, t, v, whole.Origin)
	})
}

// wholeJournal checks that a journal serves all from where it begins, is as large
// as it is said to be, and can be dropped batch by batch.
func wholeJournal(rt *rapid.T, t *testing.T, v *Volume, origin crdt.ReplicaID) {
	start := must(v.journalStart())[origin].Seq
	end := v.Vector()[origin].Seq
	for since := start; since < end; since++ {
		bs, _, err := v.Batches(crdt.Vector{origin: {Seq: since}}, 1<<20)
		if err != nil {
			rt.Fatal(err)
		}
		at := since
		for _, b := range bs {
			if b.First > at+1 || b.Last <= at {
				rt.Errorf("from %d: batch %d to %d after %d", since, b.First, b.Last, at)
			}
			at = b.Last
		}
		if at != end {
			rt.Errorf("from %d to %d", since, at)
		}
	}
	bytes := v.journal.bytes
	if rapid.Bool().Draw(rt, "reopen") {
		v = reopen(t, v)
	}
	if v.journal.bytes != bytes {
		rt.Errorf("the journal has %d bytes, counted %d", v.journal.bytes, bytes)
	}
	for left := keysOf(t, v, 'j'); left > 0; left-- {
		n := 0
		if err := v.db.kv.update(func(tx txn) error {
			_, err := v.dropOldest(tx, func(*Batch) bool { n++; return n == 1 })
			return err
		}); err != nil {
			rt.Fatalf("with %d batches left: %v", left, err)
		}
	}
	if n := keysOf(t, v, 'j'); n > 0 || v.journal.bytes != 0 || len(v.journal.first) > 0 {
		rt.Errorf("%d batches are left; counted %d bytes, from %v", n, v.journal.bytes, v.journal.first)
	}
}

// TestP5TailOfOverlappingBatches: so it is where they are the tail of a snapshot.
func TestP5TailOfOverlappingBatches(t *testing.T) {
	const ops = 12
	whole := inOneBatch(t, NewVolumeID(), ops)
	all := volumeWith(t, whole.Volume, Options{Memory: NewMemory()})
	check(t, all.Merge(whole), nil)
	rapid.Check(t, func(rt *rapid.T) {
		from := volumeWith(t, whole.Volume, Options{Memory: NewMemory()})
		to := volumeWith(t, whole.Volume, Options{Memory: NewMemory()})
		at, last := crdt.Seq(0), crdt.Seq(0)
		merge := func(v *Volume, at *crdt.Seq) {
			if *at < ops {
				b := whole.after(rt, *at)
				check(t, v.Merge(b), nil)
				*at = b.Last
			}
		}
		merge(from, &at)
		for range rapid.IntRange(0, 3).Draw(rt, "known") {
			merge(to, &last)
		}
		from.portion = 1
		p := &peer{t: t, from: from, to: to, between: func() { merge(from, &at) }}
		p.bend = func(chunk []byte) []byte {
			if chunk[0] != snapBatch {
				return chunk
			}
			w, at := &chunkWriter{}, p.asked[len(p.asked)-1].Since[whole.Origin].Seq
			for at < ops {
				b := whole.after(rt, at)
				w.add(snapBatch, b.Encode())
				at = b.Last
			}
			return w.buf
		}
		check(t, to.JoinSnapshot(context.Background(), p), nil)
		give(t, all, to)
		same(t, all, to)
		wholeJournal(rt, t, to, whole.Origin)
	})
}

// TestP3OverlappingBatchesAreServedInOrder: a batch that another one's cause is in
// comes before that, although its last op was made later.
func TestP3OverlappingBatchesAreServedInOrder(t *testing.T) {
	whole := inOneBatch(t, NewVolumeID(), 6)
	slow := &testClock{now: time.Unix(1, 0)}
	r := volumeWith(t, whole.Volume, Options{Memory: NewMemory(), Now: slow.Now})
	check(t, r.Merge(whole.part(1, 2)), nil)
	write(t, r, root, "seen", "f1")
	effect := batches(t, r, crdt.Vector{whole.Origin: {Seq: 2}})
	if len(effect) != 1 || effect[0].Stamp >= whole.Stamp {
		t.Fatalf("%d batches", len(effect))
	}
	check(t, r.Merge(whole), nil)
	to := volumeWith(t, whole.Volume, Options{Memory: NewMemory()})
	give(t, r, to)
	same(t, r, to)
}
