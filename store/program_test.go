package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// player is one replica of a random program, and its user.
type player struct {
	v    *Volume
	open []writing
	from map[*player][]*Batch // on their way here
	runs bool                 // is not to restart
}

var verbs = []string{
	"create", "create", "open", "append", "close", "close", "overwrite", "overwrite", "unlink", "rmdir", "mkdir", "mkdir",
	"rename", "rename", "rename", "exchange", "link", "chmod", "touch", "truncate", "setxattr", "deliver", "deliver", "deliver",
	"restart",
}

// expected says that an error is an answer, not a fault.
func expected(err error) bool {
	for _, e := range []error{
		crdt.ErrNotExist, crdt.ErrExist, crdt.ErrNotDir, crdt.ErrIsDir, crdt.ErrNotEmpty, crdt.ErrInvalid,
		ErrStale, ErrNotRegular, ErrNoAttr,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return err == nil
}

// step does one random thing; the seed alone decides which.
func (p *player) step(t testing.TB, seed uint64) (string, error) {
	r := rand.New(rand.NewPCG(seed, 1))
	verb := verbs[r.IntN(len(verbs))]
	dir, name := p.place(t, r)
	todir, toname := p.place(t, r)
	what := fmt.Sprint(verb, " ", uint64(dir), "/", name, " ", uint64(todir), "/", toname)
	a, _, lerr := p.v.Lookup(dir, name)
	q := Request{}
	n := uint32(r.IntN(4))
	switch verb {
	case "create":
		at, h, err := p.v.Create(q, dir, name, NewNode{Mode: 0o644})
		if err == nil {
			p.open = append(p.open, writing{t, p.v, at.Node, h})
		}
		return what, err
	case "mkdir":
		return what, second(p.v.Mknod(q, dir, name, NewNode{Kind: crdt.KindDir, Mode: 0o755}))
	case "unlink":
		return what, p.v.Unlink(q, dir, name)
	case "rmdir":
		return what, p.v.Rmdir(q, dir, name)
	case "rename":
		return what, p.v.Rename(q, dir, name, todir, toname, crdt.RenameReplace)
	case "exchange":
		return what, p.v.Rename(q, dir, name, todir, toname, crdt.RenameExchange)
	case "append", "close":
		return what, p.useHandle(r, verb, seed)
	case "restart":
		if !p.runs && r.IntN(10) == 0 {
			p.restart(t)
		}
		return what, nil
	}
	if lerr != nil {
		return what, nil
	}
	switch verb {
	case "open", "overwrite":
		h, err := p.v.OpenWrite(q, a.Node, verb == "overwrite")
		if err == nil {
			p.open = append(p.open, writing{t, p.v, a.Node, h})
		}
		return what, err
	case "link":
		return what, second(p.v.Link(q, a.Node, todir, toname))
	case "chmod":
		return what, second(p.v.SetAttr(q, a.Node, SetAttr{Mode: &n, UID: &n}))
	case "touch":
		return what, second(p.v.SetAttr(q, a.Node, SetAttr{Mtime: &crdt.Time{Sec: int64(n)}}))
	case "truncate":
		size := int64(n) * 40_000
		return what, second(p.v.SetAttr(q, a.Node, SetAttr{Size: &size}))
	case "setxattr":
		return what, p.v.SetXattr(q, a.Node, fmt.Sprint("user.", n%2), []byte{byte(n)}, XattrMode(r.IntN(3)))
	}
	return what, nil
}

// place picks a directory, at most two deep, and a name in it.
func (p *player) place(t testing.TB, r *rand.Rand) (NodeID, string) {
	dir := root
	for range r.IntN(3) {
		var dirs []NodeID
		if err := p.v.ReadDir(dir, 0, func(e DirEntry) bool {
			if e.Entry.Kind == crdt.KindDir {
				dirs = append(dirs, p.v.Node(e.Entry.Ino))
			}
			return true
		}); err != nil {
			t.Error(err)
		}
		if len(dirs) > 0 {
			dir = dirs[r.IntN(len(dirs))]
		}
	}
	return dir, string("abcd"[r.IntN(4)])
}

func (p *player) useHandle(r *rand.Rand, verb string, seed uint64) error {
	if len(p.open) == 0 {
		return nil
	}
	n := r.IntN(len(p.open))
	w := p.open[n]
	if verb == "close" {
		p.open = append(p.open[:n:n], p.open[n+1:]...)
		return errors.Join(p.v.Flush(w.node, w.h), p.v.Release(Request{}, w.node, w.h))
	}
	size := 10
	if r.IntN(4) == 0 {
		size = 70_000
	}
	at, err := p.v.Attr(w.node)
	if err != nil {
		return fmt.Errorf("stat of an open file: %v", err)
	}
	return second(p.v.WriteAt(w.node, w.h, []byte(noise(seed, size)), at.Size/2, false))
}

// restart closes every handle and opens the store again.
func (p *player) restart(t testing.TB) {
	for _, w := range p.open {
		w.close()
	}
	p.open = nil
	p.v = reopen(t, p.v)
}

// deliver hands one of the batches on their way to this player, at random.
func (p *player) deliver(t testing.TB, from *player, r *rand.Rand, all bool) error {
	way := p.from[from]
	for _, b := range batches(t, from.v, p.v.Vector()) {
		if all || r.IntN(3) > 0 {
			way = append(way, b)
		}
	}
	r.Shuffle(len(way), func(i, j int) { way[i], way[j] = way[j], way[i] })
	late := way[:0]
	for _, b := range way {
		for _, h := range must(p.v.Wants(b)) {
			if err := copyContent(from.v.db, p.v.db, h); err != nil {
				return err
			}
		}
		switch err := p.v.Merge(b); {
		case errors.Is(err, ErrNotNext):
			late = append(late, b)
		case err != nil:
			return err
		}
	}
	p.from[from] = late
	return nil
}

// TestP4RandomPrograms: replicas that work at random, and hear of each other
// late, in any order, more than once, show one tree in the end; a replica that
// joins by a snapshot shows it too.
func TestP4RandomPrograms(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		id := NewVolumeID()
		players := make([]*player, 2+rapid.IntRange(0, 1).Draw(rt, "more"))
		for n := range players {
			o := Options{Dir: t.TempDir(), PublishInterval: time.Hour, Now: stepClock()}
			players[n] = &player{v: volumeWith(t, id, o), from: map[*player][]*Batch{}}
			if rapid.Bool().Draw(rt, "watched") {
				players[n].v.AddViewer(1, &viewer{t: t, mount: 1, all: true})
			}
		}
		defer func() {
			for _, p := range players {
				p.v.db.Close()
			}
		}()
		for n, seed := range rapid.SliceOfN(rapid.Uint64(), 0, 80).Draw(rt, "program") {
			p := players[seed%uint64(len(players))]
			what, err := p.step(t, seed)
			if strings.HasPrefix(what, "deliver") {
				from := players[seed/7%uint64(len(players))]
				if from != p {
					err = p.deliver(t, from, rand.New(rand.NewPCG(seed, 2)), false)
				}
			}
			rt.Logf("%d: %d %s: %v", n, seed%uint64(len(players)), what, err)
			if !expected(err) {
				rt.Fatal(err)
			}
		}
		for _, p := range players {
			for _, w := range p.open {
				if err := p.v.Release(Request{}, w.node, w.h); err != nil {
					rt.Fatal(err)
				}
			}
		}
		converge(t, rt, players)
		joined := volumeWith(t, id, Options{})
		defer joined.db.Close()
		join(t, players[0].v, joined)
		vs := []*Volume{joined}
		for _, p := range players {
			vs = append(vs, p.v)
		}
		same(t, vs...)
		vs[1] = reopen(t, vs[1])
		players[0].v = vs[1]
		same(t, vs...)
	})
}

