package store

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// TestP12WordKeepsItsSignature: also over a restart of who passes it on.
func TestP12WordKeepsItsSignature(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	check(t, err, nil)
	o := longHold
	o.Sign = func(m []byte) []byte { return ed25519.Sign(private, m) }
	a := volumeWith(t, NewVolumeID(), o)
	b := volumeWith(t, a.id, longHold)
	write(t, a, root, "f", "1")
	give(t, a, b)
	check(t, a.renew(false), nil) // so that Out names one
	b.Hear(must(a.Speak("a")))
	b = reopen(t, b)
	passed := must(b.Speak("b"))[0]
	if passed.Replica != a.replica || len(passed.Out) == 0 || len(passed.Acked) == 0 {
		t.Fatalf("passed on: %+v", passed)
	}
	if !ed25519.Verify(public, passed.Signed(a.id), passed.Signature) {
		t.Error("the signature of a word that was kept is bad")
	}
	for what, edit := range map[string]func(*Member){
		"replica": func(m *Member) { m.Replica++ }, "node": func(m *Member) { m.Node += "x" }, "time": func(m *Member) { m.At++ },
		"vector": func(m *Member) { m.Acked = crdt.Vector{} }, "committed": func(m *Member) { m.Committed++ },
		"out": func(m *Member) { m.Out = append(slices.Clone(m.Out), 5) }, "nobody out": func(m *Member) { m.Out = nil },
	} {
		m := passed
		if edit(&m); ed25519.Verify(public, m.Signed(a.id), m.Signature) {
			t.Errorf("another %s: the signature is good", what)
		}
	}
	if ed25519.Verify(public, passed.Signed(NewVolumeID()), passed.Signature) {
		t.Error("of another volume: the signature is good")
	}
}

// TestP12WordGoesOnAfterAClockSetBack: peers that pass a replica's own word back
// to it keep it from speaking to deaf ears.
func TestP12WordGoesOnAfterAClockSetBack(t *testing.T) {
	clock, vs := cluster(t, 2, longHold)
	a, b := vs[0], vs[1]
	o := a.db.opts
	o.Dir = t.TempDir()
	clock.pass(week)
	b.Hear(must(a.Speak("a")))
	said := must(b.Speak("b"))
	clock.pass(-week)
	a.roster.self.At = 0 // as after a crash before it was kept
	must(a.Speak("a"))
	a.Hear(said)
	if was, is := said[0].At, must(a.Speak("a"))[0].At; said[0].Replica != a.replica || is <= was {
		t.Errorf("a word of %d after one of %d", is, was)
	}
}

// TestP13ReplicasOfOneNodeAreBounded: whatever ids a node asks snapshots for, or
// says that it has.
func TestP13ReplicasOfOneNodeAreBounded(t *testing.T) {
	o := longHold
	o.Memory = NewMemory()
	v := volumeWith(t, NewVolumeID(), o)
	must(v.Speak("here"))
	v.Hear([]Member{
		{Replica: 7, Node: "good", At: 5, Acked: crdt.Vector{}},
		{Replica: 8, Node: "bad", At: 5, Acked: crdt.Vector{}},
		{Replica: 9, Node: "bad", At: 6, Acked: crdt.Vector{}, Out: []crdt.ReplicaID{8}},
	})
	counts := func() (n map[string]int) {
		n = map[string]int{}
		for _, e := range v.Roster() {
			n[e.Node]++
		}
		return n
	}
	for id := range 10 * maxOfNode {
		v.Know(crdt.ReplicaID(1000+id), "bad")
	}
	for range 2 {
		if n := counts(); n["good"] != 1 || n["bad"] != maxOfNode {
			t.Errorf("replicas by node: %v", n)
		}
		v = reopen(t, v)
	}
	has := func(id crdt.ReplicaID) bool {
		return slices.ContainsFunc(v.Roster(), func(e RosterEntry) bool { return e.Replica == id })
	}
	if !has(9) || has(8) || has(1000) || !has(1000+10*maxOfNode-1) {
		t.Errorf("who stayed: %+v", v.Roster())
	}
	for id := range 10 * maxOfNode { // they speak, too
		v.Hear([]Member{{Replica: crdt.ReplicaID(5000 + id), Node: "bad", At: math.MaxInt64, Acked: crdt.Vector{}}})
	}
	if n := counts(); n["good"] != 1 || n["bad"] != maxOfNode || !has(7) {
		t.Errorf("replicas by node: %v", n)
	}
}

// TestP13MadeUpReplicasAreNotPutOut: each word names all that are out, so the
// list must not be anybody's to fill. Who said it is told, once.
func TestP13MadeUpReplicasAreNotPutOut(t *testing.T) {
	var log bytes.Buffer
	o := longHold
	o.Scheduler, o.Memory, o.Log = still{}, NewMemory(), slog.New(slog.NewTextHandler(&log, nil))
	v := volumeWith(t, NewVolumeID(), o)
	must(v.Speak("here"))
	v.Know(7, "good")
	check(t, v.PutIdentity(11, []byte("who it was")), nil)
	bad := Member{Replica: 8, Node: "bad", Acked: crdt.Vector{}, Out: []crdt.ReplicaID{7, 11}}
	for id := range 3 * maxUnknown {
		bad.Out = append(bad.Out, crdt.ReplicaID(1000+id))
	}
	for range 3 {
		bad.At++
		v.Hear([]Member{bad})
	}
	if len(v.roster.out) != 2 || !v.roster.out[7] || !v.roster.out[11] {
		t.Errorf("out: %v", v.roster.out)
	}
	if n := strings.Count(log.String(), "replica is out"); n != 2 || !strings.Contains(log.String(), `by=0000000000000008 "by node"=bad`) {
		t.Errorf("log, %d times: %s", n, &log)
	}
	check(t, v.PutIdentity(1001, []byte("who it is")), nil) // it came meanwhile
	bad.At++
	v.Hear([]Member{bad})
	if !v.roster.out[1001] {
		t.Errorf("out: %v", v.roster.out)
	}
	for id := range maxOut + 100 {
		v.roster.members[crdt.ReplicaID(10_000+id)] = &member{Member: Member{Replica: crdt.ReplicaID(10_000 + id), Node: fmt.Sprint(id)}, heard: v.db.opts.Now()}
		bad.Out = append(bad.Out, crdt.ReplicaID(10_000+id))
	}
	bad.At++
	v.Hear([]Member{bad})
	if len(v.roster.out) != maxOut || !strings.Contains(log.String(), "too many replicas are out") {
		t.Errorf("%d are out", len(v.roster.out))
	}
}
