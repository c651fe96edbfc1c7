package sim

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// id names a write: an op by stamp and replica, and the position in it.
type id = crdt.VersionID

// A model is the replicated state as the design words it: all versions and
// removals that ever were. It is made in one go from a set of ops and shares no
// code with the merge rules.
type model struct {
	inodes   map[crdt.Ino]*mInode
	places   map[id]*mPlace
	contents map[id]*mContent
	replaced map[id]bool // named as a base
	removals map[id]*mRemoval
	voided   map[id]bool
	standing map[crdt.Ino]*mPlace // of directories, by the fold

	plain    map[id]crdt.Hash // of the bytes of contents
	liveMemo map[crdt.LinkID]int
	children map[crdt.Ino][]mLink
}

type mInode struct {
	ino     crdt.Ino
	kind    crdt.Kind
	target  string
	links   []crdt.LinkID // in order of first place
	mode    register[uint32]
	owner   register[[2]uint32]
	mtime   register[crdt.Time]
	named   register[crdt.Time]
	xattrs  map[string]*register[[]byte] // a nil value is a removed one
	content []id
}

// A register keeps the value that was written last, by op.
type register[T any] struct {
	at    id
	value T
}

func opOrder(a, b id) int {
	return cmp.Or(cmp.Compare(a.Stamp, b.Stamp), cmp.Compare(a.Replica, b.Replica))
}

func (r *register[T]) set(at id, v T) {
	if opOrder(at, r.at) >= 0 {
		r.at, r.value = at, v
	}
}

type mPlace struct {
	id     id
	ino    crdt.Ino
	link   crdt.LinkID
	parent crdt.Ino
	name   string
}

type mContent struct {
	id   id
	ino  crdt.Ino
	via  crdt.LinkID
	base id
	crdt.Content
}

type mRemoval struct {
	ino   crdt.Ino
	link  crdt.LinkID
	names map[id]bool
}

type mLink struct {
	ino  crdt.Ino
	link crdt.LinkID
	at   id
	name string
}

func newModel(ops map[crdt.Dot]*sealedOp) *model {
	m := &model{
		inodes: map[crdt.Ino]*mInode{}, places: map[id]*mPlace{}, contents: map[id]*mContent{},
		replaced: map[id]bool{}, removals: map[id]*mRemoval{}, voided: map[id]bool{},
		standing: map[crdt.Ino]*mPlace{}, liveMemo: map[crdt.LinkID]int{}, children: map[crdt.Ino][]mLink{},
	}
	for _, ino := range []crdt.Ino{crdt.RootIno, crdt.LostIno} {
		dir := &mInode{ino: ino, kind: crdt.KindDir, xattrs: map[string]*register[[]byte]{}}
		dir.mode.value = 0o755
		m.inodes[ino] = dir
	}
	sorted := slices.SortedFunc(maps.Values(ops), func(a, b *sealedOp) int { return opOrder(a.ID(0), b.ID(0)) })
	for _, o := range sorted { // a cause has an older stamp
		for n := range o.Writes {
			m.add(o.Op, n)
		}
		m.move(o.Op)
	}
	m.place()
	return m
}

func (m *model) add(o *crdt.Op, n int) {
	w, at := &o.Writes[n], o.ID(n)
	i := m.inodes[w.Ino]
	switch w.Kind {
	case crdt.WriteInode:
		i = &mInode{ino: w.Ino, kind: w.InodeKind, target: w.Target, xattrs: map[string]*register[[]byte]{}}
		i.mode.set(at, w.Mode)
		i.owner.set(at, [2]uint32{w.UID, w.GID})
		i.mtime.set(at, w.Time)
		m.inodes[w.Ino] = i
	case crdt.WritePlace:
		m.places[at] = &mPlace{at, w.Ino, w.Link, w.Parent, w.Name}
		if !slices.Contains(i.links, w.Link) {
			i.links = append(i.links, w.Link)
		}
		for _, b := range w.Base {
			m.replaced[b] = true
		}
		t := w.Time
		if t == (crdt.Time{}) {
			t = crdt.TimeOf(o.Wall)
		}
		m.named(w.From, at, t)
		m.named(w.Parent, at, t)
	case crdt.WriteContent:
		c := &mContent{id: at, ino: w.Ino, via: w.Link, Content: w.Content}
		for _, b := range w.Base {
			m.replaced[b] = true
			c.base = b
		}
		m.contents[at] = c
		i.content = append(i.content, at)
	case crdt.WriteRemove:
		r := &mRemoval{w.Ino, w.Link, map[id]bool{}}
		for _, b := range slices.Concat(w.Base, w.Closes) {
			r.names[b] = true
		}
		m.removals[at] = r
		m.named(w.From, at, crdt.TimeOf(o.Wall))
	case crdt.WriteVoid:
		for _, b := range w.Base {
			m.voided[b] = true
		}
	case crdt.WriteMode:
		i.mode.set(at, w.Mode)
	case crdt.WriteOwner:
		i.owner.set(at, [2]uint32{w.UID, w.GID})
	case crdt.WriteTime:
		i.mtime.set(at, w.Time)
	case crdt.WriteXattr:
		if i.xattrs[w.Name] == nil {
			i.xattrs[w.Name] = &register[[]byte]{}
		}
		value := append([]byte{}, w.Value...)
		if w.Gone {
			value = nil
		}
		i.xattrs[w.Name].set(at, value)
	}
}

