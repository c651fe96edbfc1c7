package crdt

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

// applyLocal applies writes that peers do not hear of.
func (r *replica) applyLocal(writes []Write) error {
	before := flatten(r.st)
	e, err := Apply(r.st, &Op{Stamp: LocalStamp, Wall: r.world.now, Writes: writes})
	if err != nil {
		return err
	}
	return checkEffects(before, e, flatten(r.st))
}

func TestUnpublishedInode(t *testing.T) {
	rs := newWorld().replicas(2)
	a, b := rs[0], rs[1]
	run(t, rs, "A mkdir d; A create d/x 0; B pull A")
	p := a.plan()
	must(t, p.Create(RootIno, "t", NewInode{Ino: 100, Link: 200, Kind: KindFile}), a.applyLocal(p.Writes))
	for _, step := range [][2]string{{"t", "u"}, {"u", "v"}, {"v", "w"}, {"w", "d/y"}} {
		p := a.plan()
		ndir, nname, err := a.at(step[1])
		must(t, err)
		_, err = p.Rename(RootIno, step[0], ndir, nname, RenameReplace)
		must(t, err, a.applyLocal(p.Writes))
		if want := "d/ d/x=0 " + nname + "="; step[1] != "d/y" && a.view(t) != want {
			t.Fatalf("view is %q, want %q", a.view(t), want)
		}
	}
	if got := a.view(t); got != "d/ d/x=0 d/y=" {
		t.Fatalf("view is %q", got)
	}
	publish(t, a, 100, "1")
	exchangeAll(t, rs)
	if got := b.view(t); got != "d/ d/x=0 d/y=1" {
		t.Fatalf("view is %q", got)
	}
}

func publish(t *testing.T, r *replica, ino Ino, data string) {
	t.Helper()
	i, err := r.st.Inode(ino)
	must(t, err)
	c, p := bytesOf(data), r.plan()
	must(t, p.Publish(i, &c, nil))
	before := flatten(r.st)
	e, err := Retract(r.st, ino)
	must(t, err, checkEffects(before, e, flatten(r.st)), r.commit(p.Writes))
}

// A removal and a rename of one name bump the mtimes of directories, whichever
// arrives first.
func TestP4DirectoryTimes(t *testing.T) {
	for way := range 2 {
		rs := newWorld().replicas(3)
		rs[way].skew = 100
		run(t, rs, "A mkdir d; A mkdir e; A create d/x 0; B pull A; C pull A; A unlink d/x; B mv d/x e/x; C pull B; C pull A")
		exchangeAll(t, rs)
	}
}

// genHostileWrite draws from few ids, so that writes meet.
func genHostileWrite(t *rapid.T) Write {
	small := func(label string) uint64 { return uint64(rapid.IntRange(0, 5).Draw(t, label)) }
	versions := func(label string) []VersionID {
		return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) VersionID {
			return VersionID{Stamp(small("stamp")), ReplicaID(small("replica")), uint32(small("n"))}
		}), 0, 3).Draw(t, label)
	}
	return Write{
		Kind: WriteKind(rapid.IntRange(1, 9).Draw(t, "kind")), Ino: Ino(small("ino")), Link: LinkID(small("link")),
		From: Ino(small("from")), Parent: Ino(small("parent")), Name: rapid.SampledFrom([]string{"a", "b", "", "/"}).Draw(t, "name"),
		Base: versions("base"), Closes: versions("closes"), Content: Content{Size: int64(small("size"))},
		InodeKind: Kind(rapid.IntRange(0, 3).Draw(t, "inode")),
	}
}

// Ops that no correct replica makes are refused or harmless: no panic, no
// endless loop.
func TestHostileOps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		st := NewMapState()
		for n := range 8 {
			op := &Op{
				Dot: Dot{ReplicaID(rapid.IntRange(1, 3).Draw(t, "replica")), 1}, Stamp: Stamp(n),
				Writes: rapid.SliceOfN(rapid.Custom(genHostileWrite), 1, 6).Draw(t, "writes"),
			}
			next := st.Clone()
			switch _, err := Apply(next, op); {
			case err == nil:
				st = next
			case !errors.Is(err, ErrMalformed):
				t.Fatal(err)
			}
		}
	})
}

func BenchmarkApply(b *testing.B) {
	w := newWorld()
	st := NewMapState()
	ops := make([]*Op, b.N)
	for n := range ops {
		ino, link := Ino(w.rand.Uint64()), LinkID(w.rand.Uint64())
		p := &Plan{S: st}
		p.add(inodeWrite(NewInode{Ino: ino, Link: link, Kind: KindFile, Mode: 0o644}),
			Write{Kind: WritePlace, Ino: ino, Link: link, Parent: RootIno, Name: ReplicaID(link).String()},
			Write{Kind: WriteContent, Ino: ino, Link: link, Content: bytesOf("data")})
		ops[n] = &Op{Dot: Dot{1, Seq(n + 1)}, Stamp: start + Stamp(n), Writes: p.Writes}
	}
	b.ReportAllocs()
	b.ResetTimer()
	for _, op := range ops {
		if _, err := Apply(st, op); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeInode(b *testing.B) {
	record := AppendInode(nil, plainInode(b))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeInode(record); err != nil {
			b.Fatal(err)
		}
	}
}
