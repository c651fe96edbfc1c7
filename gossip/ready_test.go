package gossip

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// names shows effects, in short.
func effectNames(effects []Effect) (out []string) {
	for _, e := range effects {
		if s, ok := e.(Send); ok {
			out = append(out, fmt.Sprintf("%T to %s", s.Message, s.Peer))
		} else {
			out = append(out, fmt.Sprintf("%T", e))
		}
	}
	for n := range out {
		out[n] = strings.ReplaceAll(out[n], "gossip.", "")
	}
	return out
}

// A script drives one protocol.
type script struct {
	t   *testing.T
	p   *Protocol
	now time.Time
}

func newScript(t *testing.T, ready bool, vector crdt.Vector, peers ...string) *script {
	s := &script{t, NewProtocol(Limits{SnapshotOver: 100}), time.Unix(1000, 0)}
	s.do(VolumeOpened{Holding{Volume: testVolume, Replica: 1, Ready: ready, Vector: vector}})
	for _, peer := range peers {
		s.do(LinkUp{peer})
	}
	return s
}

func (s *script) do(e Event) []Effect { return s.p.Step(s.now, e) }

func (s *script) get(from string, m Message) []Effect { return s.do(Received{from, m}) }

// holds is a peer's first message.
func holds(ready bool, vector crdt.Vector) Holdings {
	return Holdings{All: true, Changed: []Holding{{Volume: testVolume, Replica: 2, Ready: ready, Vector: vector}}}
}

// want compares effects but for digests, which may always be sent.
func (s *script) want(got []Effect, want ...string) {
	s.t.Helper()
	names := slices.DeleteFunc(effectNames(got), func(n string) bool { return strings.HasPrefix(n, "Digest") || n == "Hear" })
	if !slices.Equal(names, want) {
		s.t.Errorf("effects are %q, want %q", names, want)
	}
}

func (s *script) merged(b *Batch, v crdt.Vector) []Effect {
	return s.do(Merged{Volume: testVolume, Batch: b, Vector: v})
}

func TestP11Ready(t *testing.T) {
	t.Run("empty joiners do not satisfy each other", func(t *testing.T) {
		s := newScript(t, false, at(), "b")
		s.want(s.get("b", holds(false, at())))
		s.want(s.get("b", holds(false, at(0, 3))), "Pull to b")
	})
	t.Run("an empty ready volume does", func(t *testing.T) {
		s := newScript(t, false, at(), "b")
		s.want(s.get("b", holds(true, at())), "BecomeReady")
		s.want(s.do(ReadySaved{Volume: testVolume}), "Holdings to b")
		if !s.p.CaughtUp(testVolume) {
			t.Error("not caught up")
		}
	})
	t.Run("only with all that the ready peer had", func(t *testing.T) {
		s := newScript(t, false, at(), "b")
		s.want(s.get("b", holds(true, at(0, 2))), "Pull to b")
		one, two := batch(2, 1, 1, 10), batch(2, 2, 2, 10)
		s.want(s.get("b", Push{Volume: testVolume, Batch: one}), "Merge")
		s.want(s.get("b", Push{Volume: testVolume, Batch: two}), "Merge")
		s.get("b", PullDone{Volume: testVolume})
		if slices.Contains(effectNames(s.merged(one, at(0, 1))), "BecomeReady") {
			t.Error("ready too early")
		}
		if !slices.Contains(effectNames(s.merged(two, at(0, 2))), "BecomeReady") {
			t.Error("not ready")
		}
	})
	t.Run("what it made since does not count", func(t *testing.T) {
		s := newScript(t, false, at(0, 2), "b")
		s.get("b", holds(false, at(0, 2)))
		s.want(s.get("b", Digest{testVolume, at(0, 9)})) // 7 ops are under way
		if s.p.Ready(testVolume) {
			t.Error("ready by one that is not")
		}
		got := effectNames(s.get("b", Holdings{Changed: []Holding{{Volume: testVolume, Ready: true, Vector: at(0, 2)}}}))
		if !slices.Contains(got, "BecomeReady") {
			t.Errorf("effects are %q", got)
		}
	})
	t.Run("what a peer said before the replica was there does not count", func(t *testing.T) {
		s := newScript(t, false, at(), "b")
		s.do(VolumeClosed{testVolume})
		s.get("b", holds(true, at()))
		s.want(s.do(VolumeOpened{Holding{Volume: testVolume, Replica: 1, Vector: at()}}), "Holdings to b")
		s.want(s.get("b", Digest{testVolume, at(0, 1)}), "Pull to b")
		b := batch(2, 1, 1, 10)
		s.get("b", Push{Volume: testVolume, Batch: b})
		if !slices.Contains(effectNames(s.merged(b, at(0, 1))), "BecomeReady") {
			t.Error("not ready")
		}
	})
	t.Run("a peer that went away counts no more", func(t *testing.T) {
		s := newScript(t, false, at(), "b")
		s.get("b", holds(true, at(0, 1)))
		b := batch(2, 1, 1, 10)
		s.get("b", Push{Volume: testVolume, Batch: b})
		s.do(PeerGone{"b"})
		if slices.Contains(effectNames(s.merged(b, at(0, 1))), "BecomeReady") {
			t.Error("caught up with a dead peer")
		}
	})
}

