package store

import (
	"encoding/binary"
	"fmt"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// This file is the part of tree that keeps what was (crdt.Past) and where
// records may be (crdt.Contests).

// pastKey is an inode, or a name of a directory, of which history is kept.
type pastKey struct {
	ino  crdt.Ino // or
	dir  crdt.Ino
	name string
}

func (t *tree) PutHistory(ino crdt.Ino, v *crdt.Version) error {
	t.past = append(t.past, pastKey{ino: ino})
	return t.t.set(t.keys.version('h', ino, v.ID), crdt.AppendVersion(nil, v))
}

func (t *tree) History(ino crdt.Ino, id crdt.VersionID) (*crdt.Version, error) {
	b, err := t.t.get(t.keys.version('h', ino, id))
	if err != nil || b == nil {
		return nil, err
	}
	return decodeHistory(ino, b)
}

func decodeHistory(ino crdt.Ino, b []byte) (*crdt.Version, error) {
	v, err := crdt.DecodeVersion(b)
	if err != nil {
		return nil, fmt.Errorf("%w: history of inode %d: %w", ErrDamaged, ino, err)
	}
	return v, nil
}

// historyOf returns the versions of an inode that are no leaves, oldest first.
func (t *tree) historyOf(ino crdt.Ino) (out []*crdt.Version, err error) {
	err = t.t.scan(t.keys.key('h', uint64(ino)), nil, func(_, value []byte) (bool, error) {
		v, err := decodeHistory(ino, value)
		out = append(out, v)
		return err == nil, err
	})
	return out, err
}

func (t *tree) PutGone(g crdt.Gone, keep bool) error {
	if !keep {
		return t.t.del(t.keys.gone(g))
	}
	t.past = append(t.past, pastKey{dir: g.Dir, name: g.Name})
	return t.t.set(t.keys.gone(g), []byte{byte(g.Kind)})
}

// goneAt returns the links that died at one name of a directory.
func (t *tree) goneAt(dir crdt.Ino, name string) (out []crdt.Gone, err error) {
	prefix := append(t.keys.key('o', uint64(dir), CookieOf(name)), name...)
	err = t.eachGone(prefix, nil, func(g crdt.Gone) bool {
		if g.Name == name {
			out = append(out, g)
		}
		return true
	})
	return out, err
}

// eachGone calls fn for the links that died, by key from the given one on,
// until it returns false.
func (t *tree) eachGone(prefix, from []byte, fn func(crdt.Gone) bool) error {
	return t.t.scan(prefix, from, func(key, value []byte) (bool, error) {
		g, err := t.keys.goneIn(key, value)
		return err == nil && fn(g), err
	})
}

// goneIn reads what gone wrote.
func (k *keyspace) goneIn(key, value []byte) (g crdt.Gone, err error) {
	head := len(k.prefix) + 1 + 16
	if len(key) < head+16 || len(value) != 1 {
		return g, fmt.Errorf("%w: dead link %x", ErrDamaged, key)
	}
	ids := key[len(key)-16:]
	return crdt.Gone{
		Dir: crdt.Ino(k.tail(key, 0)), Name: string(key[head : len(key)-16]),
		Ino: crdt.Ino(binary.BigEndian.Uint64(ids)), Link: crdt.LinkID(binary.BigEndian.Uint64(ids[8:])), Kind: crdt.Kind(value[0]),
	}, nil
}

func (t *tree) PutContest(c crdt.Contest, keep bool) error {
	if !keep {
		return t.t.del(t.keys.contest(c))
	}
	t.lost = true
	return t.t.set(t.keys.contest(c), nil)
}

func (t *tree) EachContest(fn func(crdt.Contest) error) error {
	return t.t.scan(t.keys.key('l'), nil, func(key, _ []byte) (bool, error) {
		c := crdt.Contest{Ino: crdt.Ino(t.keys.tail(key, 1))}
		if t.keys.tail(key, 0) == 1 {
			c = crdt.Contest{Dir: c.Ino, Name: string(key[len(t.keys.prefix)+1+24:])}
		}
		return true, fn(c)
	})
}
