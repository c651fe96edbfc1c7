package fusefs

import (
	"maps"

	"syscall"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

func (s *shown) getLocked(k nameKey) (pendingName, bool) {
	p, ok := s.pending[k.dir][k.name]
	return p, ok
}

// setLocked makes a name pending, or, if what is merged is what is shown, not.
func (s *shown) setLocked(k nameKey, p pendingName) {
	s.dropLocked(k)
	if p.shown == p.merged {
		return
	}
	if s.pending[k.dir] == nil {
		s.pending[k.dir] = make(map[string]pendingName)
	}
	s.pending[k.dir][k.name] = p
	if p.shown.Ino != 0 {
		s.shownAt[p.shown.Link] = k
		s.shows[p.shown.Ino]++
	}
	if p.merged.Ino != 0 {
		s.mergedAt[p.merged.Link] = k
	}
}

// dropLocked makes a name shown as it is merged.
func (s *shown) dropLocked(k nameKey) {
	p, ok := s.getLocked(k)
	if !ok {
		return
	}
	if s.shows[p.shown.Ino]--; s.shows[p.shown.Ino] <= 0 {
		delete(s.shows, p.shown.Ino)
	}
	if s.shownAt[p.shown.Link] == k {
		delete(s.shownAt, p.shown.Link)
	}
	if s.mergedAt[p.merged.Link] == k {
		delete(s.mergedAt, p.merged.Link)
	}
	delete(s.pending[k.dir], k.name)
	if len(s.pending[k.dir]) == 0 {
		delete(s.pending, k.dir)
	}
	// While it was pending, a new version could not be told of at this name.
	s.movedLocked(p.shown.Ino)
}

// entry returns what a name shows if it is pending.
func (s *shown) entry(k nameKey) (crdt.Entry, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.getLocked(k)
	return p.shown, ok
}

// get returns a pending name.
func (s *shown) get(k nameKey) (pendingName, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.getLocked(k)
}

// A listing is what some names of a directory show while the store is read of
// what is merged: those that are pending, and those that a change is about to
// make pending, or takes back. The kernel has the directory locked meanwhile, so
// what they show stays as it is.
type listing struct {
	shows map[string]crdt.Entry // guarded by shown.mu until the listing has ended
}

func (s *shown) beginListing(dir crdt.Ino) *listing {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &listing{make(map[string]crdt.Entry, len(s.pending[dir]))}
	for name, p := range s.pending[dir] {
		l.shows[name] = p.shown
	}
	maps.Copy(l.shows, s.fixed[dir])
	if s.listings[dir] == nil {
		s.listings[dir] = make(map[*listing]struct{})
	}
	s.listings[dir][l] = struct{}{}
	return l
}

func (s *shown) endListing(dir crdt.Ino, l *listing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listings[dir], l)
	if len(s.listings[dir]) == 0 {
		delete(s.listings, dir)
	}
}

// fixLocked notes what a name shows while a change of it is committed.
func (s *shown) fixLocked(k nameKey, shown crdt.Entry) {
	if s.fixed[k.dir] == nil {
		s.fixed[k.dir] = make(map[string]crdt.Entry)
	}
	s.fixed[k.dir][k.name] = shown
	for l := range s.listings[k.dir] {
		if _, ok := l.shows[k.name]; !ok {
			l.shows[k.name] = shown
		}
	}
}

// drop shows a name as it is merged: the call in progress reveals it.
func (s *shown) drop(k nameKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropLocked(k)
}

// giveWay shows a pending name as it is merged because a call of this node met
// it and is to be made again: answered ESTALE, the kernel looks the name up
// and repeats the call once. It does so for no directory, whose name must not
// be invalidated should the kernel not come back: such calls find the name
// busy until it is revealed.
func (s *shown) giveWay(k nameKey) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.getLocked(k)
	if !ok {
		return store.ErrStale
	}
	if p.shown.Kind == crdt.KindDir || p.merged.Kind == crdt.KindDir {
		return syscall.EBUSY
	}
	s.dropLocked(k)
	s.queue.push(work{kind: workDrop, key: k})
	return store.ErrStale
}

// removedHere says what to do about the unlink or rmdir of a pending name. If
// what the caller sees is gone already, nothing is to be done: what took its
// place is not what he meant. The change is shown by the call itself.
func (s *shown) removedHere(k nameKey) (done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.getLocked(k)
	if !ok || p.shown.Ino == 0 || p.shown.Ino == p.merged.Ino {
		return false
	}
	if p.shown.Kind == crdt.KindDir {
		s.buriedLocked(p.shown.Ino)
	}
	s.setLocked(k, pendingName{merged: p.merged})
	if p.merged.Ino != 0 {
		s.queue.push(work{kind: workName, key: k})
	}
	return true
}