func TestSnapshotOrJournal(t *testing.T) {
	tests := []struct {
		name      string
		ready     bool
		have      crdt.Vector
		peerReady bool
		peer      crdt.Vector
		want      string
	}{
		{"empty joiner, little", false, at(), true, at(0, 100), "Pull to b"},
		{"empty joiner, much", false, at(), true, at(0, 101), "TakeSnapshot"},
		{"empty joiner, much, of one not ready", false, at(), false, at(0, 101), "Pull to b"},
		{"joiner with something, much", false, at(0, 1), true, at(0, 101), "Pull to b"},
		{"ready, much", true, at(), true, at(0, 101), "Pull to b"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newScript(t, test.ready, test.have, "b")
			got := effectNames(s.get("b", holds(test.peerReady, test.peer)))
			if !slices.Contains(got, test.want) {
				t.Errorf("effects are %q, want %q among them", got, test.want)
			}
		})
	}
	t.Run("journal gone", func(t *testing.T) {
		s := newScript(t, true, at(0, 1), "b", "c")
		s.get("b", holds(true, at(0, 5)))
		s.want(s.get("b", SnapshotNeeded{testVolume}), "TakeSnapshot")
		s.get("c", holds(true, at(0, 5)))
		s.want(s.get("c", Pull{Volume: testVolume}), "PullDone to c")           // a staging replica is no source
		s.want(s.get("c", Push{Volume: testVolume, Batch: batch(2, 2, 5, 10)})) // waits
		got := effectNames(s.do(SnapshotTaken{Volume: testVolume, Peer: "b", Vector: at(0, 5)}))
		if slices.Contains(got, "Merge") || !slices.Contains(got, "Digest to c") {
			t.Errorf("effects are %q", got)
		}
	})
	t.Run("snapshot fails", func(t *testing.T) {
		s := newScript(t, false, at(), "b", "c")
		s.get("b", holds(true, at(0, 500)))
		s.get("c", holds(true, at(0, 500)))
		s.do(SnapshotTaken{Volume: testVolume, Peer: "b", Err: store.ErrClosed})
		for range 200 {
			s.now = s.now.Add(10 * time.Millisecond)
			for _, e := range s.do(Tick{}) {
				if snap, ok := e.(TakeSnapshot); ok {
					if snap.Peer != "b" && snap.Peer != "c" {
						t.Errorf("asks %q", snap.Peer)
					}
					return
				}
			}
		}
		t.Error("is not tried again")
	})
}

func TestPushAndRelay(t *testing.T) {
	s := newScript(t, true, at(), "b", "c")
	s.get("b", holds(true, at()))
	own := batch(1, 1, 1, 10)
	got := s.do(LocalBatch{testVolume, own})
	s.want(got, "Push to b") // c does not hold the volume
	if !got[0].(Send).Message.(Push).WithIdentity {
		t.Error("the first push carries no identity")
	}
	s.get("c", holds(true, at()))
	got = s.do(LocalBatch{testVolume, batch(1, 2, 2, 10)})
	s.want(got, "Push to b", "Push to c")
	if got[0].(Send).Message.(Push).WithIdentity || !got[1].(Send).Message.(Push).WithIdentity {
		t.Error("identity goes to each peer once")
	}
	// What c has of b is not pulled while it may be under way, then it is.
	s.want(s.get("c", Digest{testVolume, at(2, 1)}))
	s.now = s.now.Add(gapGrace / 2)
	s.want(s.do(Tick{}))
	s.now = s.now.Add(gapGrace)
	if got := effectNames(s.do(Tick{})); !slices.Contains(got, "Pull to c") {
		t.Errorf("effects are %q", got)
	}
	if got := s.p.Lag("b", testVolume); got != 2 {
		t.Errorf("lag of b is %d", got)
	}
	if got := s.p.Lag("c", testVolume); got != 0 {
		t.Errorf("lag of c is %d", got)
	}
}

