package sim

import (
	"bytes"
	"maps"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A sealedOp is an op that left a node, as its bytes say, and what its origin
// had applied before it.
type sealedOp struct {
	*crdt.Op
	raw  []byte
	past map[crdt.ReplicaID]crdt.Seq // itself included; nil if not known
}

// knew reports whether an op was applied where this one was made.
func (o *sealedOp) knew(d crdt.Dot) bool { return o.past[d.Replica] >= d.Seq }

// A ledger has all ops that left any node.
type ledger struct {
	ops   map[crdt.Dot]*sealedOp
	forks map[string]*sealedOp        // by their bytes: under dots that name others
	got   map[crdt.ReplicaID]crdt.Seq // the last op of each that reached another node
}

func newLedger() ledger {
	return ledger{ops: map[crdt.Dot]*sealedOp{}, forks: map[string]*sealedOp{}, got: map[crdt.ReplicaID]crdt.Seq{}}
}

// add takes the ops of a batch, which must be the same whenever they come.
func (l *ledger) add(w *world, b *store.Batch) {
	last := crdt.Dot{Replica: b.Origin, Seq: b.Last}
	if was := l.ops[last]; was != nil && bytes.Equal(was.raw, b.Ops[len(b.Ops)-1]) && l.ops[crdt.Dot{Replica: b.Origin, Seq: b.First}] != nil {
		return
	}
	again, err := store.DecodeBatch(b.Encode())
	if err != nil {
		w.fail("batch %v:%d: %w", b.Origin, b.First, err)
		return
	}
	for n, raw := range again.Ops {
		dot := crdt.Dot{Replica: b.Origin, Seq: b.First + crdt.Seq(n)}
		if was := l.ops[dot]; was != nil {
			if !bytes.Equal(was.raw, raw) {
				l.fork(w, dot, raw)
			}
			continue
		}
		op, err := crdt.DecodeOp(raw)
		if err != nil || op.Dot != dot {
			w.fail("op %v: %v", dot, err)
			return
		}
		l.ops[dot] = &sealedOp{Op: op, raw: raw, past: l.pastOf(op)}
		w.note("op %v %x", dot, raw)
		for i, wr := range op.Writes {
			if wr.Kind == crdt.WriteContent && !wr.Content.Manifest {
				w.plain[op.ID(i)] = wr.Content.Hash
			}
		}
	}
}

// fork notes an op under a dot that names another: only a replica that does not
// know yet that it was restored may make one.
func (l *ledger) fork(w *world, dot crdt.Dot, raw []byte) {
	op, err := crdt.DecodeOp(raw)
	if err != nil || !w.doubted[dot.Replica] {
		w.fail("P8: dot %v names two ops: %v", dot, err)
		return
	}
	l.forks[string(raw)] = &sealedOp{Op: op, raw: raw}
}

// merged checks that nobody takes the other op of a dot (P8).
func (l *ledger) merged(n *node, b *store.Batch) {
	for k, raw := range b.Ops {
		dot := crdt.Dot{Replica: b.Origin, Seq: b.First + crdt.Seq(k)}
		if o := l.ops[dot]; o == nil || !bytes.Equal(o.raw, raw) {
			n.w.fail("P8: %s merges another op as %v", n.name, dot)
		}
	}
}

func (l *ledger) pastOf(op *crdt.Op) map[crdt.ReplicaID]crdt.Seq {
	past := map[crdt.ReplicaID]crdt.Seq{op.Dot.Replica: op.Dot.Seq}
	deps := append([]crdt.Dot{{Replica: op.Dot.Replica, Seq: op.Dot.Seq - 1}}, op.Deps...)
	for _, d := range deps {
		if d.Seq == 0 {
			continue
		}
		before := l.ops[d]
		if before == nil || before.past == nil {
			return nil
		}
		for r, seq := range before.past {
			past[r] = max(past[r], seq)
		}
	}
	return past
}

// complete finds out the pasts that were not known when their op came.
func (l *ledger) complete() {
	for again := true; again; {
		again = false
		for _, o := range l.ops {
			if o.past == nil {
				if o.past = l.pastOf(o.Op); o.past != nil {
					again = true
				}
			}
		}
	}
}

// checkCausal checks that a node shows no op without what it depends on (P3).
func (l *ledger) checkCausal(n *node) {
	if n.doubt {
		return // the ops under its id are others
	}
	v := n.vol.Vector()
	for r, e := range v {
		o := l.ops[crdt.Dot{Replica: r, Seq: e.Seq}]
		if o == nil {
			continue
		}
		for other, seq := range o.past {
			if v[other].Seq < seq {
				n.w.fail("P3: %s shows %v:%d without %v:%d, at %d", n.name, r, e.Seq, other, seq, v[other].Seq)
			}
		}
	}
}

// upTo returns the ops that a vector covers.
func (l *ledger) upTo(v crdt.Vector) map[crdt.Dot]*sealedOp {
	out := maps.Clone(l.ops)
	maps.DeleteFunc(out, func(d crdt.Dot, _ *sealedOp) bool { return d.Seq > v[d.Replica].Seq })
	return out
}
