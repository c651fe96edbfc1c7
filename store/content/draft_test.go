package content

import (
	"errors"
	"io"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// A draftModel is a draft, its expected bytes, and what a caller records.
type draftModel struct {
	dir   string
	index *memIndex
	store *Store
	draft *Draft
	base  Base
	limit int64 // the recorded base limit
	want  []byte
	seed  uint64
}

const modelMax = 4*BlockSize + 5000

// drawOffset prefers the neighbourhood of block boundaries.
func drawOffset(t *rapid.T, limit int, label string) int {
	if rapid.Bool().Draw(t, label+" near boundary") {
		off := rapid.IntRange(0, limit/BlockSize).Draw(t, label+" block")*BlockSize +
			rapid.IntRange(-2, 2).Draw(t, label+" distance")
		return min(max(off, 0), limit)
	}
	return rapid.IntRange(0, limit).Draw(t, label)
}

func drawRange(t *rapid.T, limit int) (off, n int) {
	a, b := drawOffset(t, limit, "off"), drawOffset(t, limit, "end")
	return min(a, b), max(a, b) - min(a, b)
}

func (m *draftModel) grow(n int) {
	if n > len(m.want) {
		m.want = append(m.want, make([]byte, n-len(m.want))...)
	}
}

func (m *draftModel) write(t *rapid.T) {
	off, n := drawRange(t, modelMax)
	if n == 0 {
		return
	}
	if rapid.Bool().Draw(t, "small") {
		n = min(n, 100)
	}
	m.seed++
	b := noise(m.seed, n)
	if rapid.IntRange(0, 4).Draw(t, "zeros") == 0 {
		clear(b)
	}
	must(m.draft.WriteAt(b, int64(off)))(t)
	m.grow(off + n)
	copy(m.want[off:], b)
}

func (m *draftModel) truncate(t *rapid.T) {
	n := drawOffset(t, modelMax, "size")
	check(t, m.draft.Truncate(int64(n)))
	m.want = m.want[:min(n, len(m.want))]
	m.grow(n)
	m.limit = m.draft.BaseLimit()
}

func (m *draftModel) zero(t *rapid.T) {
	off, n := drawRange(t, modelMax)
	if n == 0 {
		return
	}
	switch rapid.SampledFrom([]string{"punch", "zero", "zero keep", "allocate", "allocate keep"}).Draw(t, "how") {
	case "punch":
		check(t, m.draft.PunchHole(int64(off), int64(n)))
	case "zero":
		check(t, m.draft.ZeroRange(int64(off), int64(n), false))
		m.grow(off + n)
	case "zero keep":
		check(t, m.draft.ZeroRange(int64(off), int64(n), true))
	case "allocate":
		check(t, m.draft.Allocate(int64(off), int64(n), false))
		m.grow(off + n)
		return
	case "allocate keep":
		check(t, m.draft.Allocate(int64(off), int64(n), true))
		return
	}
	if off < len(m.want) {
		clear(m.want[off:min(off+n, len(m.want))])
	}
}

func (m *draftModel) publish(t *rapid.T) {
	inlineLimit := rapid.SampledFrom([]int{0, 1000, BlockSize}).Draw(t, "inline limit")
	final := rapid.Bool().Draw(t, "final")
	if rapid.IntRange(0, 2).Draw(t, "fail first") == 0 {
		m.index.failBlocks = rapid.IntRange(0, 1).Draw(t, "failing blocks")
		m.index.failManifests = 1 - m.index.failBlocks
		p, err := m.draft.Publish(final, inlineLimit)
		m.index.failBlocks, m.index.failManifests = 0, 0
		if err == nil {
			m.published(t, p, final)
			return
		}
		m.check(t)
		if rapid.Bool().Draw(t, "go on after failure") {
			return
		}
	}
	m.published(t, must(m.draft.Publish(final, inlineLimit))(t), final)
}

func (m *draftModel) published(t *rapid.T, p Published, final bool) {
	if p.Size != int64(len(m.want)) {
		t.Fatalf("published %d bytes, want %d", p.Size, len(m.want))
	}
	base := Base{Inline: p.Inline, Manifest: p.Manifest}
	if p.Manifest == nil {
		wantBytes(t, p.Inline, m.want)
	} else {
		wantBytes(t, contentOf(t, m.store, p.Manifest), m.want)
		m.checkBlocks(t, p.Manifest)
	}
	if !final {
		return
	}
	if rapid.Bool().Draw(t, "crash before it is recorded") {
		m.reopen(t)
		m.check(t)
		return
	}
	check(t, m.draft.Remove())
	m.base, m.limit = base, p.Size
	m.draft = must(m.store.CreateDraft("d", base, p.Size, p.Size))(t)
	m.limit = m.draft.BaseLimit()
}

// checkBlocks checks that all blocks are here and have their hashes.
func (m *draftModel) checkBlocks(t *rapid.T, manifest *Manifest) {
	if missing := must(m.store.Missing(manifest))(t); len(missing) > 0 {
		t.Fatalf("%d blocks are missing", len(missing))
	}
	for i, h := range manifest.Blocks() {
		if b := must(m.store.Block(h))(t); len(b) != manifest.BlockLength(i) {
			t.Fatalf("block %d has %d bytes, want %d", i, len(b), manifest.BlockLength(i))
		}
	}
}

// reopen is a crash of the process and a restart.
func (m *draftModel) reopen(t *rapid.T) {
	m.draft.Close()
	m.store.Close()
	m.store = must(Open(m.dir, m.index))(t)
	m.draft = must(m.store.OpenDraft("d", m.base, m.limit))(t)
}

func (m *draftModel) check(t *rapid.T) {
	wantBytes(t, draftBytes(t, m.draft), m.want)
	for off := int64(0); off < int64(len(m.want)); {
		kind, end, err := m.draft.Extent(off)
		check(t, err)
		if end <= off || end > int64(len(m.want)) {
			t.Fatalf("extent at %d ends at %d", off, end)
		}
		if kind == Hole {
			wantBytes(t, m.want[off:end], make([]byte, end-off))
		}
		off = end
	}
}

func TestDraftBehavesLikeBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir := must(os.MkdirTemp("", "content"))(t)
		defer os.RemoveAll(dir)
		m := &draftModel{dir: dir, index: newMemIndex()}
		m.store = must(Open(dir, m.index))(t)
		m.draft = must(m.store.CreateDraft("d", Base{}, 0, 0))(t)
		defer func() { m.draft.Close(); m.store.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"write":    m.write,
			"truncate": m.truncate,
			"zero":     m.zero,
			"publish":  m.publish,
			"reopen":   m.reopen,
			"":         m.check,
		})
	})
}

