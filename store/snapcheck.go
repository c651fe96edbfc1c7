package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// What is staged is looked through as it comes, so that nothing of it can fail
// later, and the large content that it names is fetched.

func badSnapshot(what string) error { return fmt.Errorf("%w: snapshot: %s", ErrBadBatch, what) }

// rangeCheck looks through one range.
type rangeCheck struct {
	*staging
	stagedRange
	inline map[string]int64 // sizes of bytes whose version has not come yet, by key
	last   *crdt.Inode      // the one that came last
	at     []byte           // position of the last key
}

// checkRange looks through a range and adds it to the others.
func (s *staging) checkRange(ctx context.Context, chunk []byte) (stagedRange, error) {
	c := &rangeCheck{staging: s, inline: map[string]int64{}}
	if err := eachRecord(chunk, func(tag byte, body []byte) error { return c.record(ctx, tag, body) }); err != nil {
		return c.stagedRange, err
	}
	at := 0
	for at < len(s.ranges) && bytes.Compare(s.ranges[at].to, c.to) < 0 {
		at++
	}
	switch {
	case c.to == nil:
		return c.stagedRange, badSnapshot("no position")
	case at > 0 && bytes.Compare(s.ranges[at-1].to, c.from) > 0,
		at < len(s.ranges) && bytes.Compare(c.to, s.ranges[at].from) > 0:
		return c.stagedRange, badSnapshot("ranges that overlap")
	}
	if err := s.v.outgrow(c.vector); err != nil {
		return c.stagedRange, err
	}
	s.ranges = append(s.ranges[:at:at], append([]stagedRange{c.stagedRange}, s.ranges[at:]...)...)
	return c.stagedRange, nil
}

func (c *rangeCheck) record(ctx context.Context, tag byte, body []byte) error {
	switch {
	case (c.vector == nil) != (tag == snapVector):
		return badSnapshot("its vector comes first, and once")
	case tag == snapVector || tag == snapCollected || tag == snapAhead || tag == snapPosition:
		return c.header(tag, body)
	case c.to == nil:
		return badSnapshot("no position")
	}
	switch tag {
	case snapIdentity:
		if len(body) < 8 {
			return badSnapshot("identity")
		}
		if err := c.follows('k', body[:8]); err != nil {
			return err
		}
		return c.v.learnIdentity(body)
	case snapInline:
		if len(body) < 28 {
			return badSnapshot("inline version")
		}
		c.inline[string(body[:28])] = int64(len(body) - 28)
		return nil
	case snapHistory:
		return c.history(body)
	case snapMove:
		m, err := crdt.DecodeMove(body)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrBadBatch, err)
		}
		return c.follows('m', c.v.keys.move(m.ID)[len(c.v.keys.prefix)+1:])
	case snapInode:
		i, err := crdt.DecodeInode(body)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrBadBatch, err)
		}
		return c.inode(ctx, i)
	}
	return badSnapshot(fmt.Sprintf("record of kind %q", tag))
}

// header reads what comes before the keys.
func (c *rangeCheck) header(tag byte, body []byte) (err error) {
	switch tag {
	case snapVector:
		if c.vector, err = crdt.DecodeVector(body); err != nil {
			return fmt.Errorf("%w: %w", ErrBadBatch, err)
		}
		c.ceiling = c.vector.Clone()
	case snapCollected:
		if c.to != nil {
			return badSnapshot("what is collected")
		}
		c.collected, c.trimmed, err = decodeCollected(body)
		return err
	case snapAhead:
		if len(body) != 24 || c.to != nil {
			return badSnapshot("what is in no batch")
		}
		n := func(at int) uint64 { return binary.BigEndian.Uint64(body[at:]) }
		c.ceiling.Max(crdt.Vector{crdt.ReplicaID(n(0)): {Seq: crdt.Seq(n(8)), Stamp: crdt.Stamp(n(16))}})
	case snapPosition:
		if len(body) < 3 || c.to != nil || c.collected.Vector == nil || int(binary.BigEndian.Uint16(body)) >= len(body)-2 {
			return badSnapshot("position")
		}
		n := 2 + int(binary.BigEndian.Uint16(body))
		c.from, c.to = bytes.Clone(body[2:n]), bytes.Clone(body[n:])
		c.at = c.from
		if bytes.Compare(c.from, c.to) >= 0 || bytes.Compare(c.to, snapEnd) > 0 {
			return badSnapshot("position")
		}
	}
	return nil
}

// follows checks that a key comes after the one before and lies in the range.
func (c *rangeCheck) follows(tag byte, key []byte) error {
	at := append([]byte{tag}, key...)
	if bytes.Compare(at, c.at) <= 0 || bytes.Compare(at, c.to) > 0 {
		return badSnapshot("keys out of order")
	}
	c.at = at
	return nil
}

