package crdt

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// found returns the records by id.
func (r *replica) found() (map[VersionID]Record, error) {
	out := map[VersionID]Record{}
	err := EachRecord(r.st, func(c Record) error {
		if _, ok := out[c.ID]; ok {
			return fmt.Errorf("record %v twice", c.ID)
		}
		c.Version = nil // of a leaf, whose removals have no order
		out[c.ID] = c
		return nil
	})
	return out, err
}

func sameRecords(a, b *replica) error {
	ra, err := a.found()
	if err != nil {
		return err
	}
	rb, err := b.found()
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(ra, rb) {
		return fmt.Errorf("records differ:\n%v\n%v", ra, rb)
	}
	return nil
}

// checkPast looks for every content that any op wrote, and for dead links: no
// version is lost (P5).
func (r *replica) checkPast() error {
	for _, op := range r.log {
		for n, w := range op.Writes {
			if w.Kind != WriteContent {
				continue
			}
			id := op.ID(n)
			old, _ := r.st.History(w.Ino, id)
			leaf := r.st.inodes[w.Ino].Version(id)
			switch {
			case (old == nil) == (leaf == nil):
				return fmt.Errorf("version %v is history: %v; a leaf: %v", id, old != nil, leaf != nil)
			case old != nil && !old.SameBytes(&w.Content):
				return fmt.Errorf("history of version %v has other bytes", id)
			}
		}
	}
	want := map[Gone]bool{}
	for _, i := range r.st.inodes {
		for n := range i.Links {
			l := &i.Links[n]
			p, ok := i.PlaceOf(l.ID)
			if live, _ := Live(r.st, i, l); ok && !live {
				want[Gone{p.Parent, p.Name, i.Ino, l.ID, i.Kind}] = true
			}
		}
	}
	if !maps.Equal(want, r.st.gone) {
		return fmt.Errorf("dead links are %v, recomputed %v", r.st.gone, want)
	}
	return nil
}

// checkContests finds the records by a walk through everything.
func (r *replica) checkContests() error {
	want := map[VersionID]Record{}
	add := func(c Record) error {
		c.Version = nil
		want[c.ID] = c
		return nil
	}
	for _, i := range r.st.inodes {
		if err := eachLeafRecord(r.st, i, add); err != nil {
			return err
		}
	}
	for dir, names := range r.st.claims {
		head, _ := r.st.Head(dir)
		for name := range names {
			if err := eachHiddenRecord(r.st, head, name, add); err != nil {
				return err
			}
		}
	}
	got, err := r.found()
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("records are %v, recomputed %v", got, want)
	}
	return nil
}

// nth is the nth record of some kinds, in order of their ids.
func (r *replica) nth(n int, kinds []RecordKind) (c Record, ok bool, err error) {
	found, err := r.found()
	if err != nil {
		return c, false, err
	}
	all := slices.SortedFunc(maps.Values(found), func(a, b Record) int { return a.ID.compare(b.ID) })
	all = slices.DeleteFunc(all, func(c Record) bool { return !slices.Contains(kinds, c.Kind) })
	if len(all) == 0 {
		return c, false, nil
	}
	return all[n%len(all)], true, nil
}

// dismiss dismisses the nth record.
func (r *replica) dismiss(n int, kinds ...RecordKind) error {
	c, ok, err := r.nth(n, kinds)
	if err != nil || !ok {
		return err
	}
	p := r.plan()
	if err := p.Dismiss(c); err != nil {
		return err
	}
	return r.commit(p.Writes)
}

// restore brings the nth record back, which must end it and show what it kept.
func (r *replica) restore(n int) error {
	c, ok, err := r.nth(n, dismissals["discard"])
	if err != nil || !ok {
		return err
	}
	i, err := r.st.Inode(c.Ino)
	if err != nil {
		return err
	}
	links, err := LiveLinks(r.st, i)
	if err != nil || len(links) == 0 {
		return err // made anew, as a file like any other
	}
	lost := ""
	p := r.plan()
	switch c.Kind {
	case RecordContent:
		v := i.Version(c.ID)
		b, _ := r.st.Inline(c.Ino, c.ID)
		lost, v.Inline = string(b), b
		err = p.Rewrite(i, c.Link, c.ID, v.Content)
	case RecordHidden:
		err = p.Surface(i, c.Link, c.Dir, c.Name)
	case RecordPlace:
		err = p.Move(i, c.Link, c.Dir, c.Name)
	}
	if err != nil {
		return err
	}
	if err := r.commit(p.Writes); err != nil {
		return err
	}
	return r.restored(c, lost)
}