// A peer that does not help is asked less and less, and others instead.
func TestPullBackoff(t *testing.T) {
	s := newScript(t, true, at(), "b", "c")
	s.get("b", holds(true, at(0, 9)))
	s.get("c", holds(true, at(0, 5)))
	asked := map[string]int{}
	answer := func(effects []Effect) {
		for n := 0; n < len(effects); n++ {
			if send, ok := effects[n].(Send); ok {
				if _, ok := send.Message.(Pull); ok {
					asked[send.Peer]++
					effects = append(effects, s.get(send.Peer, PullDone{Volume: testVolume})...)
				}
			}
		}
	}
	answer(s.get("b", PullDone{Volume: testVolume}))
	for range 300 {
		s.now = s.now.Add(10 * time.Millisecond)
		answer(s.do(Tick{}))
	}
	if asked["b"] < 2 || asked["c"] < 2 || asked["b"]+asked["c"] > 14 {
		t.Errorf("asked in three seconds: %v", asked)
	}
}

func beginsAnew(t *testing.T, got []Effect, peer string) {
	t.Helper()
	if !slices.Contains(got, Effect(TakeSnapshot{Volume: testVolume, Peer: peer, Anew: true})) {
		t.Errorf("does not begin anew: %q", effectNames(got))
	}
}

// exclude returns a peer's holdings that say what it has collected.
func exclude(h Holdings, c store.Collected) Holdings {
	h.Changed[0].Collected = c
	return h
}

func TestP6WhoIsBehindBeginsAnew(t *testing.T) {
	// It lacks what the peer has collected: no op goes either way.
	s := newScript(t, true, at(3), "b")
	got := s.get("b", exclude(holds(true, at(3, 9)), store.Collected{Vector: at(0, 5)}))
	beginsAnew(t, got, "b")
	for _, e := range got {
		if send, ok := e.(Send); ok {
			if _, ok := send.Message.(Pull); ok {
				t.Error("pulls from a peer that has collected what it lacks")
			}
		}
	}
	// A peer that is not ready is no source, and is not merged with either.
	s = newScript(t, true, at(3), "b")
	got = s.get("b", exclude(holds(false, at(3, 9)), store.Collected{Vector: at(0, 5)}))
	if names := effectNames(got); slices.Contains(names, "TakeSnapshot") {
		t.Errorf("effects are %q", names)
	}
	// An empty joiner takes an ordinary snapshot, however small the volume.
	s = newScript(t, false, at(), "b")
	got = s.get("b", exclude(holds(true, at(3, 9)), store.Collected{Vector: at(0, 5)}))
	if !slices.Contains(got, Effect(TakeSnapshot{Volume: testVolume, Peer: "b"})) {
		t.Errorf("effects are %q", effectNames(got))
	}
	// But one whose id is out can never join with that.
	s = newScript(t, false, at(), "b")
	beginsAnew(t, s.get("b", exclude(holds(true, at(3, 9)), store.Collected{Out: map[crdt.ReplicaID]crdt.Seq{1: 9}})), "b")
	// It is out, or has ops of one that is.
	for _, out := range []map[crdt.ReplicaID]crdt.Seq{{1: 9}, {2: 4}} {
		s = newScript(t, true, at(3, 5), "b")
		beginsAnew(t, s.get("b", exclude(holds(true, at(3, 5)), store.Collected{Out: out})), "b")
	}
	// Of two that exclude each other the one that collected less.
	for _, mine := range []crdt.Seq{4, 6} {
		s = newScript(t, true, at(3), "b")
		s.do(Spoke{Volume: testVolume, Collected: store.Collected{Vector: at(mine, 0), Out: map[crdt.ReplicaID]crdt.Seq{2: 1}}})
		got := s.get("b", exclude(holds(true, at(0, 5)), store.Collected{Vector: at(0, 5), Out: map[crdt.ReplicaID]crdt.Seq{1: 1}}))
		if anew := slices.Contains(effectNames(got), "TakeSnapshot"); anew != (mine < 5) {
			t.Errorf("collected %d of its own against 5: begins anew %v", mine, anew)
		}
	}
}