func TestDraftReadsLikeAFile(t *testing.T) {
	s, _ := openStore(t)
	d := must(s.CreateDraft("d", Base{Inline: []byte("hello")}, 5, 7))(t)
	defer d.Close()
	b := make([]byte, 10)
	n, err := d.ReadAt(b, 3)
	if string(b[:n]) != "lo\x00\x00" || err != io.EOF {
		t.Fatalf("read %q, %v", b[:n], err)
	}
	if n, err := d.ReadAt(b, 7); n != 0 || err != io.EOF {
		t.Fatalf("read %d, %v at the end", n, err)
	}
}

func TestDraftNames(t *testing.T) {
	s, _ := openStore(t)
	for _, name := range []string{"", ".", "..", "a/b", "/"} {
		if _, err := s.CreateDraft(name, Base{}, 0, 0); !errors.Is(err, unix.EINVAL) {
			t.Errorf("create %q: %v", name, err)
		}
	}
	if _, err := s.OpenDraft("absent", Base{}, 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("open an absent draft: %v", err)
	}
}

func TestDraftConcurrentUse(t *testing.T) {
	s, _ := openStore(t)
	m := publishBytes(t, s, noise(1, 3*BlockSize))
	d := must(s.CreateDraft("d", Base{Manifest: m}, m.Size(), m.Size()))(t)
	defer d.Close()
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for i := range 50 {
				b := []byte{byte(w + 1)}
				_, writeErr := d.WriteAt(b, int64(w*BlockSize+i))
				_, readErr := d.ReadAt(b, int64(w*BlockSize+i))
				if b[0] != byte(w+1) || writeErr != nil || readErr != nil {
					t.Errorf("writer %d read %d: %v, %v", w, b[0], writeErr, readErr)
				}
			}
		})
	}
	for range 20 {
		p := must(d.Publish(false, 0))(t)
		contentOf(t, s, p.Manifest)
		check(t, d.Sync())
	}
	wg.Wait()
}
