package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// A snapshot is read in portions of the key order, each in a short transaction
// of its own: a range of keys as they were at one moment, which its version
// vector names. A joiner stages ranges, of one peer or of several, asks for
// those it lacks, and last for the tail: the batches that some range knew and
// another did not.
//
// It travels in chunks: a sequence of records, each a tag byte, a 32-bit length
// and the bytes. A range is one chunk:
//
//	V version vector of the range (first)
//	Z what its sender has collected, who is out, and where its log of moves begins
//	U replica, sequence, stamp: own ops of the sender in no batch yet, up to here
//	P 16-bit length and position before the range, position of its end
//	I inode
//	C inode number, stamp, replica, n, bytes: an inline version; just before its inode or H
//	H a version of the inode's history, see portion.history; after the inode
//	K replica id (64 bit), identity record
//	M one directory move
//
// and so are batches of the tail:
//
//	T a batch; K before the first of its origin
//	J version vector: the journal begins after it, and the batches wanted do not
const (
	snapVector    = 'V'
	snapCollected = 'Z'
	snapAhead     = 'U'
	snapPosition  = 'P'
	snapIdentity  = 'K'
	snapInode     = 'I'
	snapInline    = 'C'
	snapMove      = 'M'
	snapBatch     = 'T'
	snapJournal   = 'J'
)

const snapChunk = 256 << 10

// snapEnd is the position behind all keys; before them is the empty one.
var snapEnd = []byte{0xff}

// snapTags are the keys that a snapshot has, in their order. Positions are keys
// after the prefix, as those of generation 0.
var snapTags = []byte{'i', 'k', 'm'}

// A SnapshotRequest asks for a part of a peer's state: the keys after one
// position and up to another, or the batches that a replica with the vector
// Since lacks.
type SnapshotRequest struct {
	After, Until []byte
	Tail         bool
	Since        crdt.Vector // of the tail
}

// chunkWriter packs records.
type chunkWriter struct{ buf []byte }

func (w *chunkWriter) add(tag byte, parts ...[]byte) {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	w.buf = append(w.buf, tag)
	w.buf = binary.BigEndian.AppendUint32(w.buf, uint32(n))
	for _, p := range parts {
		w.buf = append(w.buf, p...)
	}
}

// WriteSnapshot sends what a joiner asks for, in chunks of about 256 KiB and
// one record. Writers wait for none of it.
func (v *Volume) WriteSnapshot(ctx context.Context, r SnapshotRequest, send func(chunk []byte) error) error {
	if r.Tail {
		return v.writeTail(ctx, r.Since, send)
	}
	until := r.Until
	if len(until) == 0 {
		until = snapEnd
	}
	for at := r.After; !bytes.Equal(at, until); {
		if err := ctx.Err(); err != nil {
			return err
		}
		p, err := v.readPortion(at, until)
		if err != nil {
			return err
		}
		if err := send(p.buf); err != nil {
			return err
		}
		at = p.at
	}
	return nil
}

// A portion is one range on its way.
type portion struct {
	chunkWriter
	*tree
	size int
	at   []byte // of the last key
}

// readPortion reads one range.
func (v *Volume) readPortion(after, until []byte) (*portion, error) {
	p := &portion{at: bytes.Clone(after), size: v.portion}
	v.mu.Lock()
	unlock := v.mu.Unlock
	defer func() { unlock() }()
	if err := v.wholeLocked(); err != nil {
		return nil, err
	}
	collected, err := v.encodeCollectedLocked()
	if err != nil {
		return nil, err
	}
	err = v.read(func(t *tree) error {
		vector, queue := v.vector.Clone(), v.queue.ops
		var ahead []byte
		if n := len(queue); n > 0 {
			op := queue[n-1].op
			ahead = binary.BigEndian.AppendUint64(nil, uint64(op.Dot.Replica))
			ahead = binary.BigEndian.AppendUint64(ahead, uint64(op.Dot.Seq))
			ahead = binary.BigEndian.AppendUint64(ahead, uint64(op.Stamp))
		}
		v.mu.Unlock() // the transaction has begun: it sees no later change
		unlock = func() {}
		p.tree = t
		if err := p.read(until); err != nil {
			return err
		}
		records := p.buf
		p.buf = nil
		p.add(snapVector, crdt.AppendVector(nil, vector))
		p.add(snapCollected, collected)
		if ahead != nil {
			p.add(snapAhead, ahead)
		}
		p.add(snapPosition, binary.BigEndian.AppendUint16(nil, uint16(len(after))), after, p.at)
		p.buf = append(p.buf, records...)
		return nil
	})
	return p, err
}

// read packs keys until the chunk is full or there are no more.
func (p *portion) read(until []byte) error {
	prefix := len(p.keys.prefix)
	for _, tag := range snapTags {
		start := p.keys.key(tag)
		if len(p.at) > 0 && p.at[0] > tag {
			continue
		}
		if len(p.at) > 0 && p.at[0] == tag {
			start = append(append(start, p.at[1:]...), 0)
		}
		full := false
		if err := p.t.scan(p.keys.key(tag), start, func(key, value []byte) (bool, error) {
			at := append([]byte{tag}, key[prefix+1:]...)
			if bytes.Compare(at, until) > 0 {
				return false, nil
			}
			p.at = at
			if err := p.pack(tag, key[prefix+1:], value); err != nil {
				return false, err
			}
			full = len(p.buf) >= p.size
			return !full, nil
		}); err != nil || full {
			return err
		}
	}
	p.at = until
	return nil
}

