package store

import (
	"fmt"
	"slices"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// sets holds the directory sets of more than one member, which are few.
// Immutable; a transaction that changes them makes a new one.
type sets struct {
	keys    *keyspace             // of the state that they are of
	head    map[crdt.Ino]crdt.Ino // of members
	members map[crdt.Ino][]crdt.Ino
}

func (s *sets) clone() *sets {
	c := &sets{keys: s.keys, head: map[crdt.Ino]crdt.Ino{}, members: map[crdt.Ino][]crdt.Ino{}}
	for k, v := range s.head {
		c.head[k] = v
	}
	for k, v := range s.members {
		c.members[k] = v
	}
	return c
}

// tree is the replicated state of a volume in one transaction; it implements
// crdt.State.
type tree struct {
	t      txn
	keys   *keyspace
	sets   *sets
	inodes map[crdt.Ino]*crdt.Inode // read or written in this transaction
	dirty  map[crdt.Ino]struct{}    // of inodes, written by flush
	stoned map[crdt.Ino]bool        // inodes that are in the index of tombstones
	reset  bool                     // sets is our own copy
	past   []pastKey                // what of history grew in this transaction
	lost   bool                     // something lost a conflict in it
	turn   uint64                   // of subdirs, before the transaction began
}

func newTree(t txn, keys *keyspace, s *sets) *tree {
	if s != nil && s.keys != nil {
		keys = s.keys
	}
	return &tree{
		t: t, keys: keys, sets: s, inodes: map[crdt.Ino]*crdt.Inode{},
		dirty: map[crdt.Ino]struct{}{}, stoned: map[crdt.Ino]bool{}, turn: uncounted,
	}
}

func (t *tree) Inode(ino crdt.Ino) (*crdt.Inode, error) {
	if i, ok := t.inodes[ino]; ok {
		return i, nil
	}
	b, err := t.t.get(t.keys.inode(ino))
	if err != nil || b == nil {
		return nil, err
	}
	i, err := crdt.DecodeInode(b)
	if err != nil {
		return nil, fmt.Errorf("%w: inode %d: %w", ErrDamaged, ino, err)
	}
	t.inodes[ino] = i
	if i.Tombstones() {
		t.stoned[ino] = true
	}
	return i, nil
}

// PutInode keeps the record until flush: a batch may change one inode a
// thousand times, and a transaction is bounded.
func (t *tree) PutInode(i *crdt.Inode) error {
	t.inodes[i.Ino], t.dirty[i.Ino] = i, struct{}{}
	return nil
}

func (t *tree) DeleteInode(ino crdt.Ino) error {
	delete(t.inodes, ino)
	delete(t.dirty, ino)
	if err := t.t.del(t.keys.key('t', uint64(ino))); err != nil {
		return err
	}
	return t.t.del(t.keys.inode(ino))
}

// flush writes the inodes changed.
func (t *tree) flush() error {
	for ino := range t.dirty {
		if err := t.t.set(t.keys.inode(ino), crdt.AppendInode(nil, t.inodes[ino])); err != nil {
			return err
		}
		if err := t.tombstoned(ino); err != nil {
			return err
		}
	}
	clear(t.dirty)
	return nil
}

func (t *tree) Claims(dir crdt.Ino, name string) ([]crdt.Claim, error) {
	b, err := t.t.get(t.keys.entry(dir, name))
	if err != nil || b == nil {
		return nil, err
	}
	return t.claims(dir, name, b)
}

func (t *tree) claims(dir crdt.Ino, name string, b []byte) ([]crdt.Claim, error) {
	cs, err := crdt.DecodeClaims(b)
	if err != nil {
		return nil, fmt.Errorf("%w: entry %d/%q: %w", ErrDamaged, dir, name, err)
	}
	return cs, nil
}

func (t *tree) PutClaims(dir crdt.Ino, name string, claims []crdt.Claim) error {
	if len(claims) == 0 {
		return t.t.del(t.keys.entry(dir, name))
	}
	return t.t.set(t.keys.entry(dir, name), crdt.AppendClaims(nil, claims))
}

// links returns the live links of an inode, but those whose name a file that is
// not published has taken: their removal leaves with its publication.
func (t *tree) links(i *crdt.Inode) ([]crdt.LinkID, error) {
	live, err := crdt.LiveLinks(t, i)
	if err != nil || i.Kind == crdt.KindDir {
		return live, err
	}
	var out []crdt.LinkID
	for _, l := range live {
		p, _ := i.PlaceOf(l)
		claims, err := crdt.ClaimsAt(t, p.Parent, p.Name)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(claims, func(c crdt.Claim) bool { return c.Ino != i.Ino && c.At.Stamp == crdt.LocalStamp }) {
			out = append(out, l)
		}
	}
	return out, nil
}

func (t *tree) EachName(dir crdt.Ino, fn func(string, []crdt.Claim) error) error {
	return t.t.scan(t.keys.key('e', uint64(dir)), nil, func(key, value []byte) (bool, error) {
		name := t.keys.nameIn(key)
		cs, err := t.claims(dir, name, value)
		if err != nil {
			return false, err
		}
		return true, fn(name, cs)
	})
}

func (t *tree) Head(dir crdt.Ino) (crdt.Ino, error) {
	if h, ok := t.sets.head[dir]; ok {
		return h, nil
	}
	return dir, nil
}

func (t *tree) Members(head crdt.Ino) ([]crdt.Ino, error) {
	if m, ok := t.sets.members[head]; ok {
		return m, nil
	}
	return []crdt.Ino{head}, nil
}

func (t *tree) PutSet(head crdt.Ino, members []crdt.Ino) error {
	if _, had := t.sets.members[head]; !had && len(members) < 2 {
		return nil
	}
	if !t.reset {
		t.sets, t.reset = t.sets.clone(), true
	}
	for _, m := range t.sets.members[head] {
		delete(t.sets.head, m)
	}
	delete(t.sets.members, head)
	if len(members) < 2 {
		return t.t.del(t.keys.key('g', uint64(head)))
	}
	t.sets.members[head] = slices.Clone(members)
	for _, m := range members {
		t.sets.head[m] = head
	}
	return t.t.set(t.keys.key('g', uint64(head)), crdt.AppendInos(nil, members))
}

func (t *tree) MovesAfter(id crdt.VersionID) ([]crdt.Move, error) {
	var out []crdt.Move
	id.N = 1<<32 - 1
	err := t.t.scan(t.keys.key('m'), t.keys.move(id), func(_, value []byte) (bool, error) {
		m, err := crdt.DecodeMove(value)
		if err != nil {
			return false, fmt.Errorf("%w: move: %w", ErrDamaged, err)
		}
		if m.ID.CompareOp(id) > 0 {
			out = append(out, *m)
		}
		return true, nil
	})
	return out, err
}

func (t *tree) PutMove(m crdt.Move) error {
	return t.t.set(t.keys.move(m.ID), crdt.AppendMove(nil, &m))
}

func (t *tree) PutInline(ino crdt.Ino, id crdt.VersionID, bytes []byte) error {
	return t.t.set(t.keys.version('c', ino, id), bytes)
}

func (t *tree) inline(ino crdt.Ino, id crdt.VersionID) ([]byte, error) {
	b, err := t.t.get(t.keys.version('c', ino, id))
	if err == nil && b == nil {
		err = fmt.Errorf("%w: bytes of inode %d version %v", ErrDamaged, ino, id)
	}
	return b, err
}
