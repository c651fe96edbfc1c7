package content

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// FuzzSlots opens files of small drafts that hold anything.
func FuzzSlots(f *testing.F) {
	path := filepath.Join(f.TempDir(), "slots")
	s, err := openSlots(path)
	if err != nil {
		f.Fatal(err)
	}
	n, _ := s.take("name")
	if err := s.putHeader(n, "name", 5, &crdt.Time{Sec: 1, Nsec: 2}); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:20])
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		slots, err := openSlots(path)
		if err != nil {
			t.Fatal(err)
		}
		defer slots.f.Close()
		store := &Store{slots: slots}
		for name := range slots.used {
			d, ok, err := store.OpenSmallDraft(name)
			if err != nil || !ok || d.Size() > SmallLimit {
				t.Fatalf("draft %q: there %v, error %v", name, ok, err)
			}
		}
	})
}
