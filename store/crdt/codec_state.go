package crdt

// The least bytes that elements of lists take; see decoder.count.
const (
	leastIno         = 8
	leastClaim       = 8 + 8 + 1 + 1
	leastLink        = 8 + 1
	leastPlace       = 1 + 8 + 1 + 1
	leastClosure     = 8 + 1
	leastContent     = 1 + 8 + 1 + 1 + 1 + 32 + 1
	leastXattr       = 1 + 1 + 1
	leastVectorEntry = 8 + 1 + 8 + 32
)

// The flags of an inode record say which of its parts are there.
const (
	// flagPlain: one link with one place and at most one content, published
	// through it, no removal: nearly every inode.
	flagPlain   = 1 << iota
	flagContent // of a plain inode
	flagSpecial // Target or Rdev
	flagNamed
	flagXattrs
	flagDismissed // at the end it says which leaves were
	flagMoved     // Origin
)

func (i *Inode) flags() byte {
	var f byte
	if i.plain() {
		f |= flagPlain
		if len(i.Contents) > 0 {
			f |= flagContent
		}
	}
	if i.Target != "" || i.Rdev != 0 {
		f |= flagSpecial
	}
	if i.Named != (Register[Time]{}) {
		f |= flagNamed
	}
	if len(i.Xattrs) > 0 {
		f |= flagXattrs
	}
	if i.anyDismissed() {
		f |= flagDismissed
	}
	if i.moved() {
		f |= flagMoved
	}
	return f
}

// moved reports whether the log of moves has one of the directory.
func (i *Inode) moved() bool { return i.Kind == KindDir && !i.Origin.ID.IsZero() }

func (i *Inode) plain() bool {
	if len(i.Links) != 1 || len(i.Contents) > 1 {
		return false
	}
	l := &i.Links[0]
	if len(l.Places) != 1 || len(l.Places[0].Closed) > 0 {
		return false
	}
	return len(i.Contents) == 0 || i.Contents[0].Via == l.ID && len(i.Contents[0].Closed) == 0
}

// AppendInode appends the inode's binary form.
func AppendInode(b []byte, i *Inode) []byte {
	e := newEncoder(b)
	flags := i.flags()
	e.byte(flags)
	e.byte(byte(i.Kind))
	e.fixed(uint64(i.Ino))
	if flags&flagSpecial != 0 {
		e.string(i.Target)
		e.uvarint(uint64(i.Rdev))
	}
	e.registers(i, flags)
	if flags&flagPlain != 0 {
		e.plain(i, flags)
	} else {
		e.leaves(i)
	}
	if i.Kind == KindDir {
		e.standing(i)
	}
	if flags&flagDismissed != 0 {
		e.dismissed(i)
	}
	if flags&flagMoved != 0 {
		e.placeOnly(&i.Origin)
	}
	return e.b
}

// DecodeInode reads an inode. The result shares no memory with b.
func DecodeInode(b []byte) (*Inode, error) {
	d := newDecoder(b)
	flags := d.byte()
	kind := d.kind()
	i := d.inode(flags)
	i.Kind = kind
	i.Ino = Ino(d.fixed())
	if flags&flagSpecial != 0 {
		i.Target = d.string()
		i.Rdev = d.uint32()
	}
	d.registers(i, flags)
	if flags&flagPlain != 0 {
		d.plain(i)
	} else {
		d.leaves(i)
	}
	if i.Kind == KindDir {
		d.standing(i)
	}
	if flags&flagDismissed != 0 {
		d.dismissed(i)
	}
	if flags&flagMoved != 0 {
		i.Origin = d.placeOnly()
	}
	if d.err == nil && flags != i.flags() {
		d.fail("wrong flags")
	}
	if err := d.finish("inode"); err != nil {
		return nil, err
	}
	return i, nil
}

// inode makes an inode with room for what the flags announce: a plain one is a
// single allocation.
func (d *decoder) inode(flags byte) *Inode {
	switch flags & (flagPlain | flagContent) {
	case flagPlain:
		p := &struct {
			Inode
			link  [1]Link
			place [1]Place
		}{}
		p.link[0].Places = p.place[:]
		p.Links = p.link[:]
		return &p.Inode
	case flagPlain | flagContent:
		p := &struct {
			Inode
			link    [1]Link
			place   [1]Place
			content [1]Version
		}{}
		p.link[0].Places = p.place[:]
		p.Links = p.link[:]
		p.Contents = p.content[:]
		return &p.Inode
	}
	return &Inode{}
}

func (e *encoder) registers(i *Inode, flags byte) {
	e.relativeTo(i.Mode.At.Stamp)
	e.version(i.Mode.At)
	e.uvarint(uint64(i.Mode.Value))
	e.version(i.Owner.At)
	e.owner(i.Owner.Value)
	e.version(i.Mtime.At)
	e.time(i.Mtime.Value)
	e.version(i.Changed.At)
	e.time(i.Changed.Value)
	if flags&flagNamed != 0 {
		e.version(i.Named.At)
		e.time(i.Named.Value)
	}
	if flags&flagXattrs != 0 {
		e.count(len(i.Xattrs))
		for _, x := range i.Xattrs {
			e.string(x.Name)
			e.version(x.At)
			e.value(x.Value, x.Gone)
		}
	}
}

