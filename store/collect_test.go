package store

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// settled lets replicas have all, know that they have it, and tidy.
func settled(t testing.TB, clock *testClock, vs ...*Volume) {
	t.Helper()
	exchange(t, vs...)
	talk(t, vs...)
	clock.pass(time.Second)
	tidy(t, vs...)
}

func tombstones(t testing.TB, v *Volume) int {
	t.Helper()
	k, err := v.Keeping()
	check(t, err, nil)
	return int(k.Tombstones)
}

// keysOf counts the keys of a tag.
func keysOf(t testing.TB, v *Volume, tag byte) (n int) {
	t.Helper()
	check(t, v.read(func(tr *tree) error {
		return tr.t.scan(tr.keys.key(tag), nil, func(_, _ []byte) (bool, error) { n++; return true, nil })
	}), nil)
	return n
}

func TestP13RemovedFilesAreForgottenAfterTheRetention(t *testing.T) {
	clock, vs := cluster(t, 3, Options{})
	fill(t, vs[0], "")
	settled(t, clock, vs...)
	inodes := keysOf(t, vs[0], 'i')
	d := mkdir(t, vs[0], root, "dir")
	for n := range 20 {
		write(t, vs[0], d, fmt.Sprint(n), "text")
	}
	check(t, vs[0].Rename(Request{}, root, "dir", root, "moved", 0), nil)
	settled(t, clock, vs...)
	at, _, err := vs[1].Lookup(root, "moved")
	check(t, err, nil)
	for n := range 20 {
		check(t, vs[1].Unlink(Request{}, at.Node, fmt.Sprint(n)), nil)
	}
	check(t, vs[1].Rmdir(Request{}, root, "moved"), nil)
	settled(t, clock, vs...)
	if n := tombstones(t, vs[2]); n < 21 {
		t.Errorf("%d tombstones before the retention", n)
	}
	for range 3 {
		clock.pass(week / 2)
		settled(t, clock, vs...)
	}
	for n, v := range vs {
		if k := keysOf(t, v, 'i'); tombstones(t, v) != 0 || k > inodes {
			t.Errorf("%d: %d tombstones, %d inodes, were %d", n, tombstones(t, v), k, inodes)
		}
		if m := keysOf(t, v, 'm'); m != 0 {
			t.Errorf("%d: %d moves are kept", n, m)
		}
	}
	same(t, vs...)
	// Further work on what is left converges.
	for n, v := range vs {
		fill(t, v, fmt.Sprint("again", n))
	}
	exchange(t, vs...)
	exchange(t, vs...)
	same(t, vs...)
}

// A replica that counts and is away keeps all from being collected.
func TestP6NothingIsCollectedThatAnAbsentReplicaLacks(t *testing.T) {
	clock, vs := cluster(t, 3, Options{})
	a, b, c := vs[0], vs[1], vs[2]
	write(t, a, root, "f", "text")
	settled(t, clock, vs...)
	check(t, a.Unlink(Request{}, root, "f"), nil)
	clock.pass(week - time.Hour)
	write(t, c, root, "f", "edited while away")
	settled(t, clock, a, b) // c was heard of less than a week ago
	if tombstones(t, a) == 0 {
		t.Fatal("collected what an absent replica that counts may still edit")
	}
	settled(t, clock, a, b, c)
	same(t, a, b, c)
	if got := read(t, a, root, "f"); got != "edited while away" {
		t.Errorf("the edit is lost: %q", got)
	}
}

// Closing a file that a peer removed meanwhile brings it back everywhere, also
// long after: as long as it is open its removal is not acknowledged.
func TestP7OpenFileOutlivesTheRetention(t *testing.T) {
	for _, created := range []bool{false, true} {
		clock, vs := cluster(t, 2, longHold)
		a, b := vs[0], vs[1]
		d := mkdir(t, a, root, "d")
		if !created {
			write(t, a, d, "f", "text")
		}
		settled(t, clock, a, b)
		var w writing
		if created {
			w = create(t, b, d, "f")
		} else {
			w = open(t, b, d, "f", false)
		}
		w.write("edited", 0)
		if !created {
			check(t, a.Unlink(Request{}, d, "f"), nil)
		}
		check(t, a.Rmdir(Request{}, root, "d"), nil)
		for range 5 {
			settled(t, clock, a, b)
			clock.pass(week / 2)
		}
		w.close()
		settled(t, clock, a, b)
		same(t, a, b)
		if got := read(t, a, d, "f"); got != "edited" {
			t.Errorf("created %v: the edit is lost: %q", created, got)
		}
	}
}

