package gossip

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/synapsefs/synapsefs/store/crdt"
)

func batch(origin crdt.ReplicaID, first, last crdt.Seq, size int, deps ...crdt.Dot) *Batch {
	return &Batch{Origin: origin, First: first, Last: last, Size: size, Deps: deps}
}

func at(seqs ...crdt.Seq) crdt.Vector {
	v := crdt.Vector{}
	for n, s := range seqs {
		if s > 0 {
			v[crdt.ReplicaID(n+1)] = crdt.VectorEntry{Seq: s}
		}
	}
	return v
}

func smallPending(count, bytes, all int) *pending {
	q := newPending(&Limits{PendingBatches: count, PendingBytes: bytes}, &budget{limit: all})
	return &q
}

func TestPendingOrder(t *testing.T) {
	q := smallPending(10, 1000, 1000)
	reached := at(1)
	q.add(batch(1, 4, 4, 10), nil, "p", reached)
	q.add(batch(2, 1, 2, 10, crdt.Dot{Replica: 1, Seq: 3}), nil, "p", reached)
	q.add(batch(1, 2, 3, 10), []crdt.Hash{{7}}, "q", reached)
	if b, _ := q.next(reached); b != nil {
		t.Fatalf("%v is out before its content is here", b)
	}
	if held := q.extend(reached); held[1].Seq != 4 || held[2].Seq != 2 {
		t.Fatalf("held is %v", held)
	}
	if !q.arrived(crdt.Hash{7}) || q.arrived(crdt.Hash{7}) {
		t.Fatal("content arrives once")
	}
	for _, want := range []struct {
		origin crdt.ReplicaID
		first  crdt.Seq
		from   string
	}{{1, 2, "q"}, {1, 4, "p"}, {2, 1, "p"}} {
		b, from := q.next(reached)
		if b == nil || b.Origin != want.origin || b.First != want.first || from != want.from {
			t.Fatalf("next is %+v from %s, want %+v", b, from, want)
		}
		reached.Max(crdt.Vector{b.Origin: b.entry()})
	}
	if q.count != 0 || q.bytes != 0 || q.all.used != 0 {
		t.Errorf("left over: %+v", q)
	}
}

func TestPendingRoom(t *testing.T) {
	reached := at(0, 5)
	tests := []struct {
		name  string
		have  []*Batch
		add   *Batch
		want  bool
		after int
	}{
		{"fits", []*Batch{batch(1, 2, 2, 40)}, batch(1, 3, 3, 40), true, 2},
		{"too many bytes: the newest is dropped", []*Batch{batch(1, 2, 2, 90)}, batch(1, 3, 3, 40), false, 1},
		{"too many", []*Batch{batch(1, 2, 2, 1), batch(1, 3, 3, 1), batch(1, 4, 4, 1)}, batch(1, 5, 5, 1), false, 3},
		{"its turn drives out others", []*Batch{batch(1, 2, 2, 50), batch(1, 3, 3, 50)}, batch(1, 1, 1, 40), true, 2},
		{"its turn drives out no other whose turn it is", []*Batch{batch(2, 6, 6, 90)}, batch(1, 1, 1, 40), false, 1},
		{"one always fits", nil, batch(1, 9, 9, 5000), true, 1},
		{"again", []*Batch{batch(1, 2, 2, 90)}, batch(1, 2, 2, 90), true, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			q := smallPending(3, 100, 1000)
			for _, b := range test.have {
				q.add(b, []crdt.Hash{{1}}, "", reached)
			}
			if got := q.add(test.add, nil, "", reached); got != test.want || q.count != test.after {
				t.Errorf("added %v with %d batches after it, want %v and %d", got, q.count, test.want, test.after)
			}
		})
	}
	full := &budget{limit: 100, used: 100}
	q := newPending(&Limits{PendingBatches: 3, PendingBytes: 100}, full)
	if !q.add(batch(1, 1, 1, 10), nil, "", reached) || q.add(batch(1, 2, 2, 10), nil, "", reached) {
		t.Error("a volume holds one batch whatever the others hold, and no more")
	}
	q.clear()
	if full.used != 100 {
		t.Errorf("budget is %d after clear", full.used)
	}
}

// The buffer's accounts are right and its bounds hold whatever is done.
func TestP13PendingBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := smallPending(5, 100, 120)
		reached := crdt.Vector{}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			origin := crdt.ReplicaID(rapid.IntRange(1, 3).Draw(t, "origin"))
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				if b, _ := q.next(reached); b != nil {
					reached[b.Origin] = b.entry()
				}
			case 1:
				reached[origin] = crdt.VectorEntry{Seq: reached[origin].Seq + crdt.Seq(rapid.IntRange(0, 2).Draw(t, "skip"))}
				q.prune(reached)
			default:
				first := crdt.Seq(rapid.IntRange(1, 12).Draw(t, "first"))
				b := batch(origin, first, first, rapid.IntRange(1, 60).Draw(t, "size"))
				if first > reached[origin].Seq {
					q.add(b, nil, "", reached)
				}
			}
			count, bytes := 0, 0
			for _, ws := range q.byOrigin {
				for _, w := range ws {
					count++
					bytes += w.batch.Size
				}
			}
			if count != q.count || bytes != q.bytes || bytes != q.all.used || count > 5 || bytes > 100 {
				t.Fatalf("%d batches of %d bytes; says %d, %d, %d", count, bytes, q.count, q.bytes, q.all.used)
			}
		}
	})
}

