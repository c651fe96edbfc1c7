package store

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// blockIndex keeps the content store's index in the database.
type blockIndex struct {
	kv       kv
	reclaims *reclaimer
}

const manifestChunk = 512 << 10

func blockKey(h crdt.Hash) []byte { return append([]byte{'b'}, h[:]...) }

func manifestKey(h crdt.Hash) []byte { return append([]byte{'M'}, h[:]...) }

func (x blockIndex) Block(h crdt.Hash) (loc content.Location, ok bool, err error) {
	x.reclaims.spare(indexed{false, h})
	err = x.kv.view(func(t txn) error {
		b, err := t.get(blockKey(h))
		if err != nil || b == nil {
			return err
		}
		loc, err = decodeLocation(h[:], b)
		ok = err == nil
		return err
	})
	return loc, ok, err
}

func decodeLocation(h, b []byte) (loc content.Location, err error) {
	if len(b) != 28 {
		return loc, fmt.Errorf("%w: location of block %x", ErrDamaged, h)
	}
	copy(loc.File[:], b)
	loc.Offset = int64(binary.BigEndian.Uint64(b[16:]))
	loc.Length = int32(binary.BigEndian.Uint32(b[24:]))
	return loc, nil
}

func (x blockIndex) PutBlocks(entries []content.IndexEntry) error {
	for part := range slices.Chunk(entries, 2000) {
		for _, e := range part {
			x.reclaims.spare(indexed{false, e.Hash})
		}
		if err := x.kv.update(func(t txn) error {
			for _, e := range part {
				b := append(make([]byte, 0, 28), e.Location.File[:]...)
				b = binary.BigEndian.AppendUint64(b, uint64(e.Location.Offset))
				b = binary.BigEndian.AppendUint32(b, uint32(e.Location.Length))
				if err := t.set(blockKey(e.Hash), b); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func (x blockIndex) Manifest(h crdt.Hash) (encoded []byte, ok bool, err error) {
	x.reclaims.spare(indexed{true, h})
	err = x.kv.view(func(t txn) error {
		return t.scan(manifestKey(h), nil, func(_, value []byte) (bool, error) {
			encoded, ok = append(encoded, value...), true
			return true, nil
		})
	})
	return encoded, ok, err
}

// PutManifest writes the last chunk first, so that a manifest cut short by a
// crash fails its hash rather than look whole.
func (x blockIndex) PutManifest(h crdt.Hash, encoded []byte) error {
	x.reclaims.spare(indexed{true, h})
	chunks := slices.Collect(slices.Chunk(encoded, manifestChunk))
	for n, c := range slices.Backward(chunks) {
		key := binary.BigEndian.AppendUint32(manifestKey(h), uint32(n))
		if err := x.kv.update(func(t txn) error { return t.set(key, c) }); err != nil {
			return err
		}
	}
	return nil
}
