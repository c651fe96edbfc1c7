package sim

import (
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"
)

// programOf makes a program of any bytes.
func programOf(data []byte) Program {
	var p Program
	word := func() (w uint64) {
		var b [8]byte
		n := copy(b[:], data)
		data = data[n:]
		return binary.LittleEndian.Uint64(b[:])
	}
	for p.Seed = word(); len(data) > 0 && len(p.Words) < 64; {
		p.Words = append(p.Words, word())
	}
	return p
}

// FuzzSim plays programs that are made of bytes.
func FuzzSim(f *testing.F) {
	for seed := uint64(1); seed <= 8; seed++ {
		p := FromSeed(seed)
		data := binary.LittleEndian.AppendUint64(nil, p.Seed)
		for _, w := range p.Words {
			data = binary.LittleEndian.AppendUint64(data, w)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p := programOf(data)
		if r := Run(p, nil); r.Err != nil {
			t.Fatalf("%v\nseed %d\n%v", r.Err, p.Seed, p)
		}
	})
}

// TestP4Programs lets rapid draw the programs, and make those that fail smaller.
func TestP4Programs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Program{Seed: rapid.Uint64().Draw(t, "seed"), Words: rapid.SliceOfN(rapid.Uint64(), 0, 40).Draw(t, "words")}
		if r := Run(p, nil); r.Err != nil {
			t.Fatalf("%v\n%v", r.Err, p)
		}
	})
}
