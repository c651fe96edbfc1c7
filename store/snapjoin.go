package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// pinned is what readers see while a snapshot is joined: nothing half-joined is
// ever shown (P3).
type pinned struct {
	t       txn
	release func()
	sets    *sets
	readers sync.WaitGroup
}

func (v *Volume) pinLocked() error {
	v.setsMu.Lock()
	defer v.setsMu.Unlock()
	if v.pinned != nil {
		return nil
	}
	t, release, err := v.db.kv.pin()
	if err == nil {
		v.pinned = &pinned{t: t, release: release, sets: v.sets.Load()}
	}
	return err
}

func (v *Volume) unpin() {
	v.setsMu.Lock()
	p := v.pinned
	v.pinned = nil
	v.setsMu.Unlock()
	if p != nil {
		p.readers.Wait()
		p.release()
	}
}

// joining makes a state of what is staged, in portions, each once: the mark
// says, in the same transaction, how far it is.
type joining struct {
	*Volume
	after   map[crdt.Dot]crdt.Seq // of batches of the tail, by their last op: up to where others have the ops
	since   crdt.Vector           // where the tail begins
	vector  crdt.Vector           // what the state will be
	ranges  []stagedRange
	effects []*crdt.Effects
	chunk   uint64 // the mark: portions of this chunk are joined
	part    uint64
}

func joinMark(chunk, part uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, chunk), part)
}

// finishSnapshot ends, after a restart, what was staged completely. What was not
// is kept, unless it came as ops meanwhile.
func (v *Volume) finishSnapshot() error {
	mark, err := v.joinMark()
	if err != nil {
		return err
	}
	if mark != nil {
		return v.joinStaged()
	}
	s, err := v.stagedRanges()
	if err != nil || !v.Vector().Contains(s.most()) {
		return err
	}
	return v.dropStaging()
}

func (v *Volume) joinMark() (mark []byte, err error) {
	err = v.db.kv.view(func(t txn) (err error) {
		mark, err = t.get(v.keys.key('S'))
		return err
	})
	if mark != nil && len(mark) != 16 {
		err = fmt.Errorf("%w: mark of a snapshot", ErrDamaged)
	}
	return mark, err
}

// joinStaged makes what is staged this replica's state: the ranges, each joined
// with its own vector, then the tail's ops, where the ranges did not know them,
// then the log of directory moves. Readers see the state before until all is
// done, and then one batch of changes.
func (v *Volume) joinStaged() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	mark, err := v.joinMark()
	if err != nil {
		return err
	}
	if mark == nil {
		return nil // joined meanwhile
	}
	if err := v.pinLocked(); err != nil {
		return err
	}
	v.halfJoined = true
	j := &joining{
		Volume: v, chunk: binary.BigEndian.Uint64(mark), part: binary.BigEndian.Uint64(mark[8:]),
		after: map[crdt.Dot]crdt.Seq{},
	}
	for _, step := range []func() error{j.plan, j.join, j.fold, j.finish} {
		if err := step(); err != nil {
			return err
		}
	}
	v.halfJoined = false
	return v.dropStaging()
}

// stagedRanges reads what ranges are staged.
func (v *Volume) stagedRanges() (*staging, error) {
	s := v.newStaging()
	return s, v.eachStaged(s.prefix('r'), func(_, chunk []byte) error {
		c := &rangeCheck{staging: s}
		err := eachRecord(chunk, func(tag byte, body []byte) error {
			if c.to != nil {
				return errEnough
			}
			return c.header(tag, body)
		})
		s.ranges = append(s.ranges, c.stagedRange)
		if err == errEnough {
			err = nil
		}
		return err
	})
}

// plan finds out what the ranges are and what vector comes of it.
func (j *joining) plan() error {
	s, err := j.stagedRanges()
	if err != nil {
		return err
	}
	j.ranges, j.since = s.ranges, s.least(j.Volume.vector)
	j.vector = j.since.Clone()
	return j.eachStaged(s.prefix('t'), func(_, chunk []byte) error {
		return eachBatch(chunk, func(b *Batch) error {
			if at := j.vector[b.Origin]; b.follows(at) {
				j.after[crdt.Dot{Replica: b.Origin, Seq: b.Last}] = at.Seq
				j.vector[b.Origin] = b.entry()
			}
			return nil
		})
	})
}

// errEnough ends an iteration early.
var errEnough = errors.New("enough")

