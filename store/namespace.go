package store

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// MaxTarget is the longest symlink target, in bytes.
const MaxTarget = 4095

// dirs returns the inodes of directory nodes.
func (v *Volume) dirs(nodes ...NodeID) ([]crdt.Ino, error) {
	out := make([]crdt.Ino, len(nodes))
	for n, node := range nodes {
		ino, _, err := v.node(node)
		if err != nil {
			return nil, err
		}
		out[n] = ino
	}
	return out, nil
}

// Create makes a regular file and opens it for writing. Peers hear of it when
// its last handle is released.
func (v *Volume) Create(r Request, dir NodeID, name string, n NewNode) (Attr, Handle, error) {
	if err := crdt.CheckName(name); err != nil {
		return Attr{}, 0, err
	}
	return v.createOpen(r, dir, name, n)
}

// CreateUnnamed makes a regular file without a name in a directory, and opens
// it for writing. Nobody hears of it unless Link gives it a name before its last
// handle is released.
func (v *Volume) CreateUnnamed(r Request, dir NodeID, n NewNode) (Attr, Handle, error) {
	return v.createOpen(r, dir, "", n)
}

func (v *Volume) createOpen(r Request, dir NodeID, name string, n NewNode) (a Attr, h Handle, err error) {
	if err := v.db.room(); err != nil {
		return a, 0, err
	}
	n.Kind = crdt.KindFile
	d := &draft{handles: 1}
	h = Handle(v.db.randomID())
	a, err = v.create(r, dir, name, n, &h, func(c *change, i crdt.NewInode, p *crdt.Plan, own []crdt.Write) error {
		d.node, d.name, d.mtime = NodeID(i.Ino), v.draftName(NodeID(i.Ino)), i.Time
		d.ctime = i.Time
		d.rec = draftRecord{Ino: i.Ino, Created: true, Dirty: true, Truncated: true}
		if name != "" {
			d.dir = own[1].Parent
		}
		d.by.Store(uint64(r.Mount))
		d.note()
		if err := c.applyLocal(own); err != nil {
			return err
		}
		if err := v.putDraft(c.t, d); err != nil {
			return err
		}
		c.after = append(c.after, func() {
			v.draftsMu.Lock()
			defer v.draftsMu.Unlock()
			v.drafts[d.node], v.handles[h] = d, d.node
			if d.dir != 0 {
				v.bornLocked(d.dir, i.Time)
			}
		})
		return c.t.set(c.keys.key('w', uint64(h)), handleRecord(d.node, r.Mount))
	})
	if err != nil {
		return Attr{}, 0, err
	}
	return a, h, nil
}

// Mknod makes a directory, symlink or special file, or a regular file that
// nobody has open; peers hear of it at once.
func (v *Volume) Mknod(r Request, dir NodeID, name string, n NewNode) (Attr, error) {
	if err := v.db.room(); err != nil {
		return Attr{}, err
	}
	if err := crdt.CheckName(name); err != nil {
		return Attr{}, err
	}
	if len(n.Target) > MaxTarget {
		return Attr{}, crdt.ErrNameTooLong
	}
	var none Handle
	return v.create(r, dir, name, n, &none, func(c *change, i crdt.NewInode, p *crdt.Plan, _ []crdt.Write) error {
		if n.Kind == crdt.KindFile {
			p.Writes = append(p.Writes, crdt.Write{
				Kind: crdt.WriteContent, Ino: i.Ino, Link: i.Link,
				Content: crdt.Content{Mtime: i.Time, Hash: emptyHash},
			})
		}
		return c.commit(p.Writes, hold{})
	})
}

