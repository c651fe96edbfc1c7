package store

import (
	"encoding/binary"
	"fmt"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// History goes with a snapshot: without the versions that a conflict's sides go
// back to, a newcomer would tell other records than its peers, and a version
// should outlive the node it was written on. The bytes of small versions come
// along, as far as they are not forgotten; large content stays where it is: a
// newcomer says of it that it is not here.
//
//	H inode number, version; after its inode, its bytes just before it
const snapHistory = 'H'

// snapHistory sends the versions of an inode that are no leaves.
func (t *tree) snapHistory(w *snapWriter, ino crdt.Ino) error {
	versions, err := t.historyOf(ino)
	if err != nil {
		return err
	}
	for _, old := range versions {
		key := t.keys.version('c', ino, old.ID)
		b, err := t.t.get(key)
		if err != nil {
			return err
		}
		if b != nil {
			if err := w.record(snapInline, key[len(t.keys.prefix)+1:], b); err != nil {
				return err
			}
		}
		head := binary.BigEndian.AppendUint64(nil, uint64(ino))
		if err := w.record(snapHistory, head, crdt.AppendVersion(nil, old)); err != nil {
			return err
		}
	}
	return nil
}

func decodeSnapHistory(body []byte) (crdt.Ino, *crdt.Version, error) {
	if len(body) < 8 {
		return 0, nil, badSnapshot("history")
	}
	v, err := crdt.DecodeVersion(body[8:])
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrBadBatch, err)
	}
	return crdt.Ino(binary.BigEndian.Uint64(body)), v, nil
}

// history checks a version of history.
func (c *snapCheck) history(body []byte) error {
	ino, v, err := decodeSnapHistory(body)
	if err != nil {
		return err
	}
	if c.kinds[ino] != crdt.KindFile {
		return badSnapshot("history of what is no file")
	}
	for _, size := range c.inline {
		if size != v.Size {
			return badSnapshot("history with other bytes")
		}
	}
	clear(c.inline)
	return nil
}

func (c *change) joinHistory(body []byte) error {
	ino, v, err := decodeSnapHistory(body)
	if err != nil {
		return err
	}
	return crdt.JoinHistory(c.tree, ino, v)
}
