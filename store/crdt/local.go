package crdt

import (
	"errors"
	"slices"

	"github.com/synapsefs/synapsefs/internal/mutation"
)

// The preconditions of POSIX, asked of the view.
var (
	ErrNotExist    = errors.New("no such file or directory")
	ErrExist       = errors.New("file exists")
	ErrNotDir      = errors.New("not a directory")
	ErrIsDir       = errors.New("is a directory")
	ErrNotEmpty    = errors.New("directory not empty")
	ErrInvalid     = errors.New("invalid argument")
	ErrNameTooLong = errors.New("file name too long")
)

// MaxName is the longest name, in bytes.
const MaxName = 255

// CheckName says whether a name can stand in a directory. Names are bytes:
// they need not be UTF-8.
func CheckName(name string) error {
	switch {
	case len(name) > MaxName:
		return ErrNameTooLong
	case name == "" || name == "." || name == "..":
		return ErrInvalid
	}
	for n := range len(name) {
		if name[n] == '/' || name[n] == 0 {
			return ErrInvalid
		}
	}
	return nil
}

// A Plan collects the writes of one local op. The writes are made against the
// view as it is now; nothing is applied.
type Plan struct {
	S      State
	Writes []Write
	// Inline reads back a version's bytes, for confirming a file.
	Inline func(Ino, VersionID) ([]byte, error)

	files []fileLinks
}

func (p *Plan) add(w ...Write) { p.Writes = append(p.Writes, w...) }

// dir checks that a directory can be worked in: it exists and has not been
// removed. It returns the head of its set.
func (p *Plan) dir(dir Ino) (Ino, error) {
	head, err := p.S.Head(dir)
	if err != nil {
		return 0, err
	}
	i, err := p.S.Inode(head)
	if err != nil {
		return 0, err
	}
	if i == nil {
		return 0, ErrNotExist
	}
	if i.Kind != KindDir {
		return 0, ErrNotDir
	}
	if head.fixed() {
		return head, nil
	}
	live, err := Live(p.S, i, &i.Links[0])
	if err == nil && !live {
		err = ErrNotExist
	}
	return head, err
}

// confirm voids the removals of a directory that lives only by its children,
// and of each such ancestor: who works in a directory wants it.
func (p *Plan) confirm(dir Ino) error {
	for !dir.fixed() && !mutation.Off(mutation.Confirm) {
		i, err := p.S.Inode(dir)
		if err != nil || i == nil {
			return err
		}
		if !i.hasOpenPlace() {
			if r := i.removalsOf(&i.Links[0]); len(r) > 0 {
				p.add(Write{Kind: WriteVoid, Ino: dir, Base: r})
			}
		}
		if dir, err = p.S.Head(i.Standing.Parent); err != nil {
			return err
		}
	}
	return nil
}

// fileLinks are the links of one file that an op removes and moves (or makes).
type fileLinks struct {
	ino            Ino
	removed, moved []LinkID
}

// links returns what the op does so far to the links of a file.
func (p *Plan) links(ino Ino) *fileLinks {
	for n := range p.files {
		if p.files[n].ino == ino {
			return &p.files[n]
		}
	}
	p.files = append(p.files, fileLinks{ino: ino})
	return &p.files[len(p.files)-1]
}

// confirmFiles confirms each file that the op touched, when it is known which
// of its links stay.
func (p *Plan) confirmFiles() error {
	for n := range p.files {
		i, err := p.S.Inode(p.files[n].ino)
		if err != nil {
			return err
		}
		if err := p.confirmFile(i, &p.files[n], false); err != nil {
			return err
		}
	}
	return nil
}

// confirmFile voids the removals of the inode's live links that have no open
// place, except those that the op itself removes or moves. If the op writes no
// content, the bytes that show now are published again, should an open place
// make others show.
func (p *Plan) confirmFile(i *Inode, f *fileLinks, writesContent bool) error {
	if mutation.Off(mutation.Confirm) {
		return nil
	}
	var removals []VersionID
	opens := len(f.moved) > 0
	for n := range i.Links {
		l := &i.Links[n]
		if slices.Contains(f.removed, l.ID) || slices.Contains(f.moved, l.ID) || l.openPlace() || !i.liveBySelf(l) {
			continue
		}
		removals = append(removals, i.removalsOf(l)...)
		opens = true
	}
	if len(removals) > 0 {
		p.add(Write{Kind: WriteVoid, Ino: i.Ino, Base: removals})
	}
	if shown := i.Shown(); opens && !writesContent && shown != nil && shown.ID != i.newestLeaf().ID {
		return p.republish(i, shown, f)
	}
	return nil
}

