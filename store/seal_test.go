package store

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// TestP2SealQueue: when what waits leaves, and how much of it.
func TestP2SealQueue(t *testing.T) {
	type step struct {
		at   int    // milliseconds since the start
		do   string // add, release, flush, drop
		hold hold
		size int
		n    int // ops added or dropped
	}
	gone := hold{dir: 1, name: "x"}
	mtime := hold{mtime: 7}
	never := -1
	for _, c := range []struct {
		name    string
		steps   []step
		due     int // milliseconds since the start
		portion int
	}{
		{name: "empty", due: never},
		{name: "not held", steps: []step{{at: 3, do: "add"}}, due: 3, portion: 1},
		{name: "held", steps: []step{{at: 3, do: "add", hold: gone}}, due: 43, portion: 1},
		{name: "truncated", steps: []step{{at: 3, do: "add", hold: mtime}}, due: 8, portion: 1},
		{
			name:  "what queues behind waits too",
			steps: []step{{do: "add", hold: gone}, {at: 1, do: "add"}, {at: 2, do: "add", hold: mtime}}, due: 40, portion: 3,
		},
		{
			name:  "what came before does not wait",
			steps: []step{{do: "add", n: 3}, {at: 30, do: "add", hold: gone}, {at: 31, do: "add"}}, due: 0, portion: 3,
		},
		{
			name:  "what came before has left",
			steps: []step{{do: "add", n: 3}, {at: 30, do: "add", hold: gone}, {at: 31, do: "add"}, {do: "drop", n: 3}}, due: 70, portion: 2,
		},
		{
			name:  "a pair is not parted",
			steps: []step{{do: "add", hold: gone}, {at: 1, do: "add", hold: mtime}, {at: 2, do: "release", hold: gone}, {at: 3, do: "add"}}, due: 6, portion: 3,
		},
		{
			name:  "a batch closes so long after its first op",
			steps: []step{{do: "add", hold: gone}, {at: 30, do: "add", hold: hold{dir: 1, name: "y"}}}, due: 40, portion: 2,
		},
		{
			name:  "released",
			steps: []step{{do: "add", hold: gone}, {at: 1, do: "add"}, {at: 2, do: "release", hold: gone}}, due: 0, portion: 2,
		},
		{
			name:  "another name is no release",
			steps: []step{{do: "add", hold: gone}, {do: "release", hold: hold{dir: 2, name: "x"}}, {do: "release", hold: mtime}}, due: 40, portion: 1,
		},
		{
			name:  "one of two released",
			steps: []step{{do: "add", hold: gone}, {at: 1, do: "add", hold: mtime}, {do: "release", hold: gone}}, due: 6, portion: 2,
		},
		{
			name:  "the same name held twice",
			steps: []step{{do: "add", hold: gone}, {at: 1, do: "add", hold: gone}, {do: "release", hold: gone}}, due: 0, portion: 2,
		},
		{name: "flushed", steps: []step{{at: 5, do: "add", hold: gone}, {do: "flush"}}, due: 5, portion: 1},
		{
			name:  "a flush ends with the queue",
			steps: []step{{do: "add", hold: gone}, {do: "flush"}, {at: 1, do: "drop", n: 1}, {at: 2, do: "add", hold: gone}}, due: 42, portion: 1,
		},
		{name: "many", steps: []step{{do: "add", hold: gone}, {do: "add", n: maxBatchOps + 5}}, due: 0, portion: maxBatchOps},
		{name: "large", steps: []step{{do: "add", hold: gone}, {do: "add", n: 5, size: maxBatchBytes / 2}}, due: 0, portion: 3},
		{name: "one too large", steps: []step{{do: "add", size: 5 * maxBatchBytes}, {do: "add"}}, due: 0, portion: 1},
		{
			name:  "the rest of a large one",
			steps: []step{{do: "add", n: 5, size: maxBatchBytes / 3}, {at: 9, do: "drop", n: 4}}, due: 0, portion: 1,
		},
	} {
		start := time.Unix(1000, 0)
		q := sealQueue{opts: &Options{}}
		q.opts.setDefaults()
		for _, s := range c.steps {
			now := start.Add(time.Duration(s.at) * time.Millisecond)
			switch s.do {
			case "add":
				for range max(1, s.n) {
					q.add(queued{hold: s.hold, size: s.size}, now)
				}
			case "release":
				q.release(s.hold)
			case "flush":
				q.flush = true
			case "drop":
				q.drop(s.n)
			}
		}
		due := never
		at, n := q.next()
		if n > 0 {
			due = int(at.Sub(start) / time.Millisecond)
		}
		if n = len(q.portion(n)); due != c.due || n != c.portion {
			t.Errorf("%s: due at %d, %d ops; want %d, %d", c.name, due, n, c.due, c.portion)
		}
	}
}

