package fusefs

import (
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

var _ store.Viewer = (*shown)(nil)

// Prepare implements [store.Viewer]: it fixes what is shown now, before
// anybody can read what is about to be merged.
func (s *shown) Prepare(c *store.Changes) (switched []crdt.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen++
	s.changing = make(map[crdt.Ino]struct{}, len(c.Names)+len(c.Inodes))
	s.undo, s.switched = nil, nil
	s.prepareNamesLocked(c)
	for _, i := range c.Inodes {
		s.changing[i.Ino] = struct{}{}
		if old, ok := s.mustSwitchLocked(c, i); ok {
			switched = append(switched, i.Ino)
			s.switched = append(s.switched, switchedFile{i.Ino, old})
		}
	}
	return switched
}

func (s *shown) prepareNamesLocked(c *store.Changes) {
	rest := make([]crdt.NameChange, 0, len(c.Names))
	for _, n := range c.Names {
		s.changing[n.Dir] = struct{}{}
		if !s.adoptLocked(c, n) {
			rest = append(rest, n)
		}
	}
	// First where the kernel has names: what moved from there is shown as a
	// move wherever it went.
	for _, known := range []bool{true, false} {
		for _, n := range rest {
			if s.knowsDirLocked(n.Dir) == known {
				s.prepareNameLocked(c, n, known)
			}
		}
	}
}

// ownLocked reports whether the kernel sees a name's change by itself.
func (s *shown) ownLocked(c *store.Changes, k nameKey) bool {
	return c.By == s.mount && s.own[k] > 0
}

func (s *shown) prepareNameLocked(c *store.Changes, n crdt.NameChange, known bool) {
	k := nameKey{n.Dir, n.Name}
	p, was := s.getLocked(k)
	s.undo = append(s.undo, func() {
		if was {
			s.setLocked(k, p)
		} else {
			s.dropLocked(k)
		}
	})
	_, moved := s.shownAt[n.After.Link]
	if s.ownLocked(c, k) || !known && (!moved || n.After.Ino == 0) {
		s.dropLocked(k)
		return
	}
	if !was {
		p.shown = n.Before
	}
	p.merged = n.After
	s.setLocked(k, p)
}

// adoptLocked lets the node of a directory that the kernel knows stand for the
// directory that now shows in its place: concurrent mkdirs of one name show as
// one directory, whose number is the oldest's. It is the same for a directory
// replaced by a new one.
func (s *shown) adoptLocked(c *store.Changes, n crdt.NameChange) bool {
	k, from, to := nameKey{n.Dir, n.Name}, n.Before.Ino, n.After.Ino
	node, known := s.current[from]
	if n.Before.Kind != crdt.KindDir || n.After.Kind != crdt.KindDir || from == to || !known {
		return false
	}
	if _, pending := s.getLocked(k); pending || s.ownLocked(c, k) {
		return false
	}
	if _, taken := s.current[to]; taken {
		return false // it was moved here, which can be shown as a rename
	}
	s.renumberLocked(node, from, to)
	s.undo = append(s.undo, func() { s.renumberLocked(node, to, from) })
	return true
}

func (s *shown) renumberLocked(node store.NodeID, from, to crdt.Ino) {
	k := s.nodes[node]
	if node == store.NodeID(from) {
		s.aliased.Add(1)
	}
	if node == store.NodeID(to) {
		s.aliased.Add(-1)
	}
	k.ino = to
	s.nodes[node] = k
	delete(s.current, from)
	s.current[to] = node
}

// mustSwitchLocked reports whether a file's new content needs a new node id,
// and returns the one that the kernel knows.
func (s *shown) mustSwitchLocked(c *store.Changes, i crdt.InodeChange) (store.NodeID, bool) {
	if !i.Content || i.Before == nil || c.By == s.mount || s.writers[i.Ino] > 0 {
		return 0, false
	}
	node, known := s.current[i.Ino]
	return node, known
}

// Aborted implements [store.Viewer].
func (s *shown) Aborted(*store.Changes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := len(s.undo) - 1; n >= 0; n-- {
		s.undo[n]()
	}
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
	named := make(map[crdt.Ino]bool, 2*len(c.Names))
	for _, n := range c.Names {
		named[n.Dir], named[n.Before.Ino], named[n.After.Ino] = true, true, true
		k := nameKey{n.Dir, n.Name}
		if _, ok := s.getLocked(k); ok {
			s.queue.push(work{kind: workName, key: k})
		} else if node, ok := s.current[n.After.Ino]; ok && node != store.NodeID(n.After.Ino) && n.After.Kind == crdt.KindDir {
			s.queue.push(work{kind: workInode, ino: n.After.Ino, pages: true})
		}
	}
	for _, i := range c.Inodes {
		s.tellInodeLocked(c, i, named[i.Ino])
	}
	s.settleLocked()
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
	s.changing, s.undo, s.switched = nil, nil, nil
	s.settled.Broadcast()
}

// freezeLocked notes that a node keeps the version that it showed.
func (s *shown) freezeLocked(f switchedFile) {
	if s.current[f.ino] == f.old {
		delete(s.current, f.ino)
	}
	if _, known := s.nodes[f.old]; !known { // forgotten while this was committed
		s.queue.push(work{kind: workForget, node: f.old})
		return
	}
	s.frozen[f.old] = struct{}{}
	s.queue.push(work{kind: workInode, ino: f.ino, old: f.old, content: true})
}

// tellInodeLocked queues what the kernel is to hear about an inode. named says
// that the same change concerns its name or a name in it, which has events of
// its own.
func (s *shown) tellInodeLocked(c *store.Changes, i crdt.InodeChange, named bool) {
	for _, f := range s.switched {
		if f.ino == i.Ino {
			return
		}
	}
	if c.By == s.mount {
		if len(s.frozen) > 0 { // the call may have come through another node of the file
			s.queue.push(work{kind: workInode, ino: i.Ino})
		}
		return
	}
	w := work{kind: workInode, ino: i.Ino}
	switch {
	case s.releasing[i.Ino] > 0: // most likely the publication of what was written here
	case s.writers[i.Ino] > 0:
		w.pages = i.Content
	default:
		w.content = i.Content && i.Before != nil
		w.pages = i.Content
		w.attrib = !i.Content && !named
	}
	s.queue.push(w)
}
