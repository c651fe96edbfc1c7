package sim

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// checkSealed checks the contents in a batch that leaves: each is whole (P2),
// and replaces only what its writer knew (P5).
func (n *node) checkSealed(b *store.Batch) {
	if n.doubt {
		return // the ops of these names are others
	}
	for seq := b.First; seq <= b.Last; seq++ {
		o := n.w.ops.ops[crdt.Dot{Replica: b.Origin, Seq: seq}]
		if o == nil {
			return
		}
		for i := range o.Writes {
			if w := &o.Writes[i]; w.Kind == crdt.WriteContent {
				n.checkContent(o, w, o.ID(i))
			}
		}
	}
}

func (n *node) checkContent(o *sealedOp, w *crdt.Write, at crdt.VersionID) {
	h, err := n.plainHash(&w.Content)
	if err != nil {
		n.w.fail("%s: content of op %v: %w", n.name, o.Dot, err)
		return
	}
	n.w.plain[at] = h
	if n.w.real {
		return // what was closed in an earlier life is not known
	}
	if !n.w.whole[h] && !(n.w.lossy && n.w.states[h]) {
		n.w.fail("P2: %s publishes a content of inode %x that nobody closed, in op %v", n.name, uint64(w.Ino), o.Dot)
	}
	if len(w.Base) == 0 {
		return
	}
	base, known := n.w.plain[w.Base[0]]
	if known && base != h && !n.user.saw[w.Ino][base] && !n.again(o.Dot, base) {
		n.w.fail("P5: op %v of %s replaces a version of inode %x that its writer never saw", o.Dot, n.name, uint64(w.Ino))
	}
}

// plainHash is the hash of a content's bytes, also if it has a manifest.
func (n *node) plainHash(c *crdt.Content) (crdt.Hash, error) {
	if !c.Manifest {
		return c.Hash, nil
	}
	m, ok, err := n.db.Content().Manifest(c.Hash)
	if err != nil || !ok {
		return crdt.Hash{}, fmt.Errorf("manifest %x: there %v, error %w", c.Hash[:4], ok, err)
	}
	b := make([]byte, m.Size())
	if _, err := n.db.Content().ReadAt(m, b, 0); err != nil {
		return crdt.Hash{}, err
	}
	return hashOf(b), nil
}

// quiet is how long a world is given to settle.
const quiet = 10 * time.Minute

// settle ends all disturbance, waits until everybody has everything, and
// checks what came of it.
func (w *world) settle() {
	w.calm = true
	for _, n := range w.nodes {
		n.fuse = 0
		if !n.up {
			n.start()
		}
	}
	w.eachWire(func(l *wire) { l.setCut(false) })
	w.relink()
	for _, n := range w.nodes {
		for len(n.user.drafts) > 0 && !w.ended() {
			n.guard(func() {
				if err := n.close(n.user.drafts[0], true); err != nil {
					w.fail("%s: close: %w", n.name, err)
				}
			})
		}
	}
	if w.await() {
		w.check()
	}
}

// await waits until everybody has everything.
func (w *world) await() bool {
	next, settled := w.now, false
	w.run(quiet, func() bool {
		if !settled && w.now >= next {
			next = w.now + 100*time.Millisecond
			settled = w.settled()
		}
		return settled || w.ended()
	})
	if w.ended() {
		return false
	}
	if !settled && !w.settled() {
		var vectors []string
		for _, n := range w.nodes {
			vectors = append(vectors, fmt.Sprintf("%s ready %v %v", n.name, n.vol.Ready(), seqs(n.vol.Vector())))
		}
		w.fail("P4: no agreement after %v:\n%s", quiet, strings.Join(vectors, "\n"))
		return false
	}
	return true
}

func seqs(v crdt.Vector) string {
	var out []string
	for _, r := range v.Replicas() {
		out = append(out, fmt.Sprintf("%v:%d", r, v[r].Seq))
	}
	return strings.Join(out, " ")
}

func (w *world) settled() bool {
	first := w.nodes[0].vol.Vector()
	for _, n := range w.nodes {
		v := n.vol.Vector()
		if !n.up || !n.vol.Ready() || n.vol.Stats().Unsealed > 0 || !v.Contains(first) || !first.Contains(v) {
			return false
		}
		for r, e := range v {
			if e.Hash != first[r].Hash {
				return false // one was restored, and is about to notice
			}
		}
	}
	return true
}