// republish writes a version's bytes again, through a link that stays.
func (p *Plan) republish(i *Inode, v *Version, f *fileLinks) error {
	c := v.Content
	if !c.Manifest {
		var err error
		if c.Inline, err = p.Inline(i.Ino, v.ID); err != nil {
			return err
		}
	}
	via := v.Via
	if slices.Contains(f.removed, via) {
		via = i.liveLinkBut(f.removed)
	}
	p.add(Write{Kind: WriteContent, Ino: i.Ino, Link: via, Base: []VersionID{v.ID}, Content: c})
	return nil
}

// liveLinkBut returns a live link of a file that is none of those given.
func (i *Inode) liveLinkBut(links []LinkID) LinkID {
	for n := range i.Links {
		if l := &i.Links[n]; i.liveBySelf(l) && !slices.Contains(links, l.ID) {
			return l.ID
		}
	}
	return 0
}

// NewInode describes an inode to be made.
type NewInode struct {
	Ino      Ino
	Link     LinkID
	Kind     Kind
	Target   string
	Rdev     uint32
	Mode     uint32
	UID, GID uint32
	Time     Time
}

// free returns the directory to make a name in, where none shows.
func (p *Plan) free(dir Ino, name string) (head Ino, err error) {
	if head, err = p.dir(dir); err != nil {
		return 0, err
	}
	if err := CheckName(name); err != nil {
		return 0, err
	}
	if _, ok, err := Lookup(p.S, head, name); err != nil {
		return 0, err
	} else if ok {
		return 0, ErrExist
	}
	return head, nil
}

// Create makes a new inode at a free name.
func (p *Plan) Create(dir Ino, name string, n NewInode) error {
	head, err := p.free(dir, name)
	if err != nil {
		return err
	}
	if err := p.confirm(head); err != nil {
		return err
	}
	p.add(inodeWrite(n), Write{Kind: WritePlace, Ino: n.Ino, Link: n.Link, Parent: head, Name: name})
	return nil
}

// CreateUnnamed makes a new inode in no directory; dir is where it was asked for.
func (p *Plan) CreateUnnamed(dir Ino, n NewInode) error {
	if _, err := p.dir(dir); err != nil {
		return err
	}
	p.add(inodeWrite(n))
	return nil
}

func inodeWrite(n NewInode) Write {
	return Write{
		Kind: WriteInode, Ino: n.Ino, InodeKind: n.Kind, Target: n.Target, Rdev: n.Rdev,
		Mode: n.Mode, UID: n.UID, GID: n.GID, Time: n.Time,
	}
}

// Link gives an inode a further name.
func (p *Plan) Link(i *Inode, dir Ino, name string, link LinkID) error {
	if i.Kind == KindDir {
		return ErrIsDir
	}
	head, err := p.free(dir, name)
	if err != nil {
		return err
	}
	if err := p.confirm(head); err != nil {
		return err
	}
	if err := p.confirmFile(i, &fileLinks{moved: []LinkID{link}}, false); err != nil {
		return err
	}
	p.add(Write{Kind: WritePlace, Ino: i.Ino, Link: link, Parent: head, Name: name})
	return nil
}

// removal is the write that removes a link from a directory, naming all that is
// known of it.
func removal(i *Inode, link LinkID, from Ino) Write {
	return Write{
		Kind: WriteRemove, Ino: i.Ino, Link: link, From: from,
		Base: i.Link(link).leaves(), Closes: i.contentLeaves(),
	}
}

// removeAll removes every link that is live at a name of a directory, but the
// ones to keep.
func (p *Plan) removeAll(dir Ino, claims []Claim, keep ...LinkID) error {
	for _, c := range claims {
		if slices.Contains(keep, c.Link) {
			continue
		}
		i, err := p.S.Inode(c.Ino)
		if err != nil {
			return err
		}
		p.add(removal(i, c.Link, dir))
		if i.Kind != KindDir {
			f := p.links(i.Ino)
			f.removed = append(f.removed, c.Link)
		}
	}
	return nil
}

