package store

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// pair is two replicas of one volume.
func pair(t testing.TB, o Options) (a, b *Volume) {
	id := NewVolumeID()
	return volumeWith(t, id, o), volumeWith(t, id, o)
}

// longHold are options of a store in which nothing waits for long enough to
// leave by itself: only a released hold, or sealNow, lets it.
var longHold = Options{Hold: time.Hour, HoldTruncate: time.Hour, PublishInterval: time.Hour}

func TestP2TwoHandlesAreOneVersion(t *testing.T) {
	a, b := pair(t, Options{})
	w := create(t, a, root, "f")
	second := w.again() // as a subshell has it: { a; b; } > f
	w.write("one ", 0).flush()
	w.close()
	give(t, a, b)
	absent(t, b, root, "f")
	second.add("two")
	was := a.Vector()
	second.close()
	if n := opsSince(t, a, was); n != 1 {
		t.Errorf("%d ops, want 1", n)
	}
	give(t, a, b)
	if got := read(t, b, root, "f"); got != "one two" {
		t.Errorf("%q", got)
	}
	same(t, a, b)
}

func TestP2TruncateIsNeverSeenEmpty(t *testing.T) {
	for _, size := range []int{10, 200_000} {
		a, b := pair(t, Options{PublishInterval: time.Nanosecond})
		old, text := noise(1, size), noise(2, size)
		write(t, a, root, "f", old)
		give(t, a, b)
		w := open(t, a, root, "f", true)
		look := func(when string) {
			t.Helper()
			give(t, a, b)
			if got := read(t, b, root, "f"); got != old {
				t.Fatalf("%s: %d bytes, want the old %d", when, len(got), len(old))
			}
		}
		look("after O_TRUNC")
		w.write(text[:size/2], 0).flush()
		look("after half of it")
		w.write(text[size/2:], int64(size/2)).flush()
		look("before the close")
		w.close()
		give(t, a, b)
		if got := read(t, b, root, "f"); got != text {
			t.Fatalf("after the close: %d bytes", len(got))
		}
		same(t, a, b)
	}
}

// sealed collects a volume's batches as they leave.
func sealed(v *Volume) <-chan *Batch {
	c := make(chan *Batch, 1000)
	v.OnSeal(func(b *Batch) { c <- b })
	return c
}

func TestP2HeldUnlinkLeavesWithTheCreation(t *testing.T) {
	for _, away := range []string{"unlink", "rename"} {
		clock, o := &aheadClock{}, longHold
		o.Now = clock.now
		a := volumeWith(t, NewVolumeID(), o)
		write(t, a, root, "f", "old")
		check(t, a.sealNow(), nil)
		clock.by.Store(int64(2 * settledAge))
		left := sealed(a)
		if away == "unlink" {
			check(t, a.Unlink(Request{}, root, "f"), nil)
		} else {
			check(t, a.Rename(Request{}, root, "f", root, "f.bak", 0), nil)
		}
		mkdir(t, a, root, "behind it")
		if n := len(left); n != 0 {
			t.Fatalf("%s: %d batches left at once", away, n)
		}
		write(t, a, root, "f", "new") // releases the hold
		if b := <-left; len(b.Ops) != 3 {
			t.Errorf("%s: batch of %d ops, want all 3", away, len(b.Ops))
		}
	}
}

func TestP2FinishedFilesNeverWait(t *testing.T) {
	a := volumeWith(t, NewVolumeID(), longHold)
	left := sealed(a)
	write(t, a, root, "f", "1")
	<-left
	write(t, a, root, "tmp", "2")
	<-left
	check(t, a.Rename(Request{}, root, "tmp", root, "f", 0), nil)
	<-left
	write(t, a, root, "tmp", "3")
	<-left
	check(t, a.Rename(Request{}, root, "tmp", root, "g", 0), nil)
	<-left
}

func TestP2OverwriteWaitsForItsTime(t *testing.T) {
	a := volumeWith(t, NewVolumeID(), longHold)
	node := write(t, a, root, "f", "1")
	check(t, a.sealNow(), nil)
	left := sealed(a)
	write(t, a, root, "f", "2")
	if len(left) != 0 {
		t.Fatal("left without its time")
	}
	_, err := a.SetAttr(Request{}, node, SetAttr{Mtime: &crdt.Time{Sec: 5}})
	check(t, err, nil)
	if b := <-left; len(b.Ops) != 2 {
		t.Errorf("batch of %d ops, want the version and its time", len(b.Ops))
	}
	// A time set while the file is open needs no op of its own.
	w := open(t, a, root, "f", true).write("3", 0)
	_, err = a.SetAttr(Request{}, node, SetAttr{Mtime: &crdt.Time{Sec: 6}})
	check(t, err, nil)
	w.close()
	if b := <-left; len(b.Ops) != 1 {
		t.Errorf("batch of %d ops, want 1", len(b.Ops))
	}
	if at, err := a.Attr(node); err != nil || at.Mtime != (crdt.Time{Sec: 6}) {
		t.Errorf("mtime %v, %v", at.Mtime, err)
	}
}

