package crdt

import "slices"

// A Rebase makes ops of a replica that begins anew from a peer's snapshot again,
// as new ops on top of it: each is handed to Writes, its result applied as an
// op, and that told to Made, in the order of the old ops' stamps. Nothing that
// is gone from the snapshot comes back, and no content is lost:
//
//   - a new inode in a directory that is gone stands in [LostIno];
//   - content for a file that is gone is a new file in [LostIno];
//   - a move of what is there to a directory that is gone, and all else that is
//     done to what is gone, is left out.
//
// Gone is also what the snapshot has as removed: the removal is known now, so
// an edit is not concurrent with it any more.
type Rebase struct {
	S   State // the snapshot, with what was made so far
	Was State // as the replica had it: attributes and names of what is gone
	// Fresh returns a random id. What was made keeps no id: some replica may
	// have the old op, and no id may be made twice.
	Fresh func() uint64

	op       *Op // in hand
	doubtful bool
	versions map[VersionID]VersionID
	inodes   map[Ino]Ino
	links    map[LinkID]LinkID
	skipped  map[Ino]bool // of the op in hand: the snapshot has them already
	made     map[Ino]Kind // by the op in hand
	writes   []Write
	from     []int // for each of writes, its place in the old op
}

// NewRebase returns a Rebase that has made nothing yet.
func NewRebase(s, was State, fresh func() uint64) *Rebase {
	return &Rebase{
		S: s, Was: was, Fresh: fresh,
		versions: map[VersionID]VersionID{}, inodes: map[Ino]Ino{}, links: map[LinkID]LinkID{},
	}
}

// Writes are those of an old op, made again. Of a doubtful one it is not known
// whether the snapshot has it, or had, and others have built on it: of such only
// what is not there is made again, its content in LostIno.
func (b *Rebase) Writes(op *Op, doubtful bool) ([]Write, error) {
	b.writes, b.from, b.made, b.skipped = nil, nil, map[Ino]Kind{}, map[Ino]bool{}
	b.op, b.doubtful = op, doubtful
	for n := range op.Writes {
		if err := b.write(n, op.Writes[n]); err != nil {
			return nil, err
		}
	}
	return b.writes, nil
}

// Made says as which op the writes of an old one were applied.
func (b *Rebase) Made(was, op *Op) {
	for n, old := range b.from {
		if old >= 0 {
			b.versions[was.ID(old)] = op.ID(n)
		}
	}
}

// Version is what a version became: the same, if nothing else.
func (b *Rebase) Version(id VersionID) VersionID {
	if to, ok := b.versions[id]; ok {
		return to
	}
	return id
}

// Ino is what an inode of the replica became: the same, if nothing else.
func (b *Rebase) Ino(ino Ino) Ino {
	if to, ok := b.inodes[ino]; ok {
		return to
	}
	return ino
}

func (b *Rebase) add(n int, w Write) {
	b.writes, b.from = append(b.writes, w), append(b.from, n)
}

func (b *Rebase) write(n int, w Write) error {
	if w.Kind == WriteInode {
		return b.inode(n, w)
	}
	i, err := b.S.Inode(b.Ino(w.Ino))
	if err != nil {
		return err
	}
	_, made := b.made[b.Ino(w.Ino)]
	there := made
	if !made {
		if there, err = b.there(i); err != nil {
			return err
		}
	}
	switch {
	case b.skipped[w.Ino]:
		return nil
	case w.Kind == WriteContent && there && i != nil && i.holds(&w.Content) != nil:
		b.versions[b.op.ID(n)] = i.holds(&w.Content).ID
		return nil
	case w.Kind == WriteContent && (!there || b.doubtful && !made):
		return b.lostContent(n, w)
	case !there, b.doubtful && !made:
		return nil
	}
	w.Ino = b.Ino(w.Ino)
	w.Link, w.From = b.link(w.Link), b.Ino(w.From)
	named := len(w.Base) + len(w.Closes)
	if w.Base, err = b.ids(i, w.Base); err != nil {
		return err
	}
	if w.Closes, err = b.ids(i, w.Closes); err != nil {
		return err
	}
	if named > 0 && len(w.Base)+len(w.Closes) == 0 && w.Kind != WriteContent && w.Kind != WritePlace {
		return nil // all that it removes, voids or dismisses is not there
	}
	switch w.Kind {
	case WritePlace:
		return b.place(n, w, i, made)
	case WriteRemove:
		if i == nil || i.Link(w.Link) == nil {
			return nil
		}
	}
	b.add(n, w)
	return nil
}

// inode makes an inode again, unless the snapshot has it.
func (b *Rebase) inode(n int, w Write) error {
	i, err := b.S.Inode(w.Ino)
	if err != nil {
		return err
	}
	if i != nil {
		b.skipped[w.Ino] = true
		return nil
	}
	b.inodes[w.Ino] = Ino(b.Fresh())
	w.Ino = b.Ino(w.Ino)
	b.made[w.Ino] = w.InodeKind
	b.add(n, w)
	return nil
}

// link is what a link became.
func (b *Rebase) link(id LinkID) LinkID {
	if to, ok := b.links[id]; ok {
		return to
	}
	return id
}

