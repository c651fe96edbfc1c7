package fusefs

import (
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

var _ store.Viewer = (*shown)(nil)

// preparation is what Prepare needs to know of a change as a whole.
type preparation struct {
	change        *store.Changes
	names         map[nameKey]crdt.NameChange
	in            map[crdt.Ino][]string // the names, by directory
	before, after map[crdt.Ino]bool     // what stood, and what stands, at one of the names
	done          map[nameKey]bool      // names dealt with
	// passed is where a link was made that went on before it was shown.
	passed map[crdt.LinkID]nameKey
}

func newPreparation(c *store.Changes) *preparation {
	p := &preparation{
		change: c, names: make(map[nameKey]crdt.NameChange, len(c.Names)),
		in: make(map[crdt.Ino][]string), done: make(map[nameKey]bool),
		before: make(map[crdt.Ino]bool), after: make(map[crdt.Ino]bool), passed: make(map[crdt.LinkID]nameKey),
	}
	for link, at := range c.Passed {
		p.passed[link] = nameKey{at.Dir, at.Name}
	}
	for _, n := range c.Names {
		p.names[nameKey{n.Dir, n.Name}] = n
		p.in[n.Dir] = append(p.in[n.Dir], n.Name)
		p.before[n.Before.Ino], p.after[n.After.Ino] = true, true
	}
	return p
}

// Prepare implements [store.Viewer]: it fixes what is shown now, before
// anybody can read what is about to be merged.
func (s *shown) Prepare(c *store.Changes) (switched []crdt.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen++
	s.changing = make(map[crdt.Ino]struct{}, len(c.Names)+len(c.Inodes))
	s.undo, s.switched, s.adopted, s.placed = nil, nil, nil, nil
	s.fixed = make(map[crdt.Ino]map[string]crdt.Entry)
	p := newPreparation(c)
	s.passedLocked(p)
	// First where the kernel has names: what moved from there is shown as a
	// move wherever it went.
	for _, known := range []bool{true, false} {
		for _, n := range c.Names {
			s.changing[n.Dir] = struct{}{}
			if k := (nameKey{n.Dir, n.Name}); !p.done[k] && s.knowsDirLocked(n.Dir) == known {
				s.prepareNameLocked(p, k, n, known)
			}
		}
	}
	for _, i := range c.Inodes {
		s.changing[i.Ino] = struct{}{}
		if old, ok := s.mustSwitchLocked(c, i); ok {
			switched = append(switched, i.Ino)
			s.switched = append(s.switched, switchedFile{i.Ino, old})
		}
	}
	s.promiseLocked(c)
	return switched
}

// passedLocked notes which links go on that are yet to be shown where they were
// made.
func (s *shown) passedLocked(p *preparation) {
	for k, n := range p.names {
		now, ok := s.getLocked(k)
		if !ok || now.merged.Ino == 0 || now.merged.Link == n.After.Link {
			continue
		}
		if now.shown.Ino == 0 && now.by == (nameKey{}) {
			now.by = k
		}
		if now.by != (nameKey{}) {
			p.passed[now.merged.Link] = now.by
		}
	}
}

func (s *shown) prepareNameLocked(p *preparation, k nameKey, n crdt.NameChange, known bool) {
	p.done[k] = true
	_, moved := s.shownAt[n.After.Link]
	// A call of this mount shows its own names.
	own := p.change.By == s.mount && s.own[k] > 0
	if own || !known && (!moved || n.After.Ino == 0) && !s.waitsLocked(p, n) {
		s.placeLocked(p, k, pendingName{})
		return
	}
	now, pending := s.getLocked(k)
	if !pending {
		now.shown = n.Before
	}
	now.merged, now.by = n.After, nameKey{}
	if n.After.Ino != 0 {
		now.by = p.passed[n.After.Link]
	}
	s.fixLocked(k, now.shown)
	s.placeLocked(p, k, now)
}

// waitsLocked reports whether a name in a directory that the kernel does not know
// stays until what came before is shown: who follows a symlink must not find that
// what it leads to is gone, while the symlink's next target waits.
func (s *shown) waitsLocked(p *preparation, n crdt.NameChange) bool {
	return n.After.Ino == 0 && !p.after[n.Before.Ino] && len(s.pending) > 0
}

// placeLocked makes a name pending as part of a change that may be aborted.
func (s *shown) placeLocked(p *preparation, k nameKey, now pendingName) {
	was, had := s.getLocked(k)
	s.undo = append(s.undo, func() {
		s.dropLocked(k)
		if had {
			s.setLocked(k, was)
		}
	})
	// If the name was pending, what is shown may be anywhere by now.
	if !had && s.adoptableLocked(p, now) {
		s.adoptLocked(p, now.shown.Ino, now.merged.Ino)
		now = pendingName{}
	}
	s.setLocked(k, now)
	s.placed = append(s.placed, k)
}

// adoptableLocked reports whether a directory that the kernel knows went on
// as another one: concurrent mkdirs of one name show as one directory, whose
// number is that of the oldest, with the children of all. So does one that was
// removed and made anew. Then the node stays, for watches and working
// directories.
func (s *shown) adoptableLocked(p *preparation, now pendingName) bool {
	from, to := now.shown, now.merged
	if from.Kind != crdt.KindDir || to.Kind != crdt.KindDir || from.Ino == to.Ino {
		return false
	}
	_, known := s.current[from.Ino]
	_, taken := s.current[to.Ino]
	// One that stands elsewhere now or stood elsewhere before was moved.
	return known && !taken && !p.after[from.Ino] && !p.before[to.Ino]
}

// adoptLocked lets a directory's node stand for another one: what was shown in
// the one is compared with what is merged in the other.
func (s *shown) adoptLocked(p *preparation, from, to crdt.Ino) {
	node := s.current[from]
	s.renumberLocked(node, from, to)
	s.undo = append(s.undo, func() { s.renumberLocked(node, to, from) })
	s.adopted = append(s.adopted, to)
	names := make(map[string]pendingName)
	for _, name := range p.in[from] {
		names[name] = pendingName{shown: p.names[nameKey{from, name}].Before}
	}
	for name, now := range s.pending[from] {
		names[name] = pendingName{shown: now.shown}
	}
	for _, name := range p.in[to] {
		now := names[name]
		now.merged = p.names[nameKey{to, name}].After
		names[name] = now
	}
	for name, now := range names {
		p.done[nameKey{from, name}], p.done[nameKey{to, name}] = true, true
		if old, had := s.getLocked(nameKey{from, name}); had {
			s.placeLocked(p, nameKey{to, name}, old) // pending it was, and stays
		}
		s.placeLocked(p, nameKey{from, name}, pendingName{})
		s.fixLocked(nameKey{to, name}, now.shown)
		s.placeLocked(p, nameKey{to, name}, now)
	}
}

func (s *shown) renumberLocked(node store.NodeID, from, to crdt.Ino) {
	if node == store.NodeID(from) {
		s.aliased.Add(1)
	}
	if node == store.NodeID(to) {
		s.aliased.Add(-1)
	}
	k := s.nodes[node]
	k.ino = to
	s.nodes[node] = k
	delete(s.current, from)
	s.current[to] = node
	s.meansLocked(node)
}

// mustSwitchLocked reports whether a file's new content needs a new node id,
// and returns the one that the kernel knows. A writer on this node, whatever
// his mount, changes a file in place, as on a local disk: node ids are the
// volume's.
func (s *shown) mustSwitchLocked(c *store.Changes, i crdt.InodeChange) (store.NodeID, bool) {
	if !i.Content || i.Before == nil || c.By != 0 {
		return 0, false
	}
	node, known := s.current[i.Ino]
	return node, known
}

// Knows implements [store.Viewer].
func (s *shown) Knows(node store.NodeID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, known := s.nodes[node]
	return known
}

// Shows implements [store.Viewer].
func (s *shown) Shows(ino crdt.Ino) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shows[ino] > 0
}