// TestP4PendingOverlap: whatever batches the ops of an origin come in, and in
// which order: all that need not be pulled is merged once its content is here,
// and nothing is left.
func TestP4PendingOverlap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := smallPending(20, 1000, 1000)
		reached := crdt.Vector{}
		merge := func() {
			for b, _ := q.next(reached); b != nil; b, _ = q.next(reached) {
				reached[b.Origin] = b.entry()
			}
		}
		content := crdt.Hash{7}
		for range rapid.IntRange(0, 12).Draw(t, "batches") {
			first := crdt.Seq(rapid.IntRange(1, 8).Draw(t, "first"))
			b := batch(1, first, first+crdt.Seq(rapid.IntRange(0, 4).Draw(t, "more")), 1)
			wants := []crdt.Hash{content}[:rapid.IntRange(0, 1).Draw(t, "wants")]
			if b.Last > reached[1].Seq {
				q.add(b, wants, "", reached)
			}
			if rapid.Bool().Draw(t, "merge") {
				merge()
			}
		}
		merge()
		held := q.extend(reached)
		q.arrived(content)
		merge()
		if reached[1].Seq != held[1].Seq {
			t.Fatalf("held %d, merged %d", held[1].Seq, reached[1].Seq)
		}
		q.prune(reached)
		for _, w := range q.byOrigin[1] {
			if w.batch.First <= reached[1].Seq+1 {
				t.Fatalf("at %d, %d to %d is left", reached[1].Seq, w.batch.First, w.batch.Last)
			}
		}
	})
}

func TestQueue(t *testing.T) {
	q := newQueue()
	f := pushFrame(Push{Batch: &Batch{}})
	d1, d2 := toWire(Digest{Volume: testVolume}), toWire(Digest{Volume: testVolume, Vector: at(1)})
	if !q.push(f, 1) || !q.idle() {
		t.Error("a closed queue keeps frames")
	}
	q.setOpen(true)
	q.digest(testVolume, d1)
	q.push(f, 1)
	q.digest(testVolume, d2)
	got := q.take()
	if len(got) != 2 || got[0] != f || got[1] != d2 {
		t.Errorf("took %v", got)
	}
	if q.idle() {
		t.Error("idle before all is written")
	}
	if q.take(); !q.idle() {
		t.Error("not idle")
	}
	if !q.push(f, 2*maxQueuedBytes) || q.push(f, 1) {
		t.Error("one push always fits, and no more than the bound")
	}
	if !q.control(f) {
		t.Error("control frames do not fit")
	}
	q.setOpen(true)
	n := 0
	for ; q.push(f, 1); n++ {
	}
	if n != maxQueuedPushes {
		t.Errorf("%d pushes fit", n)
	}
	for n = 0; q.control(f); n++ {
	}
	if n > maxQueued {
		t.Errorf("%d other frames fit", n)
	}
}

func TestRemembered(t *testing.T) {
	dir := t.TempDir()
	if peers, err := readRemembered(dir); err != nil || peers != nil {
		t.Fatalf("%v, %v", peers, err)
	}
	var many []rememberedPeer
	for n := range maxRemembered + 10 {
		many = append(many, rememberedPeer{Node: string(rune('a' + n)), Seen: time.Unix(int64(n), 0)})
	}
	if err := writeRemembered(dir, many); err != nil {
		t.Fatal(err)
	}
	peers, err := readRemembered(dir)
	if err != nil || len(peers) != maxRemembered || !peers[0].Seen.Equal(time.Unix(maxRemembered+9, 0)) {
		t.Errorf("%d peers, %v", len(peers), err)
	}
}

func TestRefusalsBounded(t *testing.T) {
	now := time.Unix(0, 0)
	r := newRefusals(func() time.Time { now = now.Add(time.Second); return now })
	for n := range 2 * maxRefusals {
		r.add(string(rune('a'+n)), "why")
	}
	if got := len(r.all()); got != maxRefusals {
		t.Errorf("%d refusals are kept", got)
	}
	if !r.add("x", "one") || r.add("x", "one") || !r.add("x", "two") {
		t.Error("a refusal is fresh when its reason is")
	}
}

func TestCommonVersion(t *testing.T) {
	for _, test := range []struct{ low, high, want uint32 }{
		{maxVersion, maxVersion, maxVersion}, {0, maxVersion + 4, maxVersion}, {maxVersion + 1, maxVersion + 4, 0}, {0, minVersion - 1, 0},
	} {
		if got, err := commonVersion(test.low, test.high); got != test.want || (err == nil) != (test.want > 0) {
			t.Errorf("%d to %d: %d, %v", test.low, test.high, got, err)
		}
	}
}