// check checks the settled world.
func (w *world) check() {
	vector := w.nodes[0].vol.Vector()
	for _, n := range w.nodes {
		n.harvest()
	}
	w.ops.complete()
	ops := w.ops.upTo(vector)
	for r, e := range vector {
		for seq := crdt.Seq(1); seq <= e.Seq; seq++ {
			if ops[crdt.Dot{Replica: r, Seq: seq}] == nil {
				w.fail("P8: op %v:%d is applied and in no journal", r, seq)
				return
			}
		}
	}
	m := newModel(ops)
	for at, c := range m.contents {
		_, known := w.plain[at]
		if m.replaced[at] || known && !m.alive(c.ino) {
			continue // its bytes may be forgotten
		}
		var err error
		if w.plain[at], err = w.nodes[0].plainHash(&c.Content); err != nil {
			w.fail("content of %v: %w", at, err)
			return
		}
	}
	want := m.view(w.plain)
	for _, n := range w.nodes {
		got, err := n.view()
		if err != nil {
			w.fail("%s: %w", n.name, err)
			return
		}
		if diff := difference(got, want); diff != "" {
			w.fail("P4: the tree of %s is not that of the model:\n%s", n.name, diff)
			return
		}
		n.checkLeaves(m)
	}
	w.checkFates(m, ops)
	w.checkAnew(ops)
	for _, p := range slices.Sorted(maps.Keys(want)) {
		w.note("%s %v", p, want[p])
	}
}

// difference lists where two trees differ.
func difference(got, want map[string]line) string {
	var out []string
	all := maps.Clone(want)
	maps.Copy(all, got)
	for _, p := range slices.Sorted(maps.Keys(all)) {
		g, there := got[p]
		k, wanted := want[p]
		switch {
		case !there:
			out = append(out, fmt.Sprintf("%s: is missing, want %v", p, k))
		case !wanted:
			out = append(out, fmt.Sprintf("%s: is there: %v", p, g))
		case g != k:
			out = append(out, fmt.Sprintf("%s: is   %v\n%s  want %v", p, g, strings.Repeat(" ", len(p)), k))
		}
	}
	return strings.Join(out, "\n")
}

// view is the tree as the node's users see it.
func (n *node) view() (map[string]line, error) {
	out := map[string]line{}
	return out, errors.Join(n.walk(store.NodeID(crdt.RootIno), "", out), n.walk(store.NodeID(crdt.LostIno), "lost:", out))
}

