package crdt

import (
	"errors"
	"fmt"
	"slices"

	"github.com/synapsefs/synapsefs/internal/mutation"
)

// ErrMalformed is returned for an op, or bytes, that no correct replica makes.
var ErrMalformed = errors.New("malformed")

// errStop ends an iteration early.
var errStop = errors.New("stop")

// An Entry is what shows at a name; the zero Entry is an absent name.
type Entry struct {
	Ino  Ino
	Link LinkID
	Kind Kind
}

// A NameChange says that another entry shows at a name of a directory (the
// head of its set) than before.
type NameChange struct {
	Dir           Ino
	Name          string
	Before, After Entry
}

// An InodeChange says that an inode shows other content or attributes.
type InodeChange struct {
	Ino     Ino
	Content bool
	Before  *Version // the content that was shown, if Content
}

// Effects is what an op changed in the view, in no particular order.
type Effects struct {
	Names  []NameChange
	Inodes []InodeChange
}

// Apply adds an op to the state. It must be the next of its origin and what it
// depends on must be applied. On an error the state is to be thrown away.
func Apply(s State, op *Op) (*Effects, error) {
	a := newApplier(s)
	for n := range op.Writes {
		if err := a.write(op, n, &op.Writes[n]); err != nil {
			return nil, fmt.Errorf("apply op %v write %d: %w", op.Dot, n, err)
		}
	}
	for _, i := range a.inodes {
		if i.Kind == KindDir && !i.Ino.fixed() && len(i.Links) == 0 {
			return nil, fmt.Errorf("apply op %v: %w: directory %d has no name", op.Dot, ErrMalformed, i.Ino)
		}
	}
	if err := a.fold(); err != nil {
		return nil, fmt.Errorf("apply op %v: %w", op.Dot, err)
	}
	return a.settle()
}

// Retract takes an unpublished inode out of the state again, before its
// publication is applied or because nobody will publish it.
func Retract(s State, ino Ino) (*Effects, error) {
	a := newApplier(s)
	i, err := a.touch(ino)
	if err != nil || i == nil || !i.Unpublished() {
		return &Effects{}, err
	}
	for n := range i.Links {
		i.Links[n].Places = nil
	}
	i.Contents = nil
	a.dropped = append(a.dropped, ino)
	return a.settle()
}

type nameKey struct {
	dir  Ino
	name string
}

// standing is where a link was claimed before the op.
type standing struct {
	live  bool
	place Place
}

type linkKey struct {
	ino  Ino
	link LinkID
}

// applier collects what one op touches, so that the view can be compared
// before and after.
type applier struct {
	s       State
	inodes  map[Ino]*Inode // working copies
	before  map[Ino]*Inode // as they were; nil if new
	order   []Ino          // of touching
	stood   map[linkKey]standing
	links   []linkKey
	claims  map[nameKey][]Claim // working copies
	claimed map[nameKey][]Claim // as they were
	names   []nameKey
	heads   map[Ino]Ino   // of touched directories, as they were
	sets    map[Ino][]Ino // of touched heads, as they were
	moves   []Move
	dropped []Ino
	quiet   map[Ino]bool // nothing but dismissals was written to it
	covers  Covers       // of a tail, else nil
}

func newApplier(s State) *applier {
	return &applier{
		s: s, inodes: map[Ino]*Inode{}, before: map[Ino]*Inode{},
		stood: map[linkKey]standing{}, claims: map[nameKey][]Claim{},
		claimed: map[nameKey][]Claim{},
	}
}

// touch returns the working copy of an inode; nil if it is not known.
func (a *applier) touch(ino Ino) (*Inode, error) {
	if i, ok := a.inodes[ino]; ok {
		return i, nil
	}
	old, err := a.s.Inode(ino)
	if err != nil || old == nil {
		return nil, err
	}
	i := old.clone()
	a.before[ino], a.inodes[ino] = old, i
	a.order = append(a.order, ino)
	for n := range old.Links {
		if err := a.remember(old, &old.Links[n]); err != nil {
			return nil, err
		}
	}
	return i, nil
}

// peek returns an inode as it is now, not to be changed; nil if it is not known.
func (a *applier) peek(ino Ino) (*Inode, error) {
	if i, ok := a.inodes[ino]; ok {
		return i, nil
	}
	return a.s.Inode(ino)
}

func (a *applier) remember(i *Inode, l *Link) error {
	k := linkKey{i.Ino, l.ID}
	live, err := Live(a.s, i, l)
	if err != nil {
		return err
	}
	place, _ := i.PlaceOf(l.ID)
	a.stood[k] = standing{live: live, place: place}
	a.links = append(a.links, k)
	return nil
}

