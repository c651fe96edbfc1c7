package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"testing"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// A peer is a volume as the source of a snapshot.
type peer struct {
	t        testing.TB
	from, to *Volume
	cut      int                 // ends the stream, with errCut, after so many chunks; 0: never
	bend     func([]byte) []byte // what is made of each chunk on its way
	between  func()              // runs before each chunk
	sent     int
	asked    []SnapshotRequest
}

var errCut = errors.New("cut off")

func (p *peer) Read(ctx context.Context, r SnapshotRequest) (func() ([]byte, error), error) {
	p.asked = append(p.asked, r)
	next, stop := iter.Pull2(func(yield func([]byte, error) bool) {
		err := p.from.WriteSnapshot(ctx, r, func(chunk []byte) error {
			if len(chunk) > 512<<10 {
				p.t.Errorf("chunk of %d bytes", len(chunk))
			}
			if !yield(bytes.Clone(chunk), nil) {
				return errCut
			}
			return nil
		})
		if err == nil {
			err = io.EOF
		}
		yield(nil, err)
	})
	p.t.Cleanup(stop)
	return func() ([]byte, error) {
		if p.cut > 0 && p.sent == p.cut {
			stop()
			return nil, errCut
		}
		p.sent++
		if p.between != nil {
			p.between()
		}
		chunk, err, _ := next()
		if p.bend != nil && err == nil {
			chunk = p.bend(chunk)
		}
		return chunk, err
	}, nil
}

func (p *peer) Content(_ context.Context, h crdt.Hash) error {
	return copyContent(p.from.db, p.to.db, h)
}

func (p *peer) Node() string { return p.from.db.opts.Dir }

func (p *peer) Verify(*Batch) error { return nil }

func join(t testing.TB, from, to *Volume) {
	t.Helper()
	check(t, to.JoinSnapshot(context.Background(), &peer{t: t, from: from, to: to}), nil)
}

// fill makes a tree with all there is: moves and exchanges of directories, hard
// links, removed files, large files, attributes, links and devices.
func fill(t testing.TB, v *Volume, prefix string) {
	t.Helper()
	p := func(name string) string { return prefix + name }
	d1, d2 := mkdir(t, v, root, p("d1")), mkdir(t, v, root, p("d2"))
	d3 := mkdir(t, v, d1, "d3")
	f := write(t, v, d3, "f", "text")
	_, err := v.Link(Request{}, f, d2, "hard")
	check(t, err, nil)
	write(t, v, d2, "big", noise(1, 2_100_000))
	write(t, v, d2, "big", noise(2, 2_100_000))
	write(t, v, root, p("gone"), "x")
	check(t, v.Unlink(Request{}, root, p("gone")), nil)
	check(t, v.Rename(Request{}, root, p("d1"), d2, "moved", 0), nil)
	mkdir(t, v, root, p("d4"))
	check(t, v.Rename(Request{}, root, p("d2"), root, p("d4"), crdt.RenameExchange), nil)
	mkdir(t, v, root, p("d5"))
	check(t, v.Rmdir(Request{}, root, p("d5")), nil)
	check(t, v.SetXattr(Request{}, f, "user.a", []byte(prefix), XattrSet), nil)
	check(t, v.SetXattr(Request{}, f, "user.b", nil, XattrSet), nil)
	check(t, v.RemoveXattr(Request{}, f, "user.b"), nil)
	for n, k := range []crdt.Kind{crdt.KindSymlink, crdt.KindFifo, crdt.KindChar} {
		_, err := v.Mknod(Request{}, d2, fmt.Sprint("special", n), NewNode{Kind: k, Target: "to", Rdev: 5})
		check(t, err, nil)
	}
	for n := range 50 {
		write(t, v, d2, fmt.Sprint("small", n), noise(uint64(n), 20_000))
	}
}

