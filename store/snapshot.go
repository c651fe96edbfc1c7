package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// A snapshot is a sequence of records, each a tag byte, a 32-bit length and
// the bytes, packed into chunks that end between records:
//
//	V version vector of the state that follows (first)
//	Z what its sender has collected, and who is out (second)
//	K replica id (64 bit), identity record
//	I inode; a directory stands where it stood before its first move
//	C inode number, stamp, replica, n, bytes: an inline version
//	H a version of history, see snapHistory
//	M the directory moves of one op, oldest op first; each a 32-bit length and the move
const (
	snapVector    = 'V'
	snapCollected = 'Z'
	snapIdentity  = 'K'
	snapInode     = 'I'
	snapInline    = 'C'
	snapMove      = 'M'
)

const snapChunk = 256 << 10

// snapWriter packs records into chunks.
type snapWriter struct {
	send func([]byte) error
	buf  []byte
}

func (w *snapWriter) record(tag byte, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	w.buf = append(w.buf, tag)
	w.buf = binary.BigEndian.AppendUint32(w.buf, uint32(n))
	for _, p := range parts {
		w.buf = append(w.buf, p...)
	}
	if len(w.buf) >= snapChunk {
		return w.flush()
	}
	return nil
}

func (w *snapWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	err := w.send(w.buf)
	w.buf = nil
	return err
}

// WriteSnapshot sends the published state as it is at one moment, in chunks of
// at most about 512 KiB.
func (v *Volume) WriteSnapshot(ctx context.Context, send func(chunk []byte) error) error {
	w := &snapWriter{send: func(b []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return send(b)
	}}
	return v.sealedView(func(t *tree, vector crdt.Vector) error {
		collected, err := v.appendCollected(nil)
		if err != nil {
			return err
		}
		if err := w.record(snapVector, crdt.AppendVector(nil, vector)); err != nil {
			return err
		}
		if err := w.record(snapCollected, collected); err != nil {
			return err
		}
		if err := t.t.scan(v.keys.key('k'), nil, func(key, value []byte) (bool, error) {
			return true, w.record(snapIdentity, key[len(key)-8:], value)
		}); err != nil {
			return err
		}
		moves, err := t.MovesAfter(crdt.VersionID{})
		if err != nil {
			return err
		}
		if err := t.snapInodes(w, moves); err != nil {
			return err
		}
		for op := range opsOf(moves) {
			if err := w.record(snapMove, appendMoves(op)); err != nil {
				return err
			}
		}
		return w.flush()
	})
}

// opsOf parts a log of moves into those of one op each.
func opsOf(moves []crdt.Move) iter.Seq[[]crdt.Move] {
	return func(yield func([]crdt.Move) bool) {
		for len(moves) > 0 {
			n := 1
			for n < len(moves) && moves[n].ID.CompareOp(moves[0].ID) == 0 {
				n++
			}
			if !yield(moves[:n]) {
				return
			}
			moves = moves[n:]
		}
	}
}

func appendMoves(moves []crdt.Move) (out []byte) {
	for n := range moves {
		b := crdt.AppendMove(nil, &moves[n])
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(b))), b...)
	}
	return out
}

func decodeMoves(b []byte) (out []crdt.Move, err error) {
	for len(b) > 0 {
		if len(b) < 4 || int64(binary.BigEndian.Uint32(b)) > int64(len(b)-4) {
			return nil, fmt.Errorf("%w: snapshot moves", ErrBadBatch)
		}
		n := int(binary.BigEndian.Uint32(b))
		m, err := crdt.DecodeMove(b[4 : 4+n])
		if err != nil {
			return nil, err
		}
		out, b = append(out, *m), b[4+n:]
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: snapshot moves", ErrBadBatch)
	}
	return out, nil
}

