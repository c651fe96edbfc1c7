package store

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// kernel is what a living kernel has of a node: a descriptor of the backing
// file, for writing if it has a handle.
type kernelFile struct {
	node NodeID
	h    Handle
	f    *os.File
}

const mountOne = MountID(1)

// openPast opens a node by passthrough, as mount one's kernel would.
func openPast(t *testing.T, v *Volume, node NodeID, h Handle, w Writing, id int32) kernelFile {
	t.Helper()
	b, _ := backing(t, v, node, h, w)
	if b == nil {
		t.Fatal("it has no backing")
	}
	check(t, v.Hold(b, mountOne, id), nil)
	flags := os.O_RDONLY
	if h != 0 {
		flags = os.O_RDWR
	}
	f := must(os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", b.File().Fd()), flags, 0))
	t.Cleanup(func() { f.Close() })
	return kernelFile{node, h, f}
}

func createAs(t *testing.T, v *Volume, name string) (NodeID, Handle) {
	t.Helper()
	a, h, err := v.Create(Request{Mount: mountOne}, root, name, NewNode{Mode: 0o644})
	check(t, err, nil)
	return a.Node, h
}

func openFor(t *testing.T, v *Volume, node NodeID) Handle {
	t.Helper()
	return must(v.OpenWrite(Request{Mount: mountOne}, node, false))
}

func (k *kernelFile) read() string {
	return string(must(io.ReadAll(io.NewSectionReader(k.f, 0, 1<<30))))
}

// resume opens the store again, and returns what of mount one was open by node.
func resume(t *testing.T, v *Volume, lives bool) (*Volume, map[NodeID]Held) {
	t.Helper()
	v.db.opts.Mounted = nil
	if lives {
		v.db.opts.Mounted = map[VolumeID][]MountID{v.id: {mountOne}}
	}
	v = reopen(t, v)
	held := map[NodeID]Held{}
	for _, h := range v.Held(mountOne) {
		held[h.Node] = h
	}
	return v, held
}

// end releases all that is open of a node.
func (h *Held) end(t *testing.T, v *Volume) {
	t.Helper()
	check(t, v.Unhold(h.Backing, mountOne), nil)
	check(t, v.CloseBacking(h.Backing), nil)
	for _, w := range h.Handles {
		check(t, v.Release(Request{Mount: mountOne}, h.Node, w), nil)
	}
}

// TestP9HeldIsResumed: what a mount that outlives the daemon reads and writes
// without it is the same afterwards, by the same numbers; what was written
// meanwhile is in the version that the last close makes.
func TestP9HeldIsResumed(t *testing.T) {
	v := volumeWith(t, NewVolumeID(), longHold)
	text := noise(1, 2<<20)
	read1 := openPast(t, v, write(t, v, root, "read", text), 0, 0, 11)
	node, h := createAs(t, v, "new")
	made := openPast(t, v, node, h, WritesAnywhere, 12)
	must(made.f.WriteString("begun"))
	logNode := write(t, v, root, "log", noise(2, 2<<20))
	tail := openPast(t, v, logNode, 0, 0, 13)
	logHandle := openFor(t, v, logNode)
	if _, byUs := backing(t, v, logNode, logHandle, WritesAtEnd); !byUs {
		t.Fatal("an appender writes past us")
	}
	must(v.WriteAt(logNode, logHandle, []byte("one"), 2<<20, false))

	v, held := resume(t, v, true)
	if len(held) != 3 {
		t.Fatalf("held: %+v", held)
	}
	for node, id := range map[NodeID]int32{read1.node: 11, made.node: 12, tail.node: 13} {
		if held[node].ID != id {
			t.Errorf("node %x has number %d, want %d", uint64(node), held[node].ID, id)
		}
	}
	must(made.f.WriteString(", gone on"))
	must(v.WriteAt(logNode, logHandle, []byte("two"), 2<<20+3, false))
	if got, want := tail.read(), noise(2, 2<<20)+"onetwo"; got != want {
		t.Errorf("who reads the log has %d bytes, want %d", len(got), len(want))
	}
	if got := readNode(t, v, made.node); got != "begun, gone on" {
		t.Errorf("the new file reads %q", got)
	}
	if again, _ := backing(t, v, read1.node, 0, 0); again != held[read1.node].Backing {
		t.Error("a second open has another file")
	} else {
		check(t, v.CloseBacking(again), nil)
	}

	// Once more, from what was resumed.
	v, held = resume(t, v, true)
	if len(held) != 3 || len(held[made.node].Handles) != 1 || len(held[logNode].Handles) != 1 {
		t.Fatalf("held: %+v", held)
	}
	check(t, made.f.Close(), nil)
	for _, h := range held {
		h.end(t, v)
	}
	if n := v.Stats().OpenDrafts; n != 0 {
		t.Errorf("%d drafts are open", n)
	}
	v, held = resume(t, v, true)
	if len(held) != 0 {
		t.Errorf("held after the end: %+v", held)
	}
	for name, want := range map[string]string{"read": text, "new": "begun, gone on", "log": noise(2, 2<<20) + "onetwo"} {
		if got := read(t, v, root, name); got != want {
			t.Errorf("%s: %d bytes, want %d", name, len(got), len(want))
		}
	}
	if left := must(v.db.content.Drafts()); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

// TestHeldOfTheDead: without the mount nothing is resumed, and nothing stays.
func TestHeldOfTheDead(t *testing.T) {
	v := volumeWith(t, NewVolumeID(), longHold)
	openPast(t, v, write(t, v, root, "read", noise(1, 2<<20)), 0, 0, 11)
	node, h := createAs(t, v, "new")
	made := openPast(t, v, node, h, WritesAnywhere, 12)
	must(made.f.WriteString("begun"))
	for range 2 {
		var held map[NodeID]Held
		if v, held = resume(t, v, false); len(held) != 0 {
			t.Fatalf("held: %+v", held)
		}
		if n := len(v.db.content.LeftHeld(v.id)); n != 0 {
			t.Errorf("%d records are left", n)
		}
		absent(t, v, root, "new")
	}
}

// TestP9ClosedAndMapped: what a program wrote through a mapping after it had
// closed the file is in the version that follows, also if the daemon is killed
// between the end of the mapping and the publication.
func TestP9ClosedAndMapped(t *testing.T) {
	for _, size := range []int{10, 200_000, 3 << 20} {
		v := volumeWith(t, NewVolumeID(), longHold)
		node, h := createAs(t, v, "f")
		mapped := openPast(t, v, node, h, WritesAnywhere, 11)
		text := noise(1, size)
		must(mapped.f.WriteString(text))
		check(t, v.Flush(node, h), nil)
		must(mapped.f.WriteString(", mapped"))
		check(t, v.Unhold(v.backings[node], mountOne), nil)
		check(t, v.CloseBacking(v.backings[node]), nil)
		check(t, v.forgetHandles([]Handle{h}), nil)
		check(t, mapped.f.Close(), nil)
		v, _ = resume(t, v, true)
		if got, want := read(t, v, root, "f"), text+", mapped"; got != want {
			t.Errorf("%d bytes, want %d", len(got), len(want))
		}
	}
}

// TestP9MappedAcrossKills: a file that is closed and mapped when the daemon is
// killed is published when the mapping is gone, as what was in it then; what
// peers get of it is what its version says.
func TestP9MappedAcrossKills(t *testing.T) {
	for _, size := range []int{10, 200_000, 3 << 20} {
		for kills := range 3 {
			a, b := pair(t, longHold)
			node, h := createAs(t, a, "f")
			mapped := openPast(t, a, node, h, WritesAnywhere, 11)
			text := noise(1, size)
			must(mapped.f.WriteString(text))
			check(t, a.Flush(node, h), nil)
			check(t, a.Unhold(a.backings[node], mountOne), nil)
			check(t, a.CloseBacking(a.backings[node]), nil)
			check(t, a.Release(Request{Mount: mountOne}, node, h), nil)
			for n := range kills {
				must(mapped.f.WriteAt([]byte(fmt.Sprint(n)), int64(n)))
				a, _ = resume(t, a, true)
			}
			must(mapped.f.WriteAt([]byte("last"), 3))
			a.draftsMu.Lock()
			published := a.published
			a.draftsMu.Unlock()
			check(t, mapped.f.Close(), nil)
			want := "0" + text[1:3] + "last" + text[7:]
			switch kills {
			case 0:
				want = text[:3] + want[3:]
			case 2:
				want = "01" + want[2:]
			}
			select {
			case <-published:
			case <-time.After(10 * time.Second):
				t.Fatal("it is not published")
			}
			give(t, a, b)
			for _, v := range []*Volume{a, b} {
				if got := read(t, v, root, "f"); got != want {
					t.Errorf("%d bytes, %d kills: %d bytes, want %d", size, kills, len(got), len(want))
				}
			}
			check(t, a.db.checkContent(time.Time{}), nil)
		}
	}
}

// TestP9AdoptedAcrossKills: a file that somebody reads past us is opened for
// writing, of which nothing is recorded before the first close; the daemon is
// killed. The next version follows the one that was there, and holds what was
// written, by a mapping that outlives the close too.
func TestP9AdoptedAcrossKills(t *testing.T) {
	for _, how := range []string{"open", "closed and mapped", "mapped, and nobody reads it any more"} {
		for _, wrote := range []string{"before", "after", "before and after", ""} {
			t.Run(how+", written "+wrote, func(t *testing.T) {
				a, b := pair(t, longHold)
				text := noise(1, 2<<20)
				node := write(t, a, root, "f", text)
				give(t, a, b)
				reader := openPast(t, a, node, 0, 0, 11)
				h := openFor(t, a, node)
				bk, _ := backing(t, a, node, h, WritesAnywhere)
				writer := must(os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", bk.File().Fd()), os.O_RDWR, 0))
				check(t, a.CloseBacking(bk), nil)
				want := text
				put := func(s string, at int) {
					must(writer.WriteAt([]byte(s), int64(at)))
					want = want[:at] + s + want[at+len(s):]
				}
				if how != "open" {
					check(t, a.Flush(node, h), nil)
					check(t, a.Release(Request{Mount: mountOne}, node, h), nil)
				}
				if strings.HasPrefix(wrote, "before") {
					put("before", 3)
				}
				if how == "mapped, and nobody reads it any more" {
					check(t, reader.f.Close(), nil)
					check(t, a.Unhold(a.backings[node], mountOne), nil)
					check(t, a.CloseBacking(a.backings[node]), nil)
				}
				a, held := resume(t, a, true)
				if strings.HasSuffix(wrote, "after") {
					put("after", 20)
				}
				if got := read(t, a, root, "f"); got != want {
					t.Errorf("it reads %d bytes that are not what was written", len(got))
				}
				if open, ok := held[node]; ok {
					open.end(t, a)
				}
				if got := read(t, a, root, "f"); got != want {
					t.Errorf("when nobody has it open, it reads %d bytes that are not what was written", len(got))
				}
				check(t, writer.Close(), nil)
				finished(t, a)
				give(t, a, b)
				for _, v := range []*Volume{a, b} {
					if got := read(t, v, root, "f"); got != want {
						t.Errorf("%d bytes are not what was written", len(got))
					}
					if lost := must(v.Records()); len(lost) > 0 {
						t.Errorf("a conflict with itself: %+v", lost)
					}
				}
				if n := len(must(a.History("f"))); wrote == "" && n > 1 {
					t.Errorf("%d versions, and nothing was written", n)
				}
				check(t, a.db.checkContent(time.Time{}), nil)
				if left := must(a.db.content.Drafts()); len(left) > 0 {
					t.Errorf("left over: %q", left)
				}
			})
		}
	}
}

// finished waits until no draft is open.
func finished(t *testing.T, v *Volume) {
	t.Helper()
	for {
		v.draftsMu.Lock()
		published, open := v.published, len(v.drafts)
		v.draftsMu.Unlock()
		if open == 0 {
			return
		}
		select {
		case <-published:
		case <-time.After(10 * time.Second):
			t.Fatalf("%d drafts are open", open)
		}
	}
}
