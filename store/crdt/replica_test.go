package crdt

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// A replica is one member of a small cluster in memory. Its log holds every op
// it applied, in that order, which is a causal one.
type replica struct {
	id     ReplicaID
	st     *MapState
	vec    Vector
	clock  Clock
	skew   int64
	log    []*Op
	drafts map[string]draft
	world  *world

	collects bool // forgets what was removed
}

// draft is a file opened for writing.
type draft struct {
	ino  Ino
	link LinkID
	base VersionID
}

// world is what replicas share: time, and a source of ids.
type world struct {
	now  int64
	rand *rand.Rand
	past map[Dot]Vector // what each op's origin had applied before it
}

// start is the time at which worlds begin.
const start = 1_700_000_000_000_000_000

func newWorld() *world {
	return &world{now: start, rand: rand.New(rand.NewPCG(1, 2)), past: map[Dot]Vector{}}
}

func (w *world) replica(id ReplicaID) *replica {
	return &replica{id: id, st: NewMapState(), vec: Vector{}, drafts: map[string]draft{}, world: w}
}

func (w *world) replicas(n int) []*replica {
	var rs []*replica
	for i := range n {
		rs = append(rs, w.replica(ReplicaID(i+1)))
	}
	return rs
}

func (r *replica) clone() *replica {
	c := *r
	c.st, c.vec, c.log, c.drafts = r.st.Clone(), r.vec.Clone(), slices.Clone(r.log), maps.Clone(r.drafts)
	return &c
}

// commit makes the writes a local op.
func (r *replica) commit(writes []Write) error {
	if len(writes) == 0 {
		return nil
	}
	r.world.now++
	wall := r.world.now + r.skew
	stamp, err := r.clock.Next(wall)
	if err != nil {
		return err
	}
	op := &Op{Dot: Dot{r.id, r.vec[r.id].Seq + 1}, Stamp: stamp, Wall: wall, Writes: writes}
	r.world.past[op.Dot] = r.vec.Clone()
	return r.apply(op)
}

func (r *replica) apply(op *Op) error {
	// Ops reach the peers as bytes.
	decoded, err := DecodeOp(AppendOp(nil, op))
	if err != nil {
		return err
	}
	before := flatten(r.st)
	e, err := Apply(r.st, decoded)
	if err != nil {
		return err
	}
	if err := checkEffects(before, e, flatten(r.st)); err != nil {
		return fmt.Errorf("op %v: %w", op.Dot, err)
	}
	r.clock.Observe(op.Stamp)
	r.vec[op.Dot.Replica] = VectorEntry{Seq: op.Dot.Seq, Stamp: op.Stamp}
	r.log = append(r.log, op)
	return nil
}

// pull delivers everything the other has.
func (r *replica) pull(from *replica) error {
	for _, op := range from.log {
		if op.Dot.Seq <= r.vec[op.Dot.Replica].Seq {
			continue
		}
		if err := r.apply(op); err != nil {
			return err
		}
	}
	return nil
}

func (r *replica) plan() *Plan { return &Plan{S: r.st, Inline: r.st.Inline} }

// at resolves a path: the directory set it stands in, and its last name.
func (r *replica) at(path string) (Ino, string, error) {
	parts := strings.Split(path, "/")
	dir := RootIno
	for _, name := range parts[:len(parts)-1] {
		c, ok, err := Lookup(r.st, dir, name)
		if err != nil {
			return 0, "", err
		}
		if !ok {
			return 0, "", ErrNotExist
		}
		if !c.Dir() {
			return 0, "", ErrNotDir
		}
		dir = c.Ino
	}
	return dir, parts[len(parts)-1], nil
}

func (r *replica) lookup(path string) (Claim, error) {
	dir, name, err := r.at(path)
	if err != nil {
		return Claim{}, err
	}
	c, ok, err := Lookup(r.st, dir, name)
	if err == nil && !ok {
		err = ErrNotExist
	}
	return c, err
}

func bytesOf(data string) Content {
	return Content{Mtime: TimeOf(start), Size: int64(len(data)), Hash: sha256.Sum256([]byte(data)), Inline: []byte(data)}
}