func TestP4SnapshotIntoAnEmptyReplica(t *testing.T) {
	a := volumeWith(t, NewVolumeID(), Options{})
	b, c := volumeWith(t, a.ID(), Options{}), volumeWith(t, a.ID(), Options{})
	fill(t, a, "")
	check(t, a.PutIdentity(a.Replica(), []byte("who it is")), nil)
	open := create(t, a, root, "unpublished").write("not yet", 0)
	w := open.v
	over := create(t, a, root, "tmp").write("not yet", 0)
	check(t, w.Rename(Request{}, root, "tmp", root, "d4file", 0), nil)
	joined := 0
	b.OnMerge(func(crdt.Vector) { joined++ })
	join(t, a, b)
	absent(t, b, root, "unpublished")
	absent(t, b, root, "d4file")
	if joined != 1 {
		t.Errorf("%d calls of OnMerge", joined)
	}
	if id, err := b.Identity(a.Replica()); err != nil || string(id) != "who it is" {
		t.Errorf("identity %q, %v", id, err)
	}
	open.close()
	over.close()
	give(t, a, b) // the tail comes as ops
	give(t, a, c) // and here all did
	same(t, a, b, c)
	if _, _, err := b.Batches(nil, 1<<20); !errors.Is(err, ErrJournalGone) {
		t.Errorf("what came by snapshot is in no journal: %v", err)
	}
	// Both are as good: further work converges, with a restart between.
	b = reopen(t, b)
	fill(t, b, "b")
	fill(t, c, "c")
	d2, _, err := b.Lookup(root, "d4")
	check(t, err, nil)
	check(t, b.Rename(Request{}, root, "d4", root, "elsewhere", 0), nil)
	check(t, c.Rename(Request{}, d2.Node, "moved", root, "moved", 0), nil)
	exchange(t, a, b, c)
	exchange(t, a, b, c)
	same(t, a, b, c)
}

func TestP5SnapshotKeepsOwnOps(t *testing.T) {
	a, b := pair(t, longHold)
	c := volumeWith(t, a.ID(), Options{})
	fill(t, a, "")
	give(t, a, b)
	// Concurrent work: some of b's is sealed, some is not, some is not even an op.
	fill(t, b, "b")
	write(t, b, root, "both", "from b")
	check(t, b.sealNow(), nil)
	d4, _, err := b.Lookup(root, "d4")
	check(t, err, nil)
	check(t, b.Unlink(Request{}, d4.Node, "small1"), nil) // held: stays unsealed
	check(t, b.Rename(Request{}, root, "d4", root, "by b", 0), nil)
	open := create(t, b, root, "open").write("draft", 0)
	at, _, err := b.Lookup(d4.Node, "small2")
	check(t, err, nil)
	h, err := b.OpenWrite(Request{}, at.Node, true)
	check(t, err, nil)
	small2 := writing{t, b, at.Node, h}.write("by b", 0)
	write(t, a, root, "both", "from a")
	at, _, err = a.Lookup(root, "d4")
	check(t, err, nil)
	write(t, a, at.Node, "small2", "by a")
	check(t, a.Unlink(Request{}, at.Node, "small3"), nil)
	check(t, a.Rename(Request{}, root, "d4", root, "by a", 0), nil)
	join(t, a, b)
	if got := small2.read(); got != "by b" {
		t.Errorf("the draft reads %q", got)
	}
	open.close()
	small2.close()
	check(t, b.sealNow(), nil)
	exchange(t, a, b)
	same(t, a, b)
	// A third that took all as ops agrees: what a replica applied, in whatever way, is one set.
	exchange(t, a, c)
	exchange(t, b, c)
	same(t, a, b, c)
	absent(t, a, root, "d4")
	if got := read(t, a, root, "open"); got != "draft" {
		t.Errorf("%q", got)
	}
	wantLeaves(t, a, crdt.Ino(small2.node), "by a", "by b")
}

