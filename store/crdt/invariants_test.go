package crdt

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
)

// check compares what the rules keep step by step with a recomputation from
// the inode records and the log of ops.
func (r *replica) check() error {
	s := &scratch{st: r.st, live: map[Ino]bool{}, children: map[Ino]bool{}}
	if err := s.standings(r.log); err != nil {
		return err
	}
	s.claimAll()
	if err := s.compareClaims(); err != nil {
		return err
	}
	if err := s.walkSets(); err != nil {
		return err
	}
	if !r.collects { // else its log tells of what it has not any more
		if err := r.checkPast(); err != nil {
			return err
		}
	}
	if err := r.checkContests(); err != nil {
		return err
	}
	_, err := r.tree()
	return err
}

// scratch is the index as it should be.
type scratch struct {
	st       *MapState
	live     map[Ino]bool // directories
	children map[Ino]bool // directories with a live link placed in them
	claims   map[nameKey][]Claim
}

// standings folds all moves of all ops afresh.
func (s *scratch) standings(log []*Op) error {
	at, kinds := map[Ino]Place{}, map[Ino]Kind{}
	for _, op := range log {
		for _, w := range op.Writes {
			if w.Kind == WriteInode {
				kinds[w.Ino] = w.InodeKind
			}
		}
	}
	under := func(dir, top Ino) bool {
		for ; !dir.fixed() && dir != 0; dir = at[dir].Parent {
			if dir == top {
				return true
			}
		}
		return false
	}
	ops := slices.SortedFunc(slices.Values(log), func(o, p *Op) int { return o.ID(0).CompareOp(p.ID(0)) })
	for _, op := range ops {
		undo := maps.Clone(at)
		for n, w := range op.Writes {
			if w.Kind != WritePlace || kinds[w.Ino] != KindDir {
				continue
			}
			if under(w.Parent, w.Ino) {
				at = undo
				break
			}
			at[w.Ino] = Place{ID: op.ID(n), Parent: w.Parent, Name: w.Name}
		}
	}
	for ino, p := range at {
		i := s.st.inodes[ino]
		if i == nil {
			continue // collected: it is in nobody's way
		}
		if got := i.Standing; !got.same(p) {
			return fmt.Errorf("directory %d stands at %v, folded at %v", ino, got, p)
		}
	}
	return nil
}

// claimAll finds the live links: first those that are live by themselves, then
// upwards.
func (s *scratch) claimAll() {
	s.claims = map[nameKey][]Claim{}
	var claim func(i *Inode, l *Link)
	claim = func(i *Inode, l *Link) {
		if i.Kind == KindDir {
			if s.live[i.Ino] {
				return
			}
			s.live[i.Ino] = true
		}
		p, _ := i.PlaceOf(l.ID)
		k := nameKey{p.Parent, p.Name}
		s.claims[k] = append(s.claims[k], Claim{i.Ino, l.ID, i.Kind, p.ID})
		if up := s.st.inodes[p.Parent]; !up.Ino.fixed() {
			claim(up, &up.Links[0])
		}
	}
	for _, i := range s.st.inodes {
		for n := range i.Links {
			if i.liveBySelf(&i.Links[n]) {
				claim(i, &i.Links[n])
			}
		}
	}
}

func (s *scratch) compareClaims() error {
	have := map[nameKey][]Claim{}
	for dir, names := range s.st.claims {
		for name, cs := range names {
			have[nameKey{dir, name}] = sortClaims(cs)
		}
	}
	for k, cs := range s.claims {
		s.claims[k] = sortClaims(cs)
	}
	if !reflect.DeepEqual(have, s.claims) {
		return fmt.Errorf("claims are %v, recomputed %v", have, s.claims)
	}
	return nil
}

func sortClaims(cs []Claim) []Claim {
	return slices.SortedFunc(slices.Values(cs), func(c, d Claim) int {
		return cmp.Or(cmp.Compare(c.Ino, d.Ino), cmp.Compare(c.Link, d.Link))
	})
}

