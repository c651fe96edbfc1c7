package crdt

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// command is one step of a random program.
type command struct {
	who      int
	verb     string
	from, to string
	data     string
}

func (c command) String() string {
	return fmt.Sprintf("%c %s %s %s %s", 'A'+c.who, c.verb, c.from, c.to, c.data)
}

// verbs are the kinds of step, the usual ones more than once.
var verbs = []string{
	"create", "create", "create", "mkdir", "mkdir", "mkdir", "write", "write", "unlink", "unlink", "rmdir", "rmdir",
	"mv", "mv", "mv", "mv", "link", "exchange", "open", "close", "chmod", "pull", "pull", "pull", "jump",
}

// randomCommand makes a step that mostly makes sense: it works on what the
// replica sees. The seed alone decides it, so that a failing program shrinks by
// dropping steps; rapid's own choices lean to the first.
func randomCommand(seed uint64, verbs []string, rs []*replica) (command, error) {
	random := rand.New(rand.NewPCG(seed, 0))
	c := command{
		who:  random.IntN(len(rs)),
		verb: pick(random, verbs),
		data: fmt.Sprint(random.IntN(6)),
	}
	view, err := rs[c.who].tree()
	if err != nil {
		return c, err
	}
	there := slices.Sorted(maps.Keys(view))
	dirs := []string{""}
	for _, p := range there {
		if view[p].Kind == KindDir && strings.Count(p, "/") < 2 {
			dirs = append(dirs, p+"/")
		}
	}
	place := func() string { return pick(random, dirs) + pick(random, []string{"a", "b", "c"}) }
	c.from, c.to = place(), place()
	if c.verb != "create" && c.verb != "mkdir" && len(there) > 0 && random.IntN(20) > 0 {
		c.from = pick(random, there)
	}
	if c.verb == "exchange" && len(there) > 0 {
		c.to = pick(random, there)
	}
	if handles := slices.Sorted(maps.Keys(rs[c.who].drafts)); c.verb == "close" && len(handles) > 0 {
		c.from = pick(random, handles)
	}
	return c, nil
}

// someVerbs picks the kinds of step of one program: what goes wrong between two
// kinds is found sooner where there are few others.
func someVerbs(seed uint64) []string {
	random := rand.New(rand.NewPCG(seed, 0))
	dropped := map[string]bool{}
	if seed != 0 {
		for _, v := range []string{"create", "write", "unlink", "rmdir", "mv", "link", "exchange", "open", "chmod"} {
			dropped[v] = random.IntN(3) == 0
		}
	}
	return slices.DeleteFunc(slices.Clone(verbs), func(v string) bool { return dropped[v] })
}

func pick[T any](random *rand.Rand, from []T) T { return from[random.IntN(len(from))] }

