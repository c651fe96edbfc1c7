package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// A SnapshotSource is a peer that a snapshot is taken from.
type SnapshotSource interface {
	// Node is the peer's name.
	Node() string
	// Read asks for a part of the peer's state; next gives its chunks and
	// io.EOF after the last.
	Read(ctx context.Context, r SnapshotRequest) (next func() ([]byte, error), err error)
	// Content brings the content of a manifest here.
	Content(ctx context.Context, manifest crdt.Hash) error
	// Verify checks the signature of a batch; the identities that the peer
	// knows have been kept by then.
	Verify(b *Batch) error
}

// A stagedRange is a range of keys of a peer's state.
type stagedRange struct {
	from, to []byte
	vector   crdt.Vector // what it knew that is in batches
	ceiling  crdt.Vector // all that it knew
	// What it may lack: it is no part of one state with a range that does not
	// know what is collected here, or whose log of moves begins elsewhere.
	collected Collected
	trimmed   crdt.VersionID
}

// fits reports whether two ranges can be parts of one state.
func (r *stagedRange) fits(w *stagedRange) bool {
	return r.trimmed == w.trimmed && r.vector.Contains(w.collected.Vector) && w.vector.Contains(r.collected.Vector)
}

// staging is a snapshot that is not whole yet. What is staged is on disk: it
// goes on after a cut or a restart, and from another peer.
type staging struct {
	v      *Volume
	source SnapshotSource
	ranges []stagedRange
	tails  uint64      // chunks of the tail
	tail   crdt.Vector // its last batches
	dirs   map[crdt.Ino]crdt.Ino
}

func (s *staging) rangeKey(to []byte) []byte {
	return append(s.v.keys.key('s'), append([]byte{'r'}, to...)...)
}
func (s *staging) tailKey(n uint64) []byte {
	return binary.BigEndian.AppendUint64(append(s.v.keys.key('s'), 't'), n)
}
func (s *staging) prefix(kind byte) []byte { return append(s.v.keys.key('s'), kind) }
func (v *Volume) dropStaging() error       { return v.db.deletePrefix(v.keys.key('s')) }
func (v *Volume) newStaging() *staging {
	return &staging{v: v, tail: crdt.Vector{}, dirs: map[crdt.Ino]crdt.Ino{}}
}