// TestPace: a quiet volume waits for nothing, a busy one gathers and never waits
// longer than it may.
func TestPace(t *testing.T) {
	for _, c := range []struct {
		name    string
		every   time.Duration // an op comes
		ops     int
		batches int           // at most
		wait    time.Duration // at most, of any op
	}{
		{name: "now and then", every: 3 * opInterval, ops: 100, batches: 100, wait: 0},
		{name: "a handful at once", every: 0, ops: int(opBurst / opInterval), batches: 5, wait: 0},
		{name: "a stream", every: opInterval / 10, ops: 1000, batches: 30, wait: gatherMost},
		{name: "a stream that stops", every: opInterval / 4, ops: 20, batches: 15, wait: gatherMost},
	} {
		now := time.Unix(1000, 0)
		var p pace
		var waiting []time.Time
		batches := 0
		leave := func(until time.Time) {
			for len(waiting) > 0 {
				at := waiting[0]
				if next := p.next(); at.Before(next) {
					at = next
				}
				if at.After(until) {
					return
				}
				n := 0
				for n < len(waiting) && !waiting[n].After(at) {
					if w := at.Sub(waiting[n]); w > c.wait {
						t.Errorf("%s: an op waited for %v, want at most %v", c.name, w, c.wait)
					}
					n++
				}
				batches++
				p.left(n, at)
				waiting = waiting[n:]
			}
		}
		for range c.ops {
			waiting = append(waiting, now)
			leave(now)
			now = now.Add(c.every)
		}
		leave(now.Add(time.Second))
		if batches > c.batches || len(waiting) > 0 {
			t.Errorf("%s: %d batches, want at most %d; %d ops stayed", c.name, batches, c.batches, len(waiting))
		}
	}
}

