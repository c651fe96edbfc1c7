package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// CopyFrom fills a volume that is not ready with what another one of the store
// shows at one moment: files as they were closed last, without history and
// records. They share large content. What is made are ordinary changes of this
// volume, so nothing else in it knows of the other.
//
// The caller makes the volume ready afterwards, and drops it after an error. It
// calls it once, before anybody else has the volume.
func (v *Volume) CopyFrom(ctx context.Context, from *Volume) error {
	if err := from.Settle(); err != nil {
		return err
	}
	c := &copier{ctx: ctx, to: v, links: map[crdt.Ino]crdt.Ino{}}
	err := from.read(func(t *tree) error {
		c.from = published{t}
		root, err := t.Inode(crdt.RootIno)
		if err == nil {
			err = c.attributes(root)
		}
		if err == nil {
			err = c.dir(root, crdt.RootIno)
		}
		if err == nil {
			err = c.flush()
		}
		return err
	})
	if err == nil {
		err = v.sealNow()
	}
	if err != nil {
		return fmt.Errorf("copy volume %q: %w", from.Name(), err)
	}
	return nil
}

// published is a tree as peers know it.
type published struct{ *tree }

// Claims implements crdt.State.
func (p published) Claims(dir crdt.Ino, name string) ([]crdt.Claim, error) {
	claims, err := p.tree.Claims(dir, name)
	if err != nil {
		return nil, err
	}
	return p.known(claims)
}

// EachName implements crdt.State.
func (p published) EachName(dir crdt.Ino, fn func(string, []crdt.Claim) error) error {
	return p.tree.EachName(dir, func(name string, claims []crdt.Claim) error {
		claims, err := p.known(claims)
		if err != nil || len(claims) == 0 {
			return err
		}
		return fn(name, claims)
	})
}

func (p published) known(claims []crdt.Claim) ([]crdt.Claim, error) {
	var out []crdt.Claim
	for _, c := range claims {
		if i, err := p.Inode(c.Ino); err != nil {
			return nil, err
		} else if i != nil && !i.Unpublished() {
			out = append(out, c)
		}
	}
	return out, nil
}

// A copier makes what it finds in batches of a transaction each.
type copier struct {
	ctx   context.Context // of one CopyFrom
	from  published
	to    *Volume
	links map[crdt.Ino]crdt.Ino // of files that have several names, what they are in to
	steps []func(*change) error
	bytes int
}

const (
	copySteps = 200
	copyBytes = 512 << 10
)

// then adds a step, which takes some bytes in the transaction.
func (c *copier) then(bytes int, step func(*change) error) error {
	c.steps = append(c.steps, step)
	if c.bytes += bytes; len(c.steps) < copySteps && c.bytes < copyBytes {
		return nil
	}
	return c.flush()
}

func (c *copier) flush() error {
	err := c.ctx.Err()
	if err == nil {
		err = c.to.db.room()
	}
	if err == nil {
		err = c.to.change(0, func(ch *change) error {
			for _, step := range c.steps {
				if err := step(ch); err != nil {
					return err
				}
			}
			return nil
		})
	}
	c.steps, c.bytes = nil, 0
	clear(c.from.inodes) // there may be a million
	return err
}

// attributes gives the root those of another.
func (c *copier) attributes(root *crdt.Inode) error {
	writes := append([]crdt.Write{
		{Kind: crdt.WriteMode, Ino: crdt.RootIno, Mode: root.Mode.Value},
		{Kind: crdt.WriteOwner, Ino: crdt.RootIno, UID: root.Owner.Value.UID, GID: root.Owner.Value.GID},
	}, xattrsOf(root, crdt.RootIno)...)
	return c.then(0, func(ch *change) error { return ch.commit(writes, hold{}) })
}

// dir copies what is in a directory, and its mtime when that is done.
func (c *copier) dir(from *crdt.Inode, to crdt.Ino) error {
	names, err := c.names(from.Ino)
	if err != nil {
		return err
	}
	for _, name := range names {
		claim, ok, err := crdt.Lookup(c.from, from.Ino, name)
		if err != nil || !ok {
			return err
		}
		i, err := c.from.Inode(claim.Ino)
		if err != nil {
			return err
		}
		made, err := c.entry(i, to, name)
		if err == nil && claim.Dir() {
			err = c.dir(i, made)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	at := from.DirMtime()
	return c.then(0, func(ch *change) error {
		return ch.commit([]crdt.Write{{Kind: crdt.WriteTime, Ino: to, Time: at}}, hold{})
	})
}

// names are those in a directory, of all members of its set.
func (c *copier) names(dir crdt.Ino) (names []string, err error) {
	head, err := c.from.Head(dir)
	if err != nil {
		return nil, err
	}
	members, err := c.from.Members(head)
	for _, m := range members {
		if err == nil {
			err = c.from.EachName(m, func(name string, _ []crdt.Claim) error {
				names = append(names, name)
				return nil
			})
		}
	}
	slices.Sort(names)
	return slices.Compact(names), err
}

// entry makes what an inode is at a name.
func (c *copier) entry(i *crdt.Inode, dir crdt.Ino, name string) (crdt.Ino, error) {
	link := crdt.LinkID(c.to.db.randomID())
	if ino, ok := c.links[i.Ino]; ok {
		return ino, c.then(0, func(ch *change) error {
			made, err := ch.Inode(ino)
			if err != nil {
				return err
			}
			p := ch.plan()
			if err := p.Link(made, dir, name, link); err != nil {
				return err
			}
			return ch.commit(p.Writes, hold{})
		})
	}
	n := crdt.NewInode{
		Ino: crdt.Ino(c.to.db.randomID()), Link: link, Kind: i.Kind, Target: i.Target, Rdev: i.Rdev,
		Mode: i.Mode.Value, UID: i.Owner.Value.UID, GID: i.Owner.Value.GID, Time: i.Mtime.Value,
	}
	if i.Kind != crdt.KindDir && len(i.Links) > 1 {
		c.links[i.Ino] = n.Ino
	}
	more := xattrsOf(i, n.Ino)
	bytes := 0
	if i.Kind == crdt.KindFile {
		content, err := c.content(i)
		if err != nil {
			return 0, err
		}
		n.Time, bytes = content.Mtime, len(content.Inline)
		more = append(more, crdt.Write{Kind: crdt.WriteContent, Ino: n.Ino, Link: n.Link, Content: content})
	}
	return n.Ino, c.then(bytes, func(ch *change) error {
		p := ch.plan()
		if err := p.Create(dir, name, n); err != nil {
			return err
		}
		return ch.commit(append(p.Writes, more...), hold{})
	})
}

func xattrsOf(i *crdt.Inode, of crdt.Ino) (out []crdt.Write) {
	for _, x := range i.Xattrs {
		if !x.Gone {
			out = append(out, crdt.Write{Kind: crdt.WriteXattr, Ino: of, Name: x.Name, Value: x.Value})
		}
	}
	return out
}

// content is what a file shows to peers.
func (c *copier) content(i *crdt.Inode) (out crdt.Content, err error) {
	shown := i.Shown()
	if shown == nil {
		return out, errors.New("a file without content")
	}
	out = shown.Content
	if !out.Manifest {
		out.Inline, err = c.from.inline(i.Ino, shown.ID)
		return out, err
	}
	// Who is about to name it says so: see reclaimer.
	_, have, err := c.to.db.hasContent(out.Hash)
	if err == nil && !have {
		err = fmt.Errorf("%w: version %v", ErrNoContent, shown.ID)
	}
	return out, err
}