// JoinSnapshot takes a peer's state. It is staged first, in ranges that may have
// come from other peers before; then it becomes state in one step, even if the
// daemon dies meanwhile. Own ops that peers do not have yet survive. After an
// error the next call goes on from there.
func (v *Volume) JoinSnapshot(ctx context.Context, source SnapshotSource) error {
	v.joinMu.Lock()
	defer v.joinMu.Unlock()
	if err := v.finishSnapshot(); err != nil { // of a join that failed half-way
		return fmt.Errorf("finish earlier snapshot: %w", err)
	}
	err := v.stage(ctx, source)
	if errors.Is(err, ErrBadBatch) { // whoever sent it
		err = errors.Join(err, v.dropStaging())
	}
	if err != nil {
		return fmt.Errorf("stage snapshot: %w", err)
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

// maxTails is how often one peer is asked for the tail before another may try:
// its journal may be shorter than the time that the ranges take.
const maxTails = 5

// stage makes the snapshot whole and marks it so.
func (v *Volume) stage(ctx context.Context, source SnapshotSource) error {
	s := v.newStaging()
	s.source = source
	if err := s.load(ctx); err != nil {
		return err
	}
	for tails := 0; ; {
		after, until, gap := s.gap()
		var err error
		switch {
		case gap:
			err = s.fill(ctx, after, until)
		case s.reached().Contains(s.most()):
			if err := s.whole(); err != nil {
				return err
			}
			return v.db.kv.update(func(t txn) error { return t.set(v.keys.key('S'), joinMark(0, 0)) })
		case tails == maxTails:
			return fmt.Errorf("tail of snapshot: %w", ErrJournalGone)
		default:
			tails++
			err = s.fillTail(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// load looks through what is staged already.
func (s *staging) load(ctx context.Context) error {
	for _, kind := range []byte{'r', 't'} {
		if err := s.v.eachStaged(s.prefix(kind), func(_, chunk []byte) error {
			if kind == 't' {
				return s.checkTail(ctx, chunk)
			}
			_, err := s.checkRange(ctx, chunk)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// eachStaged calls fn for each staged chunk with the prefix, in order, outside
// of a transaction.
func (v *Volume) eachStaged(prefix []byte, fn func(key, chunk []byte) error) error {
	for from := prefix; ; {
		var key, chunk []byte
		if err := v.db.kv.view(func(t txn) error {
			return t.scan(prefix, from, func(k, value []byte) (bool, error) {
				key, chunk = bytes.Clone(k), bytes.Clone(value)
				return false, nil
			})
		}); err != nil || key == nil {
			return err
		}
		if err := fn(key, chunk); err != nil {
			return err
		}
		from = append(key, 0)
	}
}

// gap returns the first positions between which nothing is staged.
func (s *staging) gap() (after, until []byte, ok bool) {
	for _, r := range s.ranges {
		if !bytes.Equal(r.from, after) {
			return after, r.from, true
		}
		after = r.to
	}
	return after, snapEnd, !bytes.Equal(after, snapEnd)
}

// fill stages the ranges between two positions.
func (s *staging) fill(ctx context.Context, after, until []byte) error {
	return s.read(ctx, SnapshotRequest{After: after, Until: until}, func(chunk []byte) error {
		r, err := s.checkRange(ctx, chunk)
		switch {
		case err != nil:
			return err
		case !bytes.Equal(r.from, after) || bytes.Compare(r.to, until) > 0:
			return badSnapshot("range that was not asked for")
		}
		after = r.to
		if err := s.keepFitting(&r); err != nil {
			return err
		}
		return s.v.db.kv.update(func(t txn) error { return t.set(s.rangeKey(r.to), chunk) })
	}, func() bool { return bytes.Equal(after, until) })
}

// read gives fn the chunks of an answer. whole says at its end that nothing is
// missing.
func (s *staging) read(ctx context.Context, r SnapshotRequest, fn func([]byte) error, whole func() bool) error {
	next, err := s.source.Read(ctx, r)
	if err != nil {
		return err
	}
	for {
		chunk, err := next()
		if err == io.EOF && whole() {
			return nil
		}
		if err == io.EOF {
			return badSnapshot("it ends early")
		}
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = s.v.db.room()
		}
		if err == nil {
			err = fn(chunk)
		}
		if err != nil {
			return err
		}
	}
}

// least is what all ranges knew, or this replica; most what some range knew.
func (s *staging) least(own crdt.Vector) crdt.Vector {
	floor := crdt.Vector{}
	for n, r := range s.ranges {
		if n == 0 {
			floor = r.vector.Clone()
		}
		for id, e := range floor {
			if w, ok := r.vector[id]; !ok {
				delete(floor, id)
			} else if w.Seq < e.Seq {
				floor[id] = w
			}
		}
	}
	floor.Max(own)
	return floor
}

func (s *staging) most() crdt.Vector {
	ceiling := crdt.Vector{}
	for _, r := range s.ranges {
		ceiling.Max(r.ceiling)
	}
	return ceiling
}

// reached is how far the tail goes.
func (s *staging) reached() crdt.Vector {
	reached := s.least(s.v.Vector())
	reached.Max(s.tail)
	return reached
}

// fillTail stages the batches that some ranges knew and others did not. Ranges
// that they cannot be had for are dropped, to be staged again.
func (s *staging) fillTail(ctx context.Context) error {
	var start crdt.Vector
	if err := s.read(ctx, SnapshotRequest{Tail: true, Since: s.reached()}, func(chunk []byte) error {
		if len(chunk) > 0 && chunk[0] == snapJournal {
			return eachRecord(chunk, func(_ byte, body []byte) (err error) {
				if start, err = crdt.DecodeVector(body); err != nil {
					err = fmt.Errorf("%w: %w", ErrBadBatch, err)
				}
				return err
			})
		}
		if err := s.checkTail(ctx, chunk); err != nil {
			return err
		}
		return s.v.db.kv.update(func(t txn) error { return t.set(s.tailKey(s.tails-1), chunk) })
	}, func() bool { return true }); err != nil {
		return err
	}
	reached, own := s.reached(), s.v.Vector()
	if start == nil && reached.Contains(s.most()) {
		return nil
	}
	return s.drop(func(r *stagedRange) bool {
		if start == nil {
			return !reached.Contains(r.ceiling) // only another peer has the batches, or nobody
		}
		known := r.vector.Clone()
		known.Max(own)
		return !known.Contains(start)
	})
}

// keepFitting drops the ranges that do not fit a new one: its sender can give
// theirs too, and others perhaps cannot any more.
func (s *staging) keepFitting(r *stagedRange) error {
	other := func(w *stagedRange) bool { return !w.fits(r) }
	if !slices.ContainsFunc(s.ranges, func(w stagedRange) bool { return other(&w) }) {
		return nil
	}
	return s.drop(other)
}

// drop takes ranges out again, and the tail, which began where they ended.
func (s *staging) drop(which func(*stagedRange) bool) error {
	was := len(s.ranges)
	err := s.v.db.kv.update(func(t txn) error {
		for n := range s.ranges {
			if r := &s.ranges[n]; which(r) {
				if err := t.del(s.rangeKey(r.to)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.ranges = slices.DeleteFunc(s.ranges, func(r stagedRange) bool { return which(&r) })
	if len(s.ranges) == was {
		return fmt.Errorf("tail of snapshot: %w", ErrJournalGone)
	}
	s.tails, s.tail = 0, crdt.Vector{}
	return s.v.db.deletePrefix(s.prefix('t'))
}