func (p *portion) pack(tag byte, key, value []byte) error {
	switch tag {
	case 'k':
		p.add(snapIdentity, key, value)
		return nil
	case 'm':
		p.add(snapMove, value)
		return nil
	}
	i, err := crdt.DecodeInode(value)
	if err != nil {
		return fmt.Errorf("%w: inode: %w", ErrDamaged, err)
	}
	if i.Unpublished() {
		return nil
	}
	for _, c := range i.Contents {
		if c.Manifest {
			continue
		}
		b, err := p.inline(i.Ino, c.ID)
		if errors.Is(err, ErrDamaged) && len(c.Closed) > 0 {
			continue // of a deleted file, forgotten
		}
		if err != nil {
			return err
		}
		key := p.keys.version('c', i.Ino, c.ID)
		p.add(snapInline, key[len(p.keys.prefix)+1:], b)
	}
	p.add(snapInode, value)
	return p.history(i)
}

// writeTail sends the batches that a replica with a vector lacks, this one's
// own included: those that a range knew and that are in no batch yet are sealed.
func (v *Volume) writeTail(ctx context.Context, since crdt.Vector, send func([]byte) error) error {
	if err := v.sealNow(); err != nil {
		return err
	}
	start, err := v.journalStart()
	if err != nil {
		return err
	}
	have, since := v.Vector(), since.Clone()
	for r, e := range start {
		if have[r].Seq > since[r].Seq && e.Seq > since[r].Seq {
			w := &chunkWriter{}
			w.add(snapJournal, crdt.AppendVector(nil, start))
			return send(w.buf)
		}
	}
	introduced := map[crdt.ReplicaID]bool{}
	for more := true; more; {
		var batches []*Batch
		if batches, more, err = v.Batches(since, snapChunk); err != nil {
			return err
		}
		w := &chunkWriter{}
		for _, b := range batches {
			if err := v.introduce(w, b.Origin, introduced); err != nil {
				return err
			}
			w.add(snapBatch, b.Encode())
			since[b.Origin] = crdt.VectorEntry{Seq: b.Last}
		}
		if err := ctx.Err(); err != nil || len(w.buf) == 0 {
			return err
		}
		if err := send(w.buf); err != nil {
			return err
		}
		more = more && !since.Contains(have)
	}
	return nil
}

// introduce packs the identity of a replica, once.
func (v *Volume) introduce(w *chunkWriter, r crdt.ReplicaID, done map[crdt.ReplicaID]bool) error {
	if done[r] {
		return nil
	}
	done[r] = true
	record, err := v.Identity(r)
	if err == nil && record != nil {
		w.add(snapIdentity, binary.BigEndian.AppendUint64(nil, uint64(r)), record)
	}
	return err
}

// journalStart is the vector after which the journal begins.
func (v *Volume) journalStart() (crdt.Vector, error) {
	start := v.Vector()
	err := v.db.kv.view(func(t txn) error {
		for r, e := range start {
			if err := t.scan(v.keys.key('j', uint64(r)), nil, func(key, _ []byte) (bool, error) {
				e = crdt.VectorEntry{Seq: crdt.Seq(v.keys.tail(key, 1)) - 1}
				return false, nil
			}); err != nil {
				return err
			}
			start[r] = e
		}
		return nil
	})
	return start, err
}

// eachRecord calls fn for each record of a chunk.
func eachRecord(chunk []byte, fn func(tag byte, body []byte) error) error {
	for len(chunk) > 0 {
		if len(chunk) < 5 || int64(binary.BigEndian.Uint32(chunk[1:])) > int64(len(chunk)-5) {
			return badSnapshot("record")
		}
		n := int(binary.BigEndian.Uint32(chunk[1:]))
		if err := fn(chunk[0], chunk[5:5+n]); err != nil {
			return err
		}
		chunk = chunk[5+n:]
	}
	return nil
}

// outgrow takes a new replica id if peers know ops under the present one that
// this replica does not: it was restored from a backup, or copied.
func (v *Volume) outgrow(theirs crdt.Vector) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	known, sealed := theirs[v.replica].Seq, v.vector[v.replica].Seq
	switch {
	case known <= sealed:
		return nil
	case v.seq > sealed:
		return fmt.Errorf("%w: peers know %d ops of replica %v, and here %d differ from them", ErrDamaged, known, v.replica, v.seq-sealed)
	}
	return v.renewLocked(true)
}

// wholeLocked says that only a part of a snapshot was joined: the rest must
// follow before anything else.
func (v *Volume) wholeLocked() error {
	if v.halfJoined {
		return fmt.Errorf("%w: joining a snapshot was interrupted", ErrNotReady)
	}
	return nil
}