// TestP8ComparedBeforeAnything: with a peer that has ops of this replica nothing
// is exchanged before the journal has said that they were made here; and with
// nobody once it has said that they were not.
func TestP8ComparedBeforeAnything(t *testing.T) {
	entry := crdt.VectorEntry{Seq: 3, Hash: [32]byte{3}}
	theirs := crdt.Vector{1: entry, 2: {Seq: 2}}
	verify := Verify{testVolume, "b", 1, entry}
	compared := Verified{Volume: testVolume, Peer: "b", Replica: 1, Entry: entry}
	linked := func(own crdt.Seq) *script {
		s := newScript(t, true, crdt.Vector{1: {Seq: own, Hash: [32]byte{byte(own)}}}, "b")
		if got := s.get("b", holds(true, theirs)); !slices.Contains(got, Effect(verify)) {
			t.Errorf("effects are %q", effectNames(got))
		}
		s.now = s.now.Add(gapGrace)
		got := slices.Concat(
			s.get("b", Push{Volume: testVolume, Batch: batch(2, 1, 2, 10)}),
			s.get("b", Pull{Volume: testVolume, MaxBytes: 1}),
			s.do(LocalBatch{testVolume, batch(1, own+1, own+1, 10)}),
			s.get("b", Digest{testVolume, theirs}),
			s.do(Tick{}),
		)
		s.want(got)
		if s.p.Serves(testVolume, "b") {
			t.Error("serves a snapshot")
		}
		return s
	}
	for _, own := range []crdt.Seq{1, 2, 5} { // by now, with one more
		s := linked(own)
		s.want(s.do(compared), "Serve", "Pull to b")
		if !s.p.Serves(testVolume, "b") {
			t.Error("serves no snapshot")
		}
		if got := s.get("b", Digest{testVolume, theirs}); slices.Contains(got, Effect(verify)) && own > 3 {
			t.Error("compared again")
		}

		s = linked(own)
		failed := compared
		failed.Err = store.ErrDamaged
		s.want(s.do(failed), "Report")
		s.want(s.get("b", Digest{testVolume, theirs}), "Verify")
		s.do(failed)
		same := crdt.Vector{1: {Seq: own + 1}, 2: {Seq: 2}} // no need to ask
		s.want(s.get("b", Digest{testVolume, same}), "Serve", "Pull to b")

		s = linked(own)
		s.do(LinkUp{"c"})
		other := holds(true, crdt.Vector{2: {Seq: 2}})
		other.Changed[0].Replica = 3
		s.get("c", other)
		// What is found of an id that it no longer has says nothing.
		stale := compared
		stale.Replica, stale.Forked = 9, true
		s.want(s.do(stale))
		s.want(s.get("c", Pull{Volume: testVolume, MaxBytes: 1}), "Serve")
		s.want(s.get("c", Pull{Volume: testVolume, MaxBytes: 1})) // when that is done
		compared.Forked = true
		forked := s.do(compared)
		beginsAnew(t, forked, "b")
		for _, peer := range []string{"b", "c"} {
			if !slices.Contains(effectNames(forked), "PullDone to "+peer) {
				t.Errorf("what %s asked for is not answered: %q", peer, effectNames(forked))
			}
		}
		compared.Forked = false
		s.want(s.do(LocalBatch{testVolume, batch(1, own+2, own+2, 10)}))
		s.want(s.get("c", Push{Volume: testVolume, Batch: batch(2, 3, 3, 10)}))
		if s.p.Serves(testVolume, "c") {
			t.Error("serves a snapshot")
		}
		// Who has nothing of the other ops will do, if the one who has is gone.
		s.do(SnapshotTaken{Volume: testVolume, Peer: "b", Err: ErrAbsent, Anew: true})
		s.do(LinkDown{"b"})
		s.do(PeerGone{"b"})
		s.now = s.now.Add(failureDelay)
		beginsAnew(t, s.do(Tick{}), "c")
	}
}

// TestP4ContentThatTwoBatchesWant: that nobody has the one batch any more, since
// its origin began anew, does not keep the content from the other.
func TestP4ContentThatTwoBatchesWant(t *testing.T) {
	s := newScript(t, true, at(1), "b")
	s.get("b", holds(true, at(1)))
	content := crdt.Hash{7}
	wants := func(origin crdt.ReplicaID) Push {
		b := batch(origin, 1, 1, 100)
		b.Wants = []crdt.Hash{content}
		return Push{Volume: testVolume, Batch: b}
	}
	s.get("b", wants(2))
	s.do(ContentArrived{testVolume, content, ErrAbsent})
	anew := holds(true, crdt.Vector{3: {Seq: 1}})
	anew.Changed[0].Replica = 3
	s.get("b", anew)
	got := s.get("b", wants(3))
	s.now = s.now.Add(mostBackoff)
	got = append(got, s.do(Tick{})...)
	if !slices.ContainsFunc(got, func(e Effect) bool { f, ok := e.(FetchContent); return ok && slices.Equal(f.Peers, []string{"b"}) }) {
		t.Errorf("effects are %q", effectNames(got))
	}
}