// One that is put out is refused, and nothing is collected on the strength of it
// before all others refuse it too.
func TestP6ReplicaThatIsOutIsRefused(t *testing.T) {
	clock, vs := cluster(t, 3, Options{})
	a, b, c := vs[0], vs[1], vs[2]
	write(t, a, root, "f", "text")
	settled(t, clock, vs...)
	check(t, a.Unlink(Request{}, root, "f"), nil)
	write(t, c, root, "f", "edited while away")
	check(t, c.sealNow(), nil)
	for range 5 { // b is heard of, but says nothing new of c
		clock.pass(week / 4)
		exchange(t, a, b)
		members, err := b.Speak("b")
		check(t, err, nil)
		members[len(members)-1].Out = nil
		a.Hear(members)
		tidy(t, a)
	}
	if a.keeping().Out != 1 || tombstones(t, a) == 0 {
		t.Fatalf("%+v, %d tombstones: collected while a peer may still take changes of one that is out", a.keeping(), tombstones(t, a))
	}
	for range 2 {
		clock.pass(week / 4)
		settled(t, clock, a, b)
	}
	if n := tombstones(t, a); n != 0 {
		t.Fatalf("%d tombstones", n)
	}
	collected := a.Collected()
	if !collected.Excludes(c.Replica(), c.Vector()) || collected.Excludes(b.Replica(), b.Vector()) {
		t.Errorf("collected %+v: wrong replicas are excluded", collected)
	}
	for _, batch := range batches(t, c, a.Vector()) {
		if err := a.Merge(batch); !errors.Is(err, ErrBehind) {
			t.Errorf("error %v, want that it is behind", err)
		}
	}
	a = reopen(t, a)
	if again := a.Collected(); again.Weight() != collected.Weight() || len(again.Out) != len(collected.Out) {
		t.Errorf("collected %+v, after a restart %+v", collected, again)
	}
}

// rewrites is 100,000 where there is time.
var rewrites = flag.Int("store.rewrites", 10_000, "rewrites of one file in TestP13RewritesLeaveABoundedDatabase")

func TestP13RewritesLeaveABoundedDatabase(t *testing.T) {
	clock, vs := cluster(t, 1, Options{Hold: time.Millisecond})
	v := vs[0]
	talk(t, v)
	n := *rewrites
	v.SetLimits(Limits{HistoryAge: time.Hour})
	for i := range n {
		write(t, v, root, "f", fmt.Sprint(i))
		if i%2 == 0 {
			continue
		}
		write(t, v, root, "tmp", fmt.Sprint(i))
		check(t, v.Rename(Request{}, root, "tmp", root, "f", crdt.RenameReplace), nil)
		if i%20_000 == 1 {
			clock.pass(2 * week)
			tidy(t, v)
		}
	}
	check(t, v.sealNow(), nil)
	for range 2 {
		clock.pass(2 * week)
		tidy(t, v)
	}
	if k := v.keeping(); k.JournalBytes > keepTail || tombstones(t, v) != 0 || keysOf(t, v, 'i') > 3 || keysOf(t, v, 'c') > 1 {
		t.Errorf("%+v, %d tombstones, %d inodes, %d contents", k, tombstones(t, v), keysOf(t, v, 'i'), keysOf(t, v, 'c'))
	}
	v = reopen(t, v)
	if size := v.db.kv.size(); size > 64<<20 {
		t.Errorf("the database takes %d MiB", size>>20)
	} else {
		t.Logf("the database takes %d KiB", size>>10)
	}
}

