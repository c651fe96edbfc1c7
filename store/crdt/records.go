package crdt

import "slices"

// Contests is the part of a [State] that says where records may be: which
// inodes have leaves that lost, and at which names files are hidden. It holds
// all of them and maybe some more, so that listing the records costs by their
// number. What nobody contests is never written to it.
type Contests interface {
	PutContest(c Contest, keep bool) error
	EachContest(fn func(Contest) error) error
}

// A Contest is an inode, or a name of a directory.
type Contest struct {
	Ino  Ino // or
	Dir  Ino
	Name string
}

// RecordKind says what lost.
type RecordKind uint8

// The kinds of record.
const (
	RecordContent RecordKind = iota + 1 // a version of a file
	RecordHidden                        // a file at a name where another shows
	RecordPlace                         // a place that a file or directory was moved to
)

// A Record is what lost a conflict. It is a function of the state alone, and
// so the same wherever the same ops were applied.
type Record struct {
	Kind RecordKind
	ID   VersionID // of the leaf that lost
	Ino  Ino
	Link LinkID // whose place it is, or through which the version was published
	Dir  Ino    // where it stands, or would
	Name string
	// Version is the content that is at stake; nil if there is none.
	Version *Version
	Against VersionID // to what it lost
}

// shownOrLast is the content that shows, or that showed last.
func (i *Inode) shownOrLast() *Version {
	if v := i.Shown(); v != nil {
		return v
	}
	return i.newestLeaf()
}

// lost calls fn with the inode's leaves that lost and were not dismissed: one
// of the two arguments is nil.
func (i *Inode) lost(fn func(l *Link, p *Place, v *Version)) {
	if len(i.Contents) > 1 {
		shown := i.shownOrLast()
		for n := range i.Contents {
			if v := &i.Contents[n]; v.ID != shown.ID && !v.Dismissed {
				fn(nil, nil, v)
			}
		}
	}
	for n := range i.Links {
		l := &i.Links[n]
		if len(l.Places) < 2 && i.Kind != KindDir {
			continue
		}
		at, _ := i.PlaceOf(l.ID)
		for m := range l.Places {
			// A closed one was removed by somebody who knew it.
			if p := &l.Places[m]; p.ID != at.ID && len(p.Closed) == 0 && !p.Dismissed {
				fn(l, p, nil)
			}
		}
	}
}

func (i *Inode) contested() (yes bool) {
	i.lost(func(*Link, *Place, *Version) { yes = true })
	return yes
}

func (a *applier) contestInode(ino Ino) error {
	before, after := a.before[ino], a.inodes[ino]
	was, now := before != nil && before.contested(), after.contested()
	if was == now {
		return nil
	}
	return a.s.PutContest(Contest{Ino: ino}, now)
}

// hides reports whether a file is hidden among claims at one name. What is not
// published is on its way to replace the other.
func hides(claims []Claim) bool {
	published, files := 0, 0
	for _, c := range claims {
		if c.At.Local() {
			continue
		}
		published++
		if !c.Dir() {
			files++
		}
	}
	return published > 1 && files > 0
}

// contestNames marks the names touched at which a file is hidden. In a set of
// several directories claims of one name have several keys; it is enough that
// of those of one name all but the first were marked.
func (a *applier) contestNames() error {
	for _, k := range a.names {
		head, err := a.s.Head(k.dir)
		if err != nil {
			return err
		}
		members, err := a.s.Members(head)
		if err != nil {
			return err
		}
		_, regrouped := a.heads[k.dir]
		alone := len(members) == 1 && !regrouped
		claims := a.claims[k]
		was := hides(a.claimed[k])
		if alone && !was && len(claims) < 2 {
			continue
		}
		if !alone && len(claims) > 0 {
			if claims, err = ClaimsAt(a.s, head, k.name); err != nil {
				return err
			}
		}
		if now := hides(claims); now != was || !alone {
			if err := a.s.PutContest(Contest{Dir: k.dir, Name: k.name}, now); err != nil {
				return err
			}
		}
	}
	return nil
}

// EachRecord calls fn for each record of the state, once, in no particular order.
func EachRecord(s State, fn func(Record) error) error {
	seen := map[nameKey]bool{}
	return s.EachContest(func(c Contest) error {
		if c.Ino != 0 {
			i, err := s.Inode(c.Ino)
			if err != nil || i == nil {
				return err
			}
			return eachLeafRecord(s, i, fn)
		}
		head, err := s.Head(c.Dir)
		if err != nil || seen[nameKey{head, c.Name}] {
			return err
		}
		seen[nameKey{head, c.Name}] = true
		return eachHiddenRecord(s, head, c.Name, fn)
	})
}