// named gives a directory the time of a name change, of those of one op the
// latest.
func (m *model) named(dir crdt.Ino, at id, t crdt.Time) {
	if d := m.inodes[dir]; d != nil && (opOrder(at, d.named.at) != 0 || !t.Before(d.named.value)) {
		d.named.set(at, t)
	}
}

// move folds an op's moves of directories: all, or none if one would put a
// directory under itself. Ops come in stamp order.
func (m *model) move(o *crdt.Op) {
	before := map[crdt.Ino]*mPlace{}
	for n, w := range o.Writes {
		if w.Kind != crdt.WritePlace || m.inodes[w.Ino].kind != crdt.KindDir {
			continue
		}
		if _, ok := before[w.Ino]; !ok {
			before[w.Ino] = m.standing[w.Ino]
		}
		if m.under(w.Parent, w.Ino) {
			maps.Copy(m.standing, before)
			return
		}
		m.standing[w.Ino] = m.places[o.ID(n)]
	}
}

func (m *model) under(dir, top crdt.Ino) bool {
	for dir != crdt.RootIno {
		if dir == top {
			return true
		}
		p := m.standing[dir]
		if p == nil {
			return false
		}
		dir = p.parent
	}
	return false
}

// open reports whether no removal of the link that counts names the leaf.
func (m *model) open(leaf id, link crdt.LinkID) bool {
	for at, r := range m.removals {
		if r.link == link && r.names[leaf] && !m.voided[at] {
			return false
		}
	}
	return true
}

// leaves of a link's places, newest last.
func (m *model) leaves(link crdt.LinkID) (out []*mPlace) {
	for at, p := range m.places {
		if p.link == link && !m.replaced[at] {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *mPlace) int { return newest(b.id, a.id) })
	return out
}

// newest orders ids for "the newest shows": negative if a shows before b.
func newest(a, b id) int { return cmp.Or(opOrder(b, a), cmp.Compare(a.N, b.N)) }

func (m *model) openPlace(link crdt.LinkID) bool {
	return slices.ContainsFunc(m.leaves(link), func(p *mPlace) bool { return m.open(p.id, link) })
}

// contentLeaves of an inode, the one that would show first first.
func (m *model) contentLeaves(i *mInode) (out []*mContent) {
	for _, at := range i.content {
		if !m.replaced[at] {
			out = append(out, m.contents[at])
		}
	}
	slices.SortFunc(out, func(a, b *mContent) int { return newest(a.id, b.id) })
	return out
}

// placeOf is where a link stands.
func (m *model) placeOf(i *mInode, link crdt.LinkID) *mPlace {
	if i.kind == crdt.KindDir {
		return m.standing[i.ino]
	}
	leaves := m.leaves(link)
	for _, p := range slices.Backward(leaves) {
		if m.open(p.id, link) {
			return p
		}
	}
	if len(leaves) == 0 {
		return nil
	}
	return leaves[len(leaves)-1]
}

// place lists the live links by the directory they are placed in.
func (m *model) place() {
	stand := map[crdt.Ino][]mLink{}
	for _, i := range m.inodes {
		for _, l := range i.links {
			if p := m.placeOf(i, l); p != nil {
				stand[p.parent] = append(stand[p.parent], mLink{i.ino, l, p.id, p.name})
			}
		}
	}
	for dir, links := range stand {
		for _, l := range links {
			if m.live(l, stand) {
				m.children[dir] = append(m.children[dir], l)
			}
		}
	}
}

