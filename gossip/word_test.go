package gossip

import (
	"context"
	"crypto/ed25519"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/internal/keys"
	"github.com/synapsefs/synapsefs/internal/wire"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// says is a roster of the test volume.
func says(members []store.Member, identities ...[]byte) *wire.Frame {
	f := toWire(Roster{Volume: testVolume, Members: members})
	f.GetRoster().Identities = identities
	return f
}

// shows are the holdings of one replica of the test volume.
func shows(r crdt.ReplicaID, identity []byte) *wire.Frame {
	f := toWire(Holdings{All: true, Changed: []Holding{{Volume: testVolume, Replica: r, Ready: true}}})
	f.GetHoldings().Changed[0].Identity = identity
	return f
}

func signedBy(k *keys.Keys, m store.Member) store.Member {
	m.Signature = k.Sign(m.Signed(testVolume))
	return m
}

// badPeer is two nodes that have the same, and a third that holds keys and has
// shown the first one a replica of its own, 77.
func badPeer(t *testing.T) (x, y *testNode, mallory *keys.Keys, dial func() *stranger) {
	c, x, mallory := alone(t)
	y = c.node("y", false)
	y.start(t, x)
	x.write(t, "f", []byte("1"))
	eventually(t, "y has it", y.has(t, "f", []byte("1")))
	y.write(t, "g", []byte("2"))
	same(t, x, y)
	return x, y, mallory, func() *stranger {
		t.Helper()
		s := dialAs(t, clientTLS(mallory, "x"), x)
		if err := s.greet(helloOf(mallory)); err != nil {
			t.Fatal(err)
		}
		s.send(shows(77, NewIdentity(mallory, testVolume, 77).Encode()))
		return s
	}
}

// pong waits until all that was sent before is taken, and the link is up.
func (s *stranger) pong() {
	s.t.Helper()
	s.send(&wire.Frame{Body: &wire.Frame_Ping{Ping: &wire.Ping{Id: 1}}})
	if f, err := s.stream.Recv(); err != nil || f.GetPong() == nil {
		s.t.Fatalf("the link ended: %v, %v", f, err)
	}
}

// entry is what a node knows of a replica; false if nothing.
func (n *testNode) entry(r crdt.ReplicaID) (store.RosterEntry, bool) {
	all := n.v.Roster()
	at := slices.IndexFunc(all, func(e store.RosterEntry) bool { return e.Replica == r })
	if at < 0 {
		return store.RosterEntry{}, false
	}
	return all[at], true
}

// heardBy makes a node's replica speak until another has heard that it has all.
func (n *testNode) heardBy(t testing.TB, by *testNode) {
	t.Helper()
	eventually(t, "it is heard", func() bool {
		n.cluster.speak(n.cluster.held(testVolume))
		e, ok := by.entry(n.v.Replica())
		return ok && e.Lag == 0
	})
}

// wordOf is what a node passes on of a replica.
func (n *testNode) wordOf(t testing.TB, r crdt.ReplicaID) store.Member {
	t.Helper()
	members, err := n.v.Speak(n.name)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		if m.Replica == r {
			return m
		}
	}
	return store.Member{}
}