// TestP8SnapshotCutOff cuts a join after every chunk in turn. It goes on from
// there after a restart, and from another peer, which knows something else.
func TestP8SnapshotCutOff(t *testing.T) {
	a := volumeWith(t, NewVolumeID(), Options{})
	c := volumeWith(t, a.ID(), Options{})
	for n := range 20 {
		write(t, a, mkdir(t, a, root, fmt.Sprint("d", n)), "f", noise(uint64(n), 2000))
	}
	for n := range 10 {
		at, _, err := a.Lookup(root, fmt.Sprint("d", 2*n+1))
		check(t, err, nil)
		check(t, a.Rename(Request{}, root, fmt.Sprint("d", 2*n), at.Node, "moved", 0), nil)
	}
	write(t, a, root, "large", noise(1, 100_000))
	give(t, a, c)
	a.portion, c.portion = 4000, 5000
	for n, cut := 1, true; cut; n++ {
		b := volumeWith(t, a.ID(), Options{})
		worked := 0
		work := func() { // on both sides, while the stream runs
			if worked++; worked != n && worked != n+2 {
				return // the state must not grow faster than the cuts
			}
			write(t, a, root, "a now", fmt.Sprint(n))
			write(t, c, root, "c now", fmt.Sprint(n))
			c.Rename(Request{}, root, "c now", root, fmt.Sprint("c then", n%2), 0)
			// These do what they can.
			a.Rename(Request{}, root, fmt.Sprint("dir of a", n%3), root, fmt.Sprint("dir of a", (n+1)%3), 0)
			a.Mknod(Request{}, root, fmt.Sprint("dir of a", n%3), NewNode{Kind: crdt.KindDir, Mode: 0o755})
		}
		first := &peer{t: t, from: a, to: b, cut: n, between: work}
		err := b.JoinSnapshot(context.Background(), first)
		if cut = err != nil; cut {
			check(t, err, errCut)
			if got := list(t, b, root); len(got) != 0 || len(b.Vector()) != 0 {
				t.Fatalf("after %d chunks: %q", n, got)
			}
			if n%2 == 0 {
				b = reopen(t, b)
			}
			second := &peer{t: t, from: c, to: b, between: work}
			if n%3 == 0 {
				second.from = a
			}
			check(t, b.JoinSnapshot(context.Background(), second), nil)
			if at := second.asked[0]; n > 1 && len(at.After) == 0 && !at.Tail {
				t.Errorf("after %d chunks it begins again", n)
			}
		}
		exchange(t, a, c) // by journal: b's begins at its snapshot
		exchange(t, a, b, c)
		same(t, a, b, c)
		check(t, b.db.Close(), nil)
	}
}

// breakingKV fails each update after some, as a full disk does, or a kill as
// far as what is on disk goes.
type breakingKV struct {
	kv
	left int
}

var errBroken = errors.New("broken")

func (k *breakingKV) update(fn func(txn) error) error {
	if k.left--; k.left < 0 {
		return errBroken
	}
	return k.kv.update(fn)
}

// TestP8SnapshotBreaksOff ends a join at each of its writes. Nothing
// half-joined is shown; a restart, or the next join, ends it; own ops survive.
func TestP8SnapshotBreaksOff(t *testing.T) {
	id := NewVolumeID()
	a, c := volumeWith(t, id, Options{}), volumeWith(t, id, longHold)
	write(t, a, root, "shared", "1")
	give(t, a, c)
	write(t, a, root, "shared", "2") // c's journal has none of it
	fill(t, a, "")
	a.portion = 50_000
	alone := longHold
	alone.Scheduler = still{} // nobody else uses the database that breaks
	for n, broke := 0, true; broke; n++ {
		b := volumeWith(t, id, alone)
		give(t, c, b)
		w := &viewer{t: t, mount: 1, all: true}
		b.AddViewer(1, w)
		mkdir(t, b, root, "own")
		write(t, b, root, "sealed", "own")
		check(t, b.sealNow(), nil)
		write(t, b, root, "shared", "own")
		check(t, b.Rename(Request{}, root, "own", root, "own too", 0), nil)
		was := dump(t, b)
		check(t, a.db.room(), nil)
		intact := b.db.kv
		b.db.kv = &breakingKV{intact, n}
		// A writer at the joiner's peer, between the ranges and the tail.
		err := b.JoinSnapshot(context.Background(), &peer{t: t, from: a, to: b, between: func() { write(t, a, root, "now", fmt.Sprint(n)) }})
		b.db.kv = intact
		if broke = err != nil; broke {
			check(t, err, errBroken)
			if now := dump(t, b); fmt.Sprint(now) != fmt.Sprint(was) {
				t.Fatalf("after %d writes: the tree changed", n)
			}
			if n%2 == 0 {
				b = reopen(t, b)
				if got := list(t, b, root); !slices.Contains(got, "own too") {
					t.Fatalf("after %d writes: %q", n, got)
				}
			}
			join(t, a, b)
		}
		if got := read(t, b, root, "shared"); got != "own" {
			t.Errorf("after %d writes: own op is lost: %q", n, got)
		}
		exchange(t, a, b)
		same(t, a, b)
		check(t, b.db.Close(), nil)
		n += n / 6 // all of the first, some of the many
	}
}