// Unlink removes what is no directory. It returns what showed at the name.
func (p *Plan) Unlink(dir Ino, name string) (Claim, error) {
	return p.remove(dir, name, func(c Claim) error {
		if c.Dir() {
			return ErrIsDir
		}
		return nil
	})
}

// Rmdir removes an empty directory with all members of its set.
func (p *Plan) Rmdir(dir Ino, name string) (Claim, error) {
	return p.remove(dir, name, func(c Claim) error {
		if !c.Dir() {
			return ErrNotDir
		}
		return p.mustBeEmpty(c.Ino)
	})
}

func (p *Plan) mustBeEmpty(dir Ino) error {
	empty, err := IsEmpty(p.S, dir)
	if err == nil && !empty {
		err = ErrNotEmpty
	}
	return err
}

func (p *Plan) remove(dir Ino, name string, check func(Claim) error) (Claim, error) {
	head, err := p.dir(dir)
	if err != nil {
		return Claim{}, err
	}
	claims, err := ClaimsAt(p.S, head, name)
	if err != nil {
		return Claim{}, err
	}
	shown, ok := Shown(claims)
	if !ok {
		return Claim{}, ErrNotExist
	}
	if err := check(shown); err != nil {
		return Claim{}, err
	}
	if err := p.confirm(head); err != nil {
		return Claim{}, err
	}
	if err := p.removeAll(head, claims); err != nil {
		return Claim{}, err
	}
	return shown, p.confirmFiles()
}

// RenameMode says what a rename does with the target.
type RenameMode uint8

// The modes of rename.
const (
	RenameReplace RenameMode = iota
	RenameNoReplace
	RenameExchange
)

// Renamed is what a rename did: Moved went to the new name, Replaced stood
// there before (or, exchanged, went to the old name). Same is true if both
// names were links of one inode: POSIX wants nothing done.
type Renamed struct {
	Moved, Replaced Claim
	HadTarget, Same bool
}

// Rename moves what shows at one name to another.
func (p *Plan) Rename(odir Ino, oname string, ndir Ino, nname string, mode RenameMode) (Renamed, error) {
	var r Renamed
	odir, err := p.dir(odir)
	if err != nil {
		return r, err
	}
	if ndir, err = p.dir(ndir); err != nil {
		return r, err
	}
	if err := CheckName(nname); err != nil {
		return r, err
	}
	source, err := ClaimsAt(p.S, odir, oname)
	if err != nil {
		return r, err
	}
	target, err := ClaimsAt(p.S, ndir, nname)
	if err != nil {
		return r, err
	}
	var ok bool
	if r.Moved, ok = Shown(source); !ok {
		return r, ErrNotExist
	}
	r.Replaced, r.HadTarget = Shown(target)
	if err := p.checkRename(&r, odir, oname, ndir, nname, mode); err != nil || r.Same {
		return r, err
	}
	for _, d := range []Ino{odir, ndir} {
		if err := p.confirm(d); err != nil {
			return r, err
		}
	}
	if err := p.moveAll(odir, source, r.Moved, ndir, nname); err != nil {
		return r, err
	}
	if mode == RenameExchange {
		err = p.moveAll(ndir, target, r.Replaced, odir, oname)
	} else {
		err = p.removeAll(ndir, target)
	}
	if err != nil {
		return r, err
	}
	return r, p.confirmFiles()
}

func (p *Plan) checkRename(r *Renamed, odir Ino, oname string, ndir Ino, nname string, mode RenameMode) error {
	if odir == ndir && oname == nname {
		r.Same = true
		if mode == RenameNoReplace {
			return ErrExist
		}
		return nil
	}
	if err := p.notUnder(ndir, r.Moved); err != nil {
		return err
	}
	switch {
	case mode == RenameExchange && !r.HadTarget:
		return ErrNotExist
	case mode == RenameExchange:
		return p.notUnder(odir, r.Replaced)
	case !r.HadTarget:
		return nil
	case mode == RenameNoReplace:
		return ErrExist
	case r.Moved.Ino == r.Replaced.Ino && !r.Moved.Dir():
		r.Same = true
		return nil
	case r.Moved.Dir() && !r.Replaced.Dir():
		return ErrNotDir
	case !r.Moved.Dir() && r.Replaced.Dir():
		return ErrIsDir
	case r.Replaced.Dir():
		return p.mustBeEmpty(r.Replaced.Ino)
	}
	return nil
}