// TestP12WordsInOthersNames: what replicas say is signed by their nodes, and who
// passes on another thing is cut off and reported.
func TestP12WordsInOthersNames(t *testing.T) {
	x, y, mallory, dial := badPeer(t)
	victim := y.v.Replica()
	y.heardBy(t, x)
	genuine := x.wordOf(t, victim)
	edited := func(edit func(*store.Member)) store.Member {
		m := genuine
		edit(&m)
		return m
	}
	later := func(m *store.Member) int64 { return m.At + int64(time.Hour) } // than all that y says meanwhile
	forEver := func(m *store.Member) { m.At = math.MaxInt64 }
	ofVictim := NewIdentity(mallory, testVolume, victim).Encode()
	own := store.Member{Replica: 77, Node: "mallory", At: 5, Acked: crdt.Vector{}}
	broken := NewIdentity(mallory, testVolume, 78)
	broken.Signature[0] ^= 1
	tests := []struct {
		name  string
		frame *wire.Frame
	}{
		{"word with another time", says([]store.Member{edited(forEver)})},
		{"signed by another", says([]store.Member{signedBy(mallory, edited(forEver))})},
		{"with an identity besides", says([]store.Member{signedBy(mallory, edited(forEver))}, ofVictim)},
		{"unsigned", says([]store.Member{edited(func(m *store.Member) { m.At, m.Signature = later(m), nil })})},
		{"a live replica put out", says([]store.Member{signedBy(mallory, edited(func(m *store.Member) { m.At, m.Out = later(m), []crdt.ReplicaID{x.v.Replica()} }))})},
		{"more applied than is", says([]store.Member{edited(func(m *store.Member) { m.At, m.Acked = later(m), crdt.Vector{victim: {Seq: 99}} })})},
		{"another node's name", says([]store.Member{signedBy(mallory, func() store.Member { m := own; m.Node = "y"; return m }())})},
		{"known, of another node", says([]store.Member{{Replica: victim, Node: "mallory"}})},
		{"own word, unsigned", says([]store.Member{own})},
		{"identity with a bad signature", says(nil, broken.Encode())},
		{"another's replica shown", shows(victim, nil)},
		{"another's replica shown with an identity", shows(victim, ofVictim)},
		{"a replica shown without an identity", shows(79, nil)},
		{"a replica shown with another's identity", shows(79, NewIdentity(mallory, testVolume, 77).Encode())},
	}
	for n, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := dial()
			s.send(test.frame)
			if err := s.end(); status.Code(err) != codes.PermissionDenied {
				t.Errorf("link ended with %v", err)
			}
			if got := x.cluster.BadBatches(); got != uint64(n+1) {
				t.Errorf("%d bad things are counted, want %d", got, n+1)
			}
			if !slices.ContainsFunc(x.cluster.Peers(), func(p PeerStatus) bool {
				return p.Node == "mallory" && (strings.Contains(p.Error, ErrWord.Error()) || strings.Contains(p.Error, ErrIdentity.Error()))
			}) {
				t.Errorf("it is not reported: %+v", x.cluster.Peers())
			}
		})
	}
	if e, ok := x.entry(victim); !ok || e.Out || e.Node != "y" {
		t.Errorf("y is now %+v, %v", e, ok)
	}
	if len(x.v.Collected().Out) != 0 {
		t.Errorf("out: %v", x.v.Collected().Out)
	}
	// They go on, and listen to each other.
	x.write(t, "f", []byte("3"))
	same(t, x, y)
	if y.heardBy(t, x); x.wordOf(t, victim).At <= genuine.At {
		t.Error("y's words are not heard")
	}
}

// TestP12OldWordsAreNoNews: an older word that is passed on again, as honest
// peers do, changes nothing.
func TestP12OldWordsAreNoNews(t *testing.T) {
	x, y, _, dial := badPeer(t)
	y.heardBy(t, x)
	old := x.wordOf(t, y.v.Replica())
	x.write(t, "f", []byte("2"))
	same(t, x, y)
	y.heardBy(t, x)
	s := dial()
	s.send(says([]store.Member{old}))
	s.pong()
	if m := x.wordOf(t, y.v.Replica()); m.At <= old.At || !m.Acked.Contains(x.v.Vector()) {
		t.Errorf("the old word is back: %+v", m)
	}
	if n := x.cluster.BadBatches(); n != 0 {
		t.Errorf("%d bad things are counted", n)
	}
}

