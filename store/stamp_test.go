package store

import (
	"errors"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// stampedAt makes the only batch of a new replica that writes a file, as if its
// clock had shown that time.
func stampedAt(t testing.TB, id VolumeID, name string, at crdt.Stamp) *Batch {
	t.Helper()
	o := longHold
	o.Memory = NewMemory()
	v := volumeWith(t, id, o)
	mkdir(t, v, root, name)
	check(t, v.sealNow(), nil)
	b := must2(v.Batches(nil, 1<<20))[0]
	op := must(crdt.DecodeOp(b.Ops[0]))
	if len(b.Ops) != 1 {
		t.Fatalf("%d ops", len(b.Ops))
	}
	op.Stamp, b.Stamp = at, at
	b.Ops[0] = crdt.AppendOp(nil, op)
	return b
}

func must2[T, U any](x T, _ U, err error) T { return must(x, err) }

// TestP12StampUsesUpNoClock: a batch from the end of time is taken by nobody, one
// from as late as is taken leaves all able to write.
func TestP12StampUsesUpNoClock(t *testing.T) {
	for at, want := range map[crdt.Stamp]error{
		crdt.MaxWall: nil, crdt.MaxWall + crdt.MaxStep: nil,
		crdt.MaxWall + crdt.MaxStep + 1: ErrStamp, crdt.MaxStamp: ErrStamp,
		crdt.MaxStamp + 1: ErrBadBatch, crdt.LocalStamp - 1: ErrBadBatch, crdt.LocalStamp: ErrBadBatch,
	} {
		id := NewVolumeID()
		oa, ob := longHold, longHold
		oa.Memory, ob.Memory = NewMemory(), NewMemory()
		a, b := volumeWith(t, id, oa), volumeWith(t, id, ob)
		bad := stampedAt(t, a.id, "ahead", at)
		if _, err := DecodeBatch(bad.Encode()); at > crdt.MaxStamp != errors.Is(err, ErrBadBatch) {
			t.Errorf("stamp %d on the wire: %v", at, err)
		}
		check(t, a.Merge(bad), want)
		if _, ok := a.Vector()[bad.Origin]; ok != (want == nil) {
			t.Errorf("stamp %d: it is in the vector: %v", at, ok)
		}
		for range 3 { // each on top of the other's
			write(t, a, root, "f", "a")
			give(t, a, b)
			write(t, b, root, "f", "b")
			give(t, b, a)
		}
		same(t, a, b)
		if got := read(t, a, root, "f"); got != "b" {
			t.Errorf("stamp %d: the last write does not show: %q", at, got)
		}
		a, b = reopen(t, a), reopen(t, b)
		write(t, b, root, "f", "after a restart")
		give(t, b, a)
		same(t, a, b)
	}
}

// TestP4StampsFarAheadInAnyOrder: who has what such an op may build on takes it,
// who has not waits for that; in the end all have the same.
func TestP4StampsFarAheadInAnyOrder(t *testing.T) {
	id := NewVolumeID()
	var bs []*Batch
	for n, name := range []string{"one", "two", "three"} {
		bs = append(bs, stampedAt(t, id, name, crdt.MaxWall+crdt.Stamp(n+1)*crdt.MaxStep))
	}
	var all []*Volume
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}, {2, 0, 1}} {
		o := longHold
		o.Memory = NewMemory()
		v := volumeWith(t, id, o)
		for taken := 0; taken < len(bs); {
			was := taken
			taken = 0
			for _, n := range order {
				if err := v.Merge(bs[n]); err == nil {
					taken++
				} else {
					check(t, err, ErrStamp)
				}
			}
			if taken == was {
				t.Fatalf("order %v: it takes %d and no more", order, taken)
			}
		}
		all = append(all, v)
	}
	for _, v := range all[1:] {
		same(t, all[0], v)
	}
}

// TestP12HostClockBeyondTheBound: who writes is told, nothing is broken by it,
// and all is well when the clock is.
func TestP12HostClockBeyondTheBound(t *testing.T) {
	for _, year := range []int{2201, 2263, 2500, 9999} {
		clock := &testClock{now: time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)}
		o := longHold
		o.Now, o.Memory = clock.Now, NewMemory()
		v := volumeWith(t, NewVolumeID(), o)
		_, err := v.Mknod(Request{}, root, "dir", NewNode{Kind: crdt.KindDir, Mode: 0o755})
		check(t, err, crdt.ErrClock)
		a, h, err := v.Create(Request{}, root, "file", NewNode{Mode: 0o644})
		if err == nil {
			_, err = v.WriteAt(a.Node, h, []byte("1"), 0, false)
		}
		if err == nil {
			err = errors.Join(v.Flush(a.Node, h), v.Release(Request{}, a.Node, h))
		}
		check(t, err, crdt.ErrClock)
		members, err := v.Speak("here")
		check(t, err, nil)
		check(t, v.Tidy(), nil)
		clock.pass(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC).Sub(clock.Now())) // at most 292 years
		for clock.Now().Year() > 2024 {
			clock.pass(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC).Sub(clock.Now()))
		}
		mkdir(t, v, root, "dir")
		write(t, v, root, "other", "2")
		again, err := v.Speak("here")
		check(t, err, nil)
		if was, is := members[0].At, again[0].At; was > int64(crdt.MaxWall)+1e9 || is <= was {
			t.Errorf("year %d: a word of %d, then one of %d", year, was, is)
		}
		v = reopen(t, v)
		if got := read(t, v, root, "other"); got != "2" {
			t.Errorf("year %d: %q", year, got)
		}
	}
}