func (a *applier) known(ino Ino) (*Inode, error) {
	i, err := a.touch(ino)
	if err == nil && i == nil {
		err = fmt.Errorf("%w: inode %d is not known", ErrMalformed, ino)
	}
	return i, err
}

func (a *applier) write(op *Op, n int, w *Write) error {
	id := op.ID(n)
	if covered, err := a.covered(id, w); err != nil {
		return err
	} else if covered {
		return a.around(op, id, w)
	}
	if w.Kind == WriteInode {
		return a.newInode(op, id, w)
	}
	_, touched := a.inodes[w.Ino]
	i, err := a.touch(w.Ino)
	if err != nil {
		return err
	}
	if i == nil && w.Kind.attribute() {
		return nil // of what was removed, and is collected here
	}
	if i, err = a.known(w.Ino); err != nil {
		return err
	}
	local := op.Dot.Replica == 0
	if !local && i.Unpublished() { // every peer would refuse it, and all that follows
		return fmt.Errorf("%w: inode %d is not published", ErrMalformed, i.Ino)
	}
	if w.Kind == WriteDismiss {
		if !touched {
			if a.quiet == nil {
				a.quiet = map[Ino]bool{}
			}
			a.quiet[i.Ino] = true
		}
		i.dismiss(w.Base)
		return nil
	}
	delete(a.quiet, i.Ino)
	if !local || i.Unpublished() {
		i.Changed.set(id, TimeOf(op.Wall))
	}
	switch w.Kind {
	case WritePlace:
		return a.place(op, id, i, w)
	case WriteContent:
		if i.Kind != KindFile {
			return fmt.Errorf("%w: content for inode %d, which is no file", ErrMalformed, i.Ino)
		}
		return a.content(id, i, w)
	case WriteRemove:
		return a.remove(op, id, i, w)
	case WriteVoid:
		voidRemovals(i, w.Base)
	case WriteMode:
		i.Mode.set(id, w.Mode)
	case WriteOwner:
		i.Owner.set(id, Owner{w.UID, w.GID})
	case WriteTime:
		i.Mtime.set(id, w.Time)
	case WriteXattr:
		i.setXattr(Xattr{Name: w.Name, At: id, Value: w.Value, Gone: w.Gone})
	default:
		return fmt.Errorf("%w: unknown kind of write %d", ErrMalformed, w.Kind)
	}
	return nil
}

func (a *applier) newInode(op *Op, id VersionID, w *Write) error {
	if i, err := a.touch(w.Ino); err != nil {
		return err
	} else if i != nil {
		return fmt.Errorf("%w: inode %d exists", ErrMalformed, w.Ino)
	}
	if w.InodeKind < KindFile || w.InodeKind > KindBlock {
		return fmt.Errorf("%w: unknown kind of inode %d", ErrMalformed, w.InodeKind)
	}
	i := &Inode{Ino: w.Ino, Kind: w.InodeKind, Target: w.Target, Rdev: w.Rdev}
	i.Mode = Register[uint32]{id, w.Mode}
	i.Owner = Register[Owner]{id, Owner{w.UID, w.GID}}
	i.Mtime = Register[Time]{id, w.Time}
	i.Changed = Register[Time]{id, TimeOf(op.Wall)}
	a.inodes[w.Ino] = i
	a.order = append(a.order, w.Ino)
	return nil
}

func (a *applier) place(op *Op, id VersionID, i *Inode, w *Write) error {
	if i.Ino.fixed() {
		return fmt.Errorf("%w: inode %d has no name", ErrMalformed, i.Ino)
	}
	if err := CheckName(w.Name); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	// Were unknown parents let in, a directory could be made below what is
	// already below it.
	if parent, err := a.peek(w.Parent); err != nil {
		return err
	} else if parent == nil || parent.Kind != KindDir {
		return fmt.Errorf("%w: a place in inode %d, which is no directory", ErrMalformed, w.Parent)
	}
	l, fresh := i.Link(w.Link), false
	if l == nil {
		fresh = true
		if i.Kind == KindDir && len(i.Links) > 0 {
			return fmt.Errorf("%w: directory %d gets a second link", ErrMalformed, i.Ino)
		}
		i.Links = append(i.Links, Link{ID: w.Link})
		l = &i.Links[len(i.Links)-1]
		k := linkKey{i.Ino, w.Link}
		a.stood[k] = standing{}
		a.links = append(a.links, k)
	}
	l.Places = slices.DeleteFunc(l.Places, func(p Place) bool { return slices.Contains(w.Base, p.ID) })
	p := Place{ID: id, Parent: w.Parent, Name: w.Name}
	l.Places = append(l.Places, p)
	if i.Kind == KindDir {
		if err := a.standNew(i, p, fresh); err != nil {
			return err
		}
	}
	if err := a.named(op, id, w.From, w.Time); err != nil {
		return err
	}
	return a.named(op, id, w.Parent, w.Time)
}

