package store

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// History goes with a snapshot: without the versions that a conflict's sides go
// back to, a newcomer would tell other records than its peers, and a version
// should outlive the node it was written on. The versions of an inode go with
// its record, as they were at the same moment: one that was a leaf then is none
// of them, and the tail makes one of it. The bytes of small versions come along,
// as far as they are not forgotten and there is room; large content stays where
// it is: a newcomer says of it that it is not here.
//
//	H inode number, version; after its inode, its bytes just before it
const snapHistory = 'H'

// What one inode's history adds to a chunk is bounded: nothing is in the way of
// thousands of versions before somebody comes to forget them.
const (
	historyBytes   = snapChunk     // of small versions
	historyRecords = snapChunk / 2 // of all: some more than what records go back to
)

// history packs the versions of an inode that are no leaves, the newest first.
func (p *portion) history(i *crdt.Inode) error {
	if i.Kind != crdt.KindFile {
		return nil
	}
	versions, err := p.historyOf(i.Ino)
	if err != nil {
		return err
	}
	head := binary.BigEndian.AppendUint64(nil, uint64(i.Ino))
	room, records := historyBytes, historyRecords
	for _, old := range slices.Backward(versions) {
		body := crdt.AppendVersion(head[:8:8], old)
		if records -= len(body); records < 0 {
			return nil
		}
		key := p.keys.version('c', i.Ino, old.ID)
		b, err := p.t.get(key)
		if err != nil {
			return err
		}
		if room -= len(b); b != nil && room >= 0 {
			p.add(snapInline, key[len(p.keys.prefix)+1:], b)
		}
		p.add(snapHistory, body)
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

// history checks a version of history: its inode came just before.
func (c *rangeCheck) history(body []byte) error {
	ino, v, err := decodeSnapHistory(body)
	if err != nil {
		return err
	}
	if c.last == nil || c.last.Ino != ino || c.last.Kind != crdt.KindFile {
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