// create plans a new inode, of no name if name is empty, and lets make apply it:
// own are the writes without the confirmations of the directories above.
func (v *Volume) create(r Request, dir NodeID, name string, n NewNode, h *Handle, make func(c *change, i crdt.NewInode, p *crdt.Plan, own []crdt.Write) error) (a Attr, err error) {
	parent, _, err := v.node(dir)
	if err != nil {
		return a, err
	}
	err = v.change(r.Mount, func(c *change) error {
		if was, handle, ok, err := c.done(r); err != nil || ok {
			if err == nil {
				*h = handle
				a, err = v.attr(c.tree, v.Node(was))
			}
			return err
		}
		i := crdt.NewInode{
			Ino: crdt.Ino(v.db.randomID()), Link: crdt.LinkID(v.db.randomID()), Kind: n.Kind, Target: n.Target,
			Rdev: n.Rdev, Mode: n.Mode & 0o7777, UID: n.UID, GID: n.GID, Time: crdt.TimeOf(c.now.UnixNano()),
		}
		xattrs, err := c.inherit(&i, parent, n.Umask)
		if err != nil {
			return err
		}
		p := c.plan()
		if name == "" {
			err = p.CreateUnnamed(parent, i)
		} else {
			err = p.Create(parent, name, i)
		}
		if err != nil {
			return err
		}
		p.Writes = append(p.Writes, xattrs...)
		first := slices.IndexFunc(p.Writes, func(w crdt.Write) bool { return w.Kind == crdt.WriteInode })
		if err := make(c, i, p, p.Writes[first:]); err != nil {
			return err
		}
		if a, err = v.attr(c.tree, NodeID(i.Ino)); err != nil {
			return err
		}
		a.Mtime, a.Atime = i.Time, i.Time // a draft that just begins is not in the tree
		return c.setDone(r, i.Ino, *h)
	})
	return a, err
}

// inherit gives what is made in a directory with the set-group-id bit the
// directory's group, and a subdirectory the bit too; and what the directory's
// default ACL says.
func (c *change) inherit(i *crdt.NewInode, dir crdt.Ino, umask uint32) (xattrs []crdt.Write, err error) {
	parent, err := c.Inode(dir)
	if err != nil || parent == nil {
		return nil, err
	}
	if parent.Mode.Value&unix.S_ISGID != 0 {
		i.GID = parent.Owner.Value.GID
		if i.Kind == crdt.KindDir {
			i.Mode |= unix.S_ISGID
		}
	}
	return inheritACL(i, parent, umask), nil
}

// Link gives a file a further name.
func (v *Volume) Link(r Request, node, dir NodeID, name string) (Attr, error) {
	if err := v.db.room(); err != nil {
		return Attr{}, err
	}
	inos, err := v.dirs(node, dir)
	if err != nil {
		return Attr{}, err
	}
	err = v.change(r.Mount, func(c *change) error {
		if _, _, ok, err := c.done(r); err != nil || ok {
			return err
		}
		i, err := c.Inode(inos[0])
		if err != nil {
			return err
		}
		if i == nil {
			return ErrStale
		}
		if links, err := crdt.LiveLinks(c.tree, i); err != nil {
			return err
		} else if len(links) == 0 && !i.Unpublished() && !v.showsLocked(i.Ino) {
			return crdt.ErrNotExist // it was removed, and that is known
		}
		p := c.plan()
		if err := p.Link(i, inos[1], name, crdt.LinkID(v.db.randomID())); err != nil {
			return err
		}
		if err := c.commitSplit(p.Writes, hold{}); err != nil {
			return err
		}
		return c.setDone(r, i.Ino, 0)
	})
	if err != nil {
		return Attr{}, err
	}
	return v.Attr(node)
}

// Unlink removes a name that is no directory's.
func (v *Volume) Unlink(r Request, dir NodeID, name string) error {
	return v.remove(r, dir, name, (*crdt.Plan).Unlink)
}

// Rmdir removes an empty directory.
func (v *Volume) Rmdir(r Request, dir NodeID, name string) error {
	return v.remove(r, dir, name, (*crdt.Plan).Rmdir)
}