// TestP6SnapshotBeforeAndAfterACollection cuts a join, and collects at the peer
// before it goes on: what was read before is no part of one state with the rest.
func TestP6SnapshotBeforeAndAfterACollection(t *testing.T) {
	clock, vs := cluster(t, 2, Options{})
	a, b := vs[0], vs[1]
	for n := range 20 {
		d := mkdir(t, a, root, fmt.Sprint("d", n))
		write(t, a, d, "f", noise(uint64(n), 2000))
		check(t, a.Rename(Request{}, root, fmt.Sprint("d", n), root, fmt.Sprint("e", n), 0), nil)
	}
	settled(t, clock, vs...)
	a.portion, b.portion = 4000, 4000
	var news []*Volume
	for range 2 {
		n := volumeWith(t, a.ID(), Options{Now: clock.Now})
		check(t, n.JoinSnapshot(t.Context(), &peer{t: t, from: a, to: n, cut: 6}), errCut)
		news = append(news, n)
	}
	for n := range 10 {
		at, _, err := a.Lookup(root, fmt.Sprint("e", n))
		check(t, err, nil)
		check(t, a.Unlink(Request{}, at.Node, "f"), nil)
		check(t, a.Rmdir(Request{}, root, fmt.Sprint("e", n)), nil)
		check(t, a.Rename(Request{}, root, fmt.Sprint("e", n+10), root, fmt.Sprint("g", n), 0), nil)
	}
	settled(t, clock, vs...)
	for range 3 {
		clock.pass(week / 2)
		exchange(t, a, b)
		talk(t, a, b)
		clock.pass(time.Second)
		tidy(t, a) // b keeps all
	}
	if tombstones(t, a) != 0 || keysOf(t, a, 'm') != 0 || keysOf(t, b, 'm') == 0 {
		t.Fatal("the one has not collected, or the other has")
	}
	for n, from := range vs {
		p := &peer{t: t, from: from, to: news[n]}
		check(t, news[n].JoinSnapshot(t.Context(), p), nil)
		if again := slices.ContainsFunc(p.asked[1:], func(r SnapshotRequest) bool { return len(r.After) == 0 && !r.Tail }); again != (from == a) {
			t.Errorf("%d: asked again for what was read before a collection: %v", n, again)
		}
	}
	same(t, a, b, news[0], news[1])
	// A third that begins with the one and goes on with the other.
	mixed := volumeWith(t, a.ID(), Options{Now: clock.Now})
	check(t, mixed.JoinSnapshot(t.Context(), &peer{t: t, from: b, to: mixed, cut: 6}), errCut)
	join(t, a, mixed)
	for n, v := range []*Volume{a, b, news[0], news[1], mixed} {
		check(t, v.Rename(Request{}, root, "g0", root, fmt.Sprint("h", n), 0), nil)
		fill(t, v, fmt.Sprint("again", n))
	}
	all := append(news, a, b, mixed)
	exchange(t, all...)
	exchange(t, all...)
	same(t, all...)
}

// A reader has one file open.
type reader struct {
	recorder
	node NodeID
}

func (r *reader) Knows(id NodeID) bool { return id == r.node }

// TestP2WhatAReaderHasOpenOutlivesItsRemoval: the bytes that a kernel has open
// are neither pruned nor collected.
func TestP2WhatAReaderHasOpenOutlivesItsRemoval(t *testing.T) {
	clock, vs := cluster(t, 2, Options{})
	a, b := vs[0], vs[1]
	write(t, a, root, "f", "text")
	settled(t, clock, a, b)
	at, _, err := b.Lookup(root, "f")
	check(t, err, nil)
	b.AddViewer(1, &reader{node: at.Node})
	check(t, a.Unlink(Request{}, root, "f"), nil)
	for range 4 {
		settled(t, clock, a, b)
		clock.pass(week / 2)
	}
	if got := readNode(t, b, at.Node); got != "text" {
		t.Errorf("an open file reads %q", got)
	}
	b.LetGo(at.Node) // known still
	if got := readNode(t, b, at.Node); got != "text" {
		t.Errorf("an open file reads %q", got)
	}
}
