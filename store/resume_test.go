package store

import (
	"strings"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

const livingMount MountID = 7

// reopenMounted is reopen of a volume that has a mount which lives on.
func reopenMounted(t testing.TB, v *Volume) *Volume {
	t.Helper()
	v.db.opts.Mounted = map[VolumeID][]MountID{v.id: {livingMount}}
	return reopen(t, v)
}

// living opens a file through the mount that lives on.
func living(t testing.TB, v *Volume, name string, trunc bool) writing {
	t.Helper()
	a, _, err := v.Lookup(root, name)
	check(t, err, nil)
	h, err := v.OpenWrite(Request{Mount: livingMount}, a.Node, trunc)
	check(t, err, nil)
	return writing{t, v, a.Node, h}
}

func livingNew(t testing.TB, v *Volume, name string) writing {
	t.Helper()
	a, h, err := v.Create(Request{Mount: livingMount}, root, name, NewNode{Mode: 0o644})
	check(t, err, nil)
	return writing{t, v, a.Node, h}
}

func text(t testing.TB, v *Volume, name string) string {
	t.Helper()
	a, _, err := v.Lookup(root, name)
	check(t, err, nil)
	return readNode(t, v, a.Node)
}

// TestP9OpenFilesGoOn restarts the store under files that a living kernel has
// open: what was written shows, is written on, and is published at the close.
func TestP9OpenFilesGoOn(t *testing.T) {
	large := strings.Repeat("large content ", 400_000) // several blocks
	for _, test := range []struct {
		name   string
		begin  func(t *testing.T, v *Volume) writing
		before string // what shows after the restart
		after  string // what is published under the name f at the close, "" if nothing
	}{
		{"created", func(t *testing.T, v *Volume) writing { return livingNew(t, v, "f") }, "", "x"},
		{"created and written", func(t *testing.T, v *Volume) writing { return livingNew(t, v, "f").write("abc", 0) }, "abc", "xbc"},
		{"created large", func(t *testing.T, v *Volume) writing { return livingNew(t, v, "f").write(large, 0) }, large, "x" + large[1:]},
		{"opened", func(t *testing.T, v *Volume) writing {
			write(t, v, root, "f", "old")
			return living(t, v, "f", false)
		}, "old", "xld"},
		{"rewritten", func(t *testing.T, v *Volume) writing {
			write(t, v, root, "f", "old")
			return living(t, v, "f", true).write("ne", 0)
		}, "ne", "xe"},
		{"changed in place", func(t *testing.T, v *Volume) writing {
			write(t, v, root, "f", large)
			return living(t, v, "f", false).write("L", 2<<20)
		}, large[:2<<20] + "L" + large[2<<20+1:], "x" + large[1:2<<20] + "L" + large[2<<20+1:]},
		{"flushed", func(t *testing.T, v *Volume) writing { return livingNew(t, v, "f").write("abc", 0).flush() }, "abc", "xbc"},
		{"without a name", func(t *testing.T, v *Volume) writing {
			a, h, err := v.CreateUnnamed(Request{Mount: livingMount}, root, NewNode{Mode: 0o600})
			check(t, err, nil)
			return writing{t, v, a.Node, h}.write("abc", 0)
		}, "abc", ""},
		{"unlinked", func(t *testing.T, v *Volume) writing {
			w := livingNew(t, v, "f").write("abc", 0)
			check(t, v.Unlink(Request{Mount: livingMount}, root, "f"), nil)
			return w
		}, "abc", ""},
		{"unlinked after its publication", func(t *testing.T, v *Volume) writing {
			write(t, v, root, "f", "abc")
			w := living(t, v, "f", false).write("A", 0)
			check(t, v.Unlink(Request{Mount: livingMount}, root, "f"), nil)
			return w
		}, "Abc", ""},
	} {
		for _, restarts := range []int{1, 3} {
			t.Run(test.name, func(t *testing.T) {
				v := volumeWith(t, VolumeID{1}, Options{Hold: time.Millisecond})
				w := test.begin(t, v)
				dir, err := v.Attr(root)
				check(t, err, nil)
				for range restarts {
					v = reopenMounted(t, v)
				}
				w.v = v
				if got := v.Resumed(livingMount); len(got) != 1 || got[w.h] != w.node {
					t.Fatalf("resumed handles %v, want %v on %v", got, w.h, w.node)
				}
				cancel := v.AddViewer(livingMount, &viewer{t: t, mount: livingMount, all: true})
				if w.read() != test.before {
					t.Fatalf("after the restart it holds %.20q, want %.20q", w.read(), test.before)
				}
				if now, err := v.Attr(root); err != nil || now.Mtime != dir.Mtime {
					t.Errorf("mtime of the directory %v, was %v (%v)", now.Mtime, dir.Mtime, err)
				}
				w.write("x", 0).close()
				cancel() // nobody knows a node any more
				if test.after == "" {
					absent(t, v, root, "f")
				} else if got := text(t, v, "f"); got != test.after {
					t.Errorf("published %.20q, want %.20q", got, test.after)
				}
				if s := v.Stats(); s.OpenDrafts+s.Unfinished != 0 {
					t.Errorf("drafts left: %+v", s)
				}
				if left, err := v.handleRecords(); err != nil || len(left) != 0 {
					t.Errorf("handles left: %v (%v)", left, err)
				}
			})
		}
	}
}

// TestP9KeptNodesGoOn: what a kernel has open without a handle, an old version
// or a file without a name, is there after a restart, until no kernel knows it.
func TestP9KeptNodesGoOn(t *testing.T) {
	peer, v := pair(t, Options{})
	write(t, v, root, "f", "old")
	give(t, v, peer)
	a, _, err := v.Lookup(root, "f")
	check(t, err, nil)
	all := &viewer{t: t, mount: livingMount, all: true, nodes: map[NodeID]bool{a.Node: true}}
	v.AddViewer(livingMount, all)
	write(t, peer, root, "f", "new")
	give(t, peer, v)
	unnamed := livingNew(t, v, "g").write("gone", 0)
	all.nodes[unnamed.node] = true
	check(t, v.Unlink(Request{Mount: livingMount}, root, "g"), nil)
	unnamed.close()
	if readNode(t, v, a.Node) != "old" || unnamed.read() != "gone" {
		t.Fatal("the test is wrong")
	}
	for range 2 {
		v = reopenMounted(t, v)
	}
	b, _, err := v.Lookup(root, "f")
	check(t, err, nil)
	if readNode(t, v, a.Node) != "old" || readNode(t, v, b.Node) != "new" || readNode(t, v, unnamed.node) != "gone" {
		t.Errorf("old version %q, new %q, without a name %q", readNode(t, v, a.Node), readNode(t, v, b.Node), readNode(t, v, unnamed.node))
	}
	seen := map[NodeID]bool{}
	check(t, v.EachNode(func(n NodeID, ino crdt.Ino, inode func() (*crdt.Inode, error)) error {
		seen[n] = true
		if i, err := inode(); err != nil || i.Ino != ino {
			t.Errorf("inode of node %x: %+v, %v", n, i, err)
		}
		return nil
	}), nil)
	for _, n := range []NodeID{a.Node, b.Node, unnamed.node} {
		if !seen[n] {
			t.Errorf("node %x is not among those that a kernel may know", n)
		}
	}
	if ino, frozen := v.FrozenOf(a.Node); !frozen || ino != b.Ino {
		t.Errorf("node %x keeps a version of %v: %v", a.Node, ino, frozen)
	}
	check(t, v.Unmounted(livingMount), nil)
	if v.Kept(a.Node) || v.Kept(unnamed.node) {
		t.Error("kept, though no kernel knows it")
	}
}

// TestP9UnmountedMeanwhile: what a mount had open that went while nobody served
// it is closed.
func TestP9UnmountedMeanwhile(t *testing.T) {
	v := volumeWith(t, VolumeID{1}, Options{Hold: time.Millisecond})
	livingNew(t, v, "f").write("abc", 0)
	v = reopenMounted(t, v)
	check(t, v.Unmounted(livingMount), nil)
	if got := text(t, v, "f"); got != "abc" {
		t.Errorf("f holds %q", got)
	}
	if left, err := v.handleRecords(); err != nil || len(left) != 0 {
		t.Errorf("handles left: %v (%v)", left, err)
	}
}

// TestP9OthersAreAbandoned: a writer whose mount does not live on never closed
// his file, though another mount lives.
func TestP9OthersAreAbandoned(t *testing.T) {
	v := volumeWith(t, VolumeID{1}, Options{Hold: time.Millisecond})
	write(t, v, root, "f", "whole")
	w := open(t, v, root, "f", true)
	w.write("ha", 0)
	v = reopenMounted(t, v)
	if got := text(t, v, "f"); got != "whole" {
		t.Errorf("f holds %q", got)
	}
	if s := v.Stats(); s.Unfinished != 1 || s.OpenDrafts != 0 {
		t.Errorf("drafts: %+v", s)
	}
}
