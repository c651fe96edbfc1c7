package content

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// An adopted is a file that kernels read, the draft that it is now and then, and
// every version that was published of it.
type adopted struct {
	store    *Store
	file     *os.File // what kernels have
	link     *FileID
	draft    *DirectDraft // nil: none
	shown    *Manifest    // of what was published last; nil: inline
	want     []byte
	versions map[*Manifest][]byte
	seed     uint64
}

func newAdopted(t tester, s *Store, b []byte) *adopted {
	m := publishBytes(t, s, b)
	f, id, ok, err := s.Whole(m)
	check(t, err)
	if !ok {
		t.Fatalf("what was written at once is in no file of its own")
	}
	return &adopted{store: s, file: f, link: &id, shown: m, want: b, versions: map[*Manifest][]byte{m: b}}
}

// open is an open for writing, and reports whether the writer comes to us.
func (a *adopted) open(t tester, w Writing) (byUs bool) {
	if a.draft == nil {
		a.draft = must(a.store.AdoptDraft("d", a.file, a.link))(t)
		check(t, a.draft.MarkClean(crdt.Time{Sec: 5}))
		if a.shown != nil {
			check(t, a.draft.Track(a.shown))
		}
	}
	return must(a.draft.Writer(w))(t)
}

func (a *adopted) write(t tester, byUs bool, b []byte, off int) {
	if byUs {
		must(a.draft.WriteAt(b, int64(off)))(t)
	} else {
		f := must(os.OpenFile(a.store.draftPath("d"), os.O_RDWR, 0))(t)
		must(f.WriteAt(b, int64(off)))(t)
		check(t, f.Close())
	}
	grown := append([]byte{}, a.want...)
	if n := off + len(b) - len(grown); n > 0 {
		grown = append(grown, make([]byte, n)...)
	}
	copy(grown[off:], b)
	a.want = grown
}

func (a *adopted) truncate(t tester, n int) {
	check(t, a.draft.Truncate(int64(n)))
	a.want = append(append([]byte{}, a.want[:min(n, len(a.want))]...), make([]byte, max(0, n-len(a.want)))...)
}

// publish publishes; finally, it ends the draft. Kernels keep the file.
func (a *adopted) publish(t tester, final bool) {
	p := must(a.draft.Publish(final, 1000))(t)
	if a.shown = p.Manifest; p.Manifest == nil {
		wantBytes(t, p.Inline, a.want)
	} else {
		a.versions[p.Manifest] = a.want
	}
	a.draft.Recorded()
	if final {
		a.link = a.draft.Link()
		check(t, a.draft.Close())
		a.draft = nil
	}
}

// check compares all versions, and what kernels read.
func (a *adopted) check(t tester) {
	for m, want := range a.versions {
		wantBytes(t, contentOf(t, a.store, m), want)
	}
	got := make([]byte, len(a.want)+1)
	n, _ := a.file.ReadAt(got, 0)
	wantBytes(t, got[:n], a.want)
}

// TestAdoptedDrafts: whoever writes a file that kernels read, and however, each
// published version keeps its bytes and the next one is what the file holds.
func TestAdoptedDrafts(t *testing.T) {
	top := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		s := must(Open(must(os.MkdirTemp(top, ""))(t), newMemIndex()))(t)
		defer func() { check(t, s.Close()) }()
		a := newAdopted(t, s, noise(1, 2*BlockSize+rapid.IntRange(0, BlockSize).Draw(t, "size")))
		defer a.file.Close()
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			w := rapid.SampledFrom([]Writing{WritesAtEnd, WritesAtEnd, WritesByCall, WritesAnywhere}).Draw(t, "writer")
			byUs := a.open(t, w)
			for range rapid.IntRange(0, 3).Draw(t, "writes") {
				off := len(a.want)
				if w != WritesAtEnd {
					off = drawOffset(t, 3*BlockSize, "off")
				}
				a.seed++
				n := rapid.SampledFrom([]int{1, 100, BlockSize}).Draw(t, "length")
				a.write(t, byUs, noise(a.seed+100, n), off)
			}
			if w != WritesAtEnd && rapid.IntRange(0, 3).Draw(t, "truncate") == 0 {
				a.truncate(t, drawOffset(t, 3*BlockSize, "to"))
			}
			if rapid.Bool().Draw(t, "publish") {
				a.publish(t, rapid.Bool().Draw(t, "final"))
			}
			a.check(t)
		}
	})
}

