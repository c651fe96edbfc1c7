package fusefs

import (
	"bytes"
	"crypto/sha256"
	"reflect"
	"testing"
)

// P9: what a daemon leaves of the kernel's nodes is read as it was written, by the
// daemon that comes next on the connection, and only whole.
func TestP9KnownNodesAreReadAsTheyWereWritten(t *testing.T) {
	const epoch, generation = 7, 3
	told := []toldNode{
		{2, knownNode{ino: 2, mode: 0o755, uid: 1, gid: 2, dir: true}, true},
		{1 << 63, knownNode{ino: 3, mode: 0o644}, false},
		{aliasNode | 1, knownNode{ino: 4, dir: true}, false},
		{5, knownNode{ino: 5}, true},
	}
	whole := encodeKnown(epoch, generation, told)
	if got, ok := decodeKnown(whole, epoch, generation); !ok || !reflect.DeepEqual(got, told) {
		t.Fatalf("%+v became %+v, %v", told, got, ok)
	}
	if got, ok := decodeKnown(encodeKnown(epoch, generation, nil), epoch, generation); !ok || len(got) != 0 {
		t.Errorf("nothing became %+v, %v", got, ok)
	}
	refused := func(what string, b []byte, epoch, generation uint64) {
		t.Helper()
		if got, ok := decodeKnown(b, epoch, generation); ok {
			t.Errorf("%s: taken as %+v", what, got)
		}
	}
	refused("another connection", whole, epoch+1, generation)
	refused("a daemon before", whole, epoch, generation+1)
	refused("a daemon after", whole, epoch, generation-1)
	for n := range whole {
		refused("cut off", whole[:n], epoch, generation)
		flipped := bytes.Clone(whole)
		flipped[n] ^= 1 << (n % 8)
		refused("flipped", flipped, epoch, generation)
	}
	resum := func(b []byte) []byte { // whole, as another program writes it
		sum := sha256.Sum256(b)
		return append(bytes.Clone(b), sum[:]...)
	}
	body := whole[:len(whole)-sha256.Size]
	refused("with longer records", resum(append(bytes.Clone(body), make([]byte, 8)...)), epoch, generation)
	other := bytes.Clone(body)
	other[0]++
	refused("of another format", resum(other), epoch, generation)
	refused("two", append(bytes.Clone(whole), whole...), epoch, generation)
}