func (d *decoder) registers(i *Inode, flags byte) {
	i.Mode.At = d.version()
	d.relativeTo(i.Mode.At.Stamp)
	i.Mode.Value = d.uint32()
	i.Owner = Register[Owner]{d.version(), d.owner()}
	i.Mtime = Register[Time]{d.version(), d.time()}
	i.Changed = Register[Time]{d.version(), d.time()}
	if flags&flagNamed != 0 {
		i.Named = Register[Time]{d.version(), d.time()}
	}
	if flags&flagXattrs != 0 {
		i.Xattrs = d.xattrs()
	}
}

func (d *decoder) xattrs() []Xattr {
	n := d.count(leastXattr)
	if n == 0 {
		return nil
	}
	xs := make([]Xattr, n)
	for i := range xs {
		x := &xs[i]
		x.Name = d.string()
		x.At = d.version()
		x.Value, x.Gone = d.value()
		if d.err == nil && i > 0 && xs[i-1].Name >= x.Name {
			d.fail("extended attributes out of order")
		}
	}
	return xs
}

func (e *encoder) plain(i *Inode, flags byte) {
	l := &i.Links[0]
	e.fixed(uint64(l.ID))
	e.placeOnly(&l.Places[0])
	if flags&flagContent != 0 {
		v := &i.Contents[0]
		e.version(v.ID)
		e.version(v.Base)
		e.content(&v.Content)
	}
}

func (d *decoder) plain(i *Inode) {
	l := &i.Links[0]
	l.ID = LinkID(d.fixed())
	l.Places[0] = d.placeOnly()
	if len(i.Contents) > 0 {
		v := &i.Contents[0]
		v.ID = d.version()
		v.Via = l.ID
		v.Base = d.version()
		v.Content = d.content()
	}
}

func (e *encoder) leaves(i *Inode) {
	e.count(len(i.Links))
	for _, l := range i.Links {
		e.fixed(uint64(l.ID))
		e.count(len(l.Places))
		for n := range l.Places {
			e.place(&l.Places[n])
		}
	}
	e.count(len(i.Contents))
	for n := range i.Contents {
		e.leaf(&i.Contents[n])
	}
}

func (d *decoder) leaves(i *Inode) {
	if n := d.count(leastLink); n > 0 {
		i.Links = make([]Link, n)
	}
	for n := range i.Links {
		l := &i.Links[n]
		l.ID = LinkID(d.fixed())
		if n := d.count(leastPlace); n > 0 {
			l.Places = make([]Place, n)
		}
		for m := range l.Places {
			l.Places[m] = d.place()
		}
	}
	if n := d.count(leastContent); n > 0 {
		i.Contents = make([]Version, n)
	}
	for n := range i.Contents {
		i.Contents[n] = d.leaf()
	}
}

// placeOnly leaves out the removals.
func (e *encoder) placeOnly(p *Place) {
	e.version(p.ID)
	e.fixed(uint64(p.Parent))
	e.string(p.Name)
}

func (d *decoder) placeOnly() Place {
	return Place{ID: d.version(), Parent: Ino(d.fixed()), Name: d.string()}
}

func (e *encoder) place(p *Place) {
	e.placeOnly(p)
	e.versions(p.Closed)
}

func (d *decoder) place() Place {
	p := d.placeOnly()
	p.Closed = d.versions()
	return p
}

func (e *encoder) leaf(v *Version) {
	e.version(v.ID)
	e.fixed(uint64(v.Via))
	e.version(v.Base)
	e.content(&v.Content)
	e.count(len(v.Closed))
	for _, c := range v.Closed {
		e.fixed(uint64(c.Link))
		e.version(c.Removal)
	}
}

func (d *decoder) leaf() Version {
	v := Version{ID: d.version(), Via: LinkID(d.fixed()), Base: d.version(), Content: d.content()}
	if n := d.count(leastClosure); n > 0 {
		v.Closed = make([]Closure, n)
		for i := range v.Closed {
			v.Closed[i] = Closure{LinkID(d.fixed()), d.version()}
		}
	}
	return v
}

// A directory nearly always stands at a place of its link, which is then only
// named.
const (
	standsNowhere = iota
	standsApart
	standsAtFirst // and so on
)

func (i *Inode) standsAt() int {
	s := &i.Standing
	if s.ID.IsZero() && s.Parent == 0 && s.Name == "" && len(s.Closed) == 0 {
		return standsNowhere
	}
	if len(i.Links) > 0 && len(s.Closed) == 0 {
		for n := range i.Links[0].Places {
			p := &i.Links[0].Places[n]
			if p.ID == s.ID && p.Parent == s.Parent && p.Name == s.Name {
				return standsAtFirst + n
			}
		}
	}
	return standsApart
}

