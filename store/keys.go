package store

import (
	"encoding/binary"
	"strings"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"

	"github.com/synapsefs/synapsefs/store/crdt"
)

var (
	keyBoot = []byte("B")
)

func replicaKey(id VolumeID) []byte { return append([]byte{'V'}, id[:]...) }

// keyspace builds the keys of one volume. What a replica takes from others and
// gives them comes in two generations, told apart by a bit of the tag: one that
// begins anew builds its new state in the other; see [Volume.BeginAnew].
type keyspace struct {
	prefix [17]byte
	gen    *atomic.Uint32 // 0 or genBit
}

const genBit = 0x80

// isLocal reports whether keys of a tag are of no generation.
func isLocal(tag byte) bool { return strings.IndexByte("Adknrwxy", tag) >= 0 }

func newKeyspace(id VolumeID, gen byte) (k keyspace) {
	k.prefix[0] = 'v'
	copy(k.prefix[1:], id[:])
	k.gen = &atomic.Uint32{}
	k.gen.Store(uint32(gen))
	return k
}

// key is the volume's key of one tag and up to three integers.
func (k *keyspace) key(tag byte, ns ...uint64) []byte {
	if !isLocal(tag) {
		tag |= byte(k.gen.Load())
	}
	b := make([]byte, 0, 64)
	b = append(append(b, k.prefix[:]...), tag)
	for _, n := range ns {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

func (k *keyspace) inode(i crdt.Ino) []byte { return k.key('i', uint64(i)) }

// entry is the key of a name; its cookie is part of it.
func (k *keyspace) entry(dir crdt.Ino, name string) []byte {
	return append(k.key('e', uint64(dir), CookieOf(name)), name...)
}

func (k *keyspace) version(tag byte, ino crdt.Ino, id crdt.VersionID) []byte {
	b := k.key(tag, uint64(ino), uint64(id.Stamp), uint64(id.Replica))
	return binary.BigEndian.AppendUint32(b, id.N)
}

func (k *keyspace) move(id crdt.VersionID) []byte {
	b := k.key('m', uint64(id.Stamp), uint64(id.Replica))
	return binary.BigEndian.AppendUint32(b, id.N)
}

// gone is the key of a link that died.
func (k *keyspace) gone(g crdt.Gone) []byte {
	b := append(k.key('o', uint64(g.Dir), CookieOf(g.Name)), g.Name...)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, uint64(g.Ino)), uint64(g.Link))
}

// contest is the key of an inode or name at which records may be.
func (k *keyspace) contest(c crdt.Contest) []byte {
	if c.Ino != 0 {
		return k.key('l', 0, uint64(c.Ino))
	}
	return append(k.key('l', 1, uint64(c.Dir), CookieOf(c.Name)), c.Name...)
}

// tail reads integer n after the tag.
func (k *keyspace) tail(key []byte, n int) uint64 {
	off := len(k.prefix) + 1 + 8*n
	return binary.BigEndian.Uint64(key[off:])
}

// nameIn is the name in an entry key.
func (k *keyspace) nameIn(key []byte) string { return string(key[len(k.prefix)+1+16:]) }

// CookieOf is the place of a name in its directory's listing, as ext4's hash
// order: stable whatever else comes and goes. 0 to 2 are kept for the start,
// "." and "..".
func CookieOf(name string) uint64 { return max(xxhash.Sum64String(name)>>1, 3) }
