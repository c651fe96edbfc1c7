package gossip

import (
	"errors"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/synapsefs/synapsefs/internal/wire"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// FuzzFrame: a frame that decodes to a message is one that this node could have
// sent, and a bad one is an error.
func FuzzFrame(f *testing.F) {
	v := crdt.Vector{1: {Seq: 2, Hash: [32]byte{3}}, 4: {Seq: 5}}
	for _, m := range []Message{
		Holdings{All: true, Changed: []Holding{{Volume: testVolume, Replica: 7, Ready: true, Vector: v}}, Dropped: []store.VolumeID{{9}}},
		Digest{testVolume, v}, Pull{testVolume, v, 1 << 20}, PullDone{testVolume, true}, SnapshotNeeded{testVolume},
		IdentityRequest{testVolume, []crdt.ReplicaID{1, 2}},
		Roster{Volume: testVolume, Members: []store.Member{
			{Replica: 7, Node: "a"}, {Replica: 8, Node: "b", At: 5, Acked: v, Committed: 2, Out: []crdt.ReplicaID{9, 3}, Signature: []byte{1, 2}},
		}},
	} {
		b, err := proto.Marshal(toWire(m))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var frame wire.Frame
		if proto.Unmarshal(b, &frame) != nil {
			return
		}
		m, err := fromWire(&frame)
		if err != nil && !errors.Is(err, errMalformed) {
			t.Fatal(err)
		}
		if err != nil || m == nil {
			return
		}
		again, err := fromWire(toWire(m))
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Fatalf("%#v came back as %#v, error %v", m, again, err)
		}
	})
}

// FuzzDecodeIdentity: what decodes, encodes to a record of the same identity.
func FuzzDecodeIdentity(f *testing.F) {
	i := &Identity{Volume: testVolume, Replica: 7, Chain: [][]byte{{1, 2}, {3}}, Signature: []byte{4}}
	f.Add(i.Encode())
	long, err := proto.Marshal(&wire.Identity{Volume: make([]byte, 17), Replica: 7})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(long)
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := DecodeIdentity(b)
		if err != nil {
			if !errors.Is(err, ErrIdentity) {
				t.Fatal(err)
			}
			return
		}
		var w wire.Identity
		if err := proto.Unmarshal(b, &w); err != nil || len(w.GetVolume()) != len(i.Volume) {
			t.Fatalf("a volume id of %d bytes: %v", len(w.GetVolume()), err)
		}
		again, err := DecodeIdentity(i.Encode())
		if err != nil || !reflect.DeepEqual(i, again) {
			t.Fatalf("%+v came back as %+v, error %v", i, again, err)
		}
	})
}
