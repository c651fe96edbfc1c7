package store

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// snapCheck looks through a snapshot as it comes, so that nothing that is
// staged can fail later, and fetches the large content that it names.
type snapCheck struct {
	v       *Volume
	fetch   func(context.Context, crdt.Hash) error
	begun   bool
	inline  map[string]int64 // sizes of bytes whose inode has not come yet, by key
	kinds   map[crdt.Ino]crdt.Kind
	parents map[crdt.Ino]crdt.Ino // of directories
}

func badSnapshot(what string) error { return fmt.Errorf("%w: snapshot: %s", ErrBadBatch, what) }

func (c *snapCheck) chunk(ctx context.Context, chunk []byte) error {
	return eachRecord(chunk, func(tag byte, body []byte) error {
		if c.begun == (tag == snapVector) {
			return badSnapshot("its vector comes first, and once")
		}
		c.begun = true
		return c.record(ctx, tag, body)
	})
}

func (c *snapCheck) record(ctx context.Context, tag byte, body []byte) error {
	switch tag {
	case snapVector:
		theirs, err := crdt.DecodeVector(body)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrBadBatch, err)
		}
		return c.v.outgrow(theirs)
	case snapCollected:
		_, err := decodeCollected(body)
		return err
	case snapIdentity:
		if len(body) < 8 {
			return badSnapshot("identity")
		}
		return nil
	case snapInline:
		if len(body) < 28 {
			return badSnapshot("inline version")
		}
		c.inline[string(body[:28])] = int64(len(body) - 28)
		return nil
	case snapMove:
		return c.moves(body)
	case snapHistory:
		return c.history(body)
	case snapInode:
		i, err := crdt.DecodeInode(body)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrBadBatch, err)
		}
		return c.inode(ctx, i)
	}
	return badSnapshot(fmt.Sprintf("record of kind %q", tag))
}

func (c *snapCheck) moves(body []byte) error {
	moves, err := decodeMoves(body)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadBatch, err)
	}
	for _, m := range moves {
		if c.kinds[m.Ino] != crdt.KindDir || m.ID.CompareOp(moves[0].ID) != 0 {
			return badSnapshot("move")
		}
	}
	return nil
}

func (c *snapCheck) inode(ctx context.Context, i *crdt.Inode) error {
	if i.Unpublished() {
		return badSnapshot("inode that is not published")
	}
	if was, ok := c.kinds[i.Ino]; ok && was != i.Kind {
		return badSnapshot("inode of two kinds")
	}
	c.kinds[i.Ino] = i.Kind
	if i.Kind == crdt.KindDir && i.Ino != crdt.RootIno && i.Ino != crdt.LostIno {
		c.parents[i.Ino] = i.Standing.Parent
	}
	for _, v := range i.Contents {
		if err := c.content(ctx, i.Ino, v); err != nil {
			return err
		}
	}
	clear(c.inline) // they come just before their inode
	return nil
}

func (c *snapCheck) content(ctx context.Context, ino crdt.Ino, v crdt.Version) error {
	if !v.Manifest {
		key := binary.BigEndian.AppendUint64(nil, uint64(ino))
		key = binary.BigEndian.AppendUint64(key, uint64(v.ID.Stamp))
		key = binary.BigEndian.AppendUint64(key, uint64(v.ID.Replica))
		key = binary.BigEndian.AppendUint32(key, v.ID.N)
		if size, ok := c.inline[string(key)]; !ok || size != v.Size {
			return badSnapshot("version without its bytes")
		}
		return nil
	}
	size, have, err := c.v.db.hasContent(v.Hash)
	if err == nil && !have {
		if err = c.fetch(ctx, v.Hash); err == nil {
			size, _, err = c.v.db.hasContent(v.Hash)
		}
	}
	if err == nil && size != v.Size {
		err = badSnapshot("size of content")
	}
	return err
}

// whole looks at the end of a snapshot: there is one, and no directory stands
// under itself.
func (c *snapCheck) whole() error {
	if !c.begun {
		return badSnapshot("empty")
	}
	for dir := range c.parents {
		// Each directory walked is taken out, so that all walks are one.
		walked := map[crdt.Ino]bool{}
		for {
			parent, ok := c.parents[dir]
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
			delete(c.parents, d)
		}
	}
	return nil
}