// create makes a file that holds its data from the start, or nothing yet.
func (r *replica) create(path, data string) error { return r.make(path, KindFile, &data) }
func (r *replica) mkdir(path string) error        { return r.make(path, KindDir, nil) }

func (r *replica) make(path string, kind Kind, data *string) error {
	dir, name, err := r.at(path)
	if err != nil {
		return err
	}
	p := r.plan()
	n := NewInode{Ino: Ino(r.world.rand.Uint64()), Link: LinkID(r.world.rand.Uint64()), Kind: kind, Mode: 0o644, Time: TimeOf(r.world.now)}
	if err := p.Create(dir, name, n); err != nil {
		return err
	}
	if data != nil {
		p.add(Write{Kind: WriteContent, Ino: n.Ino, Link: n.Link, Content: bytesOf(*data)})
	}
	return r.commit(p.Writes)
}

func (r *replica) open(path, handle string) error {
	c, err := r.lookup(path)
	if err != nil {
		return err
	}
	if c.Kind != KindFile {
		return ErrIsDir
	}
	i, err := r.st.Inode(c.Ino)
	if err != nil {
		return err
	}
	d := draft{ino: c.Ino, link: c.Link}
	if v := i.Shown(); v != nil {
		d.base = v.ID
	}
	r.drafts[handle] = d
	return nil
}

// close publishes a draft; rule 12 says what of one that nobody can see.
func (r *replica) close(handle, data string) error {
	d, ok := r.drafts[handle]
	if !ok {
		return ErrNotExist
	}
	delete(r.drafts, handle)
	i, err := r.st.Inode(d.ino)
	if err != nil {
		return err
	}
	live, err := LiveLinks(r.st, i)
	if err != nil {
		return err
	}
	if len(live) == 0 && i.RemovedBy(r.id) {
		return nil
	}
	p := r.plan()
	if err := p.Content(i, d.link, d.base, bytesOf(data)); err != nil {
		return err
	}
	return r.commit(p.Writes)
}

func (r *replica) write(path, data string) error {
	if err := r.open(path, ""); err != nil {
		return err
	}
	return r.close("", data)
}

func (r *replica) unlink(path string) error {
	return r.named(path, func(p *Plan, dir Ino, name string) error {
		_, err := p.Unlink(dir, name)
		return err
	})
}

func (r *replica) rmdir(path string) error {
	return r.named(path, func(p *Plan, dir Ino, name string) error {
		_, err := p.Rmdir(dir, name)
		return err
	})
}

func (r *replica) named(path string, fn func(p *Plan, dir Ino, name string) error) error {
	dir, name, err := r.at(path)
	if err != nil {
		return err
	}
	p := r.plan()
	if err := fn(p, dir, name); err != nil {
		return err
	}
	return r.commit(p.Writes)
}

func (r *replica) mv(from, to string) error       { return r.rename(from, to, RenameReplace) }
func (r *replica) exchange(from, to string) error { return r.rename(from, to, RenameExchange) }

func (r *replica) rename(from, to string, mode RenameMode) error {
	ndir, nname, err := r.at(to)
	if err != nil {
		return err
	}
	return r.named(from, func(p *Plan, dir Ino, name string) error {
		_, err := p.Rename(dir, name, ndir, nname, mode)
		return err
	})
}

func (r *replica) link(from, to string) error {
	c, err := r.lookup(from)
	if err != nil {
		return err
	}
	i, err := r.st.Inode(c.Ino)
	if err != nil {
		return err
	}
	return r.named(to, func(p *Plan, dir Ino, name string) error {
		return p.Link(i, dir, name, LinkID(r.world.rand.Uint64()))
	})
}

// chmod stands for the registers: it sets a mode and an extended attribute.
func (r *replica) chmod(path string, mode uint32) error {
	c, err := r.lookup(path)
	if err != nil {
		return err
	}
	return r.commit([]Write{
		{Kind: WriteMode, Ino: c.Ino, Mode: mode},
		{Kind: WriteXattr, Ino: c.Ino, Name: fmt.Sprint("user.", mode%2), Value: []byte(fmt.Sprint(mode)), Gone: mode%3 == 0},
	})
}