// isUserError reports whether err is an answer of POSIX.
func isUserError(err error) bool {
	for _, e := range []error{ErrNotExist, ErrExist, ErrNotDir, ErrIsDir, ErrNotEmpty, ErrInvalid} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// do runs a command and checks that the view changed as POSIX says. refused is
// POSIX's answer if the command cannot be done.
func (c command) do(rs []*replica) (refused, err error) {
	r := rs[c.who]
	switch c.verb {
	case "pull":
		return nil, r.pull(rs[int(c.data[0]-'0')%len(rs)])
	case "jump":
		r.skew += int64(c.data[0]-'0') * 3
		return nil, nil
	}
	before, err := r.tree()
	if err != nil {
		return nil, err
	}
	opened := r.drafts[c.from]
	refused = c.step(r)
	if refused != nil && !isUserError(refused) {
		return nil, refused
	}
	after, err := r.tree()
	if err != nil {
		return nil, err
	}
	if c.verb == "restore" {
		return refused, nil // it checks itself
	}
	want, wantErr := before.after(c, opened, after)
	switch {
	case want == nil: // not for POSIX to say
		return refused, nil
	case !errors.Is(refused, wantErr):
		return nil, fmt.Errorf("error %v, POSIX says %v", refused, wantErr)
	case !maps.Equal(after, want):
		return nil, fmt.Errorf("view went from\n%v to\n%v, POSIX says\n%v", before, after, want)
	}
	return refused, nil
}

func (c command) step(r *replica) error {
	switch c.verb {
	case "create":
		return r.create(c.from, c.data)
	case "write":
		return r.write(c.from, c.data)
	case "open":
		return r.open(c.from, c.from)
	case "close":
		return r.close(c.from, c.data)
	case "unlink":
		return r.unlink(c.from)
	case "mkdir":
		return r.mkdir(c.from)
	case "rmdir":
		return r.rmdir(c.from)
	case "mv":
		return r.mv(c.from, c.to)
	case "exchange":
		return r.exchange(c.from, c.to)
	case "link":
		return r.link(c.from, c.to)
	case "chmod":
		return r.chmod(c.from, uint32(c.data[0]))
	case "restore":
		return r.restore(int(c.data[0] - '0'))
	case "dismiss", "discard":
		return r.dismiss(int(c.data[0]-'0'), dismissals[c.verb]...)
	}
	return fmt.Errorf("no such command: %v", c)
}

// after says what POSIX makes of the tree: it is the model that the rules'
// local effect is held against. New inode numbers are taken from got.
func (t tree) after(c command, opened draft, got tree) (tree, error) {
	out := maps.Clone(t)
	n, exists := t[c.from]
	switch c.verb {
	case "create", "mkdir":
		if err := t.free(c.from); err != nil {
			return out, err
		}
		made := node{Ino: got[c.from].Ino, Kind: KindDir}
		if c.verb == "create" {
			made.Kind, made.Data = KindFile, c.data
		}
		out[c.from] = made
		return out, t.unused(made.Ino)
	case "write":
		if err := t.file(c.from); err != nil {
			return out, err
		}
		out.setData(n.Ino, c.data)
	case "open":
		return out, t.file(c.from)
	case "close":
		if opened.ino == 0 {
			return out, ErrNotExist
		}
		if !out.setData(opened.ino, c.data) {
			return nil, nil
		}
	case "unlink":
		if err := t.file(c.from); err != nil {
			return out, err
		}
		delete(out, c.from)
	case "rmdir":
		if err := t.parent(c.from); err != nil {
			return out, err
		}
		switch {
		case !exists:
			return out, ErrNotExist
		case n.Kind != KindDir:
			return out, ErrNotDir
		case t.hasChildren(c.from):
			return out, ErrNotEmpty
		}
		delete(out, c.from)
	case "link":
		if err := t.parent(c.from); err != nil {
			return out, err
		}
		if !exists {
			return out, ErrNotExist
		}
		if err := t.parent(c.to); err != nil {
			return out, err
		}
		if n.Kind == KindDir {
			return out, ErrIsDir
		}
		if err := t.free(c.to); err != nil {
			return out, err
		}
		out[c.to] = n
	case "chmod":
		if err := t.parent(c.from); err != nil {
			return out, err
		}
		if !exists {
			return out, ErrNotExist
		}
	case "mv", "exchange":
		return t.moved(c)
	}
	return out, nil
}

func (t tree) moved(c command) (tree, error) {
	for _, p := range []string{c.to, c.from} {
		if err := t.parent(p); err != nil {
			return t, err
		}
	}
	n, exists := t[c.from]
	target, had := t[c.to]
	below := func(p, dir string) bool { return strings.HasPrefix(p, dir+"/") }
	switch {
	case !exists:
		return t, ErrNotExist
	case c.from == c.to:
		return t, nil
	case n.Kind == KindDir && below(c.to, c.from):
		return t, ErrInvalid
	case c.verb == "exchange" && !had:
		return t, ErrNotExist
	case c.verb == "exchange" && target.Kind == KindDir && below(c.from, c.to):
		return t, ErrInvalid
	case c.verb == "exchange" || !had:
	case n.Ino == target.Ino:
		return t, nil
	case n.Kind == KindDir && target.Kind != KindDir:
		return t, ErrNotDir
	case n.Kind != KindDir && target.Kind == KindDir:
		return t, ErrIsDir
	case target.Kind == KindDir && t.hasChildren(c.to):
		return t, ErrNotEmpty
	}
	out := tree{}
	for p, x := range t {
		switch {
		case p == c.from || below(p, c.from):
			out[c.to+p[len(c.from):]] = x
		case (p == c.to || below(p, c.to)) && c.verb == "exchange":
			out[c.from+p[len(c.to):]] = x
		case p == c.to:
		default:
			out[p] = x
		}
	}
	return out, nil
}

// parent checks that the directory of a path is there.
func (t tree) parent(path string) error {
	for n := range path {
		if path[n] != '/' {
			continue
		}
		if d, ok := t[path[:n]]; !ok {
			return ErrNotExist
		} else if d.Kind != KindDir {
			return ErrNotDir
		}
	}
	return nil
}

func (t tree) free(path string) error {
	if err := t.parent(path); err != nil {
		return err
	}
	if _, ok := t[path]; ok {
		return ErrExist
	}
	return nil
}

func (t tree) file(path string) error {
	if err := t.parent(path); err != nil {
		return err
	}
	n, ok := t[path]
	switch {
	case !ok:
		return ErrNotExist
	case n.Kind == KindDir:
		return ErrIsDir
	}
	return nil
}

func (t tree) hasChildren(path string) bool {
	for p := range t {
		if strings.HasPrefix(p, path+"/") {
			return true
		}
	}
	return false
}

// setData sets the bytes at all links of an inode, and reports whether it has any.
func (t tree) setData(ino Ino, data string) (found bool) {
	for p, n := range t {
		if n.Ino == ino {
			n.Data = data
			t[p] = n
			found = true
		}
	}
	return found
}

func (t tree) unused(ino Ino) error {
	for _, n := range t {
		if n.Ino == ino {
			return fmt.Errorf("inode %d is not new", ino)
		}
	}
	return nil
}

// program runs random commands; it returns the replicas.
func program(t *rapid.T) []*replica { return programOf(t, nil) }

// programOf runs random commands, with more verbs.
func programOf(t *rapid.T, more []string) []*replica {
	rs := newWorld().replicas(rapid.IntRange(2, 3).Draw(t, "replicas"))
	some := append(someVerbs(rapid.Uint64().Draw(t, "verbs")), more...)
	for _, r := range rs {
		r.skew = rapid.Int64Range(0, 40).Draw(t, "skew")
	}
	for _, seed := range rapid.SliceOfN(rapid.Uint64(), 30, 60).Draw(t, "program") {
		if seed == 0 {
			continue // what a step shrinks to
		}
		c, err := randomCommand(seed, some, rs)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(c)
		if _, err := c.do(rs); err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		if err := rs[c.who].check(); err != nil {
			t.Fatalf("after %v: %v", c, err)
		}
	}
	return rs
}

func TestP4ConvergenceOfRandomPrograms(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs := program(t)
		checkJoins(t, rs)
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
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "order"), 0))
		for range 2 {
			late := deliver(t, rs[0], random)
			if err := same(rs[0], late); err != nil {
				t.Fatalf("another order: %v", err)
			}
		}
	})
}