func (r *replica) restored(c Record, lost string) error {
	found, err := r.found()
	if err != nil {
		return err
	}
	if _, still := found[c.ID]; still {
		return fmt.Errorf("restored record %v is still one", c)
	}
	if c.Kind == RecordContent {
		b, err := r.st.Inline(c.Ino, r.st.inodes[c.Ino].Shown().ID)
		if err == nil && string(b) != lost {
			err = fmt.Errorf("restored %q shows %q", lost, b)
		}
		return err
	}
	shown, _, err := Lookup(r.st, c.Dir, c.Name)
	if err == nil && shown.Ino != c.Ino && shown.Kind != KindDir {
		err = fmt.Errorf("restored %v, there shows %v", c, shown)
	}
	return err
}

// dismissals are the kinds of record that a verb dismisses: a hidden file is
// removed, which is a change of its own, the others are only marked.
var dismissals = map[string][]RecordKind{
	"dismiss": {RecordContent, RecordPlace},
	"discard": {RecordContent, RecordPlace, RecordHidden},
}

func TestP4RecordsOfRandomPrograms(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs := programOf(t, []string{"dismiss", "dismiss", "discard", "restore", "restore", "pull", "write", "write", "mv"})
		checkJoins(t, rs)
		everybody(t, rs)
	})
}

func everybody(t *rapid.T, rs []*replica) {
	for _, r := range rs {
		for _, other := range rs {
			if err := r.pull(other); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.check(); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range rs[1:] {
		if err := same(rs[0], r); err != nil {
			t.Fatal(err)
		}
	}
}

// A program runs twice, once without its dismissals: all replicas see the same
// trees throughout.
func TestP5DismissalChangesNoView(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs, ghosts := newWorld().replicas(3), newWorld().replicas(3)
		some := append(someVerbs(rapid.Uint64().Draw(t, "verbs")), "dismiss", "dismiss", "dismiss", "write", "write", "mv")
		for n := range rs {
			skew := rapid.Int64Range(0, 40).Draw(t, "skew")
			rs[n].skew, ghosts[n].skew = skew, skew
		}
		for _, seed := range rapid.SliceOfN(rapid.Uint64(), 30, 60).Draw(t, "program") {
			if seed == 0 {
				continue
			}
			c, err := randomCommand(seed, some, rs)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(c)
			if _, err := c.do(rs); err != nil {
				t.Fatalf("%v: %v", c, err)
			}
			if c.verb != "dismiss" {
				if _, err := c.do(ghosts); err != nil {
					t.Fatalf("without dismissals: %v: %v", c, err)
				}
			}
			// Both have one time, or stamps would differ.
			ghosts[c.who].world.now, ghosts[c.who].clock = rs[c.who].world.now, rs[c.who].clock
			sameViews(t, rs[c.who], ghosts[c.who])
		}
		everybody(t, rs)
		everybody(t, ghosts)
		sameViews(t, rs[0], ghosts[0])
	})
}

func sameViews(t *rapid.T, a, b *replica) {
	t.Helper()
	va, err := a.tree()
	if err != nil {
		t.Fatal(err)
	}
	vb, err := b.tree()
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(va, vb) {
		t.Fatalf("with dismissals %v shows\n%v, without\n%v", a.id, va, vb)
	}
}

