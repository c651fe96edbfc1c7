package content

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/synapsefs/synapsefs/store/crdt"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

func TestIncomingFromPeer(t *testing.T) {
	from, _ := openStore(t)
	to, _ := openStore(t)
	want := noise(1, 3*BlockSize+10)
	clear(want[BlockSize : 2*BlockSize])
	m := publishBytes(t, from, want)

	var missing *MissingBlockError
	if _, err := to.ReadAt(m, make([]byte, 9), 0); !errors.As(err, &missing) || missing.Hash != m.Block(0) {
		t.Fatalf("read of a missing block: %v", err)
	}
	hashes := must(to.Missing(m))(t)
	if len(hashes) != 3 {
		t.Fatalf("%d blocks missing, want 3", len(hashes))
	}
	in := must(to.NewIncoming())(t)
	for _, h := range hashes {
		b := must(from.Block(h))(t)
		check(t, in.Put(h, b))
		check(t, in.Put(h, b))
	}
	if err := in.Put(hashes[0], []byte("other")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("put of bytes with another hash: %v", err)
	}
	if err := in.Put(crdt.Hash(blake3.Sum256(nil)), nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("put of no bytes: %v", err)
	}
	check(t, in.Commit())
	wantBytes(t, contentOf(t, to, m), want)
	if err := in.Commit(); !errors.Is(err, ErrClosed) {
		t.Errorf("second commit: %v", err)
	}
}

func TestIncomingCommitCanBeRetried(t *testing.T) {
	s, index := openStore(t)
	in := must(s.NewIncoming())(t)
	b := noise(1, 500)
	h := crdt.Hash(blake3.Sum256(b))
	check(t, in.Put(h, b))
	index.failBlocks = 1
	if err := in.Commit(); !errors.Is(err, errInjected) {
		t.Fatalf("commit: %v", err)
	}
	check(t, in.Commit())
	wantBytes(t, must(s.Block(h))(t), b)
}

func TestBlockDetectsRot(t *testing.T) {
	s, index := openStore(t)
	m := publishBytes(t, s, noise(1, 100))
	path := s.filePath(index.blocks[m.Block(0)].File)
	f := must(os.OpenFile(path, os.O_RDWR, 0))(t)
	must(f.WriteAt([]byte("rot"), 50))(t)
	check(t, f.Close())
	if _, err := s.Block(m.Block(0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("read of a rotten block: %v", err)
	}
}

func TestFileCacheIsBounded(t *testing.T) {
	s, _ := openStore(t)
	s.files.limit = 3
	var versions []*Manifest
	for i := range 10 {
		versions = append(versions, publishBytes(t, s, noise(uint64(i), 100)))
	}
	for range 2 {
		for i, m := range versions {
			wantBytes(t, contentOf(t, s, m), noise(uint64(i), 100))
		}
	}
	if n := s.files.recent.Len(); n != 3 || len(s.files.byID) != 3 {
		t.Errorf("%d files open, want 3", n)
	}
}

// storedFiles returns number and disk use in bytes of the immutable files.
func storedFiles(t tester, s *Store) (n int, disk int64) {
	for _, path := range must(filepath.Glob(filepath.Join(s.dir, "files", "*", "*")))(t) {
		var st unix.Stat_t
		check(t, unix.Stat(path, &st))
		n, disk = n+1, disk+st.Blocks*512
	}
	return n, disk
}

func TestPublishFromEmptyMakesNoCopy(t *testing.T) {
	s, _ := openStore(t)
	d := must(s.CreateDraft("d", Base{}, 0, 0))(t)
	must(d.WriteAt(noise(1, 2*BlockSize), 10*BlockSize))(t)
	must(d.WriteAt(make([]byte, BlockSize), 2*BlockSize))(t) // zeros take no disk once published
	check(t, d.Allocate(0, 30*BlockSize, true))
	var draft unix.Stat_t
	check(t, unix.Fstat(int(d.f.Fd()), &draft))
	p := must(d.Publish(true, 0))(t)
	var file unix.Stat_t
	check(t, unix.Stat(s.draftPath("d"), &file))
	if file.Ino != draft.Ino || file.Nlink != 2 {
		t.Errorf("draft has inode %d and %d links, had inode %d", file.Ino, file.Nlink, draft.Ino)
	}
	check(t, d.Remove())
	if p.Manifest.DataBytes() != 2*BlockSize {
		t.Errorf("%d bytes of data, want 2 MiB", p.Manifest.DataBytes())
	}
	if _, err := d.WriteAt([]byte{1}, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("write after final publish: %v", err)
	}
}

func TestPublishCopiesOnlyChangedBlocks(t *testing.T) {
	s, _ := openStore(t)
	d := must(s.CreateDraft("d", Base{}, 0, 0))(t)
	want := noise(1, 4*BlockSize)
	must(d.WriteAt(want, 0))(t)
	must(d.Publish(false, 0))(t)
	_, before := storedFiles(t, s)

	reads := 0
	s.fault = func(op string) error {
		if op == "read" {
			reads++
		}
		return nil
	}
	must(d.WriteAt([]byte("end"), 4*BlockSize))(t)
	want = append(want, "end"...)
	for _, final := range []bool{false, true} {
		p := must(d.Publish(final, 0))(t)
		wantBytes(t, contentOf(t, s, p.Manifest), want)
	}
	check(t, d.Remove())
	if reads != 1 {
		t.Errorf("read %d blocks, want 1", reads)
	}
	if _, after := storedFiles(t, s); after-before > 64<<10 {
		t.Errorf("3 bytes took %d bytes of disk", after-before)
	}
}

func TestPublishReusesBase(t *testing.T) {
	s, _ := openStore(t)
	want := noise(1, 3*BlockSize+100)
	m := publishBytes(t, s, want)
	d := must(s.CreateDraft("d", Base{Manifest: m}, m.Size(), m.Size()))(t)
	must(d.WriteAt([]byte("xyz"), BlockSize+5))(t)
	copy(want[BlockSize+5:], "xyz")
	check(t, d.Truncate(m.Size()+10)) // the last block gets another hash
	want = append(want, make([]byte, 10)...)
	p := must(d.Publish(true, 0))(t)
	wantBytes(t, contentOf(t, s, p.Manifest), want)
	same := []bool{true, false, true, false}
	for i, want := range same {
		if got := p.Manifest.Block(int64(i)) == m.Block(int64(i)); got != want {
			t.Errorf("block %d reused: %v, want %v", i, got, want)
		}
	}
	if b, ok := must2(s.Manifest(p.Hash))(t); !ok || b.Size() != p.Size {
		t.Error("manifest is not in the index")
	}
}

func must2[T, U any](v T, u U, err error) func(tester) (T, U) {
	return func(t tester) (T, U) {
		t.Helper()
		check(t, err)
		return v, u
	}
}

func TestPublishInline(t *testing.T) {
	s, _ := openStore(t)
	d := must(s.CreateDraft("d", Base{}, 0, 0))(t)
	must(d.WriteAt([]byte("abc"), 0))(t)
	p := must(d.Publish(false, 3))(t)
	if !bytes.Equal(p.Inline, []byte("abc")) || p.Hash != crdt.Hash(blake3.Sum256(p.Inline)) || p.Manifest != nil {
		t.Errorf("published %+v", p)
	}
	if p = must(d.Publish(true, 2))(t); p.Manifest == nil || p.Size != 3 {
		t.Errorf("published %+v", p)
	}
}
