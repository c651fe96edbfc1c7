package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// snapshotOf returns a volume's snapshot in its chunks.
func snapshotOf(t testing.TB, v *Volume) (chunks [][]byte) {
	t.Helper()
	check(t, v.WriteSnapshot(context.Background(), func(chunk []byte) error {
		if len(chunk) > 512<<10 {
			t.Errorf("chunk of %d bytes", len(chunk))
		}
		chunks = append(chunks, bytes.Clone(chunk))
		return nil
	}), nil)
	return chunks
}

// replay gives chunks as JoinSnapshot wants them, and the error after the last.
func replay(chunks [][]byte, last error) func() ([]byte, error) {
	return func() ([]byte, error) {
		if len(chunks) == 0 {
			return nil, last
		}
		c := chunks[0]
		chunks = chunks[1:]
		return c, nil
	}
}

func fetchFrom(from, to *Volume) func(context.Context, crdt.Hash) error {
	return func(_ context.Context, h crdt.Hash) error { return copyContent(from.db, to.db, h) }
}

func join(t testing.TB, from, to *Volume) {
	t.Helper()
	check(t, to.JoinSnapshot(context.Background(), replay(snapshotOf(t, from), io.EOF), fetchFrom(from, to)), nil)
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
	patch := open.v
	small2 := open
	{
		at, _, err := patch.Lookup(d4.Node, "small2")
		check(t, err, nil)
		h, err := patch.OpenWrite(Request{}, at.Node, true)
		check(t, err, nil)
		small2 = writing{t, patch, at.Node, h}
		small2.write("by b", 0)
	}
	write(t, a, root, "both", "from a")
	at, _, err := a.Lookup(root, "d4")
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

// TestP8SnapshotCutOff ends a join at every stage and opens the store again.
func TestP8SnapshotCutOff(t *testing.T) {
	a := volumeWith(t, NewVolumeID(), Options{})
	fill(t, a, "")
	for range 30 {
		write(t, a, root, "many", noise(1, 60_000))
	}
	for n := range 20 {
		write(t, a, root, fmt.Sprint("more", n), noise(uint64(n), 60_000))
	}
	chunks := snapshotOf(t, a)
	if len(chunks) < 4 {
		t.Fatalf("%d chunks", len(chunks))
	}
	full := errors.New("cut off")
	for n := range len(chunks) + 1 { // the stream ends early
		b := volumeWith(t, a.ID(), Options{})
		err := b.JoinSnapshot(context.Background(), replay(chunks[:n], full), fetchFrom(a, b))
		check(t, err, full)
		b = reopen(t, b)
		if got := list(t, b, root); len(got) != 0 || len(b.Vector()) != 0 {
			t.Fatalf("after %d chunks: %q", n, got)
		}
		join(t, a, b)
		same(t, a, b)
	}
	// All staged, not joined; then joined in part, with more cut off each time.
	for records := range 12 {
		b := volumeWith(t, a.ID(), Options{})
		check(t, b.stage(context.Background(), replay(chunks, io.EOF), fetchFrom(a, b)), nil)
		if n := records; n > 0 {
			b.mu.Lock()
			b.halfJoined = true
			var theirs crdt.Vector
			for _, c := range chunks[:min(len(chunks), n/2)] {
				check(t, b.joinChunk(c, &theirs), nil)
			}
			b.mu.Unlock()
			check(t, second(b.Mknod(Request{}, root, "now", NewNode{Kind: crdt.KindDir})), ErrNotReady)
			check(t, b.WriteSnapshot(context.Background(), func([]byte) error { return nil }), ErrNotReady)
		}
		if records%2 == 0 {
			b = reopen(t, b) // finishes it
		} else {
			join(t, a, b) // as does another join
		}
		same(t, a, b)
		write(t, a, root, "many", "after")
		give(t, a, b)
		same(t, a, b)
		chunks = snapshotOf(t, a)
	}
}

func TestP8SnapshotIsCheckedFirst(t *testing.T) {
	a, b := pair(t, Options{})
	fill(t, a, "")
	write(t, b, root, "own", "x")
	chunks := snapshotOf(t, a)
	was := dump(t, b)
	bad := func(what string, chunks [][]byte, fetch func(context.Context, crdt.Hash) error, want error) {
		t.Helper()
		err := b.JoinSnapshot(context.Background(), replay(chunks, io.EOF), fetch)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", what, err)
		}
		if now := dump(t, b); fmt.Sprint(now) != fmt.Sprint(was) {
			t.Errorf("%s: the tree changed", what)
		}
	}
	fetch := fetchFrom(a, b)
	noPeer := errors.New("no peer has it")
	bad("content", chunks, func(context.Context, crdt.Hash) error { return noPeer }, noPeer)
	bad("empty", nil, fetch, ErrBadBatch)
	bad("no vector", chunks[1:], fetch, ErrBadBatch)
	bad("cut in a record", [][]byte{chunks[0], chunks[1][:len(chunks[1])-1]}, fetch, ErrBadBatch)
	bad("vector twice", [][]byte{chunks[0], chunks[0]}, fetch, ErrBadBatch)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	check(t, b.JoinSnapshot(ctx, replay(chunks, io.EOF), fetch), context.Canceled)
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
	snapshot := func(inodes ...*crdt.Inode) [][]byte {
		var chunks [][]byte
		w := &snapWriter{send: func(b []byte) error { chunks = append(chunks, b); return nil }}
		check(t, w.record(snapVector, crdt.AppendVector(nil, crdt.Vector{9: {Seq: 1, Stamp: 100}})), nil)
		for _, i := range inodes {
			check(t, w.record(snapInode, crdt.AppendInode(nil, i)), nil)
		}
		check(t, w.flush(), nil)
		return chunks
	}
	for what, chunks := range map[string][][]byte{
		"a circle":    snapshot(dir(1000, 1001), dir(1001, 1000)),
		"in itself":   snapshot(dir(1000, 1000)),
		"unpublished": snapshot(&crdt.Inode{Ino: 5, Kind: crdt.KindDir}),
	} {
		b := volumeWith(t, NewVolumeID(), Options{})
		mkdir(t, b, root, "own")
		err := b.JoinSnapshot(context.Background(), replay(chunks, io.EOF), nil)
		if !errors.Is(err, ErrBadBatch) {
			t.Errorf("%s: %v", what, err)
		}
		mkdir(t, b, root, "own too")
		dump(t, reopen(t, b))
	}
}
