package fusefs

import (
	"slices"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// expectation is the system call that the helper has been asked for. Its
// handler shows the name and takes nothing from the call but that it came:
// owner, mode and target are the replicated ones, and nothing is stored.
type expectation struct {
	kind  expectedKind
	key   nameKey
	entry crdt.Entry // that is to appear, to go, or to be moved to key
	from  nameKey    // where entry is moved from
	there crdt.Entry // of a swap: what is moved from key to from
	swap  bool       // of a replacement: what stood at key is moved to from
	next  nameKey    // of what is new: where entry goes on to, if not zero

	met bool // guarded by shown.mu
}

type expectedKind uint8

const (
	expectNew expectedKind = iota + 1
	expectGone
	expectRename
	expectSwap    // a rename that exchanges
	expectReplace // a rename from the staging directory, or an exchange with it
)

const canceled = fuse.Status(syscall.ECANCELED)

// expect says what a call of a helper may do.
func (s *shown) expect(e *expectation) {
	s.mu.Lock()
	s.expected = append(s.expected, e)
	s.mu.Unlock()
}

// unexpect ends that, and reports whether the call has come.
func (s *shown) unexpect(e *expectation) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expected = slices.DeleteFunc(s.expected, func(other *expectation) bool { return other == e })
	return e.met
}

func (s *shown) expectedLocked(kind expectedKind, key nameKey) (*expectation, bool) {
	for _, e := range s.expected {
		if e.kind == kind && e.key == key && !e.met {
			return e, true
		}
	}
	return nil, false
}

// answerNew answers the helper's create, mkdir, mknod, symlink or link.
func (fs *FS) answerNew(h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	s := fs.shown
	key := nameKey{s.dir(h.NodeId), name}
	for {
		s.mu.Lock()
		e, ok := s.expectedLocked(expectNew, key)
		gen := s.gen
		s.mu.Unlock()
		if !ok {
			return canceled
		}
		a, err := fs.shownAttr(e.entry)
		if err != nil {
			return fs.status("reveal", err)
		}
		switch s.meetNew(gen, e, &a, out) {
		case meetDone:
			fs.fillEntry(out, &a)
			return fuse.OK
		case meetNever:
			return canceled
		}
	}
}

type meeting uint8

const (
	meetDone meeting = iota
	meetAgain
	meetNever
)

func (s *shown) meetNew(gen uint64, e *expectation, a *store.Attr, out *fuse.EntryOut) meeting {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.expectedLocked(expectNew, e.key); !ok {
		return meetNever
	}
	p, ok := s.getLocked(e.key)
	if e.next != (nameKey{}) {
		next, there := s.getLocked(e.next)
		if ok || !there || next.merged != e.entry {
			return meetNever
		}
	} else if !ok || p.merged != e.entry || p.shown.Ino != 0 {
		return meetNever
	}
	if !s.knowLocked(gen, a, out) {
		return meetAgain
	}
	delete(s.dead, store.NodeID(out.NodeId))
	if e.next != (nameKey{}) {
		s.passLocked(e)
	} else {
		s.dropLocked(e.key)
	}
	e.met = true
	return meetDone
}

// passLocked shows something where it was made, until it has moved on.
func (s *shown) passLocked(e *expectation) {
	s.ledger.put(ledgerLine{Seq: s.committed, Names: []toldName{{Dir: e.key.dir, Name: []byte(e.key.name), Was: e.entry}}})
	s.showLocked(e.key, pendingName{shown: e.entry})
}

// answerGone answers the helper's unlink or rmdir.
func (fs *FS) answerGone(h *fuse.InHeader, name string) fuse.Status {
	s := fs.shown
	key := nameKey{s.dir(h.NodeId), name}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.expectedLocked(expectGone, key)
	if !ok {
		return canceled
	}
	p, ok := s.getLocked(key)
	if !ok || p.shown != e.entry {
		return canceled
	}
	s.setLocked(key, pendingName{merged: p.merged})
	if e.entry.Kind == crdt.KindDir {
		s.buriedLocked(e.entry.Ino)
	}
	e.met = true
	return fuse.OK
}

// answerRename answers the helper's rename.
func (s *shown) answerRename(from, to nameKey) fuse.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.expected {
		if !e.met && s.renameLocked(e, from, to) {
			e.met = true
			return fuse.OK
		}
	}
	return canceled
}

// renameLocked shows what a rename does, if that is what is expected.
func (s *shown) renameLocked(e *expectation, from, to nameKey) bool {
	switch {
	case e.kind == expectReplace:
		return s.replaceLocked(e, from, to)
	case e.key != to || e.from != from:
		return false
	case e.kind == expectRename:
		return s.moveLocked(e)
	case e.kind == expectSwap:
		return s.swapLocked(e)
	}
	return false
}

// moveLocked shows what an expected rename does.
func (s *shown) moveLocked(e *expectation) bool {
	source, ok1 := s.getLocked(e.from)
	target, ok2 := s.getLocked(e.key)
	if !ok1 || !ok2 || source.shown != e.entry || target.merged != e.entry {
		return false
	}
	s.dropLocked(e.key)
	s.showLocked(e.from, pendingName{merged: source.merged})
	if target.shown.Kind == crdt.KindDir {
		s.buriedLocked(target.shown.Ino)
	}
	s.movedLocked(e.entry.Ino)
	return true
}

// swapLocked shows what an expected exchange does, of which from gets what it
// is to show.
func (s *shown) swapLocked(e *expectation) bool {
	source, ok1 := s.getLocked(e.from)
	target, ok2 := s.getLocked(e.key)
	if !ok1 || !ok2 || source.shown != e.entry || target.shown != e.there || source.merged != e.there {
		return false
	}
	s.dropLocked(e.from)
	s.showLocked(e.key, pendingName{shown: e.entry, merged: target.merged})
	s.movedLocked(e.entry.Ino)
	s.movedLocked(e.there.Ino)
	return true
}

// showLocked sets a name whose turn comes, if it is pending yet.
func (s *shown) showLocked(k nameKey, p pendingName) {
	s.setLocked(k, p)
	if _, ok := s.getLocked(k); ok {
		s.queue.push(work{kind: workName, key: k})
	}
}
