package store

import (
	"fmt"
	"testing"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// TestP2OldVersionOfTwoMounts: a version that one kernel has forgotten stays
// for the other, and goes with its mount at the latest.
func TestP2OldVersionOfTwoMounts(t *testing.T) {
	for _, ends := range []bool{false, true} {
		a, b := pair(t, Options{})
		node := write(t, a, root, "f", "old")
		give(t, a, b)
		one := watch(t, b, crdt.Ino(node))
		two := &viewer{t: t, mount: 2, knows: map[crdt.Ino]bool{crdt.Ino(node): true}, nodes: map[NodeID]bool{node: true}}
		end := b.AddViewer(2, two)
		write(t, a, root, "f", "new")
		give(t, a, b)
		one.forget(b, node)
		if got := readNode(t, b, node); got != "old" || b.Stats().Frozen != 1 {
			t.Errorf("the second mount reads %q; %d old versions", got, b.Stats().Frozen)
		}
		if ends {
			end()
		} else {
			two.forget(b, node)
		}
		if n := b.Stats().Frozen; n != 0 || b.Kept(node) {
			t.Errorf("%d old versions are kept", n)
		}
	}
}

// TestUnlinkedDraftIsKept as long as a kernel knows the file, whatever becomes
// of it meanwhile.
func TestUnlinkedDraftIsKept(t *testing.T) {
	for _, size := range []int{10, 200_000} {
		for _, published := range []bool{false, true} {
			v := volumeWith(t, NewVolumeID(), Options{})
			w := create(t, v, root, "f")
			if published {
				w.close()
				w = open(t, v, root, "f", true)
			}
			k := watch(t, v, crdt.Ino(w.node))
			text := noise(1, size)
			w.write(text, 0)
			check(t, v.Unlink(Request{}, root, "f"), nil)
			w.close()
			v.LetGo(w.node) // too early
			if got := w.read(); got != text || v.Stats().Kept != 1 {
				t.Fatalf("%d bytes, %+v", len(got), v.Stats())
			}
			again := w.again().write("again", 0) // /proc/self/fd/N
			again.close()
			if got := w.read(); got != "again"+text[5:] {
				t.Fatalf("%d bytes after the second writer", len(got))
			}
			noOps(t, v, "letting go", func() { k.forget(v, w.node) })
			if s := v.Stats(); s.OpenDrafts != 0 || s.Kept != 0 {
				t.Errorf("%+v", s)
			}
		}
	}
}

// TestKeptDraftGetsItsNameBack: a peer that moved the file meanwhile lets it
// live, with what was written to it.
func TestKeptDraftGetsItsNameBack(t *testing.T) {
	a, b := pair(t, Options{})
	node := write(t, a, root, "f", "first")
	give(t, a, b)
	watch(t, a, crdt.Ino(node))
	w := open(t, a, root, "f", true).write("last", 0)
	check(t, a.Unlink(Request{}, root, "f"), nil)
	w.close()
	check(t, b.Rename(Request{}, root, "f", root, "g", crdt.RenameReplace), nil)
	give(t, b, a)
	if !a.Kept(node) {
		t.Fatal("not kept")
	}
	a.LetGo(node)
	exchange(t, a, b)
	same(t, a, b)
	if got := read(t, b, root, "g"); got != "last" || a.Stats().OpenDrafts != 0 {
		t.Errorf("%q, %+v", got, a.Stats())
	}
}

// TestHandleIsDoneOnce: a RELEASE or FLUSH that is sent again, after others
// have opened the file, is none of theirs.
func TestHandleIsDoneOnce(t *testing.T) {
	v := volumeWith(t, NewVolumeID(), Options{})
	old := write(t, v, root, "f", "old")
	w := open(t, v, root, "f", true).write("first", 0)
	w.close()
	other := open(t, v, root, "f", true).write("begun", 0)
	for range 2 {
		check(t, v.Flush(w.node, w.h), nil)
		check(t, v.Release(Request{}, w.node, w.h), nil)
	}
	d := v.draftOf(old)
	if d == nil || d.flushed.Load() || other.read() != "begun" {
		t.Fatal("a handle that is gone closed another one's file")
	}
	v = reopen(t, v)
	if got := read(t, v, root, "f"); got != "first" {
		t.Errorf("after a restart: %q, want what was closed", got)
	}
}

// TestP8ReplacedDraft: a file that is not published takes the name of one whose
// draft is closed. If the new one's writer dies, the draft counts; if not, not.
func TestP8ReplacedDraft(t *testing.T) {
	for round := range 8 { // drafts come in any order
		for _, closed := range []bool{true, false} {
			v := volumeWith(t, NewVolumeID(), Options{})
			write(t, v, root, "f", "old")
			open(t, v, root, "f", true).write("flushed", 0).flush()
			tmp := create(t, v, root, "tmp").write("new", 0)
			check(t, v.Rename(Request{}, root, "tmp", root, "f", crdt.RenameReplace), nil)
			want := "flushed"
			if closed {
				tmp.flush()
				want = "new"
			}
			v = reopen(t, v)
			if got := fmt.Sprint(list(t, v, root), read(t, v, root, "f")); got != "[f]"+want {
				t.Errorf("round %d, closed %v: %s, want %q", round, closed, got, want)
			}
			check(t, v.Unlink(Request{}, root, "f"), nil)
			absent(t, v, root, "f") // nothing lay under it
		}
	}
}