// walkSets forms the directory sets from the root down, which also shows that
// every live link is reached.
func (s *scratch) walkSets() error {
	sets, reached := map[Ino][]Ino{}, 0
	var walk func(members []Ino)
	walk = func(members []Ino) {
		at := map[string][]Claim{}
		for k, cs := range s.claims {
			if slices.Contains(members, k.dir) {
				reached += len(cs)
				at[k.name] = append(at[k.name], cs...)
			}
		}
		for _, cs := range at {
			slices.SortFunc(cs, func(c, d Claim) int {
				if c.At.older(d.At) {
					return -1
				}
				return 1
			})
			if ds := dirs(cs); len(ds) > 0 {
				if len(ds) > 1 {
					sets[ds[0]] = ds
				}
				walk(ds)
			}
		}
	}
	walk([]Ino{RootIno})
	walk([]Ino{LostIno})
	all := 0
	for _, cs := range s.claims {
		all += len(cs)
	}
	if reached != all {
		return fmt.Errorf("%d of %d live links are reachable", reached, all)
	}
	if !reflect.DeepEqual(sets, s.st.sets) {
		return fmt.Errorf("sets are %v, recomputed %v", s.st.sets, sets)
	}
	heads := map[Ino]Ino{}
	for h, ms := range sets {
		for _, m := range ms {
			heads[m] = h
		}
	}
	if !maps.Equal(heads, s.st.heads) {
		return fmt.Errorf("heads are %v, recomputed %v", s.st.heads, heads)
	}
	return nil
}

// records are the inode records, with what has no order sorted.
func (r *replica) records() map[Ino]*Inode {
	out := map[Ino]*Inode{}
	for ino, i := range r.st.inodes {
		c := i.clone()
		byID := func(a, b VersionID) int { return a.compare(b) }
		for n := range c.Links {
			for m := range c.Links[n].Places {
				slices.SortFunc(c.Links[n].Places[m].Closed, byID)
				c.Links[n].Places[m].Closed = nilIfEmpty(c.Links[n].Places[m].Closed)
			}
			slices.SortFunc(c.Links[n].Places, func(p, q Place) int { return p.ID.compare(q.ID) })
			c.Links[n].Places = nilIfEmpty(c.Links[n].Places)
		}
		slices.SortFunc(c.Links, func(l, m Link) int { return cmp.Compare(l.ID, m.ID) })
		for n := range c.Contents {
			slices.SortFunc(c.Contents[n].Closed, func(a, b Closure) int { return a.Removal.compare(b.Removal) })
			c.Contents[n].Closed = nilIfEmpty(c.Contents[n].Closed)
		}
		slices.SortFunc(c.Contents, func(v, w Version) int { return v.ID.compare(w.ID) })
		c.Links, c.Contents, c.Xattrs = nilIfEmpty(c.Links), nilIfEmpty(c.Contents), nilIfEmpty(c.Xattrs)
		out[ino] = c
	}
	return out
}

func nilIfEmpty[T any](s []T) []T {
	if len(s) == 0 {
		return nil
	}
	return s
}

// same compares two replicas that hold the same ops.
func same(a, b *replica) error {
	ta, err := a.tree()
	if err != nil {
		return err
	}
	tb, err := b.tree()
	if err != nil {
		return err
	}
	if !maps.Equal(ta, tb) {
		return fmt.Errorf("views differ:\n%v\n%v", ta, tb)
	}
	ra, rb := a.records(), b.records()
	for ino := range ra {
		if !reflect.DeepEqual(ra[ino], rb[ino]) {
			return fmt.Errorf("records of inode %d differ:\n%+v\n%+v", ino, ra[ino], rb[ino])
		}
	}
	if len(ra) != len(rb) {
		return fmt.Errorf("%d inodes, %d inodes", len(ra), len(rb))
	}
	if !maps.Equal(a.st.gone, b.st.gone) {
		return fmt.Errorf("dead links differ:\n%v\n%v", a.st.gone, b.st.gone)
	}
	if !reflect.DeepEqual(a.st.history, b.st.history) {
		return fmt.Errorf("histories differ: %d versions, %d versions", len(a.st.history), len(b.st.history))
	}
	if err := sameRecords(a, b); err != nil {
		return err
	}
	if !reflect.DeepEqual(nilIfEmpty(a.st.moves), nilIfEmpty(b.st.moves)) {
		return fmt.Errorf("move logs differ:\n%+v\n%+v", a.st.moves, b.st.moves)
	}
	return nil
}