func converge(t testing.TB, rt *rapid.T, players []*player) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 2 * len(players) {
		for _, p := range players {
			for _, from := range players {
				if from == p {
					continue
				}
				if err := p.deliver(t, from, r, true); err != nil {
					rt.Fatal(err)
				}
			}
		}
	}
	for _, p := range players[1:] {
		if a, b := p.v.Vector(), players[0].v.Vector(); !a.Contains(b) || !b.Contains(a) {
			rt.Fatalf("vectors %v and %v", a, b)
		}
	}
}

// TestP4Concurrently has many at work on two volumes at once, for the race
// detector: writers, readers, listings, merges, joins, syncs.
func TestP4Concurrently(t *testing.T) {
	a, b := pair(t, Options{PublishInterval: time.Millisecond, Hold: time.Millisecond})
	for _, v := range []*Volume{a, b} {
		v.AddViewer(1, &viewer{t: t, mount: 1, all: true})
	}
	rounds := 150
	if testing.Short() {
		rounds = 20
	}
	var work sync.WaitGroup
	for _, v := range []*Volume{a, b} {
		for n := range 4 {
			work.Go(func() {
				p := &player{v: v, runs: true}
				r := rand.New(rand.NewPCG(uint64(n), 3))
				for range rounds {
					seed := r.Uint64()
					if what, err := p.step(t, seed); !expected(err) {
						t.Errorf("%s: %v", what, err)
						return
					}
				}
				for _, w := range p.open {
					if err := v.Release(Request{}, w.node, w.h); err != nil {
						t.Error(err)
					}
				}
			})
		}
		work.Go(func() {
			for n := range rounds / 5 {
				v.Stats()
				v.Statfs()
				v.Vector()
				err := v.Sync()
				if n%10 == 0 {
					err = errors.Join(err, v.WriteSnapshot(t.Context(), SnapshotRequest{}, func([]byte) error { return nil }))
				}
				if err != nil {
					t.Error(err)
				}
				for _, name := range []string{"a", "b", "c", "d"} {
					readName(v, name)
				}
			}
		})
	}
	for _, w := range [][2]*Volume{{a, b}, {b, a}} {
		work.Go(func() {
			for range rounds / 5 {
				bs, _, err := w[0].Batches(w[1].Vector(), 1<<20)
				for _, m := range bs {
					if err == nil {
						err = mergeFrom(w[0], w[1], m)
					}
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	exchange(t, a, b)
	exchange(t, a, b)
	same(t, a, b)
}

func mergeFrom(from, to *Volume, b *Batch) error {
	wants, err := to.Wants(b)
	for _, h := range wants {
		err = errors.Join(err, copyContent(from.db, to.db, h))
	}
	if err == nil {
		err = to.Merge(b)
	}
	return err
}

// TestP4JoinWhileOthersWork joins snapshots of a volume that goes on.
func TestP4JoinWhileOthersWork(t *testing.T) {
	a, b := pair(t, Options{})
	var work sync.WaitGroup
	stop := make(chan struct{})
	work.Go(func() {
		p := &player{v: a, runs: true}
		for seed := uint64(0); ; seed++ {
			select {
			case <-stop:
				for _, w := range p.open {
					w.close()
				}
				return
			default:
			}
			if what, err := p.step(t, seed*977); !expected(err) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
	for n := range 6 {
		if err := b.JoinSnapshot(t.Context(), &peer{t: t, from: a, to: b}); err != nil {
			t.Errorf("join %d: %v", n, err)
		}
		write(t, b, root, fmt.Sprint("own", n), "x")
	}
	close(stop)
	work.Wait()
	give(t, a, b)
	give(t, b, a)
	same(t, a, b)
}

// TestP8CloseUnderLoad closes a store while others use it: they get an error,
// and what they were told was done is there when it is opened again.
func TestP8CloseUnderLoad(t *testing.T) {
	for round := range 10 {
		v := volumeWith(t, NewVolumeID(), Options{PublishInterval: time.Millisecond})
		var work sync.WaitGroup
		begun := make(chan struct{}, 1000)
		for n := range 4 {
			work.Go(func() {
				for f := 0; ; f++ {
					err := writeWhole(v, fmt.Sprintf("%d.%d", n, f), noise(uint64(f), 70_000*(f%2)))
					if err == nil {
						err = readAll(v)
					}
					if err != nil {
						if !errors.Is(err, ErrClosed) && !errors.Is(err, content.ErrClosed) {
							t.Errorf("round %d: %v", round, err)
						}
						return
					}
					select {
					case begun <- struct{}{}:
					default:
					}
				}
			})
		}
		for range 20 {
			<-begun
		}
		o := v.db.opts
		check(t, v.db.Close(), nil)
		work.Wait()
		if again := openWith(t, o).Volume(v.id); len(dump(t, again)) < 20 {
			t.Error("files are missing")
		}
	}
}