// notUnder checks that dir is not the directory moved, nor below it.
func (p *Plan) notUnder(dir Ino, moved Claim) error {
	if !moved.Dir() {
		return nil
	}
	for !dir.fixed() {
		if dir == moved.Ino {
			return ErrInvalid
		}
		i, err := p.S.Inode(dir)
		if err != nil || i == nil {
			return err
		}
		if dir, err = p.S.Head(i.Standing.Parent); err != nil {
			return err
		}
	}
	return nil
}

// moveAll moves what shows at a name, a directory with its whole set, and
// removes what was hidden there.
func (p *Plan) moveAll(odir Ino, claims []Claim, shown Claim, ndir Ino, nname string) error {
	moved := []Claim{shown}
	if shown.Dir() && !mutation.Off(mutation.WholeSet) {
		for _, c := range claims {
			if c.Dir() && c != shown {
				moved = append(moved, c)
			}
		}
		slices.SortFunc(moved[1:], func(c, d Claim) int {
			if c.At.older(d.At) {
				return -1
			}
			return 1
		})
	}
	keep := make([]LinkID, 0, len(moved))
	for _, c := range moved {
		i, err := p.S.Inode(c.Ino)
		if err != nil {
			return err
		}
		keep = append(keep, c.Link)
		p.add(Write{
			Kind: WritePlace, Ino: c.Ino, Link: c.Link, From: odir, Parent: ndir, Name: nname,
			Base: i.Link(c.Link).leaves(),
		})
		if !c.Dir() {
			f := p.links(i.Ino)
			f.moved = append(f.moved, c.Link)
		}
	}
	if mutation.Off(mutation.HiddenLinks) {
		return nil
	}
	return p.removeAll(odir, claims, keep...)
}

// Content publishes new content through a link; base is the version that the
// writer's draft began from, zero if none.
func (p *Plan) Content(i *Inode, via LinkID, base VersionID, c Content) error {
	if l := i.Link(via); l == nil || !i.liveBySelf(l) {
		links, err := LiveLinks(p.S, i)
		if err != nil {
			return err
		}
		if len(links) > 0 {
			via = links[0]
		}
	}
	if err := p.confirmFile(i, &fileLinks{moved: []LinkID{via}}, true); err != nil {
		return err
	}
	w := Write{Kind: WriteContent, Ino: i.Ino, Link: via, Content: c}
	if !base.IsZero() {
		w.Base = append([]VersionID{base}, i.settled(base)...)
	}
	p.add(w)
	return nil
}

// Publish turns an unpublished inode, with the links it has now, into the
// writes of its publication. The replaced writes are removals of what the
// links have replaced; they are made part of it.
func (p *Plan) Publish(i *Inode, c *Content, replaced []Write) error {
	p.add(inodeWrite(NewInode{
		Ino: i.Ino, Kind: i.Kind, Target: i.Target, Rdev: i.Rdev,
		Mode: i.Mode.Value, UID: i.Owner.Value.UID, GID: i.Owner.Value.GID, Time: i.Mtime.Value,
	}))
	var via LinkID
	for _, l := range i.Links {
		if !l.openPlace() {
			continue
		}
		place := l.shownPlace()
		if via == 0 {
			via = l.ID
		}
		head, err := p.S.Head(place.Parent)
		if err != nil {
			return err
		}
		if err := p.confirm(head); err != nil {
			return err
		}
		p.add(Write{Kind: WritePlace, Ino: i.Ino, Link: l.ID, Parent: place.Parent, Name: place.Name, Time: i.Mtime.Value})
	}
	for _, x := range i.Xattrs {
		if !x.Gone {
			p.add(Write{Kind: WriteXattr, Ino: i.Ino, Name: x.Name, Value: x.Value})
		}
	}
	if c != nil {
		p.add(Write{Kind: WriteContent, Ino: i.Ino, Link: via, Content: *c})
	}
	p.add(replaced...)
	return nil
}
