package store

import (
	"sync"
	"sync/atomic"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// maxSubdirs bounds the directories whose subdirectories are remembered.
const maxSubdirs = 1 << 16

// subdirs remembers how many subdirectories directories show, for their link
// counts: a directory is counted when it is first looked at, and then kept up
// with by each change.
type subdirs struct {
	// turn is odd while a change of directories is being committed. Who has
	// counted may store the number if the turn is that of before his
	// transaction.
	turn atomic.Uint64

	changes []crdt.NameChange // that are being committed; guarded by Volume.mu
	regroup bool              // names go from one directory to another in it; as well

	mu sync.Mutex // guards what follows; a leaf
	n  map[crdt.Ino]int
}

// uncounted is the turn of a transaction that may see what nobody else does.
const uncounted = 1<<64 - 1

func (s *subdirs) get(dir crdt.Ino, turn uint64) (int, bool) {
	if turn == uncounted {
		return 0, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.n[dir]
	return n, ok
}

func (s *subdirs) store(dir crdt.Ino, n int, turn uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if turn%2 != 0 || s.turn.Load() != turn {
		return
	}
	if s.n == nil || len(s.n) >= maxSubdirs {
		s.n = map[crdt.Ino]int{}
	}
	s.n[dir] = n
}

// begin announces a change before anybody can see it.
func (s *subdirs) begin(told *Changes, regroup bool) {
	for _, c := range told.Names {
		if dirs(c.After) != dirs(c.Before) {
			s.changes = append(s.changes, c)
		}
	}
	if s.regroup = regroup; regroup || len(s.changes) > 0 {
		s.turn.Add(1)
	}
}

// end takes over what was announced, if it was committed.
func (s *subdirs) end(committed bool) {
	if s.turn.Load()%2 == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.regroup {
		s.n = nil
	}
	for _, c := range s.changes {
		if n, ok := s.n[c.Dir]; ok && committed {
			s.n[c.Dir] = n + dirs(c.After) - dirs(c.Before)
		}
	}
	s.changes = nil
	s.turn.Add(1)
}

// reset forgets all, when a state takes another's place.
func (s *subdirs) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n = nil
	s.turn.Add(2)
}

func dirs(e crdt.Entry) int {
	if e.Kind == crdt.KindDir {
		return 1
	}
	return 0
}

// dirLinks is a directory's link count: its name, its "." and the ".." of each
// subdirectory; 0 when it is removed.
func (v *Volume) dirLinks(t *tree, i *crdt.Inode) (uint32, error) {
	if i.Ino != crdt.RootIno && i.Ino != crdt.LostIno {
		if live, err := crdt.LiveLinks(t, i); err != nil || len(live) == 0 {
			return 0, err
		}
	}
	head, err := t.Head(i.Ino)
	if err != nil {
		return 0, err
	}
	n, ok := v.subdirs.get(head, t.turn)
	if !ok {
		if err := t.list(head, 0, func(e DirEntry) bool {
			n += dirs(e.Entry)
			return true
		}); err != nil {
			return 0, err
		}
		v.subdirs.store(head, n, t.turn)
	}
	return uint32(2 + n), nil
}