// deliver gives all ops of a replica to a new one, in a random causal order.
func deliver(t *rapid.T, from *replica, random *rand.Rand) *replica {
	r := from.world.replica(99)
	left := slices.Clone(from.log)
	for len(left) > 0 {
		n := random.IntN(len(left))
		op := left[n]
		if op.Dot.Seq != r.vec[op.Dot.Replica].Seq+1 || !r.vec.Contains(from.world.past[op.Dot]) {
			continue
		}
		if err := r.apply(op); err != nil {
			t.Fatal(err)
		}
		if err := r.check(); err != nil {
			t.Fatalf("after %v: %v", op.Dot, err)
		}
		left = slices.Delete(left, n, n+1)
	}
	return r
}

// checkJoins compares, for each two replicas, a snapshot with an exchange of ops.
func checkJoins(t *rapid.T, rs []*replica) {
	for _, a := range rs {
		for _, b := range rs {
			if a == b {
				continue
			}
			pulled, joined := a.clone(), a.clone()
			if err := pulled.pull(b); err != nil {
				t.Fatal(err)
			}
			if err := joined.join(b); err != nil {
				t.Fatalf("join: %v", err)
			}
			if err := same(pulled, joined); err != nil {
				t.Fatalf("snapshot of %v into %v: %v", b.id, a.id, err)
			}
			joined.log = pulled.log
			if err := joined.check(); err != nil {
				t.Fatalf("snapshot of %v into %v: %v", b.id, a.id, err)
			}
		}
	}
}

// join takes a snapshot of another replica.
func (r *replica) join(from *replica) error {
	for _, ino := range from.st.Inodes() {
		i, err := from.st.Inode(ino)
		if err != nil {
			return err
		}
		if _, err := Join(r.st, i, r.vec, from.vec); err != nil {
			return err
		}
		for _, v := range i.Contents {
			b, err := from.st.Inline(ino, v.ID)
			if err != nil {
				return err
			}
			if err := r.st.PutInline(ino, v.ID, b); err != nil {
				return err
			}
		}
	}
	for k, v := range from.st.history {
		if err := JoinHistory(r.st, k.ino, v); err != nil {
			return err
		}
		b, err := from.st.Inline(k.ino, k.id)
		if err != nil {
			return err
		}
		if err := r.st.PutInline(k.ino, k.id, b); err != nil {
			return err
		}
	}
	f, err := FoldMoves(r.st, from.st.moves)
	for more := true; err == nil && more; {
		_, more, err = f.Write(r.st, 2)
	}
	if err != nil {
		return err
	}
	r.vec.Max(from.vec)
	return nil
}