// TestP3NothingHalfJoinedIsShown reads at the joiner all the while.
func TestP3NothingHalfJoinedIsShown(t *testing.T) {
	a, b := pair(t, Options{})
	dirs := 300
	for n := range dirs {
		mkdir(t, a, root, fmt.Sprint("d", n))
	}
	give(t, a, b)
	for n := range dirs { // each name moves, and the number of names stays
		check(t, a.Rename(Request{}, root, fmt.Sprint("d", n), root, fmt.Sprint("e", n), 0), nil)
		write(t, a, root, fmt.Sprint("f", n), "x")
	}
	w := &viewer{t: t, mount: 1, all: true}
	b.AddViewer(1, w)
	stop := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if n := len(list(t, b, root)); n != dirs && n != 2*dirs {
				t.Errorf("%d names are shown", n)
				return
			}
		}
	})
	join(t, a, b)
	close(stop)
	reading.Wait()
	same(t, a, b)
}

// TestSnapshotTailIsGone: the journal of the second peer does not reach back to
// what the first one knew, or lacks the newest. What is too old, or too new, is
// staged again, and no more.
func TestSnapshotTailIsGone(t *testing.T) {
	id := NewVolumeID()
	a := volumeWith(t, id, Options{})
	fill(t, a, "")
	old, late := volumeWith(t, id, Options{}), volumeWith(t, id, Options{})
	give(t, a, old)
	for n := range 200 {
		write(t, a, root, fmt.Sprint("more", n), noise(uint64(n), 2000))
	}
	join(t, a, late) // its journal has nothing of this
	for _, c := range []struct{ first, second *Volume }{{old, late}, {a, old}} {
		for _, v := range []*Volume{c.first, c.second} {
			v.portion = 30_000
		}
		b := volumeWith(t, id, Options{})
		first := &peer{t: t, from: c.first, to: b, cut: 5}
		check(t, b.JoinSnapshot(context.Background(), first), errCut)
		second := &peer{t: t, from: c.second, to: b}
		check(t, b.JoinSnapshot(context.Background(), second), nil)
		if n := len(second.asked); n < 3 {
			t.Errorf("%d requests", n)
		}
		same(t, b, c.second)
		give(t, a, b)
		same(t, b, a)
	}
}

