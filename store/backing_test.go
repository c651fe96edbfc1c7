package store

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// backing is OpenBacking.
func backing(t testing.TB, v *Volume, node NodeID, h Handle, w Writing) (*Backing, bool) {
	t.Helper()
	b, byUs, err := v.OpenBacking(node, h, w)
	check(t, err, nil)
	return b, byUs
}

// past opens the file that kernels would have of a file that is open for
// writing, and writes to it.
func (w writing) past(text string, appends bool) {
	w.t.Helper()
	how := WritesAnywhere
	if appends {
		how = WritesAtEnd
	}
	b, byUs := backing(w.t, w.v, w.node, w.h, how)
	if b == nil {
		w.t.Fatal("it has no backing")
	}
	defer w.v.CloseBacking(b) //nolint:errcheck // of a test
	if byUs {
		w.write(text, must(w.v.Attr(w.node)).Size)
		return
	}
	f := must(os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", b.File().Fd()), os.O_RDWR|os.O_APPEND, 0))
	must(f.WriteString(text))
	check(w.t, f.Close(), nil)
}

// TestP8WrittenPastUs: what kernels wrote without us is published after a
// restart if it was closed or synced after the last write, and else is not.
func TestP8WrittenPastUs(t *testing.T) {
	for _, size := range []int{10, 200_000, 3 << 20} {
		text, more := noise(1, size), noise(2, size)
		old := text[:min(size, 300_000)] // short enough to be copied
		for _, c := range []struct {
			what string
			do   func(v *Volume)
			want string // of f; "": there is none
		}{
			{"closed", func(v *Volume) {
				w := create(t, v, root, "f")
				w.past(text, false)
				w.flush()
			}, text},
			{"written after the close", func(v *Volume) {
				w := create(t, v, root, "f")
				w.past(text, false)
				w.flush()
				w.past(more, false)
			}, ""},
			{"closed twice", func(v *Volume) {
				w := create(t, v, root, "f")
				w.past(text, false)
				w.flush()
				w.past(more, false)
				w.flush()
			}, text + more},
			{"not closed", func(v *Volume) { create(t, v, root, "f").past(text, false) }, ""},
			{"synced", func(v *Volume) {
				w := create(t, v, root, "f")
				w.past(text, false)
				check(t, v.Fsync(w.node), nil)
			}, text},
			{"rewritten", func(v *Volume) {
				write(t, v, root, "f", old)
				open(t, v, root, "f", true).past(more, false)
			}, old},
			{"rewritten, closed", func(v *Volume) {
				write(t, v, root, "f", old)
				w := open(t, v, root, "f", true)
				w.past(more, false)
				w.flush()
			}, more},
			{"appended", func(v *Volume) {
				write(t, v, root, "f", old)
				open(t, v, root, "f", false).past(more, true)
			}, old},
			{"appended, closed", func(v *Volume) {
				write(t, v, root, "f", old)
				w := open(t, v, root, "f", false)
				w.past(more, true)
				w.flush()
			}, old + more},
			{"appended, then touched", func(v *Volume) {
				write(t, v, root, "f", old)
				w := open(t, v, root, "f", false)
				w.past(more, true)
				w.flush()
				at := must(v.Attr(w.node)).Mtime
				at.Sec--
				must(v.SetAttr(Request{}, w.node, SetAttr{Mtime: &at}))
			}, old + more},
		} {
			t.Run(fmt.Sprint(c.what, size), func(t *testing.T) {
				v := volumeWith(t, NewVolumeID(), longHold)
				c.do(v)
				v = reopen(t, v)
				if c.want == "" {
					absent(t, v, root, "f")
				} else if got := read(t, v, root, "f"); got != c.want {
					t.Errorf("%d bytes, want %d", len(got), len(c.want))
				}
				left := must(v.db.content.Drafts())
				if len(left) != v.unfinished {
					t.Errorf("left over: %q, unfinished: %d", left, v.unfinished)
				}
			})
		}
	}
}

// TestBackingIsNobodyElses: what is written to a file that kernels read shows in
// no other file, version or replica of the same bytes.
func TestBackingIsNobodyElses(t *testing.T) {
	a, b := pair(t, longHold)
	text := noise(1, 2<<20)
	node := write(t, a, root, "f", text)
	twin := write(t, a, root, "twin", text)
	give(t, a, b)
	reader, _ := backing(t, a, node, 0, 0)
	if reader == nil {
		t.Fatal("a large file has no backing")
	}
	if other, _ := backing(t, a, twin, 0, 0); other != nil {
		t.Fatal("two nodes have one backing")
	}
	for round, seen := 1, text; round <= 3; round++ {
		w := open(t, a, root, "f", false)
		before := a.Vector()
		w.past("", false)
		if n := opsSince(t, a, before); n != 0 {
			t.Fatalf("%d ops of an open", n)
		}
		w.past("more", false)
		seen += "more"
		if got := w.read(); got != seen {
			t.Fatalf("round %d: here %d bytes, want %d", round, len(got), len(seen))
		}
		if got := string(must(io.ReadAll(io.NewSectionReader(reader.File(), 0, 1<<30)))); got != seen {
			t.Fatalf("round %d: the reader has %d bytes, want %d", round, len(got), len(seen))
		}
		if got := readNode(t, a, twin); got != text {
			t.Fatalf("round %d: the other file changed", round)
		}
		w.close()
		give(t, a, b)
		if got := read(t, b, root, "f"); got != seen {
			t.Fatalf("round %d: the peer has %d bytes, want %d", round, len(got), len(seen))
		}
	}
	check(t, a.CloseBacking(reader), nil)
	if left := must(a.db.content.Drafts()); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
	same(t, a, b)
}

// TestP2MappedIsNotPublished: who has a file open for writing past us, though
// he closed it, keeps it from being published.
func TestP2MappedIsNotPublished(t *testing.T) {
	v := volumeWith(t, NewVolumeID(), Options{})
	w := create(t, v, root, "f")
	backing, _ := backing(t, v, w.node, w.h, WritesAnywhere)
	f := must(os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", backing.File().Fd()), os.O_RDWR, 0))
	must(f.WriteString("closed"))
	w.close()
	check(t, v.CloseBacking(backing), nil)
	if n := v.Stats().OpenDrafts; n != 1 {
		t.Fatalf("%d drafts, want the one that is still written", n)
	}
	must(f.WriteString(", and written"))
	v.draftsMu.Lock()
	published := v.published
	v.draftsMu.Unlock()
	check(t, f.Close(), nil)
	select {
	case <-published:
	case <-time.After(10 * time.Second):
		t.Fatal("it is not published")
	}
	if got := read(t, v, root, "f"); !strings.HasSuffix(got, "and written") {
		t.Errorf("%q", got)
	}
}
