package store

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// replacing is a writer of a who replaces names, and closes the files whenever it
// likes; b is a peer.
type replacing struct {
	t     *testing.T
	rt    *rapid.T
	a, b  *Volume
	names []string
	open  []writing
	texts int
	said  []string // what was done
}

func newReplacing(t *testing.T, rt *rapid.T) *replacing {
	id, o := NewVolumeID(), longHold
	o.Scheduler = still{}
	var vs [2]*Volume
	for n := range vs {
		o.Memory = NewMemory()
		vs[n] = volumeWith(t, id, o)
	}
	r := &replacing{t: t, rt: rt, a: vs[0], b: vs[1], names: []string{"x", "y", "z"}}
	for _, name := range r.names {
		write(t, r.a, root, name, "first of "+name)
	}
	give(t, r.a, r.b)
	return r
}

// name is one of those that are replaced.
func (r *replacing) name() string { return rapid.SampledFrom(r.names).Draw(r.rt, "name") }

// temporary makes a file that is still open.
func (r *replacing) temporary() {
	r.texts++
	r.open = append(r.open, create(r.t, r.a, root, "tmp").write(fmt.Sprint("text ", r.texts), 0))
}

func (r *replacing) close(n int) {
	r.open[n].close()
	r.open = slices.Delete(r.open, n, n+1)
}

func (r *replacing) rename(from, to string, mode crdt.RenameMode) {
	r.said = append(r.said, fmt.Sprintf("rename %s %s %d", from, to, mode))
	check(r.t, r.a.Rename(Request{}, root, from, root, to, mode), nil)
}

// drop unlinks what a temporary name shows, if anything.
func (r *replacing) drop() {
	if _, _, err := r.a.Lookup(root, "tmp"); err == nil {
		check(r.t, r.a.Unlink(Request{}, root, "tmp"), nil)
	}
}

// actions are the ways in which a name gets another file without being absent.
func (r *replacing) actions() map[string]func() {
	return map[string]func(){
		"over": func() {
			r.temporary()
			r.rename("tmp", r.name(), crdt.RenameReplace)
		},
		"link over": func() {
			a, _, err := r.a.Lookup(root, r.name())
			check(r.t, err, nil)
			must(r.a.Link(Request{}, a.Node, root, "tmp"))
			r.rename("tmp", r.name(), crdt.RenameReplace)
			r.drop() // both names were the same file's
		},
		"exchange with a new one": func() {
			r.temporary()
			r.rename("tmp", r.name(), crdt.RenameExchange)
			r.drop()
		},
		"exchange with a new one, and over": func() {
			r.temporary()
			r.rename("tmp", r.name(), crdt.RenameExchange)
			r.rename("tmp", r.name(), crdt.RenameReplace)
			r.drop()
		},
		"exchange": func() {
			r.rename(r.name(), r.name(), crdt.RenameExchange)
		},
		"close": func() {
			if len(r.open) > 0 {
				r.close(rapid.IntRange(0, len(r.open)-1).Draw(r.rt, "file"))
			}
		},
	}
}

// deliver merges what has left, batch by batch, and looks at the names.
func (r *replacing) deliver() {
	for n := 1; n > 0; {
		var err error
		n, err = r.a.seal(false)
		check(r.t, err, nil)
	}
	left, _, err := r.a.Batches(r.b.Vector(), 1<<40)
	check(r.t, err, nil)
	for _, b := range left {
		check(r.t, r.b.Merge(b), nil)
		for _, name := range r.names {
			if _, _, err := r.b.Lookup(root, name); err != nil {
				r.rt.Fatalf("%s: %v at the peer, after\n%s", name, err, strings.Join(r.said, "\n"))
			}
		}
	}
}

// TestP2ReplacedIsNeverAbsent: a name that gets one file after another, by
// renames over it and exchanges, is never absent, here or at a peer, whenever
// the files are closed and whatever batches the ops leave in.
func TestP2ReplacedIsNeverAbsent(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newReplacing(t, rt)
		actions := r.actions()
		kinds := slices.Sorted(maps.Keys(actions))
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			kind := rapid.SampledFrom(kinds).Draw(rt, "kind")
			r.said = append(r.said, kind)
			actions[kind]()
			for _, name := range r.names {
				if _, _, err := r.a.Lookup(root, name); err != nil {
					rt.Fatalf("%s: %v here, after\n%s", name, err, strings.Join(r.said, "\n"))
				}
			}
			if rapid.Bool().Draw(rt, "seal") {
				r.deliver()
			}
		}
		for len(r.open) > 0 {
			r.close(0)
			r.deliver()
		}
		check(t, r.a.sealNow(), nil)
		r.deliver()
		same(t, r.a, r.b)
		if n := hidden(t, r.b); n != 0 {
			rt.Errorf("%d conflicts, want none", n)
		}
	})
}

// TestP2TakenFromOneThatIsNotPublished: two files that are not published, one
// renamed over the other, which has a further link: what the name showed before
// goes with the publication of the one that has it, not with the other's.
func TestP2TakenFromOneThatIsNotPublished(t *testing.T) {
	a, b := pair(t, Options{Scheduler: still{}})
	write(t, a, root, "x", "old")
	write(t, a, root, "y", "old")
	give(t, a, b)
	first := create(t, a, root, "tmp").write("first", 0)
	check(t, a.Rename(Request{}, root, "tmp", root, "x", crdt.RenameReplace), nil)
	must(a.Link(Request{}, first.node, root, "link"))
	check(t, a.Rename(Request{}, root, "link", root, "y", crdt.RenameReplace), nil)
	second := create(t, a, root, "tmp").write("second", 0)
	check(t, a.Rename(Request{}, root, "tmp", root, "x", crdt.RenameReplace), nil)
	first.close()
	give(t, a, b)
	if x, y := read(t, b, root, "x"), read(t, b, root, "y"); x != "old" || y != "first" {
		t.Errorf("the peer has x %q and y %q", x, y)
	}
	second.close()
	give(t, a, b)
	if got := read(t, b, root, "x"); got != "second" {
		t.Errorf("the peer has x %q", got)
	}
	same(t, a, b)
	if n := hidden(t, b); n != 0 {
		t.Errorf("%d conflicts, want none", n)
	}
}

// TestP2ExchangeWithOneThatIsNotPublished: the file that goes away from a name
// leaves for the peers together with the one that gets it.
func TestP2ExchangeWithOneThatIsNotPublished(t *testing.T) {
	for _, from := range []string{"tmp", "x"} {
		o := longHold
		o.Scheduler = still{}
		a, b := pair(t, o)
		write(t, a, root, "x", "old")
		give(t, a, b)
		w := create(t, a, root, "tmp").write("new", 0)
		to := map[string]string{"tmp": "x", "x": "tmp"}[from]
		check(t, a.Rename(Request{}, root, from, root, to, crdt.RenameExchange), nil)
		if n := must(a.seal(false)); n != 0 {
			t.Errorf("%d ops left before the close", n)
		}
		w.close()
		if n := must(a.seal(false)); n != 2 {
			t.Errorf("%d ops left together, want 2", n)
		}
		give(t, a, b)
		if x, tmp := read(t, b, root, "x"), read(t, b, root, "tmp"); x != "new" || tmp != "old" {
			t.Errorf("the peer has x %q and tmp %q", x, tmp)
		}
		same(t, a, b)
	}
}
