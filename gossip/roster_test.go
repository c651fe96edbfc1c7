package gossip

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// TestP13RosterOfManyNodes: frames that are too long, or have too many members,
// end the link, each time anew.
func TestP13RosterOfManyNodes(t *testing.T) {
	for _, wrote := range []int{0, 1500} {
		acked := crdt.Vector{}
		for r := range wrote {
			acked[crdt.ReplicaID(r+1)] = crdt.VectorEntry{Seq: 1 << 60, Stamp: 1 << 60, Hash: [32]byte{1}}
		}
		var members []store.Member
		for r := range 1500 {
			members = append(members, store.Member{Replica: crdt.ReplicaID(r + 1), Node: fmt.Sprint("node-", r), At: 1, Acked: acked})
		}
		s := newScript(t, true, at(3), "b")
		s.get("b", holds(true, at(3)))
		n := 0
		for _, e := range s.do(Spoke{Volume: testVolume, Members: members}) {
			send, ok := e.(Send)
			if !ok {
				continue
			}
			r, ok := send.Message.(Roster)
			if !ok {
				continue
			}
			frame := toWire(r)
			if size := proto.Size(frame); size > maxFrame/2 {
				t.Fatalf("a frame of %d bytes", size)
			}
			if _, err := fromWire(frame); err != nil {
				t.Fatal(err)
			}
			for _, m := range r.Members {
				if n++; m.Replica != crdt.ReplicaID(n) {
					t.Fatalf("member %d comes at %d", m.Replica, n)
				}
			}
		}
		if n != len(members) {
			t.Errorf("%d members were sent", n)
		}
	}
}

// TestP13MemberThatIsTooLong is refused: kept and passed on, it would keep every
// node from saving its roster.
func TestP13MemberThatIsTooLong(t *testing.T) {
	long := crdt.Vector{}
	var out []crdt.ReplicaID
	for r := range maxNames + 1 {
		long[crdt.ReplicaID(r+1)] = crdt.VectorEntry{Seq: 1}
		out = append(out, crdt.ReplicaID(r+1))
	}
	for _, m := range []store.Member{
		{Replica: 1, Node: strings.Repeat("n", maxNode+1)}, {Replica: 1, Acked: long}, {Replica: 1, Out: out},
	} {
		if _, err := fromWire(toWire(Roster{Volume: testVolume, Members: []store.Member{m}})); !errors.Is(err, errMalformed) {
			t.Errorf("node of %d bytes, %d acked, %d out: %v", len(m.Node), len(m.Acked), len(m.Out), err)
		}
	}
}
