package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// rewrap makes a batch of ops as their origin would have.
func rewrap(b *Batch, ops ...*crdt.Op) *Batch {
	c := *b
	c.Ops, c.last = nil, nil
	for n, op := range ops {
		op.Dot = crdt.Dot{Replica: b.Origin, Seq: b.First + crdt.Seq(n)}
		op.Stamp = b.Stamp + crdt.Stamp(n)
		c.Ops = append(c.Ops, crdt.AppendOp(nil, op))
	}
	c.Last, c.Stamp = b.First+crdt.Seq(len(ops)-1), b.Stamp+crdt.Stamp(len(ops)-1)
	return &c
}

func TestP3P4MergeOnceAndInOrder(t *testing.T) {
	a, b := pair(t, Options{})
	c := volumeWith(t, a.ID(), Options{})
	var made []*Batch
	for n := range 5 {
		write(t, a, root, fmt.Sprint("f", n), "x")
		made = append(made, batches(t, a, nil)...)
	}
	made = made[len(made)-5:]
	check(t, b.Merge(made[1]), ErrNotNext)
	absent(t, b, root, "f1")
	for range 3 {
		for _, m := range made {
			check(t, b.Merge(m), nil)
		}
	}
	if n := b.merged.Load(); n != 5 {
		t.Errorf("%d ops merged, want 5", n)
	}
	check(t, c.Merge(made[0]), nil)
	write(t, b, root, "g", "after the others") // depends on all
	g := batches(t, b, a.Vector())
	check(t, c.Merge(g[0]), ErrNotNext)
	check(t, a.Merge(g[0]), nil)
	for _, m := range made[1:] {
		check(t, c.Merge(m), nil)
	}
	check(t, c.Merge(g[0]), nil)
	same(t, a, b, c)
}