func (e *encoder) standing(i *Inode) {
	at := i.standsAt()
	e.count(at)
	if at == standsApart {
		e.place(&i.Standing)
	}
}

func (d *decoder) standing(i *Inode) {
	at := d.uvarint()
	switch {
	case at == standsNowhere:
	case at == standsApart:
		i.Standing = d.place()
	case len(i.Links) > 0 && at-standsAtFirst < uint64(len(i.Links[0].Places)):
		i.Standing = i.Links[0].Places[at-standsAtFirst]
		i.Standing.Closed = nil
	default:
		d.fail("standing at no place")
	}
	if d.err == nil && uint64(i.standsAt()) != at {
		d.fail("standing spelled out for nothing")
	}
}

// AppendClaims appends the binary form of the claims at one name.
func AppendClaims(b []byte, claims []Claim) []byte {
	e := newEncoder(b)
	e.count(len(claims))
	for _, c := range claims {
		e.fixed(uint64(c.Ino))
		e.fixed(uint64(c.Link))
		e.byte(byte(c.Kind))
		e.version(c.At)
	}
	return e.b
}

// DecodeClaims reads the claims at one name.
func DecodeClaims(b []byte) ([]Claim, error) {
	d := newDecoder(b)
	var cs []Claim
	if n := d.count(leastClaim); n > 0 {
		cs = make([]Claim, n)
	}
	for i := range cs {
		cs[i] = Claim{Ino(d.fixed()), LinkID(d.fixed()), d.kind(), d.version()}
	}
	if err := d.finish("claims"); err != nil {
		return nil, err
	}
	return cs, nil
}

// AppendMove appends the move's binary form.
func AppendMove(b []byte, m *Move) []byte {
	e := newEncoder(b)
	e.version(m.ID)
	e.fixed(uint64(m.Ino))
	e.fixed(uint64(m.Parent))
	e.string(m.Name)
	e.place(&m.Prev)
	e.bool(m.Skipped)
	return e.b
}

// DecodeMove reads a move. The result shares no memory with b.
func DecodeMove(b []byte) (*Move, error) {
	d := newDecoder(b)
	m := &Move{ID: d.version(), Ino: Ino(d.fixed()), Parent: Ino(d.fixed()), Name: d.string(), Prev: d.place(), Skipped: d.bool()}
	if err := d.finish("move"); err != nil {
		return nil, err
	}
	return m, nil
}

func (e *encoder) vectorEntry(v VectorEntry) {
	e.uvarint(uint64(v.Seq))
	e.fixed(uint64(v.Stamp))
	e.hash(v.Hash)
}

func (d *decoder) vectorEntry() VectorEntry {
	v := VectorEntry{Seq(d.uvarint()), Stamp(d.fixed()), d.hash()}
	if v.Stamp > MaxStamp {
		d.fail("stamp beyond the last one")
	}
	return v
}

// AppendVectorEntry appends the entry's binary form.
func AppendVectorEntry(b []byte, v VectorEntry) []byte {
	e := newEncoder(b)
	e.vectorEntry(v)
	return e.b
}

// DecodeVectorEntry reads one entry of a version vector.
func DecodeVectorEntry(b []byte) (VectorEntry, error) {
	d := newDecoder(b)
	v := d.vectorEntry()
	if err := d.finish("vector entry"); err != nil {
		return VectorEntry{}, err
	}
	return v, nil
}

// AppendVector appends the vector's binary form, by replica.
func AppendVector(b []byte, v Vector) []byte {
	e := newEncoder(b)
	e.count(len(v))
	for _, r := range v.Replicas() {
		e.fixed(uint64(r))
		e.vectorEntry(v[r])
	}
	return e.b
}

// DecodeVector reads a version vector.
func DecodeVector(b []byte) (Vector, error) {
	d := newDecoder(b)
	n := d.count(leastVectorEntry)
	v := make(Vector, n)
	var last ReplicaID
	for i := range n {
		r := ReplicaID(d.fixed())
		if d.err == nil && i > 0 && r <= last {
			d.fail("replicas out of order")
		}
		v[r] = d.vectorEntry()
		last = r
	}
	if err := d.finish("vector"); err != nil {
		return nil, err
	}
	return v, nil
}

// AppendInos appends the binary form of a list of inode numbers.
func AppendInos(b []byte, inos []Ino) []byte {
	e := newEncoder(b)
	e.count(len(inos))
	for _, i := range inos {
		e.fixed(uint64(i))
	}
	return e.b
}

// DecodeInos reads a list of inode numbers.
func DecodeInos(b []byte) ([]Ino, error) {
	d := newDecoder(b)
	var inos []Ino
	if n := d.count(leastIno); n > 0 {
		inos = make([]Ino, n)
	}
	for i := range inos {
		inos[i] = Ino(d.fixed())
	}
	if err := d.finish("inode numbers"); err != nil {
		return nil, err
	}
	return inos, nil
}