// sealedView runs fn on a state in which every own op is in a batch, so that
// the vector covers exactly what is published.
func (v *Volume) sealedView(fn func(*tree, crdt.Vector) error) error {
	v.mu.Lock()
	for len(v.queue.ops) > 0 {
		v.mu.Unlock()
		if err := v.sealNow(); err != nil {
			return err
		}
		v.mu.Lock()
	}
	locked := true
	defer func() {
		if locked {
			v.mu.Unlock()
		}
	}()
	if err := v.wholeLocked(); err != nil {
		return err
	}
	return v.read(func(t *tree) error {
		vector := v.vector.Clone()
		locked = false
		v.mu.Unlock() // the transaction has begun: it sees no later change
		return fn(t, vector)
	})
}

func (t *tree) snapInodes(w *snapWriter, moves []crdt.Move) error {
	return t.t.scan(t.keys.key('i'), nil, func(_, value []byte) (bool, error) {
		i, err := crdt.DecodeInode(value)
		if err != nil {
			return false, fmt.Errorf("%w: inode: %w", ErrDamaged, err)
		}
		if i.Unpublished() {
			return true, nil
		}
		if i.Kind == crdt.KindDir {
			i.Standing = crdt.Origin(i, moves)
		}
		for _, c := range i.Contents {
			if c.Manifest {
				continue
			}
			b, err := t.inline(i.Ino, c.ID)
			if err != nil {
				return false, err
			}
			key := t.keys.version('c', i.Ino, c.ID)
			if err := w.record(snapInline, key[len(t.keys.prefix)+1:], b); err != nil {
				return false, err
			}
		}
		if err := w.record(snapInode, crdt.AppendInode(nil, i)); err != nil {
			return false, err
		}
		return true, t.snapHistory(w, i.Ino)
	})
}

// eachRecord calls fn for each record of a chunk.
func eachRecord(chunk []byte, fn func(tag byte, body []byte) error) error {
	for len(chunk) > 0 {
		if len(chunk) < 5 || int64(binary.BigEndian.Uint32(chunk[1:])) > int64(len(chunk)-5) {
			return fmt.Errorf("%w: snapshot record", ErrBadBatch)
		}
		n := int(binary.BigEndian.Uint32(chunk[1:]))
		if err := fn(chunk[0], chunk[5:5+n]); err != nil {
			return err
		}
		chunk = chunk[5+n:]
	}
	return nil
}

// JoinSnapshot takes a peer's state: next gives its chunks and io.EOF after the
// last, fetch brings the content of a manifest here. Everything is staged
// first; then it becomes state, even if the daemon dies meanwhile. Own ops
// that peers do not have yet survive.
func (v *Volume) JoinSnapshot(ctx context.Context, next func() ([]byte, error), fetch func(ctx context.Context, manifest crdt.Hash) error) error {
	v.joinMu.Lock()
	defer v.joinMu.Unlock()
	if err := v.finishSnapshot(); err != nil { // of a join that failed half-way
		return fmt.Errorf("finish earlier snapshot: %w", err)
	}
	if err := v.stage(ctx, next, fetch); err != nil {
		return errors.Join(fmt.Errorf("stage snapshot: %w", err), v.dropStaging())
	}
	if err := v.joinStaged(); err != nil {
		return fmt.Errorf("join snapshot: %w", err)
	}
	vector := v.Vector()
	for _, fn := range subscribed(v, v.onMerge) {
		fn(vector)
	}
	return nil
}

func (v *Volume) dropStaging() error { return v.db.deletePrefix(v.keys.key('s')) }

func (v *Volume) stage(ctx context.Context, next func() ([]byte, error), fetch func(context.Context, crdt.Hash) error) error {
	c := &snapCheck{v: v, fetch: fetch, inline: map[string]int64{}, kinds: map[crdt.Ino]crdt.Kind{}, parents: map[crdt.Ino]crdt.Ino{}}
	for n := uint64(0); ; n++ {
		chunk, err := next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = v.db.room()
		}
		if err == nil {
			err = c.chunk(ctx, chunk)
		}
		if err == nil {
			err = v.db.kv.update(func(t txn) error { return t.set(v.keys.key('s', n), chunk) })
		}
		if err != nil {
			return err
		}
	}
	if err := c.whole(); err != nil {
		return err
	}
	return v.db.kv.update(func(t txn) error { return t.set(v.keys.key('S'), []byte{1}) })
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
	return v.renewLocked()
}

