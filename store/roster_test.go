package store

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// testClock is a wall clock that moves only when told, but for a nanosecond a
// reading.
type testClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(time.Nanosecond)
	return c.now
}

func (c *testClock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

const week = 7 * 24 * time.Hour

// cluster makes replicas of one volume on one clock. Nobody tidies but the
// test: the keeper's turns are far apart.
func cluster(t testing.TB, n int, o Options) (*testClock, []*Volume) {
	t.Helper()
	clock := &testClock{now: time.Unix(1_700_000_000, 0)}
	o.Now = clock.Now
	id := NewVolumeID()
	var vs []*Volume
	for range n {
		o.Dir = t.TempDir()
		v := volumeWith(t, id, o)
		v.SetLimits(Limits{HistoryAge: time.Hour})
		vs = append(vs, v)
	}
	return clock, vs
}

// talk lets replicas tell each other who is there.
func talk(t testing.TB, vs ...*Volume) {
	t.Helper()
	for range 2 {
		for _, v := range vs {
			members, err := v.Speak(v.db.opts.Dir)
			check(t, err, nil)
			for _, w := range vs {
				if w != v {
					w.Hear(members)
				}
			}
		}
	}
}

func tidy(t testing.TB, vs ...*Volume) {
	t.Helper()
	for _, v := range vs {
		for done := false; !done; {
			var err error
			v.pruning.turn.Lock()
			done, err = v.sweepLocked()
			v.pruning.turn.Unlock()
			check(t, err, nil)
		}
		check(t, v.Tidy(), nil)
	}
}

func TestStableIsWhatAllThatCountHave(t *testing.T) {
	clock, vs := cluster(t, 3, Options{})
	a, b, c := vs[0], vs[1], vs[2]
	stable := func(v *Volume) crdt.Seq {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.stableLocked()[a.replica].Seq
	}
	talk(t, a, b, c)
	write(t, a, root, "f", "1")
	check(t, a.sealNow(), nil)
	give(t, a, b)
	talk(t, a, b) // c is known to both, and does not have it
	if n := stable(a); n != 0 {
		t.Errorf("stable up to %d, one replica has nothing", n)
	}
	give(t, a, c)
	talk(t, b, c)
	talk(t, a, b) // a hears of c through b only
	if n := stable(a); n != 1 {
		t.Errorf("stable up to %d, all have 1", n)
	}
	write(t, a, root, "g", "2")
	check(t, a.sealNow(), nil)
	give(t, a, b)
	for range 8 {
		clock.pass(week / 7)
		talk(t, a, b)
	}
	if n := stable(a); n != 2 || a.keeping().Out != 1 || b.keeping().Out != 1 {
		t.Errorf("stable up to %d, %+v, %+v: a replica that was silent for longer than the retention counts", n, a.keeping(), b.keeping())
	}
	talk(t, a, b, c)
	if a.keeping().Out != 1 {
		t.Error("a replica that is out counts again")
	}
	// The time that a node was down is no silence of the others.
	check(t, a.db.Close(), nil)
	clock.pass(2 * week)
	o := a.db.opts
	a = openWith(t, o).Volume(a.id)
	talk(t, a)
	if k := a.keeping(); k.Counting != 1 || k.Out != 1 {
		t.Errorf("after a long stop %+v, want one that counts and one that is out", k)
	}
}

func TestForgottenNodeDoesNotCount(t *testing.T) {
	_, vs := cluster(t, 3, Options{})
	talk(t, vs...)
	write(t, vs[0], root, "f", "1")
	give(t, vs[0], vs[1])
	if n, err := vs[0].Forget("nobody"); n != 0 || err != nil {
		t.Errorf("forgot %d, %v", n, err)
	}
	if n, err := vs[0].Forget(vs[2].db.opts.Dir); n != 1 || err != nil {
		t.Errorf("forgot %d, %v", n, err)
	}
	talk(t, vs[0], vs[1])
	for _, v := range vs[:2] {
		if k := v.keeping(); k.Counting != 1 || k.Out != 1 || k.Unstable != 0 {
			t.Errorf("%+v", k)
		}
	}
}

func TestP13JournalIsBounded(t *testing.T) {
	_, vs := cluster(t, 2, Options{Hold: time.Millisecond, JournalLimit: 6 << 20})
	a, b := vs[0], vs[1]
	talk(t, a, b)
	fill := func(from, n int) {
		for i := range n {
			write(t, a, root, "f", noise(uint64(from+i), 50_000))
		}
		check(t, a.sealNow(), nil)
	}
	fill(0, 200) // 10 MB, which b does not have
	tidy(t, a)
	if k := a.keeping(); k.JournalBytes < 10e6 {
		t.Errorf("own changes that nobody else has were dropped: %+v", k)
	}
	give(t, a, b)
	talk(t, a, b)
	tidy(t, a, b)
	for _, v := range vs {
		if k := v.keeping(); k.JournalBytes > keepTail || k.JournalBytes < keepTail/2 {
			t.Errorf("stable journal: %+v, want a tail of %d", k, keepTail)
		}
	}
	// What b has of others goes over the limit, though a third lacks it.
	b.Hear([]Member{{Replica: 77, Node: "away", At: 1, Acked: crdt.Vector{}}})
	fill(200, 200)
	give(t, a, b)
	tidy(t, b)
	if k := b.keeping(); k.JournalBytes > 6<<20 {
		t.Errorf("journal over its limit: %+v", k)
	}
	if _, _, err := b.Batches(nil, 1<<20); err == nil {
		t.Error("the journal goes back to the start")
	}
	was := b.keeping().JournalBytes
	if b = reopen(t, b); b.keeping().JournalBytes != was {
		t.Errorf("%d bytes of journal, after a restart %d", was, b.keeping().JournalBytes)
	}
	write(t, a, root, "last", fmt.Sprint(was))
	give(t, a, b) // the tail is there
	same(t, a, b)
}

// TestP6WhoCountsOutlivesAKill: a replica that is killed forgets neither who
// counts nor who is out, and takes a clock that was set for nobody's silence.
func TestP6WhoCountsOutlivesAKill(t *testing.T) {
	clock := &testClock{now: time.Unix(1_700_000_000, 0)}
	m := NewMemory()
	open := func() *Volume {
		db := openWith(t, Options{Memory: m, Now: clock.Now})
		if v := db.Volume(VolumeID{1}); v != nil {
			return v
		}
		return must(db.CreateReplica(VolumeID{1}, "test", true))
	}
	v := open()
	must(v.Speak("self"))
	v.Hear([]Member{{Replica: 70000, Node: "counts"}, {Replica: 80000, Node: "out"}})
	must(v.Forget("out"))
	for _, set := range []time.Duration{0, 100 * week, -200 * week} {
		m = m.AfterPowerLoss("boot")
		clock.pass(set)
		v = open()
		must(v.Speak("self"))
		got := v.Roster()
		got = slices.DeleteFunc(got, func(e RosterEntry) bool { return e.Replica != 70000 && e.Replica != 80000 })
		if len(got) != 2 || got[0].Out || !got[1].Out {
			t.Errorf("clock set by %v: %+v", set, got)
		}
	}
}

// TestP11WhoIsNotReadyPutsNobodyOut: or the only one that has all must take the
// state of one that has nothing.
func TestP11WhoIsNotReadyPutsNobodyOut(t *testing.T) {
	clock := &testClock{now: time.Unix(1_700_000_000, 0)}
	db := openWith(t, Options{Now: clock.Now})
	v := must(db.CreateReplica(NewVolumeID(), "test", false))
	v.Hear([]Member{{Replica: 70000, Node: "ready"}})
	clock.pass(2 * week)
	must(v.Speak("self"))
	if got := v.Roster(); len(got) != 1 || got[0].Out {
		t.Errorf("roster: %+v", got)
	}
}