// A node is what stands at a path.
type node struct {
	Ino  Ino
	Kind Kind
	Data string
}

// A tree is a view: nodes by path.
type tree map[string]node

// tree walks the view. Every claim must be found, none twice.
func (r *replica) tree() (tree, error) {
	out := tree{}
	return out, r.walk(out, RootIno, "")
}

func (r *replica) walk(out tree, head Ino, prefix string) error {
	members, err := r.st.Members(head)
	if err != nil {
		return err
	}
	names := map[string]bool{}
	for _, m := range members {
		if err := r.st.EachName(m, func(name string, _ []Claim) error {
			names[name] = true
			return nil
		}); err != nil {
			return err
		}
	}
	for name := range names {
		c, ok, err := Lookup(r.st, head, name)
		if err != nil || !ok {
			return fmt.Errorf("lookup of %s%s: %v, %w", prefix, name, ok, err)
		}
		i, err := r.st.Inode(c.Ino)
		if err != nil || i == nil {
			return fmt.Errorf("no inode for %s%s: %w", prefix, name, err)
		}
		n := node{Ino: c.Ino, Kind: c.Kind}
		if v := i.Shown(); v != nil {
			b, err := r.st.Inline(c.Ino, v.ID)
			if err != nil {
				return err
			}
			n.Data = string(b)
		}
		out[prefix+name] = n
		if c.Dir() {
			if strings.Count(prefix, "/") > 20 {
				return errors.New("the view is no tree")
			}
			if err := r.walk(out, c.Ino, prefix+name+"/"); err != nil {
				return err
			}
		}
	}
	return nil
}

// String lists the paths with the files' bytes.
func (t tree) String() string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(t)) {
		if n := t[path]; n.Kind == KindDir {
			fmt.Fprintf(&b, "%s/ ", path)
		} else {
			fmt.Fprintf(&b, "%s=%s ", path, n.Data)
		}
	}
	return strings.TrimSpace(b.String())
}

// flatten maps each name of each directory set to what shows there.
func flatten(s *MapState) map[nameKey]Entry {
	out := map[nameKey]Entry{}
	for dir, names := range s.claims {
		head, _ := s.Head(dir)
		for name := range names {
			c, ok, _ := Lookup(s, head, name)
			if ok {
				out[nameKey{head, name}] = Entry{c.Ino, c.Link, c.Kind}
			}
		}
	}
	return out
}

// checkEffects applies name changes to the flattened view from before.
func checkEffects(before map[nameKey]Entry, e *Effects, after map[nameKey]Entry) error {
	for _, c := range e.Names {
		k := nameKey{c.Dir, c.Name}
		if before[k] != c.Before {
			return fmt.Errorf("effect on %v: before %v, claimed %v", k, before[k], c.Before)
		}
		if c.After == (Entry{}) {
			delete(before, k)
		} else {
			before[k] = c.After
		}
	}
	if !maps.Equal(before, after) {
		return fmt.Errorf("effects lead to %v, not %v", before, after)
	}
	return nil
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for n, err := range errs {
		if err != nil {
			t.Fatalf("step %d: %v", n, err)
		}
	}
}

// run executes a program: commands separated by semicolons, each a replica's
// letter, a verb, a path, and a path or data. All must succeed, and do to the
// view what POSIX says.
func run(t testing.TB, rs []*replica, program string) {
	t.Helper()
	for _, line := range strings.Split(program, ";") {
		f := append(strings.Fields(line), "", "")
		if f[0] == "" {
			continue
		}
		c := command{who: int(f[0][0] - 'A'), verb: f[1], from: f[2], to: f[3], data: f[3]}
		if c.verb == "pull" {
			c.data = string(f[2][0] - 'A' + '0')
		}
		if refused, err := c.do(rs); refused != nil || err != nil {
			t.Fatalf("%s: %v, %v", line, refused, err)
		}
		if err := rs[c.who].check(); err != nil {
			t.Fatalf("after %s: %v", line, err)
		}
	}
}
