package crdt

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

const manyMoves = 10_000

// movers returns a state of many directories, some below others, and ops of
// another replica that move them, oldest first.
func movers(t testing.TB, moves int) (*MapState, []*Op) {
	s := NewMapState()
	dirs := 1000
	make := &Op{Dot: Dot{1, 1}, Stamp: 1}
	for n := range dirs {
		ino, parent := Ino(100+n), RootIno
		if n >= 10 {
			parent = Ino(100 + n/10)
		}
		make.Writes = append(make.Writes,
			Write{Kind: WriteInode, Ino: ino, InodeKind: KindDir},
			Write{Kind: WritePlace, Ino: ino, Link: LinkID(ino), Parent: parent, Name: fmt.Sprint("d", n)})
	}
	make.Writes = append(make.Writes,
		Write{Kind: WriteInode, Ino: 99, InodeKind: KindDir},
		Write{Kind: WritePlace, Ino: 99, Link: 99, Parent: 150, Name: "never moved"})
	if _, err := Apply(s, make); err != nil {
		t.Fatal(err)
	}
	var ops []*Op
	for n := range moves {
		to := n * 13 % 100
		if n%20 == 0 {
			to = n * 17 % dirs // deeper, and cycles now and then
		}
		ops = append(ops, moveOp(2, Seq(n+1), Stamp(10+2*n), Ino(100+n*7%dirs), Ino(100+to), n))
	}
	return s, ops
}

func moveOp(r ReplicaID, seq Seq, at Stamp, dir, to Ino, n int) *Op {
	return &Op{Dot: Dot{r, seq}, Stamp: at, Writes: []Write{
		{Kind: WritePlace, Ino: dir, Link: LinkID(dir), Parent: to, Name: fmt.Sprint("m", n)},
	}}
}

func movesOf(t testing.TB, s *MapState) []Move {
	moves, err := s.MovesAfter(VersionID{})
	if err != nil {
		t.Fatal(err)
	}
	return moves
}

// TestP4FoldAtOnce: a log folded at once, whatever its order and however often
// it is begun again, is the same as one folded move by move.
func TestP4FoldAtOnce(t *testing.T) {
	one, ops := movers(t, 600)
	all, _ := movers(t, 0)
	for _, op := range ops {
		if _, err := Apply(one, op); err != nil {
			t.Fatal(err)
		}
	}
	var moves []Move
	for n := range ops {
		op := ops[(n*7)%len(ops)]
		moves = append(moves, Move{ID: op.ID(0), Ino: op.Writes[0].Ino, Parent: op.Writes[0].Parent, Name: op.Writes[0].Name})
		i, _ := all.Inode(op.Writes[0].Ino)
		i.Links[0].Places = []Place{{ID: op.ID(0), Parent: moves[n].Parent, Name: moves[n].Name}}
	}
	moves = append(moves, moves[0], Move{ID: VersionID{Stamp: 5, Replica: 3}, Ino: 98, Parent: 1, Name: "of nobody"})
	for begun := range 200 { // a crash after each portion but the last
		f, err := FoldMoves(all, moves)
		more := true
		for n := 0; more && err == nil && (n <= begun || begun == 199); n++ {
			_, more, err = f.Write(all, 7)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if got, want := fmt.Sprint(movesOf(t, all)), fmt.Sprint(movesOf(t, one)); got != want {
		t.Error("the logs differ")
	}
	for _, ino := range one.Inodes() {
		x, y := one.inodes[ino], all.inodes[ino]
		if !x.Standing.same(y.Standing) || !x.Origin.same(y.Origin) {
			t.Errorf("directory %d stands at %+v, from %+v; want %+v, %+v", ino, y.Standing, y.Origin, x.Standing, x.Origin)
		}
	}
}

// TestLateMoveTouchesLittle: what a late move costs in records does not follow
// the length of the log.
func TestLateMoveTouchesLittle(t *testing.T) {
	s, ops := movers(t, 2000)
	for _, op := range ops {
		if _, err := Apply(s, op); err != nil {
			t.Fatal(err)
		}
	}
	counted := &countingState{State: s}
	for n := range 20 {
		counted.puts = 0
		if _, err := Apply(counted, moveOp(3, Seq(n+1), Stamp(11+100*n), Ino(100+n*31), Ino(100+n*17), 5000+n)); err != nil {
			t.Fatal(err)
		}
		if counted.puts > 100 {
			t.Errorf("move %d wrote %d records", n, counted.puts)
		}
	}
}

type countingState struct {
	State
	puts int
}

func (c *countingState) PutInode(i *Inode) error { c.puts++; return c.State.PutInode(i) }
func (c *countingState) PutMove(m Move) error    { c.puts++; return c.State.PutMove(m) }

// BenchmarkLateMove is one directory move that is older than all but a few of
// a log of 10,000.
func BenchmarkLateMove(b *testing.B) {
	s, ops := movers(b, manyMoves)
	for _, op := range ops {
		if _, err := Apply(s, op); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		b.StopTimer()
		c := s.Clone()
		// Every second one is of a directory that no later move touches.
		op := moveOp(3, 1, Stamp(11+2*(n%50)), Ino(100+n*31%1000), Ino(100+n*17%1000), 50_000+n)
		if n%2 == 1 {
			op.Writes[0].Ino, op.Writes[0].Link = 99, 99
		}
		b.StartTimer()
		if _, err := Apply(c, op); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFoldMoves is the join of a log of 10,000 directory moves.
func BenchmarkFoldMoves(b *testing.B) {
	s, ops := movers(b, manyMoves)
	for _, op := range ops {
		if _, err := Apply(s, op); err != nil {
			b.Fatal(err)
		}
	}
	moves := movesOf(b, s)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		to, _ := movers(b, 0)
		b.StartTimer()
		f, err := FoldMoves(to, moves)
		for more := true; err == nil && more; {
			_, more, err = f.Write(to, 200)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// TestP4LateMoves: moves of one and of two directories, in any order, give one
// log and one tree.
func TestP4LateMoves(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		var ops []*Op
		for n := range 40 {
			op := moveOp(2, Seq(n+1), Stamp(10+n), Ino(100+rnd.IntN(8)), Ino(100+rnd.IntN(8)), n)
			if rnd.IntN(4) == 0 {
				if w := moveOp(0, 0, 0, Ino(100+rnd.IntN(8)), Ino(100+rnd.IntN(8)), 100+n).Writes[0]; w.Ino != op.Writes[0].Ino {
					op.Writes = append(op.Writes, w)
				}
			}
			ops = append(ops, op)
		}
		apply := func(ops []*Op) *MapState {
			s, _ := movers(t, 0)
			for _, op := range ops {
				if _, err := Apply(s, op); err != nil {
					t.Fatal(err)
				}
			}
			return s
		}
		want := apply(ops)
		rnd.Shuffle(len(ops), func(i, j int) { ops[i], ops[j] = ops[j], ops[i] })
		got := apply(ops)
		if fmt.Sprint(movesOf(t, got)) != fmt.Sprint(movesOf(t, want)) {
			t.Fatalf("seed %d: the logs differ", seed)
		}
		for _, ino := range want.Inodes() {
			if x, y := want.inodes[ino], got.inodes[ino]; !x.Standing.same(y.Standing) || !x.Origin.same(y.Origin) {
				t.Fatalf("seed %d: directory %d stands at %+v, want %+v", seed, ino, y.Standing, x.Standing)
			}
		}
	}
}
