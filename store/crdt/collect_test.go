package crdt

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// A member is a replica that collects, and what the others told it: the model
// of the roster. The retention is nothing: all that is stable goes at once.
type member struct {
	*replica
	words map[ReplicaID]word
	out   map[ReplicaID]bool
	said  word

	collected Vector
	limits    map[ReplicaID]Seq // of those that were out at a collection
}

// excludes reports whether another may not know what was collected here.
func (m *member) excludes(o *member) bool {
	if m.out[o.id] || !o.vec.Contains(m.collected) {
		return true
	}
	for id, limit := range m.limits {
		if o.vec[id].Seq > limit {
			return true
		}
	}
	return false
}

// behind reports whether the member must come back by another: of two that
// exclude each other the one that collected less.
func (m *member) behind(o *member) bool {
	weigh := func(v Vector) (n Seq) {
		for _, e := range v {
			n += e.Seq
		}
		return n
	}
	mine, theirs := weigh(m.collected), weigh(o.collected)
	return o.excludes(m) && (!m.excludes(o) || mine < theirs || mine == theirs && m.id > o.id)
}

// word is what a replica says of itself.
type word struct {
	at        int64
	acked     Vector
	committed Seq
	out       map[ReplicaID]bool
}

func members(rs []*replica) (ms []*member) {
	for _, r := range rs {
		r.collects = true
		ms = append(ms, &member{replica: r, words: map[ReplicaID]word{}, out: map[ReplicaID]bool{}, collected: Vector{}, limits: map[ReplicaID]Seq{}})
	}
	for _, m := range ms { // all know that the others are there
		for _, o := range ms {
			if o != m {
				m.words[o.id] = word{}
			}
		}
	}
	return ms
}

// speak renews what the member says of itself, unless an open file would bring
// something back.
func (m *member) speak() error {
	m.world.now++
	m.said.at = m.world.now
	for _, d := range m.drafts {
		i, err := m.st.Inode(d.ino)
		if err != nil || i == nil {
			return err
		}
		if pinned, err := Revives(m.st, i, m.id); err != nil || pinned {
			return err
		}
	}
	m.said.acked, m.said.committed, m.said.out = m.vec.Clone(), m.vec[m.id].Seq, maps.Clone(m.out)
	return nil
}

// meet gives a member all that another has, unless one excludes the other.
func (m *member) meet(from *member) error {
	if m.excludes(from) || from.excludes(m) {
		return nil
	}
	from.know(m.id) // before it gives anything
	if err := from.speak(); err != nil {
		return err
	}
	if err := m.pull(from.replica); err != nil {
		return err
	}
	hear := func(id ReplicaID, w word) {
		if id == m.id || m.out[id] || w.at < m.words[id].at || m.vec[id].Seq < w.committed {
			return
		}
		m.words[id] = w
		for o := range w.out {
			if o != m.id {
				m.out[o] = true
			}
		}
	}
	for id, w := range from.words {
		hear(id, w)
	}
	hear(from.id, from.said)
	return nil
}

// know counts a replica from now on.
func (m *member) know(id ReplicaID) {
	if _, ok := m.words[id]; !ok {
		m.words[id] = word{}
	}
}

// horizon is what the member may collect.
func (m *member) horizon() (*Horizon, error) {
	if err := m.speak(); err != nil {
		return nil, err
	}
	h := &Horizon{Stable: m.said.acked.Clone(), Before: 1<<63 - 1}
	for id, w := range m.words {
		if m.out[id] {
			continue
		}
		for o := range m.out {
			if !w.out[o] || w.acked[o].Seq > m.vec[o].Seq {
				return &Horizon{}, nil // it may still take changes of one that is out
			}
		}
		h.Stable.Min(w.acked)
	}
	return h, nil
}