// live: an open place, or an open content published through the link, or a
// directory in which a live link is placed.
func (m *model) live(l mLink, stand map[crdt.Ino][]mLink) bool {
	if was, ok := m.liveMemo[l.link]; ok {
		return was == 1
	}
	i := m.inodes[l.ino]
	live := m.openPlace(l.link)
	for _, c := range m.contentLeaves(i) {
		live = live || c.via == l.link && m.open(c.id, l.link)
	}
	if i.kind == crdt.KindDir && !live {
		for _, child := range stand[l.ino] {
			live = live || m.live(child, stand)
		}
	}
	m.liveMemo[l.link] = 0
	if live {
		m.liveMemo[l.link] = 1
	}
	return live
}

// shown is the content that users see.
func (m *model) shown(i *mInode) *mContent {
	any := slices.ContainsFunc(i.links, m.openPlace)
	for _, c := range m.contentLeaves(i) {
		if any || m.open(c.id, c.via) {
			return c
		}
	}
	return nil
}

// A line is what of one path is compared.
type line struct {
	Ino           crdt.Ino
	Kind          crdt.Kind
	Mode          uint32
	UID, GID      uint32
	Nlink         int
	Mtime         crdt.Time
	Size          int64
	Hash          crdt.Hash
	Target, Xattr string
}

func (l line) String() string {
	return fmt.Sprintf("ino %x kind %d mode %o owner %d:%d links %d mtime %v size %d hash %x %q %s",
		uint64(l.Ino), l.Kind, l.Mode, l.UID, l.GID, l.Nlink, l.Mtime, l.Size, l.Hash[:4], l.Target, l.Xattr)
}

// view is the tree, by path.
func (m *model) view(plain map[id]crdt.Hash) map[string]line {
	m.plain = plain
	out := map[string]line{}
	m.walk([]crdt.Ino{crdt.RootIno}, "", out)
	m.walk([]crdt.Ino{crdt.LostIno}, "lost:", out)
	return out
}

// walk describes what is below a directory set, and counts its subdirectories.
func (m *model) walk(members []crdt.Ino, prefix string, out map[string]line) (subdirs int) {
	at := map[string][]mLink{}
	for _, dir := range members {
		for _, l := range m.children[dir] {
			at[l.name] = append(at[l.name], l)
		}
	}
	for name, links := range at {
		var dirs, files []mLink
		for _, l := range links {
			if m.inodes[l.ino].kind == crdt.KindDir {
				dirs = append(dirs, l)
			} else {
				files = append(files, l)
			}
		}
		path := prefix + "/" + name
		if len(dirs) > 0 {
			slices.SortFunc(dirs, func(a, b mLink) int { return cmp.Or(opOrder(a.at, b.at), cmp.Compare(a.at.N, b.at.N)) })
			var set []crdt.Ino
			for _, d := range dirs {
				set = append(set, d.ino)
			}
			l := m.line(m.inodes[set[0]])
			l.Nlink = 2 + m.walk(set, path, out)
			out[path] = l
			subdirs++
			continue
		}
		slices.SortFunc(files, func(a, b mLink) int { return newest(a.at, b.at) })
		out[path] = m.line(m.inodes[files[0].ino])
	}
	return subdirs
}

func (m *model) line(i *mInode) line {
	l := line{Ino: i.ino, Kind: i.kind, Mode: i.mode.value, UID: i.owner.value[0], GID: i.owner.value[1], Target: i.target}
	switch i.kind {
	case crdt.KindDir:
		l.Mtime = i.mtime.value
		if opOrder(i.named.at, i.mtime.at) > 0 {
			l.Mtime = i.named.value
		}
	case crdt.KindFile:
		if c := m.shown(i); c != nil {
			l.Mtime, l.Size, l.Hash = c.Mtime, c.Size, m.plain[c.id]
		}
	default:
		l.Mtime, l.Size = i.mtime.value, int64(len(i.target))
	}
	if i.kind != crdt.KindDir {
		for _, link := range i.links {
			l.Nlink += m.liveMemo[link]
		}
	}
	var xs []string
	for _, name := range slices.Sorted(maps.Keys(i.xattrs)) {
		if v := i.xattrs[name].value; v != nil {
			xs = append(xs, fmt.Sprintf("%s=%q", name, v))
		}
	}
	l.Xattr = strings.Join(xs, " ")
	return l
}
