package fusefs

import (
	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// step is the next thing to do about a pending name.
type step struct {
	kind   stepKind
	expect *expectation
	// The directories of expect.key and expect.from.
	dir, fromDir kernel.Dir
}

type stepKind uint8

const (
	stepNone    stepKind = iota // nothing (more) is to be done
	stepCall                    // a call of the helper, as expected
	stepReplace                 // a call that lets one take another's place
	stepLater                   // it has changed again and waits behind others
)

// plan decides how a pending name is to be shown.
func (s *shown) plan(k nameKey) step {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.changing != nil {
		s.settled.Wait()
	}
	if s.queue.changedAgain(k) {
		return step{kind: stepLater}
	}
	return s.planLocked(k)
}

func (s *shown) planLocked(k nameKey) step {
	p, ok := s.getLocked(k)
	if !ok {
		return step{}
	}
	if from, ok := s.shownAt[p.merged.Link]; ok && p.merged.Ino != 0 && from != k && s.knowsDirLocked(from.dir) {
		return s.planMoveLocked(from, k)
	}
	if to, ok := s.mergedAt[p.shown.Link]; ok && p.shown.Ino != 0 && to != k {
		return s.planMoveLocked(k, to)
	}
	switch {
	case !s.knowsDirLocked(k.dir), p.shown.Ino == p.merged.Ino:
		s.dropLocked(k) // the kernel has nothing to change
		return step{}
	case s.passesLocked(k, p):
		return s.callLocked(&expectation{kind: expectNew, key: p.by, entry: p.merged, next: k})
	case p.shown.Ino == 0:
		return s.callLocked(&expectation{kind: expectNew, key: k, entry: p.merged})
	case p.merged.Ino == 0:
		return s.callLocked(&expectation{kind: expectGone, key: k, entry: p.shown})
	}
	return s.planReplaceLocked(k, p, !sameKind(p.shown, p.merged))
}

// passesLocked reports whether what is merged at a name is to be shown first
// where it was made, from where it is moved then: who replaces a file by a rename
// makes a temporary one in the same batch. It is tried once.
func (s *shown) passesLocked(k nameKey, p pendingName) bool {
	by := p.by
	if by == (nameKey{}) {
		return false
	}
	p.by = nameKey{}
	s.pending[k.dir][k.name] = p
	_, taken := s.getLocked(by)
	return !taken && s.knowsDirLocked(by.dir)
}

// planReplaceLocked lets what is merged at a name take the place of what is
// shown. If that is to go elsewhere, or is no file where the other is one, it is
// exchanged: it is shown in the staging directory then, from where it goes on.
func (s *shown) planReplaceLocked(k nameKey, p pendingName, swap bool) step {
	st := s.callLocked(&expectation{kind: expectReplace, key: k, entry: p.merged, swap: swap})
	st.kind = stepReplace
	return st
}

func sameKind(a, b crdt.Entry) bool { return (a.Kind == crdt.KindDir) == (b.Kind == crdt.KindDir) }

// planMoveLocked shows a link that went from one pending name to another. No
// name is without what it showed before it has what it is to show:
//
//   - If what stands at the new name has a place to go to itself, or cannot be
//     renamed over, the two change places.
//   - If something else comes to the old name, it comes first; but a directory
//     that makes way for a file is not taken out of the tree for that.
func (s *shown) planMoveLocked(from, to nameKey) step {
	source, _ := s.getLocked(from)
	target, _ := s.getLocked(to)
	moved, there := source.shown, target.shown
	if there.Ino == moved.Ino {
		s.dropLocked(to) // two links of one file: a rename would do nothing
		return s.planLocked(from)
	}
	if source.merged.Ino == moved.Ino {
		s.dropLocked(from)
		return s.planLocked(to)
	}
	_, goesOn := s.mergedAt[there.Link]
	goesOn = goesOn && there.Ino != 0
	makesWay := there.Ino == 0 && moved.Kind == crdt.KindDir && source.merged.Kind != crdt.KindDir
	switch {
	case !goesOn && source.merged.Ino != 0 && !makesWay:
		if other, ok := s.shownAt[source.merged.Link]; ok {
			return s.planSwapLocked(other, from)
		}
		return s.planReplaceLocked(from, source, true)
	case goesOn || there.Ino != 0 && !sameKind(moved, there):
		return s.planSwapLocked(from, to)
	}
	return s.callLocked(&expectation{kind: expectRename, key: to, from: from, entry: moved})
}

// planSwapLocked lets what is shown at two names change places. The second one
// gets what it is to show: the last that its watchers hear is that something
// came there.
func (s *shown) planSwapLocked(from, to nameKey) step {
	source, _ := s.getLocked(from)
	target, _ := s.getLocked(to)
	return s.callLocked(&expectation{kind: expectSwap, key: from, from: to, entry: target.shown, there: source.shown})
}

func (s *shown) callLocked(e *expectation) step {
	st := step{kind: stepCall, expect: e, dir: s.dirRefLocked(e.key.dir)}
	if e.from.dir != 0 {
		st.fromDir = s.dirRefLocked(e.from.dir)
	}
	return st
}

// dirRefLocked is how the helper finds a directory.
func (s *shown) dirRefLocked(dir crdt.Ino) kernel.Dir {
	node, ok := s.current[dir]
	if !ok {
		node = store.NodeID(dir)
	}
	return kernel.Dir{Node: uint64(node), Generation: s.nodes[node].born}
}

// known returns the kernel's node of an inode, if it has one.
func (s *shown) known(ino crdt.Ino) (store.NodeID, knownNode, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	node, ok := s.current[ino]
	if ino == crdt.RootIno { // which is known without a lookup
		node, ok = rootNode, true
	}
	return node, s.nodes[node], ok
}

// lastOf is the kernel's node of a file that was removed, as far as there is no
// doubt: it keeps the version that the name shows until it goes.
func (s *shown) lastOf(ino crdt.Ino) (last store.NodeID, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.oldOf[ino]
	if len(old) != 1 {
		return 0, false
	}
	return old[0], true
}

// knownDir is how the helper finds a directory, if the kernel knows it.
func (s *shown) knownDir(dir crdt.Ino) (kernel.Dir, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dirRefLocked(dir), s.knowsDirLocked(dir)
}

// force shows a pending name without a call, and returns what it was.
func (s *shown) force(k nameKey) (p pendingName, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.changing != nil {
		s.settled.Wait()
	}
	p, ok = s.getLocked(k)
	if !ok {
		return p, false
	}
	s.dropLocked(k)
	if p.shown.Kind == crdt.KindDir {
		if node, known := s.current[p.shown.Ino]; known {
			s.dead[node] = struct{}{}
			s.anyDead.Store(true)
		}
	}
	return p, true
}

// isDead reports whether a directory's node was removed without the kernel
// having been told: ESTALE makes it look the name up again.
func (s *shown) isDead(node uint64) bool {
	if !s.anyDead.Load() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, dead := s.dead[store.NodeID(node)]
	return dead
}

// parent is the directory in which a directory is shown, which may be another
// than where it is merged.
func (s *shown) parent(dir crdt.Ino) (crdt.Ino, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for parent, names := range s.pending {
		for _, p := range names {
			if p.shown.Ino == dir && parent != stagingIno {
				return parent, true
			}
		}
	}
	return 0, false
}