// TestP13MadeUpReplicas: a bad peer can tell of no replica that is not its node's,
// and of few that are.
func TestP13MadeUpReplicas(t *testing.T) {
	x, y, mallory, dial := badPeer(t)
	y.heardBy(t, x)
	var made []store.Member
	var identities [][]byte
	for r := range crdt.ReplicaID(100) {
		made = append(made, store.Member{Replica: 5000 + r, Node: "mallory"})
		identities = append(identities, NewIdentity(mallory, testVolume, 6000+r).Encode())
	}
	s := dial()
	s.send(says(made)) // without identities
	s.pong()
	if _, ok := x.entry(5000); ok {
		t.Error("a replica without an identity is taken for one")
	}
	for n := range made {
		made[n].Replica += 1000
	}
	s.send(says(made, identities...))
	bad := signedBy(mallory, store.Member{Replica: 77, Node: "mallory", At: math.MaxInt64, Acked: crdt.Vector{}, Out: []crdt.ReplicaID{90000, 90001}})
	s.send(says([]store.Member{bad}))
	s.pong()
	for r := range crdt.ReplicaID(20) {
		if code := snapshotAs(t, mallory, x, 7000+r, nil); code != codes.PermissionDenied {
			t.Fatalf("a snapshot without an identity: %v", code)
		}
		if code := snapshotAs(t, mallory, x, y.v.Replica(), nil); code != codes.PermissionDenied {
			t.Fatalf("a snapshot for another's replica: %v", code)
		}
		if code := snapshotAs(t, mallory, x, 8000+r, NewIdentity(mallory, testVolume, 8000+r).Encode()); code != codes.OK {
			t.Fatalf("a snapshot: %v", code)
		}
	}
	n := map[string]int{}
	for _, e := range x.v.Roster() {
		n[e.Node]++
	}
	if n["mallory"] == 0 || n["mallory"] > 16 || n["y"] != 1 {
		t.Errorf("replicas by node: %v", n)
	}
	if len(x.v.Collected().Out) != 0 {
		t.Errorf("out: %v", x.v.Collected().Out)
	}
	x.write(t, "f", []byte("3"))
	same(t, x, y)
}