func TestP2RenameBeforeTheClose(t *testing.T) {
	a, b := pair(t, Options{})
	write(t, a, root, "X", "old")
	give(t, a, b)
	w := create(t, a, root, "tmp").write("new", 0)
	noOps(t, a, "rename of an unpublished file", func() {
		check(t, a.Rename(Request{}, root, "tmp", root, "X", 0), nil)
	})
	give(t, a, b)
	if got := read(t, b, root, "X"); got != "old" {
		t.Fatalf("the peer has %q before the close", got)
	}
	if got := read(t, a, root, "X"); got != "new" {
		t.Fatalf("the writer sees %q", got)
	}
	absent(t, a, root, "tmp")
	was := a.Vector()
	w.close()
	if n := opsSince(t, a, was); n != 1 {
		t.Errorf("%d ops, want 1", n)
	}
	give(t, a, b)
	for _, v := range []*Volume{a, b} {
		if got := read(t, v, root, "X"); got != "new" {
			t.Errorf("%q", got)
		}
		if n := hidden(t, v); n != 0 {
			t.Errorf("%d conflicts, want none", n)
		}
	}
	same(t, a, b)
}

// hidden counts what conflicts leave behind: names under others, and content
// leaves that are not shown.
func hidden(t testing.TB, v *Volume) (n int) {
	t.Helper()
	check(t, v.read(func(tr *tree) error {
		if err := tr.t.scan(tr.keys.key('e'), nil, func(_, value []byte) (bool, error) {
			cs, err := crdt.DecodeClaims(value)
			n += len(cs) - 1
			return true, err
		}); err != nil {
			return err
		}
		return tr.t.scan(tr.keys.key('i'), nil, func(_, value []byte) (bool, error) {
			i, err := crdt.DecodeInode(value)
			n += max(0, len(i.Contents)-1)
			return true, err
		})
	}), nil)
	return n
}

// TestP2WhatLayUnderARename: a file renamed over another before its close, and
// then away, must not let the other come back.
func TestP2WhatLayUnderARename(t *testing.T) {
	for _, to := range []string{"free", "taken", "unlink", "exchange"} {
		a, b := pair(t, Options{})
		write(t, a, root, "X", "old X")
		write(t, a, root, "taken", "old")
		w := create(t, a, root, "tmp").write("new", 0)
		check(t, a.Rename(Request{}, root, "tmp", root, "X", 0), nil)
		switch to {
		case "unlink":
			check(t, a.Unlink(Request{}, root, "X"), nil)
		case "exchange":
			check(t, a.Rename(Request{}, root, "X", root, "taken", crdt.RenameExchange), nil)
			if got := read(t, a, root, "X") + read(t, a, root, "taken"); got != "oldnew" {
				t.Errorf("exchanged: %q", got)
			}
			check(t, a.Unlink(Request{}, root, "X"), nil)
		default:
			check(t, a.Rename(Request{}, root, "X", root, to, 0), nil)
		}
		absent(t, a, root, "X")
		w.close()
		absent(t, a, root, "X")
		give(t, a, b)
		same(t, a, b)
	}
}