// standNew gives a new directory its first place; a later one is for
// [applier.fold].
func (a *applier) standNew(i *Inode, p Place, fresh bool) error {
	if !fresh {
		a.moves = append(a.moves, Move{ID: p.ID, Ino: i.Ino, Parent: p.Parent, Name: p.Name})
		return nil
	}
	under, err := newFolder(a.peek).under(p.Parent, i.Ino)
	if err != nil {
		return err
	}
	if under {
		return fmt.Errorf("%w: new directory %d under itself", ErrMalformed, i.Ino)
	}
	i.Standing = p
	return nil
}

// named records a name change in a directory. The op says where: which places
// are still leaves here depends on what else has arrived. Unpublished names are
// not recorded: nothing of them may differ between replicas.
func (a *applier) named(op *Op, id VersionID, dir Ino, at Time) error {
	if (at == Time{}) {
		at = TimeOf(op.Wall)
	}
	if op.Dot.Replica == 0 || dir == 0 {
		return nil
	}
	d, err := a.touch(dir)
	if err != nil || d == nil {
		return err
	}
	if d.Kind != KindDir {
		return fmt.Errorf("%w: a name in inode %d, which is no directory", ErrMalformed, dir)
	}
	delete(a.quiet, dir)
	if d.Named.At.CompareOp(id) == 0 && at.Before(d.Named.Value) {
		return nil // by another write of the op
	}
	d.Named.set(id, at)
	d.Changed.set(id, at)
	return nil
}

func (a *applier) content(id VersionID, i *Inode, w *Write) error {
	var base VersionID
	if len(w.Base) > 0 {
		base = w.Base[0]
	}
	// History would never hear of a version that lived for one op only.
	if slices.ContainsFunc(w.Base, func(b VersionID) bool { return b.CompareOp(id) == 0 }) && !id.Local() {
		return fmt.Errorf("%w: a version replaces one of its own op", ErrMalformed)
	}
	i.Contents = slices.DeleteFunc(i.Contents, func(v Version) bool { return slices.Contains(w.Base, v.ID) })
	v := Version{ID: id, Via: w.Link, Base: base, Content: w.Content}
	if !v.Manifest {
		if int64(len(v.Inline)) != v.Size {
			return fmt.Errorf("%w: %d inline bytes for a size of %d", ErrMalformed, len(v.Inline), v.Size)
		}
		if err := a.s.PutInline(i.Ino, id, v.Inline); err != nil {
			return err
		}
	}
	v.Inline = nil
	if mutation.Off(mutation.Leaves) {
		i.Contents = slices.DeleteFunc(i.Contents, func(w Version) bool { return v.ID.newer(w.ID) })
	}
	i.Contents = append(i.Contents, v)
	return nil
}

func (a *applier) remove(op *Op, id VersionID, i *Inode, w *Write) error {
	l := i.Link(w.Link)
	if l == nil {
		return fmt.Errorf("%w: inode %d has no link %x", ErrMalformed, i.Ino, w.Link)
	}
	if mutation.Off(mutation.UnionOfRemovals) {
		voidRemovals(i, i.removalsOf(l))
	}
	for n := range l.Places {
		if p := &l.Places[n]; slices.Contains(w.Base, p.ID) {
			p.Closed = append(p.Closed, id)
		}
	}
	for n := range i.Contents {
		if v := &i.Contents[n]; slices.Contains(w.Closes, v.ID) {
			v.Closed = append(v.Closed, Closure{l.ID, id})
		}
	}
	return a.named(op, id, w.From, Time{})
}

func voidRemovals(i *Inode, removals []VersionID) {
	for n := range i.Links {
		for m := range i.Links[n].Places {
			p := &i.Links[n].Places[m]
			p.Closed = slices.DeleteFunc(p.Closed, func(r VersionID) bool { return slices.Contains(removals, r) })
		}
	}
	for n := range i.Contents {
		v := &i.Contents[n]
		v.Closed = slices.DeleteFunc(v.Closed, func(c Closure) bool { return slices.Contains(removals, c.Removal) })
	}
}

func (i *Inode) setXattr(x Xattr) {
	n, ok := i.xattrIndex(x.Name)
	switch {
	case !ok:
		i.Xattrs = slices.Insert(i.Xattrs, n, x)
	case i.Xattrs[n].At.CompareOp(x.At) <= 0:
		i.Xattrs[n] = x
	}
}

// compare orders version ids totally: by op, then position.
func (v VersionID) compare(w VersionID) int {
	if c := v.CompareOp(w); c != 0 {
		return c
	}
	return int(v.N) - int(w.N)
}