// TestAppendsAreNotCopied: a line at the end of a file that kernels read costs
// the disk the line, and leaves the file an immutable one that has all.
func TestAppendsAreNotCopied(t *testing.T) {
	s, _ := openStore(t)
	a := newAdopted(t, s, noise(1, 3*BlockSize+7))
	defer a.file.Close()
	_, before := storedFiles(t, s)
	for range 20 {
		if byUs := a.open(t, WritesAtEnd); !byUs {
			t.Fatal("it is to be written past us")
		}
		a.write(t, true, noise(2, 100), len(a.want))
		a.publish(t, true)
	}
	a.check(t)
	n, after := storedFiles(t, s)
	if n != 1 || after > before+2<<12 {
		t.Errorf("%d files of %d bytes, was one of %d", n, after, before)
	}
	f, id, ok, err := s.Whole(a.shown)
	check(t, err)
	if !ok || id != *a.link {
		t.Fatalf("the file is no whole one any more")
	}
	check(t, f.Close())

	// A change within has the immutable file copied, once.
	for i := range 5 {
		byUs := a.open(t, WritesByCall)
		a.write(t, byUs, noise(uint64(i), 10), 2*BlockSize+i)
		a.publish(t, true)
	}
	a.check(t)
	if n, after := storedFiles(t, s); n > 6 || after > before+6*BlockSize {
		t.Errorf("%d files of %d bytes after changes within one block", n, after)
	}
}

// TestMappingAfterPublication: a store through a mapping is seen although its
// page was dirty already when the draft was published.
func TestMappingAfterPublication(t *testing.T) {
	s, _ := openStore(t)
	a := newAdopted(t, s, noise(1, 2*BlockSize))
	defer a.file.Close()
	a.open(t, WritesAnywhere)
	f := must(os.OpenFile(s.draftPath("d"), os.O_RDWR, 0))(t)
	m := must(unix.Mmap(int(f.Fd()), 0, 2*BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED))(t)
	defer func() { check(t, unix.Munmap(m)) }()
	check(t, f.Close())
	for round := range byte(5) {
		m[5] = round + 1 // the first faults, and dirties the page
		a.want = append([]byte{}, m...)
		a.publish(t, false)
		m[6] = round + 1
		if _, _, changed, err := a.draft.Stat(); err != nil || !changed {
			t.Fatalf("round %d: the store is not seen, %v", round, err)
		}
		a.want = append([]byte{}, m...)
		a.publish(t, false)
		a.check(t)
	}
	check(t, a.draft.Close())
}

// TestP9AdoptKeepsTheName: a daemon that dies while it adopts a file leaves it
// under the name by which the next one looks for it.
func TestP9AdoptKeepsTheName(t *testing.T) {
	s, _ := openStore(t)
	d := must(s.CreateDirectDraft("d", crdt.Time{}))(t)
	must(d.WriteAt([]byte("text"), 3*BlockSize))(t)
	must(d.Publish(true, 0))(t)
	link := d.Link()
	if link == nil {
		t.Fatal("it has not become an immutable file")
	}
	f := must(d.Open())(t)
	check(t, d.Close())
	before := changedAt(t, f)
	again := must(s.AdoptDraft("d", f, link))(t)
	if after := changedAt(t, f); after != before {
		t.Errorf("its names have changed at %v, not only at %v", after, before)
	}
	check(t, again.Close())
	check(t, f.Close())
}

func changedAt(t *testing.T, f *os.File) unix.Timespec {
	t.Helper()
	var st unix.Stat_t
	check(t, unix.Fstat(int(f.Fd()), &st))
	return st.Ctim
}