func TestP2NothingChangedIsNoOp(t *testing.T) {
	a := volumeWith(t, NewVolumeID(), Options{})
	node := write(t, a, root, "f", "text")
	dir := mkdir(t, a, root, "d")
	noOps(t, a, "unlink of an unpublished file", func() {
		w := create(t, a, root, "tmp").write("x", 0)
		check(t, a.Unlink(Request{}, root, "tmp"), nil)
		if got := w.read(); got != "x" {
			t.Errorf("unlinked and open: %q", got)
		}
		if at, err := a.Attr(w.node); err != nil || at.Nlink != 0 || at.Size != 1 {
			t.Errorf("%+v, %v", at, err)
		}
		w.write("y", 1)
		if got := w.read(); got != "xy" {
			t.Errorf("unlinked and open: %q", got)
		}
		w.close()
		if _, err := a.Attr(w.node); err == nil {
			t.Error("still there after its release")
		}
	})
	noOps(t, a, "open for writing", func() { open(t, a, root, "f", false).close() })
	for _, n := range []NodeID{node, dir} {
		at, err := a.Attr(n)
		check(t, err, nil)
		for what, s := range map[string]SetAttr{
			"chmod": {Mode: &at.Mode}, "chown": {UID: &at.UID, GID: &at.GID},
			"utimens": {Mtime: &at.Mtime}, "atime": {Atime: &crdt.Time{Sec: 1}},
			"all": {Mode: &at.Mode, UID: &at.UID, GID: &at.GID, Mtime: &at.Mtime},
		} {
			noOps(t, a, what, func() {
				_, err := a.SetAttr(Request{}, n, s)
				check(t, err, nil)
			})
		}
	}
	size := int64(4)
	noOps(t, a, "truncate to its size", func() {
		_, err := a.SetAttr(Request{}, node, SetAttr{Size: &size})
		check(t, err, nil)
	})
	check(t, a.SetXattr(Request{}, node, "user.x", []byte("1"), XattrSet), nil)
	noOps(t, a, "setxattr to its value", func() {
		check(t, a.SetXattr(Request{}, node, "user.x", []byte("1"), XattrSet), nil)
	})
	noOps(t, a, "rename onto itself", func() {
		check(t, a.Rename(Request{}, root, "f", root, "f", 0), nil)
	})
}

func TestP2HeldOpenIsPublishedByInterval(t *testing.T) {
	a, b := pair(t, Options{PublishInterval: time.Millisecond})
	write(t, a, root, "log", "0")
	check(t, a.sealNow(), nil)
	give(t, a, b)
	left := sealed(a)
	w := open(t, a, root, "log", false)
	want := "0"
	for n := range 5 {
		line := strings.Repeat("x", n)
		w.add(line + "\n")
		want += line + "\n"
		for read(t, b, root, "log") != want { // an interval may come between
			<-left
			give(t, a, b)
		}
	}
	noOps(t, a, "the close after it", w.close)
	same(t, a, b)
}

// TestP2UnlinkedAndHeldOpen: what is written to a published file after its
// unlink is for those who have it open.
func TestP2UnlinkedAndHeldOpen(t *testing.T) {
	a, b := pair(t, Options{PublishInterval: time.Millisecond})
	write(t, a, root, "log", "0")
	w := open(t, a, root, "log", false)
	check(t, a.Unlink(Request{}, root, "log"), nil)
	noOps(t, a, "writes after the unlink", func() {
		for range 20 {
			w.add("1")
			d := a.draftOf(w.node)
			d.mu.Lock() // as the interval does
			err := a.publish(d, false)
			d.mu.Unlock()
			check(t, err, nil)
			if got := w.read(); !strings.HasPrefix(got, "01") {
				t.Fatalf("reads %q", got)
			}
		}
		if got := w.read(); got != "0"+strings.Repeat("1", 20) {
			t.Fatalf("reads %q", got)
		}
		w.close()
	})
	absent(t, a, root, "log")
	give(t, a, b)
	same(t, a, b)
}

// TestP2RenamesOverEachOther: files renamed one over another, each before its
// close, and with other links: at every moment peers have something at the name.
func TestP2RenamesOverEachOther(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}, {0, 2, 1}, {1, 2, 0}, {2, 0, 1}} {
		for _, links := range []bool{false, true} {
			a, b := pair(t, longHold)
			write(t, a, root, "X", "old")
			write(t, a, root, "l", "old")
			give(t, a, b)
			var open []writing
			for n := range 3 {
				w := create(t, a, root, "tmp").write(fmt.Sprint("new ", n), 0)
				open = append(open, w)
				check(t, a.Rename(Request{}, root, "tmp", root, "X", crdt.RenameReplace), nil)
				if links {
					must(a.Link(Request{}, w.node, root, "tmp2"))
					check(t, a.Rename(Request{}, root, "tmp2", root, "l", crdt.RenameReplace), nil)
				}
			}
			for _, n := range order {
				open[n].close()
				check(t, a.sealNow(), nil)
				give(t, a, b)
				for _, name := range []string{"X", "l"} {
					if _, _, err := b.Lookup(root, name); err != nil {
						t.Errorf("order %v, links %v: after %d is closed: %s: %v", order, links, n, name, err)
					}
				}
			}
			if got := read(t, b, root, "X"); got != "new 2" {
				t.Errorf("order %v: %q", order, got)
			}
			same(t, a, b)
		}
	}
}