// join brings the ranges and the tail into the state.
func (j *joining) join() error {
	n := uint64(0)
	for _, kind := range []byte{'r', 't'} {
		if err := j.eachStaged(append(j.keys.key('s'), kind), func(_, chunk []byte) error {
			n++
			if n <= j.chunk {
				return nil
			}
			var err error
			if kind == 'r' {
				err = j.joinRange(chunk, j.ranges[n-1].ceiling)
			} else {
				err = j.joinTail(chunk)
			}
			j.chunk, j.part = n, 0
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// change runs fn in a transaction that moves the mark. Nothing is shown yet.
func (j *joining) change(fn func(c *change) error) error {
	c, err := j.transactLocked(0, fn, func(c *change) error {
		if err := c.flush(); err != nil {
			return err
		}
		return c.t.set(c.keys.key('S'), joinMark(j.chunk, j.part+1))
	})
	if err != nil {
		return err
	}
	j.part++
	j.settleLocked(c)
	if len(j.viewers) > 0 {
		j.effects = append(j.effects, c.effects...)
	}
	return nil
}

// joinPart is how many records, moves or directories a transaction takes.
const joinPart = 200

type snapRecord struct {
	tag  byte
	body []byte
}

func (j *joining) joinRange(chunk []byte, theirs crdt.Vector) error {
	var parts [][]snapRecord
	var part []snapRecord
	if err := eachRecord(chunk, func(tag byte, body []byte) error {
		part = append(part, snapRecord{tag, body})
		if len(part) >= joinPart && tag != snapInline { // bytes go with their version
			parts, part = append(parts, part), nil
		}
		return nil
	}); err != nil {
		return err
	}
	for n, part := range append(parts, part) {
		if uint64(n) < j.part {
			continue
		}
		if err := j.change(func(c *change) error {
			for _, r := range part {
				if err := c.join(r, j.Volume.vector, theirs); err != nil {
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

func (c *change) join(r snapRecord, mine, theirs crdt.Vector) error {
	switch r.tag {
	case snapInline:
		n := func(at int) uint64 { return binary.BigEndian.Uint64(r.body[at:]) }
		return c.PutInline(crdt.Ino(n(0)), crdt.VersionID{
			Stamp: crdt.Stamp(n(8)), Replica: crdt.ReplicaID(n(16)), N: binary.BigEndian.Uint32(r.body[24:]),
		}, r.body[28:])
	case snapInode:
		i, err := crdt.DecodeInode(r.body)
		if err != nil {
			return err
		}
		e, err := crdt.Join(c.tree, i, mine, theirs)
		if err != nil {
			return err
		}
		c.effects = append(c.effects, e)
	case snapHistory:
		return c.joinHistory(r.body)
	}
	return nil
}

func (j *joining) joinTail(chunk []byte) error {
	part := uint64(0)
	return eachBatch(chunk, func(b *Batch) error {
		part++
		if part <= j.part || !j.adds(b) {
			j.part = max(j.part, part)
			return nil
		}
		ops, err := j.fresh(b)
		if err != nil {
			return err
		}
		err = j.change(func(c *change) error { return c.joinBatch(b, ops, j.covers) })
		if errors.Is(err, crdt.ErrMalformed) { // no correct replica makes such a batch, or applies it
			j.db.opts.Log.Error("tail of snapshot", "volume", j.name, "origin", b.Origin, "first", uint64(b.First), "err", err)
			err = j.change(func(c *change) error { return c.joinBatch(b, nil, nil) })
		}
		return err
	})
}

// adds reports whether a batch of the tail has ops that are neither known here
// nor in a batch before it.
func (j *joining) adds(b *Batch) bool {
	_, ok := j.after[crdt.Dot{Replica: b.Origin, Seq: b.Last}]
	return ok
}

// fresh are those ops.
func (j *joining) fresh(b *Batch) ([]*crdt.Op, error) {
	ops, err := b.decodeOps()
	known := j.after[crdt.Dot{Replica: b.Origin, Seq: b.Last}]
	return slices.DeleteFunc(ops, func(op *crdt.Op) bool { return op.Dot.Seq <= known }), err
}

func (c *change) joinBatch(b *Batch, ops []*crdt.Op, covers crdt.Covers) error {
	for _, op := range ops {
		e, err := crdt.ApplyTail(c.tree, op, covers)
		if err != nil {
			return err
		}
		c.effects = append(c.effects, e)
	}
	if len(ops) < len(b.Ops) {
		if _, err := c.v.dropNeedless(c.t, b); err != nil {
			return err
		}
	}
	return c.t.set(c.keys.key('j', uint64(b.Origin), uint64(b.First)), b.Encode())
}

// covers says whether the range that an inode was in knew an op.
func (j *joining) covers(ino crdt.Ino, id crdt.VersionID) bool {
	at := binary.BigEndian.AppendUint64([]byte{'i'}, uint64(ino))
	n, _ := slices.BinarySearchFunc(j.ranges, at, func(r stagedRange, at []byte) int { return bytes.Compare(r.to, at) })
	return j.ranges[n].ceiling.Covers(id)
}

// fold merges the directory moves of all ranges and of the tail into the log.
func (j *joining) fold() error {
	moves, err := j.moves()
	if err != nil {
		return err
	}
	var f *crdt.Fold
	if err := j.joinRead(func(t *tree) (err error) {
		f, err = crdt.FoldMoves(t, moves)
		return err
	}); err != nil {
		return err
	}
	for more := true; more; {
		if err := j.change(func(c *change) error {
			e, m, err := f.Write(c.tree, joinPart)
			if err == nil {
				c.effects = append(c.effects, e)
			}
			more = m
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// joinRead runs fn on the state that is being joined, which nobody else sees.
func (v *Volume) joinRead(fn func(*tree) error) error {
	return v.db.kv.view(func(t txn) error { return fn(newTree(t, &v.keys, v.sets.Load())) })
}

// moves collects the directory moves of what is staged.
func (j *joining) moves() (moves []crdt.Move, err error) {
	if err := j.eachStaged(append(j.keys.key('s'), 'r'), func(_, chunk []byte) error {
		return eachRecord(chunk, func(tag byte, body []byte) error {
			if tag != snapMove {
				return nil
			}
			m, err := crdt.DecodeMove(body)
			// One that was known may have gone from the log.
			if err == nil && !j.Volume.vector.Covers(m.ID) {
				moves = append(moves, *m)
			}
			return err
		})
	}); err != nil {
		return nil, err
	}
	err = j.eachStaged(append(j.keys.key('s'), 't'), func(_, chunk []byte) error {
		return eachBatch(chunk, func(b *Batch) error {
			if !j.adds(b) {
				return nil
			}
			ops, err := j.fresh(b)
			if err != nil {
				return err
			}
			return j.joinRead(func(t *tree) error {
				for _, op := range ops {
					if moves, err = crdt.MovesIn(t, op, moves); err != nil {
						return err
					}
				}
				return nil
			})
		})
	})
	return moves, err
}