// collect forgets what nobody needs; the view must stay. What a record needs is
// kept, or not.
func (m *member) collect(records bool) error {
	before, err := m.tree()
	if err != nil {
		return err
	}
	h, err := m.horizon()
	if err != nil {
		return err
	}
	m.collected.Max(h.Stable)
	for id := range m.out {
		if _, ok := m.limits[id]; !ok && h.Stable != nil {
			m.limits[id] = m.vec[id].Seq
		}
	}
	keep := map[Ino]bool{}
	for _, d := range m.drafts {
		keep[d.ino] = true
	}
	for c := range m.st.contests {
		keep[c.Ino] = keep[c.Ino] || records
	}
	if err := CollectAll(m.st, m.st.Inodes(), h, func(i Ino) bool { return keep[i] }, m.st.DeleteInode); err != nil {
		return err
	}
	maps.DeleteFunc(m.st.gone, func(g Gone, _ bool) bool { // history is over
		i := m.st.inodes[g.Ino]
		return i == nil || i.Link(g.Link) == nil
	})
	trim := Trimmable(m.st.moves, h)
	if err := TrimMoves(m.st, trim, m.st.moves[len(trim):]); err != nil {
		return err
	}
	m.st.moves = m.st.moves[len(trim):]
	after, err := m.tree()
	if err == nil && !maps.Equal(before, after) {
		err = fmt.Errorf("collection changed the view from\n%v to\n%v", before, after)
	}
	if err != nil {
		return err
	}
	return m.newcomer()
}

// newcomer has an empty replica join what is left: it must be the same.
func (m *member) newcomer() error {
	n := &replica{st: NewMapState(), vec: Vector{}, world: m.world}
	if err := n.join(m.replica); err != nil {
		return err
	}
	was, err := m.tree()
	if err != nil {
		return err
	}
	is, err := n.tree()
	if err == nil && !maps.Equal(was, is) {
		err = fmt.Errorf("a newcomer has\n%v, not\n%v", is, was)
	}
	for ino, i := range m.st.inodes {
		if err == nil && !i.Unpublished() && !bytes.Equal(AppendInode(nil, n.st.inodes[ino]), AppendInode(nil, i)) {
			err = fmt.Errorf("a newcomer has inode %d as\n%+v, not\n%+v", ino, n.st.inodes[ino], i)
		}
	}
	return err
}

// comeBack is a member that was out taking the state of another and making its
// own ops again.
func (m *member) comeBack(from *member, id ReplicaID) error {
	was, oldLog, oldID := m.st, m.log, m.id
	live := from.live()
	from.know(id)
	m.id, m.st, m.vec, m.log = id, from.st.Clone(), from.vec.Clone(), slices.Clone(from.log)
	for _, e := range m.vec {
		m.clock.Observe(e.Stamp)
	}
	m.words, m.out = maps.Clone(from.words), maps.Clone(from.out)
	m.collected, m.limits = from.collected.Clone(), maps.Clone(from.limits)
	m.words[from.id] = from.said
	delete(m.words, id)
	delete(m.words, oldID)
	m.out[oldID] = true
	m.said = word{}
	b := NewRebase(m.st, was, m.world.rand.Uint64)
	mine := slices.Clone(oldLog)
	slices.SortFunc(mine, func(a, b *Op) int { return a.ID(0).CompareOp(b.ID(0)) })
	made := map[Ino]bool{}
	contents := map[Ino]string{}
	for _, op := range mine {
		if op.Dot.Seq <= from.vec[op.Dot.Replica].Seq {
			continue
		}
		for _, w := range op.Writes {
			if w.Kind == WriteContent {
				contents[w.Ino] = string(w.Content.Inline)
			}
		}
		writes, err := b.Writes(op, false)
		if err != nil {
			return err
		}
		for _, w := range writes {
			if w.Kind == WriteInode {
				made[w.Ino] = true
			}
		}
		if len(writes) == 0 {
			continue
		}
		if err := m.commit(writes); err != nil {
			return fmt.Errorf("make %v again: %w", op, err)
		}
		b.Made(op, m.log[len(m.log)-1])
	}
	for ino := range m.live() {
		if !live[ino] && !made[ino] {
			return fmt.Errorf("inode %d was removed and is back", ino)
		}
	}
	for name, d := range m.drafts {
		d.ino, d.link, d.base = b.Ino(d.ino), b.link(d.link), b.Version(d.base)
		if m.drafts[name] = d; !m.live()[d.ino] {
			delete(m.drafts, name) // the store makes a lost file of it
		}
	}
	return m.kept(was, b, contents)
}