// finishSnapshot ends, after a restart, what was staged completely, and drops
// what was not.
func (v *Volume) finishSnapshot() error {
	staged := false
	if err := v.db.kv.view(func(t txn) error {
		b, err := t.get(v.keys.key('S'))
		staged = b != nil
		return err
	}); err != nil {
		return err
	}
	if !staged {
		return v.dropStaging()
	}
	return v.joinStaged()
}

// joinStaged merges the staged records, some at a time; joining a record twice
// does nothing, so it can be begun again.
func (v *Volume) joinStaged() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.halfJoined = true
	var theirs crdt.Vector
	for n := uint64(0); ; n++ {
		var chunk []byte
		if err := v.db.kv.view(func(t txn) (err error) {
			chunk, err = t.get(v.keys.key('s', n))
			return err
		}); err != nil {
			return err
		}
		if chunk == nil {
			break
		}
		if err := v.joinChunk(chunk, &theirs); err != nil {
			return err
		}
	}
	if err := v.adoptVectorLocked(theirs); err != nil {
		return err
	}
	v.halfJoined = false
	return v.dropStaging()
}

func (v *Volume) joinChunk(chunk []byte, theirs *crdt.Vector) error {
	type record struct {
		tag  byte
		body []byte
	}
	var records []record
	if err := eachRecord(chunk, func(tag byte, body []byte) error {
		records = append(records, record{tag, body})
		return nil
	}); err != nil {
		return err
	}
	for part := range slices.Chunk(records, 200) {
		if err := v.changeLocked(0, func(c *change) error {
			for _, r := range part {
				if err := c.join(r.tag, r.body, theirs); err != nil {
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

func (c *change) join(tag byte, body []byte, theirs *crdt.Vector) (err error) {
	var e *crdt.Effects
	switch tag {
	case snapVector:
		*theirs, err = crdt.DecodeVector(body)
	case snapCollected:
		err = c.v.adoptCollectedLocked(c.t, body)
	case snapIdentity:
		err = c.t.set(append(c.keys.key('k'), body[:8]...), body[8:])
	case snapInline:
		err = c.t.set(append(c.keys.key('c'), body[:28]...), body[28:])
	case snapInode:
		var i *crdt.Inode
		if i, err = crdt.DecodeInode(body); err == nil {
			e, err = crdt.Join(c.tree, i, c.v.vector, *theirs)
		}
	case snapHistory:
		err = c.joinHistory(body)
	case snapMove:
		var moves []crdt.Move
		if moves, err = decodeMoves(body); err == nil {
			e, err = crdt.JoinMoves(c.tree, moves)
		}
	}
	if e != nil {
		c.effects = append(c.effects, e)
	}
	return err
}

// wholeLocked says that only a part of a snapshot was joined: the rest must
// follow before anything else.
func (v *Volume) wholeLocked() error {
	if v.halfJoined {
		return fmt.Errorf("%w: joining a snapshot was interrupted", ErrNotReady)
	}
	return nil
}

// adoptVectorLocked moves the vector past the snapshot; what came before is in
// no journal here.
func (v *Volume) adoptVectorLocked(theirs crdt.Vector) error {
	if err := v.db.kv.update(func(t txn) error {
		for r, e := range theirs {
			if e.Seq <= v.vector[r].Seq {
				continue
			}
			if err := t.set(v.keys.key('a', uint64(r)), crdt.AppendVectorEntry(nil, e)); err != nil {
				return err
			}
		}
		return t.del(v.keys.key('S'))
	}); err != nil {
		return err
	}
	for r, e := range theirs {
		if e.Seq > v.vector[r].Seq {
			v.vector[r] = e
			v.deps[r] = e.Seq
			v.clock.Observe(e.Stamp)
		}
	}
	return nil
}