// ids are what versions and removals of an inode became. What the snapshot does
// not know is left out: it may come still, from a third replica, to some after
// this op and to others before, and must not be replaced here and open there.
func (b *Rebase) ids(i *Inode, old []VersionID) (out []VersionID, err error) {
	var known []VersionID
	if i != nil && len(old) > 0 {
		known = i.contentLeaves()
		for n := range i.Links {
			known = append(append(known, i.Links[n].leaves()...), i.removalsOf(&i.Links[n])...)
		}
	}
	for _, id := range old {
		id = b.Version(id)
		if i != nil && !slices.Contains(known, id) {
			past, err := b.S.History(i.Ino, id)
			if err != nil {
				return nil, err
			}
			if past == nil {
				continue
			}
		}
		out = append(out, id)
	}
	return out, nil
}

// place places a link again. made says that the op in hand makes the inode.
func (b *Rebase) place(n int, w Write, i *Inode, made bool) error {
	if made || i.Link(w.Link) == nil {
		old := w.Link
		w.Link = LinkID(b.Fresh())
		b.links[old] = w.Link
	}
	w.Parent = b.Ino(w.Parent)
	if i != nil && i.Kind == KindDir && i.Link(w.Link) == nil {
		return nil // it has another link there
	}
	ok, err := b.directory(w.Parent)
	if err != nil {
		return err
	}
	if !ok {
		if i != nil {
			return nil // it stays where it is
		}
		w.Parent, w.Name = LostIno, LostName(w.Ino, w.Name)
	}
	b.add(n, w)
	return nil
}

// directory reports whether something can be placed in a directory.
func (b *Rebase) directory(dir Ino) (bool, error) {
	if kind, ok := b.made[dir]; ok {
		return kind == KindDir, nil
	}
	d, err := b.S.Inode(dir)
	if err != nil || d == nil || d.Kind != KindDir {
		return false, err
	}
	return b.there(d)
}

// there reports whether an inode is known and not removed. What somebody here
// has open and not published keeps nothing there.
func (b *Rebase) there(i *Inode) (bool, error) {
	if i == nil || i.Ino.fixed() {
		return i != nil, nil
	}
	links, err := LiveLinks(b.S, i)
	return len(links) > 0, err
}

// holds returns the leaf that has the bytes and the time already, or nil.
func (i *Inode) holds(c *Content) *Version {
	for n := range i.Contents {
		if v := &i.Contents[n]; v.SameBytes(c) && v.Mtime == c.Mtime {
			return v
		}
	}
	return nil
}

// lostContent makes a new file of content whose file is gone.
func (b *Rebase) lostContent(n int, w Write) error {
	was, err := b.Was.Inode(w.Ino)
	if err != nil {
		return err
	}
	made, content := LostFile(was, w.Ino, w.Content, Ino(b.Fresh()), LinkID(b.Fresh()))
	b.inodes[w.Ino], b.links[w.Link] = made[0].Ino, made[1].Link
	b.made[made[0].Ino] = KindFile
	for _, x := range made {
		b.add(-1, x)
	}
	b.add(n, content)
	return nil
}

// LostFile are the writes that make a file in LostIno of content whose file is
// gone. was is what is remembered of that: its attributes and name; it may be
// nil.
func LostFile(was *Inode, gone Ino, c Content, ino Ino, link LinkID) (made []Write, content Write) {
	inode := Write{Kind: WriteInode, Ino: ino, InodeKind: KindFile, Mode: 0o600, Time: c.Mtime}
	name := ""
	if was != nil {
		inode.Mode, inode.UID, inode.GID = was.Mode.Value, was.Owner.Value.UID, was.Owner.Value.GID
		for n := range was.Links {
			if p := was.Links[n].shownPlace(); p != nil && name == "" {
				name = p.Name
			}
		}
	}
	made = []Write{inode, {Kind: WritePlace, Ino: ino, Link: link, Parent: LostIno, Name: LostName(ino, name)}}
	if was != nil {
		for _, x := range was.Xattrs {
			if !x.Gone {
				made = append(made, Write{Kind: WriteXattr, Ino: ino, Name: x.Name, Value: x.Value})
			}
		}
	}
	return made, Write{Kind: WriteContent, Ino: ino, Link: link, Content: c}
}

// Inodes are those that were made again, by their old numbers.
func (b *Rebase) Inodes() map[Ino]Ino { return b.inodes }

// Gone reports whether an inode of the replica is not there any more.
func (b *Rebase) Gone(ino Ino) (bool, error) {
	i, err := b.S.Inode(b.Ino(ino))
	if err != nil {
		return false, err
	}
	ok, err := b.there(i)
	return !ok, err
}

// Unpublished are the writes that make an inode that is not published again,
// under its own number, as something that is not published. What stood in a
// directory that is gone stands in LostIno.
func (b *Rebase) Unpublished(i *Inode) ([]Write, error) {
	b.made = nil
	out := []Write{inodeWrite(NewInode{
		Ino: i.Ino, Kind: i.Kind, Target: i.Target, Rdev: i.Rdev,
		Mode: i.Mode.Value, UID: i.Owner.Value.UID, GID: i.Owner.Value.GID, Time: i.Mtime.Value,
	})}
	for _, l := range i.Links {
		if !l.openPlace() {
			continue
		}
		p := l.shownPlace()
		w := Write{Kind: WritePlace, Ino: i.Ino, Link: l.ID, Parent: b.Ino(p.Parent), Name: p.Name}
		ok, err := b.directory(w.Parent)
		if err != nil {
			return nil, err
		}
		if !ok {
			w.Parent, w.Name = LostIno, LostName(i.Ino, p.Name)
		}
		out = append(out, w)
	}
	for _, x := range i.Xattrs {
		if !x.Gone {
			out = append(out, Write{Kind: WriteXattr, Ino: i.Ino, Name: x.Name, Value: x.Value})
		}
	}
	return out, nil
}
