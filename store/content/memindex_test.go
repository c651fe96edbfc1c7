package content

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/synapsefs/synapsefs/store/crdt"
)

var errInjected = errors.New("injected")

// memIndex is an Index in memory.
type memIndex struct {
	mu            sync.Mutex
	blocks        map[crdt.Hash]Location
	manifests     map[crdt.Hash][]byte
	failBlocks    int // that many PutBlocks fail, half done
	failManifests int
}

func newMemIndex() *memIndex {
	return &memIndex{blocks: make(map[crdt.Hash]Location), manifests: make(map[crdt.Hash][]byte)}
}

func (x *memIndex) Block(h crdt.Hash) (Location, bool, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	l, ok := x.blocks[h]
	return l, ok, nil
}

func (x *memIndex) PutBlocks(entries []IndexEntry) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var err error
	if x.failBlocks > 0 {
		x.failBlocks--
		entries, err = entries[:len(entries)/2], errInjected
	}
	for _, e := range entries {
		x.blocks[e.Hash] = e.Location
	}
	return err
}

func (x *memIndex) Manifest(h crdt.Hash) ([]byte, bool, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	b, ok := x.manifests[h]
	return b, ok, nil
}

func (x *memIndex) PutManifest(h crdt.Hash, encoded []byte) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.failManifests > 0 {
		x.failManifests--
		return errInjected
	}
	x.manifests[h] = bytes.Clone(encoded)
	return nil
}

type tester interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func must[T any](v T, err error) func(tester) T {
	return func(t tester) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t tester, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openStore(t testing.TB) (*Store, *memIndex) {
	t.Helper()
	index := newMemIndex()
	s := must(Open(t.TempDir(), index))(t)
	t.Cleanup(func() { check(t, s.Close()) })
	return s, index
}

// noise returns n bytes that do not repeat.
func noise(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return b
}

// publishBytes makes a version with the given bytes.
func publishBytes(t tester, s *Store, b []byte) *Manifest {
	t.Helper()
	d := must(s.CreateDraft("publish-bytes", Base{}, 0, 0))(t)
	must(d.WriteAt(b, 0))(t)
	p := must(d.Publish(true, 0))(t)
	check(t, d.Remove())
	return p.Manifest
}

func contentOf(t tester, s *Store, m *Manifest) []byte {
	t.Helper()
	b := make([]byte, m.Size())
	if n, err := s.ReadAt(m, b, 0); n != len(b) || err != nil && len(b) > 0 {
		t.Fatalf("read %d of %d bytes: %v", n, len(b), err)
	}
	return b
}

func draftBytes(t tester, d *Draft) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	if n, err := d.ReadAt(b, 0); n != len(b) || err != nil && len(b) > 0 {
		t.Fatalf("read %d of %d bytes: %v", n, len(b), err)
	}
	return b
}

func wantBytes(t tester, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Fatalf("%d bytes, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("byte %d (block %d + %d) is %#x, want %#x", i, i/BlockSize, i%BlockSize, got[i], want[i])
		}
	}
}