func TestP8SnapshotIsCheckedFirst(t *testing.T) {
	a, b := pair(t, Options{})
	fill(t, a, "")
	write(t, b, root, "own", "x")
	was := dump(t, b)
	a.portion = 100_000
	bad := func(what string, want error, bend func(n int, chunk []byte) []byte) {
		t.Helper()
		n := 0
		p := &peer{t: t, from: a, to: b, bend: func(chunk []byte) []byte { n++; return bend(n-1, chunk) }}
		if err := b.JoinSnapshot(context.Background(), p); !errors.Is(err, want) {
			t.Errorf("%s: %v", what, err)
		}
		if now := dump(t, b); fmt.Sprint(now) != fmt.Sprint(was) {
			t.Errorf("%s: the tree changed", what)
		}
	}
	var first []byte
	bad("empty", ErrBadBatch, func(int, []byte) []byte { return nil })
	bad("cut in a record", ErrBadBatch, func(n int, c []byte) []byte { return c[:len(c)-n%2] })
	bad("the same again", ErrBadBatch, func(n int, c []byte) []byte {
		if n == 0 {
			first = c
		}
		return first
	})
	bad("one left out", ErrBadBatch, func(n int, c []byte) []byte {
		if n == 1 {
			return first
		}
		return c
	})
	bad("no header", ErrBadBatch, func(n int, c []byte) []byte { return c[5+binary.BigEndian.Uint32(c[1:]):] })
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	check(t, b.JoinSnapshot(ctx, &peer{t: t, from: a, to: b}), context.Canceled)
	join(t, a, b)
}

// TestP8RestoredFromABackup: peers know ops of this replica that it has lost.
func TestP8RestoredFromABackup(t *testing.T) {
	a, b := pair(t, Options{})
	write(t, a, root, "f", "1")
	give(t, a, b)
	old := a.Replica()
	// The backup: what a knew then, under its id.
	c := volumeWith(t, a.ID(), Options{})
	give(t, a, c)
	c.mu.Lock()
	c.replica, c.seq = old, c.vector[old].Seq
	check(t, c.putRecordLocked(), nil)
	c.mu.Unlock()
	write(t, a, root, "f", "2")
	give(t, a, b)
	join(t, b, c)
	if c.Replica() == old {
		t.Fatal("it goes on under the old id")
	}
	write(t, c, root, "f", "3")
	exchange(t, b, c)
	same(t, b, c)
	if got := read(t, b, root, "f"); got != "3" {
		t.Errorf("%q", got)
	}
	same(t, b, reopen(t, c))
}

// TestP12HostileSnapshots: what no correct replica sends is refused, and
// nothing hangs.
func TestP12HostileSnapshots(t *testing.T) {
	id := func(n crdt.Stamp) crdt.VersionID { return crdt.VersionID{Stamp: n, Replica: 9} }
	dir := func(ino, parent crdt.Ino) *crdt.Inode {
		place := crdt.Place{ID: id(crdt.Stamp(ino)), Parent: parent, Name: fmt.Sprint("d", ino)}
		i := &crdt.Inode{Ino: ino, Kind: crdt.KindDir, Standing: place, Links: []crdt.Link{{ID: 1, Places: []crdt.Place{place}}}}
		i.Mode.At = id(crdt.Stamp(ino))
		return i
	}
	snapshot := func(inodes ...*crdt.Inode) []byte {
		w := &chunkWriter{}
		w.add(snapVector, crdt.AppendVector(nil, crdt.Vector{9: {Seq: 1, Stamp: 100}}))
		collected, err := json.Marshal(collectedRecord{Vector: crdt.AppendVector(nil, nil)})
		check(t, err, nil)
		w.add(snapCollected, collected)
		w.add(snapPosition, []byte{0, 0, 0xff})
		for _, i := range inodes {
			w.add(snapInode, crdt.AppendInode(nil, i))
		}
		return w.buf
	}
	for what, chunk := range map[string][]byte{
		"a circle":    snapshot(dir(1000, 1001), dir(1001, 1000)),
		"in itself":   snapshot(dir(1000, 1000)),
		"unpublished": snapshot(&crdt.Inode{Ino: 5, Kind: crdt.KindDir}),
	} {
		b := volumeWith(t, NewVolumeID(), Options{})
		mkdir(t, b, root, "own")
		p := &peer{t: t, from: b, to: b, bend: func([]byte) []byte { return chunk }}
		err := b.JoinSnapshot(context.Background(), p)
		if !errors.Is(err, ErrBadBatch) {
			t.Errorf("%s: %v", what, err)
		}
		mkdir(t, b, root, "own too")
		dump(t, reopen(t, b))
	}
}