// live are the inodes with a live link.
func (m *member) live() map[Ino]bool {
	out := map[Ino]bool{}
	for ino, i := range m.st.inodes {
		if links, _ := LiveLinks(m.st, i); len(links) > 0 {
			out[ino] = true
		}
	}
	return out
}

// kept says which content, written while the member was out and not removed by
// itself, is nowhere any more.
func (m *member) kept(was *MapState, b *Rebase, contents map[Ino]string) error {
	for ino, data := range contents {
		old := was.inodes[ino]
		if old == nil {
			continue
		}
		if links, _ := LiveLinks(was, old); len(links) == 0 {
			continue
		}
		found := false
		if i := m.st.inodes[b.Ino(ino)]; i != nil {
			for _, v := range i.Contents {
				found = found || string(m.st.inline[inlineKey{i.Ino, v.ID}]) == data
			}
		}
		if !found {
			return fmt.Errorf("content %q of inode %d is lost", data, ino)
		}
	}
	return nil
}

// TestP6CollectionAndReturn lets replicas meet, lose sight of each other,
// collect, be put out and come back.
func TestP6CollectionAndReturn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs := newWorld().replicas(rapid.IntRange(2, 4).Draw(t, "replicas"))
		ms := members(rs)
		some := someVerbs(rapid.Uint64().Draw(t, "verbs"))
		some = slices.DeleteFunc(some, func(v string) bool { return v == "pull" })
		next := ReplicaID(100)
		for _, seed := range rapid.SliceOfN(rapid.Uint64(), 30, 80).Draw(t, "program") {
			if seed == 0 {
				continue
			}
			random := rand.New(rand.NewPCG(seed, 1))
			m, o := pick(random, ms), pick(random, ms)
			var err error
			switch n := random.IntN(20); {
			case n < 5 && m != o:
				t.Logf("%c meets %c", 'A'+slices.Index(ms, m), 'A'+slices.Index(ms, o))
				err = m.meet(o)
			case n < 7:
				t.Logf("%c collects", 'A'+slices.Index(ms, m))
				err = m.collect(true)
			case n == 7 && m != o:
				t.Logf("%c puts %c out", 'A'+slices.Index(ms, m), 'A'+slices.Index(ms, o))
				m.out[o.id] = true
			case n < 10 && m != o && o.behind(m):
				t.Logf("%c comes back by %c", 'A'+slices.Index(ms, o), 'A'+slices.Index(ms, m))
				next++
				err = o.comeBack(m, next)
			case n >= 10:
				var c command
				if c, err = randomCommand(seed, some, rs); err == nil {
					t.Log(c)
					_, err = c.do(rs)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range rs {
				if err := r.check(); err != nil {
					t.Fatal(err)
				}
			}
		}
		quiesce(t, ms, next)
	})
}

// quiesce lets all come back, have all and collect all: they must be the same.
func quiesce(t *rapid.T, ms []*member, next ReplicaID) {
	for _, m := range ms {
		m.drafts = map[string]draft{}
	}
	for range 4 {
		for _, m := range ms {
			for id := range m.words { // the retention has passed
				if !slices.ContainsFunc(ms, func(o *member) bool { return o.id == id }) {
					m.out[id] = true
				}
			}
			for _, o := range ms {
				if o != m && o.behind(m) {
					next++
					if err := o.comeBack(m, next); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		for _, m := range ms {
			for _, o := range ms {
				if o == m {
					continue
				}
				if err := m.meet(o); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	// What was kept for a record another may have collected before there was
	// one: all have the same records, and without them the same state.
	for _, records := range []bool{true, true, false} {
		for _, m := range ms {
			if err := m.collect(records); err != nil {
				t.Fatal(err)
			}
		}
		if !records {
			break
		}
		for _, m := range ms[1:] {
			if err := sameRecords(ms[0].replica, m.replica); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, m := range ms[1:] {
		if err := same(ms[0].replica, m.replica); err != nil {
			t.Fatal(err)
		}
	}
	for ino, i := range ms[0].st.inodes {
		if links, _ := LiveLinks(ms[0].st, i); len(links) == 0 && !ino.fixed() {
			t.Fatalf("inode %d is removed everywhere and not collected: %+v", ino, i)
		}
	}
}