// F16: all histories of one file, its versions delivered in every order.
func TestF16RecordsDoNotDependOnArrival(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs := newWorld().replicas(3)
		if err := rs[0].create("a", "0"); err != nil {
			t.Fatal(err)
		}
		for _, r := range rs[1:] {
			if err := r.pull(rs[0]); err != nil {
				t.Fatal(err)
			}
		}
		for n, step := range rapid.SliceOfN(rapid.IntRange(0, 11), 1, 12).Draw(t, "steps") {
			r, other := rs[step%3], rs[(step+1+step/3%2)%3]
			var err error
			if step < 6 {
				err = r.write("a", fmt.Sprint(n%4)) // equal bytes are common
			} else {
				err = r.pull(other)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		everybody(t, rs)
		random := newWorld().rand
		for range 3 {
			if err := same(rs[0], deliver(t, rs[0], random)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// The rows that say what is a record and what is none, both ways round.
func TestP5Records(t *testing.T) {
	for _, row := range []struct {
		name, base, a, b string
		want, wantB      string // the records, if A's clock is ahead, if B's is
	}{
		{name: "same file written twice", base: "create x 0", a: "write x 1", b: "write x 2", want: "content x=2", wantB: "content x=1"},
		{name: "same bytes on both sides", base: "create x 0", a: "write x 1", b: "write x 1"},
		{name: "same bytes on both sides, then edited on one", base: "create x 0", a: "write x 1", b: "write x 1; write x 2",
			want: "content x=2"},
		{name: "same tree unpacked on both sides", a: "mkdir d; create d/x 1", b: "mkdir d; create d/x 1"},
		{name: "same tree unpacked, then edited on one side", a: "mkdir d; create d/x 1", b: "mkdir d; create d/x 1; write d/x 2",
			want: "hidden d/x=2"},
		{name: "same name created twice", a: "create x 1", b: "create x 2", want: "hidden x=2", wantB: "hidden x=1"},
		{name: "file against directory", a: "create x 1", b: "mkdir x", want: "hidden x=1", wantB: "hidden x=1"},
		{name: "two directories", a: "mkdir x", b: "mkdir x"},
		{name: "edit against delete", base: "create x 0", a: "write x 1", b: "unlink x"},
		{name: "edit against replacement", base: "create x 0", a: "write x 1", b: "create t 2; mv t x", want: "hidden x=1", wantB: "hidden x=1"},
		{name: "replaced on both sides", base: "create x 0", a: "create t 1; mv t x", b: "create u 2; mv u x", want: "hidden x=2", wantB: "hidden x=1"},
		{name: "file renamed to two names", base: "create x 0", a: "mv x y", b: "mv x z", want: "place z", wantB: "place y"},
		{name: "rename against delete", base: "create x 0", a: "mv x y", b: "unlink x"},
		{name: "directory moved to two places", base: "mkdir d", a: "mv d e", b: "mv d f", want: "place f", wantB: "place e"},
		{name: "moves that would form a cycle", base: "mkdir d; mkdir e", a: "mv d e/d", b: "mv e d/e", want: "place d/e/d", wantB: "place e/d/e"},
		{name: "two edits, then all removed", base: "create x 0", a: "write x 1; unlink x", b: "write x 2", want: "content x=1", wantB: "content x=1"},
	} {
		for way, want := range []string{row.want, row.wantB} {
			t.Run(fmt.Sprintf("%s/%c", row.name, 'A'+rune(way)), func(t *testing.T) {
				rs := newWorld().replicas(2)
				run(t, rs, by("A", row.base)+"; B pull A")
				rs[way].skew = 1000
				run(t, rs, by("A", row.a)+";"+by("B", row.b))
				exchangeAll(t, rs)
				for _, r := range rs {
					if got := r.listing(t); got != want {
						t.Errorf("%v lists %q, want %q", r.id, got, want)
					}
				}
				view := rs[0].view(t)
				run(t, rs, "A discard x 0; A discard x 0; B pull A")
				for _, r := range rs {
					if got := r.listing(t) + r.view(t); got != view {
						t.Errorf("dismissed, %v shows %q, want %q", r.id, got, view)
					}
				}
			})
		}
	}
}

// listing is the records as text.
func (r *replica) listing(t *testing.T) string {
	t.Helper()
	var out []string
	must(t, EachRecord(r.st, func(c Record) error {
		path := c.Name
		for d, _ := r.st.Head(c.Dir); d != RootIno; {
			s := r.st.inodes[d].Standing
			path = s.Name + "/" + path
			d, _ = r.st.Head(s.Parent)
		}
		line := [...]string{"", "content ", "hidden ", "place "}[c.Kind] + path
		if c.Version != nil {
			b, _ := r.st.Inline(c.Ino, c.Version.ID)
			line += "=" + string(b)
		}
		out = append(out, line)
		return nil
	}))
	slices.SortFunc(out, cmp.Compare)
	return strings.Join(out, " ")
}

// A publish replaces the dismissed leaves too, but not one that shows.
func TestDismissedLeavesGoWithTheNextVersion(t *testing.T) {
	rs := newWorld().replicas(2)
	run(t, rs, "A create x 0; B pull A; A write x 1; B write x 2; A pull B; B pull A; A dismiss x 0; B pull A; B write x 3")
	exchangeAll(t, rs)
	for _, i := range rs[0].st.inodes {
		if len(i.Contents) > 1 {
			t.Errorf("%d leaves", len(i.Contents))
		}
	}
}
