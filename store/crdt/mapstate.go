package crdt

import (
	"maps"
	"slices"
)

// MapState is a State in plain maps, for tests and the simulator. It is not
// safe for concurrent use.
type MapState struct {
	inodes map[Ino]*Inode
	claims map[Ino]map[string][]Claim
	sets   map[Ino][]Ino // by head; sets of one are not kept
	heads  map[Ino]Ino   // of the members of sets
	moves  []Move        // oldest first
	inline map[inlineKey][]byte
	mapIndexes
}

type inlineKey struct {
	ino Ino
	id  VersionID
}

var _ State = (*MapState)(nil)

// NewMapState returns the state of an empty volume.
func NewMapState() *MapState {
	s := &MapState{
		inodes: map[Ino]*Inode{},
		claims: map[Ino]map[string][]Claim{},
		sets:   map[Ino][]Ino{},
		heads:  map[Ino]Ino{},
		inline: map[inlineKey][]byte{},

		mapIndexes: newMapIndexes(),
	}
	for _, i := range FixedInodes() {
		s.inodes[i.Ino] = i
	}
	return s
}

// Clone returns a copy that shares nothing that can change.
func (s *MapState) Clone() *MapState {
	c := &MapState{
		// Records and slices are never changed once they are in a map.
		inodes: maps.Clone(s.inodes),
		claims: make(map[Ino]map[string][]Claim, len(s.claims)),
		sets:   maps.Clone(s.sets),
		heads:  maps.Clone(s.heads),
		moves:  slices.Clone(s.moves),
		inline: maps.Clone(s.inline),

		mapIndexes: s.mapIndexes.clone(),
	}
	for dir, names := range s.claims {
		c.claims[dir] = maps.Clone(names)
	}
	return c
}

// Inode implements State.
func (s *MapState) Inode(ino Ino) (*Inode, error) {
	i, ok := s.inodes[ino]
	if !ok {
		return nil, nil
	}
	return i.clone(), nil
}

// PutInode implements State.
func (s *MapState) PutInode(i *Inode) error {
	s.inodes[i.Ino] = i.clone()
	return nil
}

// DeleteInode implements State. The bytes of the inode's versions go too.
func (s *MapState) DeleteInode(ino Ino) error {
	delete(s.inodes, ino)
	maps.DeleteFunc(s.inline, func(k inlineKey, _ []byte) bool { return k.ino == ino })
	return nil
}

// Inodes returns the numbers of all inodes known, in order.
func (s *MapState) Inodes() []Ino { return slices.Sorted(maps.Keys(s.inodes)) }

// Claims implements State.
func (s *MapState) Claims(dir Ino, name string) ([]Claim, error) {
	return slices.Clone(s.claims[dir][name]), nil
}

// PutClaims implements State.
func (s *MapState) PutClaims(dir Ino, name string, claims []Claim) error {
	names := s.claims[dir]
	if len(claims) == 0 {
		delete(names, name)
		if len(names) == 0 {
			delete(s.claims, dir)
		}
		return nil
	}
	if names == nil {
		names = map[string][]Claim{}
		s.claims[dir] = names
	}
	names[name] = slices.Clone(claims)
	return nil
}

// EachName implements State. Names come in order.
func (s *MapState) EachName(dir Ino, fn func(name string, claims []Claim) error) error {
	names := s.claims[dir]
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if err := fn(name, slices.Clone(names[name])); err != nil {
			return err
		}
	}
	return nil
}

// Head implements State.
func (s *MapState) Head(dir Ino) (Ino, error) {
	if head, ok := s.heads[dir]; ok {
		return head, nil
	}
	return dir, nil
}

// Members implements State.
func (s *MapState) Members(head Ino) ([]Ino, error) {
	if members, ok := s.sets[head]; ok {
		return slices.Clone(members), nil
	}
	return []Ino{head}, nil
}

// PutSet implements State.
func (s *MapState) PutSet(head Ino, members []Ino) error {
	for _, m := range s.sets[head] {
		if s.heads[m] == head {
			delete(s.heads, m)
		}
	}
	delete(s.sets, head)
	if len(members) < 2 {
		return nil
	}
	s.sets[head] = slices.Clone(members)
	for _, m := range members {
		s.heads[m] = head
	}
	return nil
}

// MovesAfter implements State.
func (s *MapState) MovesAfter(id VersionID) ([]Move, error) {
	n, _ := slices.BinarySearchFunc(s.moves, id, func(m Move, id VersionID) int {
		if m.ID.CompareOp(id) <= 0 {
			return -1
		}
		return 1
	})
	return slices.Clone(s.moves[n:]), nil
}

// PutMove implements State.
func (s *MapState) PutMove(m Move) error {
	n, ok := slices.BinarySearchFunc(s.moves, m.ID, func(m Move, id VersionID) int { return m.ID.compare(id) })
	if ok {
		s.moves[n] = m
	} else {
		s.moves = slices.Insert(s.moves, n, m)
	}
	return nil
}

// PutInline implements State.
func (s *MapState) PutInline(ino Ino, id VersionID, bytes []byte) error {
	s.inline[inlineKey{ino, id}] = slices.Clone(bytes)
	return nil
}

// Inline returns the bytes of a version; see [Plan].
func (s *MapState) Inline(ino Ino, id VersionID) ([]byte, error) {
	return slices.Clone(s.inline[inlineKey{ino, id}]), nil
}