// TestP2Compose: what several ops of one batch look like as one change.
func TestP2Compose(t *testing.T) {
	file := func(n crdt.Ino) crdt.Entry { return crdt.Entry{Ino: n, Link: crdt.LinkID(n), Kind: crdt.KindFile} }
	name := func(name string, before, after crdt.Entry) crdt.NameChange {
		return crdt.NameChange{Dir: 1, Name: name, Before: before, After: after}
	}
	version := func(n crdt.Stamp) *crdt.Version { return &crdt.Version{ID: crdt.VersionID{Stamp: n}} }
	none := crdt.Entry{}
	ops := func(of ...crdt.Effects) (out []*crdt.Effects) {
		for n := range of {
			out = append(out, &of[n])
		}
		return out
	}
	for _, c := range []struct {
		name string
		ops  []*crdt.Effects
		want Changes
	}{
		{name: "nothing"},
		{
			name: "unlink and create",
			ops: ops(crdt.Effects{Names: []crdt.NameChange{name("x", file(2), none)}},
				crdt.Effects{Names: []crdt.NameChange{name("x", none, file(3))}}),
			want: Changes{Names: []crdt.NameChange{name("x", file(2), file(3))}},
		},
		{
			name: "create and unlink",
			ops: ops(crdt.Effects{Names: []crdt.NameChange{name("x", none, file(3)), name("y", none, file(4))}},
				crdt.Effects{Names: []crdt.NameChange{name("x", file(3), none)}}),
			want: Changes{Names: []crdt.NameChange{name("y", none, file(4))}},
		},
		{
			name: "a name stands where it changed last",
			ops: ops(crdt.Effects{Names: []crdt.NameChange{name("x", none, file(3))}},
				crdt.Effects{Names: []crdt.NameChange{name("y", none, file(4))}},
				crdt.Effects{Names: []crdt.NameChange{name("x", file(3), file(5))}}),
			want: Changes{Names: []crdt.NameChange{name("y", none, file(4)), name("x", none, file(5))}},
		},
		{
			name: "moved twice",
			ops: ops(crdt.Effects{Names: []crdt.NameChange{name("x", file(2), none), name("y", none, file(2))}},
				crdt.Effects{Names: []crdt.NameChange{name("y", file(2), none), name("z", none, file(2))}}),
			want: Changes{Names: []crdt.NameChange{name("x", file(2), none), name("z", none, file(2))}},
		},
		{
			name: "made and then moved over another",
			ops: ops(crdt.Effects{Names: []crdt.NameChange{name("tmp", none, file(5))}},
				crdt.Effects{Names: []crdt.NameChange{name("x", file(2), file(5)), name("tmp", file(5), none)}}),
			want: Changes{
				Names:  []crdt.NameChange{name("x", file(2), file(5))},
				Passed: map[crdt.LinkID]PlacedName{5: {1, "tmp"}},
			},
		},
		{
			name: "removed between two changes of a name",
			ops: ops(crdt.Effects{Names: []crdt.NameChange{name("x", file(2), file(5))}},
				crdt.Effects{Names: []crdt.NameChange{name("y", file(7), none)}},
				crdt.Effects{Names: []crdt.NameChange{name("x", file(5), file(6))}}),
			want: Changes{Names: []crdt.NameChange{name("x", file(2), file(6)), name("y", file(7), none)}},
		},
		{
			name: "contents",
			ops: ops(crdt.Effects{Inodes: []crdt.InodeChange{{Ino: 2}}},
				crdt.Effects{Inodes: []crdt.InodeChange{{Ino: 3}, {Ino: 2, Content: true, Before: version(1)}}},
				crdt.Effects{Inodes: []crdt.InodeChange{{Ino: 2, Content: true, Before: version(2)}, {Ino: 3}}}),
			want: Changes{Inodes: []crdt.InodeChange{{Ino: 2, Content: true, Before: version(1)}, {Ino: 3}}},
		},
	} {
		if got := compose(c.ops); !reflect.DeepEqual(*got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.name, *got, c.want)
		}
	}
}

// TestP8DotsAreNeverUsedTwice: restarts, and machines that went down.
func TestP8DotsAreNeverUsedTwice(t *testing.T) {
	id := NewVolumeID()
	a, b := volumeWith(t, id, longHold), volumeWith(t, id, Options{})
	seen := map[crdt.Dot]string{}
	note := func() {
		for _, m := range batches(t, b, nil) {
			for n := range m.Ops {
				dot := crdt.Dot{Replica: m.Origin, Seq: m.First + crdt.Seq(n)}
				if was, ok := seen[dot]; ok && was != string(m.Ops[n]) {
					t.Fatalf("%v names two ops", dot)
				}
				seen[dot] = string(m.Ops[n])
			}
		}
	}
	replicas := map[crdt.ReplicaID]bool{}
	for n := range 6 {
		replicas[a.Replica()] = true
		write(t, a, root, fmt.Sprint("f", n), "x")
		check(t, a.Unlink(Request{}, root, fmt.Sprint("f", n)), nil) // held, so not in a batch
		write(t, a, root, fmt.Sprint("g", n), "x")
		if n%2 == 0 {
			a = reopen(t, a)
			continue
		}
		a = crashMachine(t, a)
		give(t, a, b)
		note()
		// What a new id writes depends on all that the old one wrote.
		mkdir(t, a, root, fmt.Sprint("d", n))
		m := batches(t, a, b.Vector())
		if c := volumeWith(t, id, Options{}); len(m) != 1 {
			t.Fatalf("%d batches", len(m))
		} else {
			check(t, c.Merge(m[0]), ErrNotNext)
		}
	}
	give(t, a, b)
	note()
	same(t, a, b)
	if len(replicas) != 3 {
		t.Errorf("%d replica ids, want one more for each of 2 unclean boots", len(replicas))
	}
}