// Aborted implements [store.Viewer].
func (s *shown) Aborted(c *store.Changes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := len(s.undo) - 1; n >= 0; n-- {
		s.undo[n]()
	}
	s.brokenLocked(c)
	s.settleLocked()
}

// Committed implements [store.Viewer]: readers see the change now, so the
// kernel can be told.
func (s *shown) Committed(c *store.Changes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.switched {
		s.freezeLocked(f)
	}
	named := namedIn(c)
	for _, n := range c.Names {
		if node := s.vol.Node(n.After.Ino); n.After.Kind == crdt.KindFile && s.vol.Kept(node) {
			s.queue.push(work{kind: workLetGo, node: node}) // it has a name again
		}
	}
	s.pushNamesLocked()
	for _, dir := range s.adopted {
		s.queue.push(work{kind: workInode, ino: dir, pages: true})
	}
	for _, i := range c.Inodes {
		s.tellInodeLocked(c, i, named[i.Ino])
		if s.ledger.promisedInode(i.Ino) {
			s.queue.push(work{kind: workInode, ino: i.Ino}) // joins what was just pushed
		}
	}
	if s.ledger != nil {
		s.committed = s.ledger.seq
	}
	s.settleLocked()
}

// pushNamesLocked queues the names that the change has made pending, or that a
// successor was told of.
func (s *shown) pushNamesLocked() {
	names := s.placed[:0]
	for _, k := range s.placed {
		if _, ok := s.getLocked(k); ok || s.ledger.promised(k) {
			names = append(names, k)
		}
	}
	if len(names) > 0 {
		s.queue.pushNames(names, s.goesLocked)
	}
}