// snapshotAs takes a snapshot and returns how it ended.
func snapshotAs(t testing.TB, k *keys.Keys, from *testNode, r crdt.ReplicaID, identity []byte) codes.Code {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+from.cluster.ReplicaAddr().String(), grpc.WithTransportCredentials(credentials.NewTLS(clientTLS(k, from.name))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(timeout(t))
	defer cancel()
	stream, err := wire.NewReplicaClient(conn).Snapshot(ctx, &wire.SnapshotRequest{Volume: testVolume[:], Replica: uint64(r), Identity: identity})
	for err == nil {
		var chunk *wire.SnapshotChunk
		if chunk, err = stream.Recv(); chunk.GetEnd() {
			return codes.OK
		}
	}
	return status.Code(err)
}

// TestP12WordsArePassedOn: by a node that was started again, to one that never
// met who said them, and who may not be there any more.
func TestP12WordsArePassedOn(t *testing.T) {
	c := newTestCluster(t)
	x, y, z := c.node("x", true), c.node("y", false), c.node("z", false)
	x.start(t)
	y.start(t, x)
	y.write(t, "g", []byte("2"))
	same(t, x, y)
	y.heardBy(t, x)
	if err := y.cluster.Close(); err != nil {
		t.Fatal(err)
	}
	if err := x.cluster.Close(); err != nil {
		t.Fatal(err)
	}
	word := x.wordOf(t, y.v.Replica())
	x.reopenWith(t, x.dir)
	x.start(t)
	z.start(t, x)
	eventually(t, "z hears of y", func() bool { return z.wordOf(t, y.v.Replica()).At == word.At })
	if n := z.cluster.BadBatches() + x.cluster.BadBatches(); n != 0 {
		t.Errorf("%d bad things are counted", n)
	}
}

// TestP12StampFarAhead: a change from beyond the end of time ends the link or is
// reported, and the others write as before.
func TestP12StampFarAhead(t *testing.T) {
	x, y, mallory, dial := badPeer(t)
	stamped := func(s crdt.Stamp) *store.Batch {
		op := &crdt.Op{Dot: crdt.Dot{Replica: 77, Seq: 1}, Stamp: s, Writes: []crdt.Write{{Kind: crdt.WriteMode, Ino: crdt.RootIno, Mode: 0o700}}}
		b := &store.Batch{Volume: testVolume, Origin: 77, First: 1, Last: 1, Stamp: s, Ops: [][]byte{crdt.AppendOp(nil, op)}}
		digest := b.Digest()
		b.Signature = mallory.Sign(digest[:])
		return b
	}
	s := dial()
	s.push(stamped(crdt.LocalStamp-1), nil)
	if err := s.end(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("link ended with %v", err)
	}
	dial().push(stamped(crdt.MaxStamp), nil)
	eventually(t, "it is reported", func() bool {
		return slices.ContainsFunc(x.cluster.Peers(), func(p PeerStatus) bool { return strings.Contains(p.Error, store.ErrStamp.Error()) }) ||
			slices.ContainsFunc(x.cluster.Problems(), func(p Refusal) bool { return strings.Contains(p.Reason, store.ErrStamp.Error()) })
	})
	x.write(t, "f", []byte("3"))
	y.write(t, "h", []byte("4"))
	same(t, x, y)
	if latest := x.v.Vector().Latest(); latest > crdt.MaxWall {
		t.Errorf("stamps are at %d", latest)
	}
	// One from as late as is believed is taken, and all go on.
	dial().push(stamped(crdt.MaxWall), nil)
	eventually(t, "it is merged", func() bool { return x.v.Vector()[77].Seq == 1 })
	x.write(t, "f", []byte("5"))
	y.write(t, "h", []byte("6"))
	same(t, x, y)
}

// TestP12WordIsVerifiedOnce: most words come many times. What was verified is
// known by all that was signed, and the signature.
func TestP12WordIsVerifiedOnce(t *testing.T) {
	c := newTestCluster(t)
	k := c.keysOf("m")
	o := origin{node: "m", key: k.Cert.Leaf.PublicKey.(ed25519.PublicKey)}
	w := words{last: map[crdt.ReplicaID]word{}}
	m := signedBy(k, store.Member{Replica: 77, Node: "m", At: 5, Acked: crdt.Vector{3: {Seq: 4}}, Out: []crdt.ReplicaID{9}})
	for _, want := range []bool{true, false, false} {
		if got, fresh, err := w.check(testVolume, m, o); fresh != want || err != nil || got.At != m.At {
			t.Errorf("%+v, fresh %v, %v", got, fresh, err)
		}
	}
	for what, edit := range map[string]func(*store.Member){
		"vector": func(m *store.Member) { m.Acked = nil }, "out": func(m *store.Member) { m.Out = nil },
		"signature": func(m *store.Member) { m.Signature = slices.Clone(m.Signature); m.Signature[0] ^= 1 },
		"node":      func(m *store.Member) { m.Node = "n" },
	} {
		bad := m
		edit(&bad)
		if _, _, err := w.check(testVolume, bad, o); !errors.Is(err, ErrWord) {
			t.Errorf("another %s of a time that was verified: %v", what, err)
		}
	}
	bad := m
	bad.At, bad.Acked = 4, nil // older: nothing of it is looked at
	if got, fresh, err := w.check(testVolume, bad, o); fresh || err != nil || got.At != 0 || got.Out != nil {
		t.Errorf("%+v, fresh %v, %v", got, fresh, err)
	}
}

// BenchmarkWords is the words of 100 nodes, each of which wrote, when they are
// new and when they were seen.
func BenchmarkWords(b *testing.B) {
	c := newTestCluster(b)
	k := c.keysOf("m")
	o := origin{node: "m", key: k.Cert.Leaf.PublicKey.(ed25519.PublicKey)}
	acked := crdt.Vector{}
	for r := range crdt.ReplicaID(100) {
		acked[r+1] = crdt.VectorEntry{Seq: 1 << 40, Stamp: 1 << 60, Hash: [32]byte{1}}
	}
	var all []store.Member
	for r := range crdt.ReplicaID(100) {
		all = append(all, signedBy(k, store.Member{Replica: r + 1, Node: "m", At: 5, Acked: acked}))
	}
	for _, seen := range []bool{false, true} {
		b.Run(map[bool]string{false: "new", true: "seen"}[seen], func(b *testing.B) {
			w := words{last: map[crdt.ReplicaID]word{}}
			for range b.N {
				if !seen {
					clear(w.last)
				}
				for _, m := range all {
					if _, _, err := w.check(testVolume, m, o); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