func (n *node) walk(dir store.NodeID, prefix string, out map[string]line) error {
	var names []string
	if err := n.vol.ReadDir(dir, 0, func(e store.DirEntry) bool { names = append(names, e.Name); return true }); err != nil {
		return err
	}
	for _, name := range names {
		path := prefix + "/" + name
		if len(out) > 10_000 {
			return fmt.Errorf("the tree has no end: %.200s", path)
		}
		a, _, err := n.vol.Lookup(dir, name)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		l := line{Ino: a.Ino, Kind: a.Kind, Mode: a.Mode, UID: a.UID, GID: a.GID, Nlink: int(a.Nlink), Mtime: a.Mtime}
		xs, err := n.vol.ListXattr(a.Node)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for i, x := range xs {
			value, err := n.vol.GetXattr(a.Node, x)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			if i > 0 {
				l.Xattr += " "
			}
			l.Xattr += fmt.Sprintf("%s=%q", x, value)
		}
		switch a.Kind {
		case crdt.KindDir:
			err = n.walk(a.Node, path, out)
		case crdt.KindFile:
			l.Size = a.Size
			var b []byte
			if b, err = n.read(a.Node); err == nil {
				l.Hash = hashOf(b)
			}
		default:
			l.Size = a.Size
			l.Target, err = n.vol.Readlink(a.Node)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		out[path] = l
	}
	return nil
}

// checkLeaves compares the records of all inodes with the model: all that lost
// is kept, with its bytes (P5), and nothing else.
func (n *node) checkLeaves(m *model) {
	if n.w.real {
		return // the database is not to be looked into
	}
	bytes := map[string]crdt.Hash{}
	n.each('c', func(key, value []byte) { bytes[string(key[18:])] = hashOf(value) })
	// Also where the retention is long: a clock that is years ahead ends it.
	seen, forgets := 0, len(n.vol.Collected().Vector) > 0
	n.each('i', func(_, value []byte) {
		i, err := crdt.DecodeInode(value)
		if err != nil {
			n.w.fail("%s: inode: %w", n.name, err)
			return
		}
		seen++
		want := m.inodes[i.Ino]
		if want == nil {
			n.w.fail("%s: inode %x is in no op", n.name, uint64(i.Ino))
			return
		}
		if diff := m.compare(i, want, bytes, forgets); diff != "" {
			n.w.fail("P5: %s: inode %x: %s", n.name, uint64(i.Ino), diff)
		}
	})
	if seen != len(m.inodes) && !forgets {
		n.w.fail("%s: %d inodes, the model has %d", n.name, seen, len(m.inodes))
	}
}

// compare compares the leaves of an inode. Of what is dead the bytes may be beyond
// the limits of history, and where it is forgotten, anything may be missing.
func (m *model) compare(i *crdt.Inode, want *mInode, bytes map[string]crdt.Hash, forgets bool) string {
	alive := func(l crdt.LinkID) bool { return m.liveMemo[l] == 1 }
	dead := !m.alive(want.ino)
	leaves := m.contentLeaves(want)
	if len(leaves) != len(i.Contents) {
		return fmt.Sprintf("%d content leaves, want %d", len(i.Contents), len(leaves))
	}
	for _, c := range leaves {
		v := i.Version(c.id)
		switch {
		case v == nil:
			return fmt.Sprintf("content leaf %v is missing", c.id)
		case v.Hash != c.Hash || v.Via != c.via || v.Mtime != c.Mtime:
			return fmt.Sprintf("content leaf %v differs", c.id)
		case !dead && !v.Manifest && bytes[contentKey(i.Ino, c.id)] != c.Hash:
			return fmt.Sprintf("the bytes of content leaf %v are not kept", c.id)
		}
	}
	if len(i.Links) != len(want.links) && !forgets {
		return fmt.Sprintf("%d links, want %d", len(i.Links), len(want.links))
	}
	for _, id := range want.links {
		l := i.Link(id)
		if l == nil && forgets && !alive(id) {
			continue
		}
		places := m.leaves(id)
		if l == nil || len(l.Places) != len(places) {
			return fmt.Sprintf("link %x: places differ", uint64(id))
		}
		for _, p := range places {
			if !slices.ContainsFunc(l.Places, func(q crdt.Place) bool {
				return q.ID == p.id && q.Parent == p.parent && q.Name == p.name && (len(q.Closed) == 0) == m.open(p.id, id)
			}) {
				return fmt.Sprintf("link %x: place %v differs", uint64(id), p.id)
			}
		}
	}
	return ""
}

// alive reports whether an inode has a live link.
func (m *model) alive(ino crdt.Ino) bool {
	return slices.ContainsFunc(m.inodes[ino].links, func(l crdt.LinkID) bool { return m.liveMemo[l] == 1 })
}

func contentKey(ino crdt.Ino, v crdt.VersionID) string {
	var b []byte
	for _, n := range []uint64{uint64(ino), uint64(v.Stamp), uint64(v.Replica)} {
		for shift := 56; shift >= 0; shift -= 8 {
			b = append(b, byte(n>>shift))
		}
	}
	return string(append(b, byte(v.N>>24), byte(v.N>>16), byte(v.N>>8), byte(v.N)))
}

// checkFates asks of each file, from the pasts of the ops alone, whether it may
// be gone, or be there.
func (w *world) checkFates(m *model, ops map[crdt.Dot]*sealedOp) {
	byInode := map[crdt.Ino][]*sealedOp{}
	for _, o := range ops {
		seen := map[crdt.Ino]bool{}
		for i := range o.Writes {
			if ino := o.Writes[i].Ino; !seen[ino] {
				seen[ino] = true
				byInode[ino] = append(byInode[ino], o)
			}
		}
	}
	for ino, i := range m.inodes {
		if i.kind != crdt.KindFile {
			continue
		}
		live := slices.ContainsFunc(i.links, func(l crdt.LinkID) bool { return m.liveMemo[l] == 1 })
		w.checkFate(i, live, byInode[ino])
	}
	for _, n := range w.nodes {
		for _, p := range n.user.promises {
			if !slices.ContainsFunc(byInode[p.Ino], func(o *sealedOp) bool { return w.wrote(o, p) }) {
				w.fail("P8: %s closed a content of inode %x that was never published", n.name, uint64(p.Ino))
			}
		}
	}
}

func (w *world) wrote(o *sealedOp, p promise) bool {
	for i, wr := range o.Writes {
		if wr.Kind == crdt.WriteContent && wr.Ino == p.Ino && (w.plain[o.ID(i)] == p.Hash || wr.Content.Hash == p.Hash) {
			return true
		}
	}
	return false
}

// checkFate: a file is gone only if each version of its content was known to
// one who removed it (P7), and is there only if something was done to it that
// its removers did not know of (P6).
func (w *world) checkFate(i *mInode, live bool, ops []*sealedOp) {
	has := func(o *sealedOp, kinds ...crdt.WriteKind) bool {
		return slices.ContainsFunc(o.Writes, func(w crdt.Write) bool { return w.Ino == i.ino && slices.Contains(kinds, w.Kind) })
	}
	var edits, removals []*sealedOp
	for _, o := range ops {
		if has(o, crdt.WriteContent, crdt.WritePlace, crdt.WriteVoid) {
			edits = append(edits, o)
		}
		if has(o, crdt.WriteRemove) {
			removals = append(removals, o)
		}
	}
	for _, e := range edits {
		if live || !has(e, crdt.WriteContent) {
			continue
		}
		if !slices.ContainsFunc(removals, func(r *sealedOp) bool { return r.knew(e.Dot) }) {
			w.fail("P7: inode %x is gone, and none of its removers knew of %v", uint64(i.ino), e.Dot)
		}
	}
	if !live || len(i.links) != 1 {
		return
	}
	for _, r := range removals {
		if w.madeAgain(r.Dot) || slices.ContainsFunc(r.Writes, func(w crdt.Write) bool { return w.Kind == crdt.WriteInode }) {
			continue // it knew less when it was made; of what a draft was renamed over, as it was then
		}
		if !slices.ContainsFunc(edits, func(e *sealedOp) bool { return !r.knew(e.Dot) || e == r }) {
			w.fail("P6: inode %x is there, removed by %v, which knew all of it", uint64(i.ino), r.Dot)
		}
	}
}