func TestP12ChainBreakIsRefused(t *testing.T) {
	a, b := pair(t, Options{})
	write(t, a, root, "f", "1")
	give(t, a, b)
	write(t, a, root, "f", "2")
	m := batches(t, a, b.Vector())[0]
	was := b.Vector()
	for what, change := range map[string]func(*Batch){
		"chain":      func(m *Batch) { m.Prev[3]++ },
		"volume":     func(m *Batch) { m.Volume[0]++ },
		"own id":     func(m *Batch) { *m = *rewrap(m, must(crdt.DecodeOp(m.Ops[0]))); m.Origin = b.Replica() },
		"stamp":      func(m *Batch) { m.Stamp++ },
		"dot":        func(m *Batch) { m.Ops = slices.Clone(m.Ops); m.Ops[0] = bytes.Clone(m.Ops[0]); m.Ops[0][8]++ },
		"op bytes":   func(m *Batch) { m.Ops = [][]byte{[]byte("nonsense")} },
		"op cut off": func(m *Batch) { m.Ops = [][]byte{m.Ops[0][:len(m.Ops[0])-1]} },
	} {
		bad := *m
		bad.last = nil
		change(&bad)
		if err := b.Merge(&bad); !errors.Is(err, ErrBadBatch) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !reflect.DeepEqual(was, b.Vector()) {
		t.Error("the vector moved")
	}
	if got := read(t, b, root, "f"); got != "1" {
		t.Errorf("%q", got)
	}
	check(t, b.Merge(m), nil)
}

// TestP12MalformedOpsChangeNothing: ops that no correct replica makes are
// refused with all of their batch, and break nothing.
func TestP12MalformedOpsChangeNothing(t *testing.T) {
	a, b := pair(t, Options{})
	node := write(t, a, root, "f", "1")
	dir := mkdir(t, a, root, "d")
	give(t, a, b)
	write(t, a, root, "f", "2")
	m := batches(t, a, b.Vector())[0]
	good := crdt.Write{Kind: crdt.WriteMode, Ino: crdt.RootIno, Mode: 0o700}
	f, d := crdt.Ino(node), crdt.Ino(dir)
	newDir := crdt.Write{Kind: crdt.WriteInode, Ino: 777, InodeKind: crdt.KindDir, Mode: 0o755}
	place := func(ino, parent crdt.Ino, link crdt.LinkID, name string) crdt.Write {
		return crdt.Write{Kind: crdt.WritePlace, Ino: ino, Parent: parent, Link: link, Name: name}
	}
	bad := map[string][]crdt.Write{
		"unknown inode":       {{Kind: crdt.WriteContent, Ino: 12345}},
		"inode again":         {{Kind: crdt.WriteInode, Ino: f, InodeKind: crdt.KindFile}},
		"content of a dir":    {{Kind: crdt.WriteContent, Ino: d}},
		"wrong inline size":   {{Kind: crdt.WriteContent, Ino: f, Content: crdt.Content{Size: 5}}},
		"name of the root":    {place(crdt.RootIno, d, 1, "x")},
		"empty name":          {place(f, crdt.RootIno, 9, "")},
		"name with a slash":   {place(f, crdt.RootIno, 9, "a/b")},
		"in a file":           {place(f, f, 9, "x")},
		"second link of dir":  {place(d, crdt.RootIno, 9, "x")},
		"no such link":        {{Kind: crdt.WriteRemove, Ino: f, Link: 99}},
		"new dir in itself":   {newDir, place(777, 777, 1, "x")},
		"dir without a place": {newDir, {Kind: crdt.WriteInode, Ino: 778, InodeKind: crdt.KindFile}, place(778, 777, 1, "x")},
	}
	for what, writes := range bad {
		op := &crdt.Op{Writes: append([]crdt.Write{good}, writes...)}
		err := b.Merge(rewrap(m, &crdt.Op{Writes: []crdt.Write{good}}, op))
		if !errors.Is(err, ErrBadBatch) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if at, err := b.Attr(root); err != nil || at.Mode != 0o755 {
		t.Errorf("mode %o, %v: a part was applied", at.Mode, err)
	}
	check(t, b.Merge(m), nil)
	same(t, a, b)
}

// TestP12RandomOpsBreakNothing throws ops of random writes at a replica: they
// are merged or refused; what comes after still works.
func TestP12RandomOpsBreakNothing(t *testing.T) {
	_, b := pair(t, Options{})
	mkdir(t, b, root, "d")
	write(t, b, root, "f", "1")
	inos := []crdt.Ino{0, 1, 2, 3, 4, 5, 6}
	for _, name := range []string{"d", "f"} {
		at, _, err := b.Lookup(root, name)
		check(t, err, nil)
		inos = append(inos, at.Ino)
	}
	r := rand.New(rand.NewPCG(1, 2))
	ino := func() crdt.Ino { return inos[r.IntN(len(inos))] }
	var seen []crdt.VersionID
	versions := func() (out []crdt.VersionID) {
		for range r.IntN(3) {
			if len(seen) > 0 {
				out = append(out, seen[r.IntN(len(seen))])
			}
		}
		return out
	}
	m := &Batch{Volume: b.ID(), Origin: 4711, First: 1, Stamp: 1000}
	merged := 0
	for range 4000 {
		op := &crdt.Op{}
		for range 1 + r.IntN(4) {
			w := crdt.Write{
				Kind: crdt.WriteKind(1 + r.IntN(9)), Ino: ino(), Link: crdt.LinkID(r.IntN(4)), From: ino(), Parent: ino(),
				Name: string(rune('a' + r.IntN(4))), Base: versions(), InodeKind: crdt.Kind(1 + r.IntN(7)), Mode: 0o755,
			}
			if w.Kind == crdt.WriteRemove {
				w.Closes = versions()
			}
			if len(w.Base) > 1 && w.Kind == crdt.WriteContent {
				w.Base = w.Base[:1]
			}
			op.Writes = append(op.Writes, w)
		}
		x := rewrap(m, op)
		err := b.Merge(x)
		if err != nil && !errors.Is(err, ErrBadBatch) {
			t.Fatalf("%+v: %v", op, err)
		}
		if err == nil {
			merged++
			m.First, m.Stamp, m.Prev = m.First+1, m.Stamp+10, x.Chain(x.Last)
			for n := range op.Writes {
				seen = append(seen, op.ID(n))
			}
		}
		if merged%10 == 0 {
			dump(t, b)
			name := fmt.Sprint("own", merged)
			if _, err := b.Mknod(Request{}, NodeID(ino()), name, NewNode{Kind: crdt.KindDir}); err == nil {
				b.Rmdir(Request{}, root, name)
			}
		}
	}
	t.Logf("%d of 4000 merged", merged)
	dump(t, reopen(t, b))
	check(t, b.read(func(*tree) error { return nil }), ErrClosed)
}

func TestP2ContentComesFirst(t *testing.T) {
	a, b := pair(t, Options{})
	write(t, a, root, "big", noise(1, 3_000_000))
	m := batches(t, a, nil)[0]
	wants := must(b.Wants(m))
	if len(wants) != 1 {
		t.Fatalf("wants %x", wants)
	}
	check(t, b.Merge(m), ErrNoContent)
	absent(t, b, root, "big")
	check(t, copyContent(a.db, b.db, wants[0]), nil)
	// A size that is not the content's would show bytes of no version.
	op := must(crdt.DecodeOp(m.Ops[0]))
	for n := range op.Writes {
		if op.Writes[n].Kind == crdt.WriteContent {
			op.Writes[n].Content.Size++
		}
	}
	check(t, b.Merge(rewrap(m, op)), ErrBadBatch)
	check(t, b.Merge(m), nil)
	same(t, a, b)
}

func TestP2BatchFitsInOneTransaction(t *testing.T) {
	for what, fill := range map[string]func(t *testing.T, v *Volume){
		"large xattrs": func(t *testing.T, v *Volume) {
			for n := range 40 {
				node := write(t, v, root, fmt.Sprint("f", n), "x")
				for k := range 2 {
					check(t, v.SetXattr(Request{}, node, fmt.Sprint("user.", k), []byte(noise(uint64(k), 60_000)), XattrSet), nil)
				}
			}
			for n := range 300 {
				node, _, err := v.Lookup(root, fmt.Sprint("f", n%40))
				check(t, err, nil)
				mode := uint32(n)
				_, err = v.SetAttr(Request{}, node.Node, SetAttr{Mode: &mode})
				check(t, err, nil)
			}
		},
		"all at their limits": func(t *testing.T, v *Volume) {
			for n := range 12 {
				w := create(t, v, root, fmt.Sprint("f", n))
				for k := range 2 {
					check(t, v.SetXattr(Request{}, w.node, fmt.Sprint("user.", k), []byte(noise(uint64(k), 60_000)), XattrSet), nil)
				}
				for k := range 38 { // what leaves with it
					write(t, v, root, fmt.Sprint("small", n, k), noise(uint64(n), 12_000))
				}
				w.write(noise(uint64(n), 256<<10), 0).close()
			}
		},
		"inline files": func(t *testing.T, v *Volume) {
			for n := range 60 {
				write(t, v, root, fmt.Sprint("f", n), noise(uint64(n), 64<<10))
			}
		},
		"one directory": func(t *testing.T, v *Volume) {
			for n := range 3000 {
				mkdir(t, v, root, fmt.Sprint("directory with a longer name ", n))
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			o := longHold
			o.InlineLimit = 256 << 10
			a, b := pair(t, o)
			write(t, a, root, "held", "")
			check(t, a.Unlink(Request{}, root, "held"), nil) // so that all waits for one batch
			fill(t, a)
			give(t, a, b)
			same(t, a, b)
			for _, v := range []*Volume{a, b} {
				if n := largestValue(t, v); n >= maxValue {
					t.Errorf("a value of %d bytes, which goes to Badger's value log", n)
				}
			}
		})
	}
}

func largestValue(t testing.TB, v *Volume) (n int) {
	t.Helper()
	check(t, v.db.kv.view(func(tx txn) error {
		return tx.scan(nil, []byte{0}, func(_, value []byte) (bool, error) {
			n = max(n, len(value))
			return true, nil
		})
	}), nil)
	return n
}

func FuzzDecodeBatch(f *testing.F) {
	v := volumeWith(f, NewVolumeID(), Options{Sign: func(d []byte) []byte { return d }})
	write(f, v, root, "f", "text")
	mkdir(f, v, root, "d")
	for _, b := range batches(f, v, nil) {
		f.Add(b.Encode())
	}
	f.Add((&Batch{Origin: 1, First: 1, Last: 2, Ops: [][]byte{{}, {1}}, Deps: []crdt.Dot{{Replica: 2, Seq: 3}}}).Encode())
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := DecodeBatch(raw)
		if err != nil {
			if !errors.Is(err, ErrBadBatch) {
				t.Fatal(err)
			}
			return
		}
		if again := b.Encode(); !bytes.Equal(again, raw) {
			t.Fatalf("%x is encoded as %x", raw, again)
		}
		b.Digest()
		if _, err := b.decodeOps(); err != nil && !errors.Is(err, ErrBadBatch) {
			t.Fatal(err)
		}
	})
}

func FuzzSnapshotChunk(f *testing.F) {
	v := volumeWith(f, NewVolumeID(), Options{})
	write(f, v, root, "f", "text")
	mkdir(f, v, root, "d")
	check(f, v.Rename(Request{}, root, "d", root, "e", 0), nil)
	check(f, v.WriteSnapshot(context.Background(), SnapshotRequest{}, func(chunk []byte) error {
		f.Add(bytes.Clone(chunk))
		return nil
	}), nil)
	db := v.db
	f.Fuzz(func(t *testing.T, chunk []byte) {
		w, err := db.CreateReplica(NewVolumeID(), "joiner", false)
		check(t, err, nil)
		p := &peer{t: t, from: w, to: w, bend: func([]byte) []byte { return chunk }}
		if err := w.JoinSnapshot(context.Background(), p); err == nil {
			dump(t, w)
		} else if !strings.Contains(err.Error(), "stage snapshot") {
			t.Errorf("it was taken, and then not: %v", err)
		}
		check(t, db.DeleteReplica(w.ID()), nil)
	})
}
