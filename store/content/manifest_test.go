package content

import (
	"bytes"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
	"pgregory.net/rapid"
)

func TestManifestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(0, 40*BlockSize).Draw(t, "size")
		hashes := make([]crdt.Hash, blockCount(size))
		for i := range hashes {
			hashes[i][5] = rapid.ByteRange(0, 2).Draw(t, "hash")
		}
		m := must(NewManifest(size, hashes))(t)
		encoded, _ := m.Encode()
		back := must(DecodeManifest(encoded))(t)
		again, _ := back.Encode()
		if !bytes.Equal(encoded, again) || back.Size() != size {
			t.Fatalf("%x became %x", encoded, again)
		}
		for i, h := range hashes {
			if back.Block(int64(i)) != h {
				t.Fatalf("block %d is %x, want %x", i, back.Block(int64(i)), h)
			}
		}
		checkManifestExtents(t, back)
	})
}

func checkManifestExtents(t tester, m *Manifest) {
	for off := int64(0); off < m.Size(); {
		kind, end := m.Extent(off)
		if end <= off || end > m.Size() {
			t.Fatalf("extent at %d ends at %d", off, end)
		}
		for i := off / BlockSize; i*BlockSize < end; i++ {
			if isData := m.Block(i) != (crdt.Hash{}); isData != (kind == Data) {
				t.Fatalf("block %d in an extent of kind %d", i, kind)
			}
		}
		off = end
	}
}

func TestManifestRefusesHostileBytes(t *testing.T) {
	h := bytes.Repeat([]byte{7}, 32)
	for name, b := range map[string][]byte{
		"empty":               {},
		"unknown version":     {2, 0},
		"no size":             {1},
		"size not minimal":    {1, 0x80, 0},
		"size past int64":     {1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
		"run in empty file":   append([]byte{1, 0, 0, 1}, h...),
		"run past the end":    append([]byte{1, 1, 1, 1}, h...),
		"empty run":           {1, 1, 0, 0},
		"run cut short":       append([]byte{1, 1, 0, 1}, h[:31]...),
		"hole in run":         append([]byte{1, 1, 0, 1}, make([]byte, 32)...),
		"huge run":            {1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
		"runs that touch":     append(append([]byte{1, 0x81, 0x80, 0x40, 0, 1}, h...), append([]byte{0, 1}, h...)...),
		"bytes after the end": append(append([]byte{1, 1, 0, 1}, h...), 0),
	} {
		if _, err := DecodeManifest(b); !errors.Is(err, ErrBadManifest) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestManifestOfGreatestSize(t *testing.T) {
	m := &Manifest{size: math.MaxInt64}
	m.append(manifestBlock{blockCount(math.MaxInt64) - 1, crdt.Hash{1}})
	encoded, _ := m.Encode()
	m = must(DecodeManifest(encoded))(t)
	if kind, end := m.Extent(math.MaxInt64 - 5); kind != Data || end != math.MaxInt64 {
		t.Fatalf("last extent is %d up to %d", kind, end)
	}
	if kind, end := m.Extent(0); kind != Hole || end != math.MaxInt64-BlockSize+1 {
		t.Fatalf("first extent is %d up to %d", kind, end)
	}
}

func FuzzDecodeManifest(f *testing.F) {
	full := largeManifest(3 * BlockSize)
	encoded, _ := full.Encode()
	f.Add(encoded)
	f.Add([]byte{1, 0})
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0x7f, 3, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeManifest(b)
		if err != nil {
			return
		}
		if again, _ := m.Encode(); !bytes.Equal(again, b) {
			t.Fatalf("%x is not canonical: %x", b, again)
		}
	})
}

// largeManifest makes up a manifest without holes.
func largeManifest(size int64) *Manifest {
	m := &Manifest{size: size}
	for i := range blockCount(size) {
		m.append(manifestBlock{i, crdt.Hash{1, byte(i), byte(i >> 8)}})
	}
	return m
}

func TestManifestOf10GiBIsQuick(t *testing.T) {
	m := largeManifest(10 << 30)
	start := time.Now()
	encoded, _ := m.Encode()
	must(DecodeManifest(encoded))(t)
	if d := time.Since(start); d > 100*time.Millisecond {
		t.Errorf("encoding and decoding took %v", d)
	}
}

func BenchmarkManifest10GiB(b *testing.B) {
	m := largeManifest(10 << 30)
	for b.Loop() {
		encoded, _ := m.Encode()
		must(DecodeManifest(encoded))(b)
	}
}