// TestP8OpsInOtherBatches: ops that had left, and whose batch was lost with the
// power, leave in other batches; whoever has which, all get all.
func TestP8OpsInOtherBatches(t *testing.T) {
	id := NewVolumeID()
	b, c, d := volumeWith(t, id, Options{}), volumeWith(t, id, Options{}), volumeWith(t, id, Options{})
	mem := NewMemory()
	mem.BootID = "boot1"
	o := longHold
	o.Memory = mem
	a := volumeWith(t, id, o)
	for n := range 4 {
		write(t, a, root, fmt.Sprint("f", n), "x")
	}
	check(t, a.sealNow(), nil)
	var cut *Memory
	for n := range 4 {
		check(t, a.Unlink(Request{}, root, fmt.Sprint("f", n)), nil) // held, so all leave as one batch
		if n == 1 {
			cut = mem.AfterKill() // of four ops two are lost
		}
	}
	first := batches(t, a, nil)
	give(t, a, b)
	old, last := a.Replica(), a.Vector()[a.Replica()]
	cut.BootID = "boot2"
	o.Memory, o.Dir = cut, t.TempDir()
	a = openWith(t, o).Volume(id)
	write(t, a, root, "g", "under the new id")
	give(t, a, c)
	if at := c.Vector()[old].Seq; at == 0 || at >= last.Seq || a.Replica() == old {
		t.Fatalf("nothing was lost, or all: %v of %v; id %v, was %v", at, last.Seq, a.Replica(), old)
	}
	// What overlaps must agree.
	whole := first[len(first)-1]
	forged := rewrap(whole, whole.mustOps(t)...)
	check(t, c.Merge(forged), ErrBadBatch)
	exchange(t, a, b, c)
	exchange(t, a, c, d)
	same(t, a, b, c, d)
	for _, v := range []*Volume{a, b, c, d} {
		if got := v.Vector()[old]; got != last {
			t.Errorf("vector is %v, want %v", got, last)
		}
		for seq := crdt.Seq(1); seq <= last.Seq; seq++ {
			check(t, v.db.kv.view(func(tx txn) error {
				got, err := v.batchAt(tx, old, seq)
				if err == nil && (got.First > seq || got.Last < seq) {
					t.Errorf("batch %d to %d for %d", got.First, got.Last, seq)
				}
				return err
			}), nil)
		}
		bytes := v.journal.bytes
		if v = reopen(t, v); v.journal.bytes != bytes {
			t.Errorf("the journal has %d bytes, counted %d", v.journal.bytes, bytes)
		}
	}
}

func (b *Batch) mustOps(t *testing.T) []*crdt.Op {
	t.Helper()
	return must(b.decodeOps())
}

// crashMachine opens a volume as after a power loss that lost nothing.
func crashMachine(t testing.TB, v *Volume) *Volume {
	t.Helper()
	check(t, v.close(), nil)
	check(t, v.db.kv.update(func(tx txn) error { return putJSON(tx, keyBoot, bootRecord{BootID: "another"}) }), nil)
	v.db.mu.Lock()
	v.db.closed = true // no mark of a clean stop
	v.db.mu.Unlock()
	check(t, v.db.release(), nil)
	return openWith(t, v.db.opts).Volume(v.id)
}