func (v *Volume) remove(r Request, dir NodeID, name string, plan func(*crdt.Plan, crdt.Ino, string) (crdt.Claim, error)) error {
	parent, _, err := v.node(dir)
	if err != nil {
		return err
	}
	return v.change(r.Mount, func(c *change) error {
		if _, _, ok, err := c.done(r); err != nil || ok {
			return err
		}
		p := c.plan()
		shown, err := plan(p, parent, name)
		if err != nil {
			return err
		}
		head, err := c.Head(parent)
		if err != nil {
			return err
		}
		if err := c.commitSplit(p.Writes, hold{dir: head, name: name}); err != nil {
			return err
		}
		return c.setDone(r, shown.Ino, 0)
	})
}

// settledAge is how long a name must have stood for its renaming away to be
// held: an editor that moves a file aside writes it anew at once, while a
// temporary file that is moved to its place does not come back. Neither does a
// name that replaced another.
const settledAge = time.Second

// Rename moves what shows at one name to another.
func (v *Volume) Rename(r Request, odir NodeID, oname string, ndir NodeID, nname string, mode crdt.RenameMode) error {
	inos, err := v.dirs(odir, ndir)
	if err != nil {
		return err
	}
	return v.change(r.Mount, func(c *change) error {
		if _, _, ok, err := c.done(r); err != nil || ok {
			return err
		}
		p := c.plan()
		done, err := p.Rename(inos[0], oname, inos[1], nname, mode)
		if err != nil || done.Same {
			return err
		}
		ohead, err := c.Head(inos[0])
		if err != nil {
			return err
		}
		h := hold{}
		if age := c.now.UnixNano() - int64(done.Moved.At.Stamp); !done.HadTarget && age >= int64(settledAge) {
			h = hold{dir: ohead, name: oname}
		}
		target, err := crdt.ClaimsAt(c.tree, inos[1], nname)
		if err != nil {
			return err
		}
		if err := c.rename(p.Writes, done, target, h); err != nil {
			return err
		}
		return c.setDone(r, done.Moved.Ino, 0)
	})
}

// rename applies a rename's writes. If what moved is not published, neither is
// the removal of what it replaced, its target: it leaves with the publication,
// as it is known now. What lay hidden where it came from goes at once.
func (c *change) rename(writes []crdt.Write, done crdt.Renamed, target []crdt.Claim, h hold) error {
	moved, err := c.Inode(done.Moved.Ino)
	if err != nil {
		return err
	}
	if !moved.Unpublished() || !done.HadTarget {
		return c.commitSplit(writes, h)
	}
	replaced, err := c.replaced(moved.Ino)
	if err != nil {
		return err
	}
	var now []crdt.Write
	for _, w := range writes {
		i, err := c.Inode(w.Ino)
		if err != nil {
			return err
		}
		atTarget := slices.ContainsFunc(target, func(t crdt.Claim) bool { return t.Ino == w.Ino && t.Link == w.Link })
		if w.Kind == crdt.WriteRemove && atTarget && !i.Unpublished() {
			replaced = append(replaced, w)
		} else {
			now = append(now, w)
		}
	}
	held := crdt.AppendOp(nil, &crdt.Op{Writes: replaced})
	if err := c.t.set(c.keys.key('r', uint64(moved.Ino)), held); err != nil {
		return err
	}
	return c.commitSplit(now, h)
}

// replaced returns the removals that wait for an inode's publication.
func (c *change) replaced(ino crdt.Ino) ([]crdt.Write, error) {
	b, err := c.t.get(c.keys.key('r', uint64(ino)))
	if err != nil || b == nil {
		return nil, err
	}
	op, err := crdt.DecodeOp(b)
	if err != nil {
		return nil, fmt.Errorf("%w: removals of unpublished inode %d: %w", ErrDamaged, ino, err)
	}
	return op.Writes, nil
}

// liveOnly leaves out the removals of what others have removed meanwhile.
func (c *change) liveOnly(removals []crdt.Write) (out []crdt.Write, err error) {
	for _, w := range removals {
		i, err := c.Inode(w.Ino)
		if err != nil {
			return nil, err
		}
		if i == nil || i.Link(w.Link) == nil {
			continue
		}
		live, err := crdt.Live(c.tree, i, i.Link(w.Link))
		if err != nil {
			return nil, err
		}
		if live {
			out = append(out, w)
		}
	}
	return out, nil
}