// eachLeafRecord calls fn for the leaves of an inode that lost.
func eachLeafRecord(s State, i *Inode, fn func(Record) error) (err error) {
	shown := i.shownOrLast()
	i.lost(func(l *Link, p *Place, v *Version) {
		if err != nil {
			return
		}
		r := Record{Ino: i.Ino}
		if p != nil {
			r.Kind, r.ID, r.Link, r.Dir, r.Name = RecordPlace, p.ID, l.ID, p.Parent, p.Name
			at, _ := i.PlaceOf(l.ID)
			r.Against = at.ID
		} else {
			var same bool
			if same, err = inChain(s, i.Ino, shown, &v.Content); same || err != nil {
				return
			}
			r.Kind, r.ID, r.Link, r.Version, r.Against = RecordContent, v.ID, v.Via, v, shown.ID
			at, _ := i.PlaceOf(v.Via)
			r.Dir, r.Name = at.Parent, at.Name
		}
		err = fn(r)
	})
	return err
}

// eachHiddenRecord calls fn for the files hidden at one name of a directory set.
func eachHiddenRecord(s State, head Ino, name string, fn func(Record) error) error {
	claims, err := ClaimsAt(s, head, name)
	if err != nil {
		return err
	}
	claims = slices.DeleteFunc(slices.Clone(claims), func(c Claim) bool { return c.At.Local() })
	shown, ok := Shown(claims)
	if !ok {
		return nil
	}
	over, err := s.Inode(shown.Ino)
	if err != nil {
		return err
	}
	for _, c := range claims {
		if c == shown || c.Dir() {
			continue
		}
		i, err := s.Inode(c.Ino)
		if err != nil {
			return err
		}
		if same, err := equalFiles(s, i, over); err != nil {
			return err
		} else if same {
			continue
		}
		r := Record{
			Kind: RecordHidden, ID: c.At, Ino: c.Ino, Link: c.Link, Dir: head, Name: name,
			Version: i.Shown(), Against: shown.At,
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}

// equalFiles reports whether nothing is lost by one file hiding another.
func equalFiles(s State, hidden, over *Inode) (bool, error) {
	if hidden.Kind != over.Kind || hidden.Target != over.Target || hidden.Rdev != over.Rdev {
		return false, nil
	}
	if hidden.Kind != KindFile || hidden.Ino == over.Ino {
		return true, nil
	}
	v := hidden.Shown()
	if v == nil {
		return true, nil
	}
	return inChain(s, over.Ino, over.Shown(), &v.Content)
}

// inChain reports whether a version, or one that it goes back to, has the same
// bytes as c.
func inChain(s State, ino Ino, v *Version, c *Content) (bool, error) {
	for v != nil {
		if v.SameBytes(c) {
			return true, nil
		}
		if v.Base.IsZero() {
			break
		}
		var err error
		if v, err = s.History(ino, v.Base); err != nil {
			return false, err
		}
	}
	return false, nil
}

// leafFlags are the dismissed flags of the inode's leaves: places, then contents.
func (i *Inode) leafFlags() (flags []*bool, ids []VersionID) {
	for _, l := range i.Links {
		for n := range l.Places {
			flags, ids = append(flags, &l.Places[n].Dismissed), append(ids, l.Places[n].ID)
		}
	}
	for n := range i.Contents {
		flags, ids = append(flags, &i.Contents[n].Dismissed), append(ids, i.Contents[n].ID)
	}
	return flags, ids
}

// dismiss marks leaves. One that was replaced meanwhile has no record anyway.
func (i *Inode) dismiss(leaves []VersionID) {
	flags, ids := i.leafFlags()
	for n, id := range ids {
		*flags[n] = *flags[n] || slices.Contains(leaves, id)
	}
}

// anyDismissed reports whether some leaf is.
func (i *Inode) anyDismissed() bool {
	for _, l := range i.Links {
		if slices.ContainsFunc(l.Places, func(p Place) bool { return p.Dismissed }) {
			return true
		}
	}
	return slices.ContainsFunc(i.Contents, func(v Version) bool { return v.Dismissed })
}

func (e *encoder) dismissed(i *Inode) {
	flags, _ := i.leafFlags()
	for _, f := range flags {
		e.bool(*f)
	}
}

func (d *decoder) dismissed(i *Inode) {
	flags, _ := i.leafFlags()
	for _, f := range flags {
		*f = d.bool()
	}
}

// settled returns the dismissed content leaves that a new version on the given
// base replaces too: nobody wants to hear of them, and they do not show.
func (i *Inode) settled(base VersionID) (ids []VersionID) {
	shown := i.Shown()
	for n := range i.Contents {
		v := &i.Contents[n]
		if v.Dismissed && v.ID != base && (shown == nil || v.ID != shown.ID) {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

// Dismiss plans that there are no records any more of what is given. A leaf is
// marked, which changes nothing that anybody sees; a hidden file is removed
// like any other.
func (p *Plan) Dismiss(records ...Record) error {
	for _, r := range records {
		if r.Kind != RecordHidden {
			p.add(Write{Kind: WriteDismiss, Ino: r.Ino, Base: []VersionID{r.ID}})
			continue
		}
		i, err := p.S.Inode(r.Ino)
		if err != nil {
			return err
		}
		if err := p.confirm(r.Dir); err != nil {
			return err
		}
		p.add(removal(i, r.Link, 0)) // the directory looks as before: so does its time
		f := p.links(r.Ino)
		f.removed = append(f.removed, r.Link)
	}
	return p.confirmFiles()
}

// Rewrite plans that a file has the content of one of its versions again, on top
// of what shows: whoever restores a leaf has seen it, so it is replaced too.
func (p *Plan) Rewrite(i *Inode, via LinkID, of VersionID, c Content) error {
	var base VersionID
	if shown := i.Shown(); shown != nil {
		base = shown.ID
	}
	if err := p.Content(i, via, base, c); err != nil {
		return err
	}
	if w := &p.Writes[len(p.Writes)-1]; i.Version(of) != nil && !slices.Contains(w.Base, of) {
		w.Base = append(w.Base, of)
	}
	return nil
}

// Surface plans that a hidden file replaces all files at its name. A directory
// is not replaced: ErrIsDir.
func (p *Plan) Surface(i *Inode, link LinkID, dir Ino, name string) error {
	claims, err := ClaimsAt(p.S, dir, name)
	if err != nil {
		return err
	}
	if shown, _ := Shown(claims); shown.Dir() {
		return ErrIsDir
	}
	if err := p.confirm(dir); err != nil {
		return err
	}
	p.place(i, link, dir, name)
	if err := p.removeAll(dir, claims, link); err != nil {
		return err
	}
	return p.confirmFiles()
}

// Move plans that a link, which need not show, stands at a free name.
func (p *Plan) Move(i *Inode, link LinkID, dir Ino, name string) error {
	head, err := p.free(dir, name)
	if err != nil {
		return err
	}
	if err := p.notUnder(head, Claim{Ino: i.Ino, Kind: i.Kind}); err != nil {
		return err
	}
	at, _ := i.PlaceOf(link)
	for _, d := range []Ino{at.Parent, head} {
		if d, err = p.S.Head(d); err != nil {
			return err
		}
		if err := p.confirm(d); err != nil {
			return err
		}
	}
	p.place(i, link, head, name)
	return p.confirmFiles()
}

// place moves a link of an inode.
func (p *Plan) place(i *Inode, link LinkID, dir Ino, name string) {
	at, _ := i.PlaceOf(link)
	p.add(Write{Kind: WritePlace, Ino: i.Ino, Link: link, From: at.Parent, Parent: dir, Name: name, Base: i.Link(link).leaves()})
	if i.Kind != KindDir {
		f := p.links(i.Ino)
		f.moved = append(f.moved, link)
	}
}

// Settled reports whether all that is known of a dead inode is in the past
// that the vector describes: who has applied that cannot bring it back.
func (i *Inode) Settled(v Vector) bool {
	flags, leaves := i.leafFlags()
	for n := range i.Links {
		leaves = append(leaves, i.removalsOf(&i.Links[n])...)
	}
	return len(flags) > 0 && !slices.ContainsFunc(leaves, func(id VersionID) bool { return !v.Covers(id) })
}

// Spent returns the content leaves of a dead inode that are no record.
func (i *Inode) Spent() (ids []VersionID) {
	last := i.shownOrLast()
	for n := range i.Contents {
		if v := &i.Contents[n]; v.ID == last.ID || v.Dismissed {
			ids = append(ids, v.ID)
		}
	}
	return ids
}