func (c *rangeCheck) inode(ctx context.Context, i *crdt.Inode) error {
	if i.Unpublished() {
		return badSnapshot("inode that is not published")
	}
	if err := c.follows('i', binary.BigEndian.AppendUint64(nil, uint64(i.Ino))); err != nil {
		return err
	}
	if i.Kind == crdt.KindDir && i.Ino != crdt.RootIno && i.Ino != crdt.LostIno {
		c.dirs[i.Ino] = i.First().Parent
	}
	for n := range i.Contents {
		if err := c.content(ctx, i.Ino, &i.Contents[n]); err != nil {
			return err
		}
	}
	clear(c.inline) // they come just before their inode
	c.last = i
	return nil
}

func (c *rangeCheck) content(ctx context.Context, ino crdt.Ino, v *crdt.Version) error {
	if v.Manifest {
		err := c.fetch(ctx, &v.Content)
		if errors.Is(err, ErrNoContent) && len(v.Closed) > 0 {
			err = nil // of a deleted file, forgotten
		}
		return err
	}
	key := c.v.keys.version('c', ino, v.ID)
	if size, ok := c.inline[string(key[len(c.v.keys.prefix)+1:])]; !ok && len(v.Closed) == 0 || ok && size != v.Size {
		return badSnapshot("version without its bytes")
	}
	return nil
}

// fetch brings large content here.
func (s *staging) fetch(ctx context.Context, c *crdt.Content) error {
	size, have, err := s.v.db.hasContent(c.Hash)
	if err == nil && !have {
		if err = s.source.Content(ctx, c.Hash); err == nil {
			size, _, err = s.v.db.hasContent(c.Hash)
		}
	}
	if err == nil && size != c.Size {
		err = badSnapshot("size of content")
	}
	return err
}

// learnIdentity keeps a replica's identity record if none is known; whoever
// uses it verifies it.
func (v *Volume) learnIdentity(body []byte) error {
	r := crdt.ReplicaID(binary.BigEndian.Uint64(body))
	if known, err := v.Identity(r); err != nil || known != nil {
		return err
	}
	return v.PutIdentity(r, body[8:])
}

// checkTail looks through batches of the tail, and counts them in.
func (s *staging) checkTail(ctx context.Context, chunk []byte) error {
	reached := s.reached()
	if err := eachRecord(chunk, func(tag byte, body []byte) error {
		if tag == snapIdentity && len(body) >= 8 {
			return s.v.learnIdentity(body)
		}
		if tag != snapBatch {
			return badSnapshot("record in the tail")
		}
		b, err := DecodeBatch(body)
		if err != nil {
			return err
		}
		at := reached[b.Origin]
		if b.Last <= at.Seq {
			return nil
		}
		if b.Volume != s.v.id || !b.follows(at) {
			return badSnapshot("batch that does not follow")
		}
		if err := s.v.appliedIn(reached, b); err != nil {
			return badSnapshot("batch whose causes are missing")
		}
		if err := s.source.Verify(b); err != nil {
			return fmt.Errorf("batch %v:%d: %w", b.Origin, b.First, err)
		}
		ops, err := b.decodeOps()
		if err != nil {
			return err
		}
		for _, op := range ops {
			for n := range op.Writes {
				if w := &op.Writes[n]; w.Kind == crdt.WriteContent && w.Content.Manifest {
					if err := s.fetch(ctx, &w.Content); err != nil {
						return err
					}
				}
			}
		}
		reached[b.Origin] = b.entry()
		s.tail[b.Origin] = reached[b.Origin]
		return nil
	}); err != nil {
		return err
	}
	s.tails++
	return nil
}

// eachBatch calls fn for each batch of a chunk that checkTail has seen.
func eachBatch(chunk []byte, fn func(*Batch) error) error {
	return eachRecord(chunk, func(tag byte, body []byte) error {
		if tag != snapBatch {
			return nil
		}
		b, err := DecodeBatch(body)
		if err != nil {
			return err
		}
		return fn(b)
	})
}

// whole looks at all ranges together: no directory stands under itself.
func (s *staging) whole() error {
	for dir := range s.dirs {
		// Each directory walked is taken out, so that all walks are one.
		walked := map[crdt.Ino]bool{}
		for {
			parent, ok := s.dirs[dir]
			if !ok {
				break
			}
			if walked[dir] {
				return badSnapshot(fmt.Sprintf("directory %d stands under itself", dir))
			}
			walked[dir] = true
			dir = parent
		}
		for d := range walked {
			delete(s.dirs, d)
		}
	}
	return nil
}