// goesLocked reports whether a pending name is to be absent, and what it shows
// goes nowhere else.
func (s *shown) goesLocked(k nameKey) bool {
	p, ok := s.getLocked(k)
	_, moved := s.mergedAt[p.shown.Link]
	return ok && p.merged.Ino == 0 && !moved
}

// maxTouched bounds what is remembered of past changes; it must only cover the
// requests in progress.
const maxTouched = 4096

func (s *shown) settleLocked() {
	s.gen++
	for ino := range s.changing {
		s.touched[ino] = s.gen
	}
	if len(s.touched) > maxTouched {
		clear(s.touched)
		s.floor = s.gen
	}
	s.changing, s.undo, s.switched, s.adopted, s.placed, s.fixed = nil, nil, nil, nil, nil, nil
	s.settled.Broadcast()
}

// namedIn are the inodes of which a change concerns a name, or a name in them:
// that has events of its own.
func namedIn(c *store.Changes) map[crdt.Ino]bool {
	named := make(map[crdt.Ino]bool, 2*len(c.Names))
	for _, n := range c.Names {
		named[n.Dir], named[n.Before.Ino], named[n.After.Ino] = true, true, true
	}
	return named
}

// freezeLocked notes that a node keeps the version that it showed.
func (s *shown) freezeLocked(f switchedFile) {
	if s.vol.Node(f.ino) == f.old {
		return // a draft that is open here hides the new version
	}
	if s.current[f.ino] == f.old {
		delete(s.current, f.ino)
	}
	if _, known := s.nodes[f.old]; !known { // forgotten while this was committed
		s.queue.push(work{kind: workLetGo, node: f.old})
		return
	}
	s.keepsOldLocked(f.old, f.ino)
	s.queue.push(work{kind: workInode, ino: f.ino, old: f.old, content: true})
}

// keepsOldLocked notes a node that keeps an old version.
func (s *shown) keepsOldLocked(node store.NodeID, ino crdt.Ino) {
	if _, known := s.frozen[node]; !known {
		s.frozen[node] = struct{}{}
		s.oldOf[ino] = append(s.oldOf[ino], node)
	}
}

// tellInodeLocked queues what the kernel is to hear about an inode that is, or
// is not, among those of [namedIn].
func (s *shown) tellInodeLocked(c *store.Changes, i crdt.InodeChange, named bool) {
	for _, f := range s.switched {
		if f.ino == i.Ino { // told, or hidden by a draft: its publication will tell
			return
		}
	}
	w := work{kind: workInode, ino: i.Ino}
	if c.By == s.mount {
		// The kernel knows what its own call did to what it names, but not
		// that the call removed a hidden link, when a file was published, or
		// that there is a node of another version.
		if named && !s.publicationLocked(c) && len(s.frozen) == 0 {
			return
		}
	} else {
		w.content = i.Content && i.Before != nil
		w.pages = i.Content
		w.attrib = !i.Content && !named
	}
	s.queue.push(w)
}

// publicationLocked reports whether a change of this mount is, or may be, the
// publication of an open file.
func (s *shown) publicationLocked(c *store.Changes) bool {
	for _, i := range c.Inodes {
		if s.writers[i.Ino] > 0 {
			return true
		}
	}
	return false
}
