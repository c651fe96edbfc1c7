package store

import (
	"fmt"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// many are the members of a volume on n nodes, each of which has written.
func many(n int, at time.Time) (out []Member) {
	acked := crdt.Vector{}
	for id := range n {
		acked[crdt.ReplicaID(1000+id)] = crdt.VectorEntry{Seq: 7, Stamp: 8, Hash: [32]byte{9}}
	}
	for id := range n {
		out = append(out, Member{Replica: crdt.ReplicaID(1000 + id), Node: fmt.Sprint("node-", id), At: at.UnixNano(), Acked: acked})
	}
	return out
}

// TestP13RosterOfManyNodes: it is more than a transaction takes.
func TestP13RosterOfManyNodes(t *testing.T) {
	var clock aheadClock
	v := volumeWith(t, NewVolumeID(), Options{Now: clock.now})
	v.Hear(many(300, clock.now()))
	if _, err := v.Speak("here"); err != nil {
		t.Fatal(err)
	}
	v = reopen(t, v)
	if got := len(v.Roster()); got != 300 {
		t.Errorf("%d replicas after a restart", got)
	}
}

// TestP13MembersThatAreOutAreForgotten: but not that they are out.
func TestP13MembersThatAreOutAreForgotten(t *testing.T) {
	clock, vs := cluster(t, 1, Options{})
	v := vs[0]
	v.Hear(many(3, clock.Now()))
	_, err := v.Speak("here")
	check(t, err, nil)
	clock.pass(week + time.Hour)
	check(t, v.Tidy(), nil)
	if k := v.keeping(); k.Out != 3 || k.Counting != 0 {
		t.Fatalf("%+v", k)
	}
	clock.pass(forgetFactor * week)
	check(t, v.Tidy(), nil)
	v = reopen(t, v)
	v.Hear(many(3, clock.Now()))
	if k := v.keeping(); k.Out != 0 || k.Counting != 0 || keysOf(t, v, 'y') != 1 {
		t.Errorf("%+v, %d records", k, keysOf(t, v, 'y'))
	}
}

// TestClockThatIsSetAfterTheStart puts nobody out: what passes for a peer's
// silence is what this daemon has seen of it.
func TestClockThatIsSetAfterTheStart(t *testing.T) {
	v := volumeWith(t, NewVolumeID(), Options{})
	v.Hear(many(1, time.Now()))
	v = reopen(t, v)
	for _, m := range v.roster.members {
		if wall := m.heard.Round(0); m.heard == wall {
			t.Error("silence is measured by the wall clock")
		}
		if ago := time.Since(m.heard); ago < 0 || ago > time.Minute {
			t.Errorf("heard %v ago", ago)
		}
	}
}
