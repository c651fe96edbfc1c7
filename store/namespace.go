package store

import (
	"errors"
	"fmt"

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
func (v *Volume) Create(r Request, dir NodeID, name string, n NewNode) (a Attr, h Handle, err error) {
	if err := v.db.room(); err != nil {
		return a, 0, err
	}
	n.Kind = crdt.KindFile
	d := &draft{handles: 1}
	h = Handle(randomID())
	ino, err := v.create(r, dir, name, n, &h, func(c *change, i crdt.NewInode, p *crdt.Plan) error {
		d.node, d.name, d.mtime = NodeID(i.Ino), v.draftName(NodeID(i.Ino)), i.Time
		d.rec = draftRecord{Ino: i.Ino, Created: true, Dirty: true, Truncated: true}
		d.by.Store(uint64(r.Mount))
		d.note()
		if err := c.applyLocal(p.Writes[len(p.Writes)-2:]); err != nil { // without the confirmations
			return err
		}
		if err := v.putDraft(c.t, d); err != nil {
			return err
		}
		c.after = append(c.after, func() {
			v.draftsMu.Lock()
			defer v.draftsMu.Unlock()
			v.drafts[d.node], v.handles[h] = d, d.node
		})
		return c.t.set(c.keys.key('w', uint64(h)), fmt.Appendf(nil, "%d", uint64(d.node)))
	})
	if err != nil {
		return a, 0, err
	}
	a, err = v.Attr(NodeID(ino))
	return a, h, err
}

// Mknod makes a directory, symlink or special file, or a regular file that
// nobody has open; peers hear of it at once.
func (v *Volume) Mknod(r Request, dir NodeID, name string, n NewNode) (Attr, error) {
	if err := v.db.room(); err != nil {
		return Attr{}, err
	}
	if len(n.Target) > MaxTarget {
		return Attr{}, crdt.ErrNameTooLong
	}
	var none Handle
	ino, err := v.create(r, dir, name, n, &none, func(c *change, i crdt.NewInode, p *crdt.Plan) error {
		if n.Kind == crdt.KindFile {
			p.Writes = append(p.Writes, crdt.Write{
				Kind: crdt.WriteContent, Ino: i.Ino, Link: i.Link,
				Content: crdt.Content{Mtime: i.Time, Hash: emptyHash},
			})
		}
		return c.commit(p.Writes, hold{})
	})
	if err != nil {
		return Attr{}, err
	}
	return v.Attr(v.Node(ino))
}

// create plans a new inode and lets make apply it.
func (v *Volume) create(r Request, dir NodeID, name string, n NewNode, h *Handle, make func(*change, crdt.NewInode, *crdt.Plan) error) (ino crdt.Ino, err error) {
	parent, _, err := v.node(dir)
	if err != nil {
		return 0, err
	}
	err = v.change(r.Mount, func(c *change) error {
		if was, handle, ok, err := c.done(r); err != nil || ok {
			ino, *h = was, handle
			return err
		}
		i := crdt.NewInode{
			Ino: crdt.Ino(randomID()), Link: crdt.LinkID(randomID()), Kind: n.Kind, Target: n.Target,
			Rdev: n.Rdev, Mode: n.Mode & 0o7777, UID: n.UID, GID: n.GID, Time: crdt.TimeOf(c.now.UnixNano()),
		}
		ino = i.Ino
		p := c.plan()
		if err := p.Create(parent, name, i); err != nil {
			return err
		}
		if err := make(c, i, p); err != nil {
			return err
		}
		return c.setDone(r, ino, *h)
	})
	return ino, err
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
		p := c.plan()
		if err := p.Link(i, inos[1], name, crdt.LinkID(randomID())); err != nil {
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
		h := hold{dir: ohead, name: oname}
		if mode == crdt.RenameExchange {
			h = hold{}
		}
		if err := c.rename(p.Writes, done, h); err != nil {
			return err
		}
		return c.setDone(r, done.Moved.Ino, 0)
	})
}

// rename applies a rename's writes. If what moved is not published, neither is
// the removal of what it replaced: it leaves with the publication, as it is
// known now.
func (c *change) rename(writes []crdt.Write, done crdt.Renamed, h hold) error {
	moved, err := c.Inode(done.Moved.Ino)
	if err != nil {
		return err
	}
	if moved.Unpublished() && done.HadTarget {
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
			if w.Kind == crdt.WriteRemove && !i.Unpublished() {
				replaced = append(replaced, w)
			} else {
				now = append(now, w)
			}
		}
		writes = now
		held := crdt.AppendOp(nil, &crdt.Op{Writes: replaced})
		if err := c.t.set(c.keys.key('r', uint64(moved.Ino)), held); err != nil {
			return err
		}
	}
	return c.commitSplit(writes, h)
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

// SetAttr changes attributes. What is as it should be already is no change.
func (v *Volume) SetAttr(r Request, node NodeID, s SetAttr) (Attr, error) {
	ino, _, err := v.node(node)
	if err != nil {
		return Attr{}, err
	}
	if s.Size != nil {
		if err := v.truncate(r, node, *s.Size, s.Handle); err != nil {
			return Attr{}, err
		}
	}
	if s.Mode != nil || s.UID != nil || s.GID != nil {
		if err := v.change(r.Mount, func(c *change) error { return c.setPermissions(ino, s) }); err != nil {
			return Attr{}, err
		}
	}
	if s.Mtime != nil {
		if err := v.setMtime(r, node, ino, *s.Mtime); err != nil {
			return Attr{}, err
		}
	}
	if s.Atime != nil {
		v.atimes.Store(ino, *s.Atime)
	}
	return v.Attr(node)
}

func (c *change) setPermissions(ino crdt.Ino, s SetAttr) error {
	i, err := c.Inode(ino)
	if err != nil {
		return err
	}
	if i == nil {
		return ErrStale
	}
	var writes []crdt.Write
	if s.Mode != nil && *s.Mode&0o7777 != i.Mode.Value {
		writes = append(writes, crdt.Write{Kind: crdt.WriteMode, Ino: ino, Mode: *s.Mode & 0o7777})
	}
	owner := i.Owner.Value
	if s.UID != nil {
		owner.UID = *s.UID
	}
	if s.GID != nil {
		owner.GID = *s.GID
	}
	if owner != i.Owner.Value {
		writes = append(writes, crdt.Write{Kind: crdt.WriteOwner, Ino: ino, UID: owner.UID, GID: owner.GID})
	}
	return c.commitSplit(writes, hold{})
}

// killSUID clears setuid, and setgid where the group may execute.
func (v *Volume) killSUID(node NodeID) error {
	a, err := v.Attr(node)
	if err != nil {
		return err
	}
	mode := a.Mode &^ unix.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		mode &^= unix.S_ISGID
	}
	if mode == a.Mode {
		return nil
	}
	_, err = v.SetAttr(Request{}, node, SetAttr{Mode: &mode})
	return err
}

// truncate sets the size through the file's draft. Without an open handle it
// is a version of its own.
func (v *Volume) truncate(r Request, node NodeID, size int64, h Handle) error {
	if size < 0 {
		return crdt.ErrInvalid
	}
	if err := v.db.room(); err != nil {
		return err
	}
	own, err := v.OpenWrite(Request{Mount: r.Mount}, node, false)
	if err != nil {
		return err
	}
	d := v.draftOf(node)
	d.mu.Lock()
	if a, aerr := v.Attr(node); aerr != nil {
		err = aerr
	} else if a.Size != size || h != 0 && size == 0 {
		err = v.truncateDraft(d, size, h != 0)
	}
	d.mu.Unlock()
	return errors.Join(err, v.Release(Request{}, node, own))
}

// setMtime sets a file's mtime in its draft, if it has one to publish, else as
// a version of the same bytes; of what is no file, as an attribute.
func (v *Volume) setMtime(r Request, node NodeID, ino crdt.Ino, t crdt.Time) error {
	if d := v.draftOf(node); d != nil {
		d.io.Lock()
		if d.shown() {
			defer d.io.Unlock()
			defer d.note()
			d.rec.Mtime, d.rec.MtimeSet = t, true
			return v.saveDraft(d)
		}
		d.io.Unlock()
	}
	return v.change(r.Mount, func(c *change) error {
		i, err := c.Inode(ino)
		if err != nil {
			return err
		}
		if i == nil {
			return ErrStale
		}
		if i.Kind != crdt.KindFile {
			if i.Mtime.Value == t && i.Kind != crdt.KindDir || i.Kind == crdt.KindDir && i.DirMtime() == t {
				return nil
			}
			return c.commitSplit([]crdt.Write{{Kind: crdt.WriteTime, Ino: ino, Time: t}}, hold{})
		}
		return c.retime(i, t)
	})
}

// retime publishes a file's bytes again with another mtime.
func (c *change) retime(i *crdt.Inode, t crdt.Time) error {
	shown := i.Shown()
	if shown == nil {
		return nil // unlinked: nobody will see it
	}
	c.release = append(c.release, hold{mtime: i.Ino})
	if shown.Mtime == t {
		return nil
	}
	content := shown.Content
	content.Mtime = t
	if !content.Manifest {
		var err error
		if content.Inline, err = c.inline(i.Ino, shown.ID); err != nil {
			return err
		}
	}
	p := c.plan()
	if err := p.Content(i, shown.Via, shown.ID, content); err != nil {
		return err
	}
	return c.commit(p.Writes, hold{})
}

// XattrMode is what SetXattr asks of the attribute before.
type XattrMode uint8

// The modes of SetXattr.
const (
	XattrSet XattrMode = iota
	XattrCreate
	XattrReplace
)

// MaxXattrs bounds the extended attributes of one inode, in bytes of names and
// values: they are part of its record.
const MaxXattrs = 256 << 10

// SetXattr sets an extended attribute. ErrNoAttr, crdt.ErrExist by mode;
// ErrNoSpace beyond MaxXattrs.
func (v *Volume) SetXattr(r Request, node NodeID, name string, value []byte, mode XattrMode) error {
	return v.changeXattr(r, node, func(i *crdt.Inode) (*crdt.Write, error) {
		old, ok := i.Xattr(name)
		switch {
		case ok && mode == XattrCreate:
			return nil, crdt.ErrExist
		case !ok && mode == XattrReplace:
			return nil, ErrNoAttr
		case ok && string(old) == string(value):
			return nil, nil
		}
		size := len(name) + len(value)
		for _, x := range i.Xattrs {
			size += len(x.Name) + len(x.Value)
		}
		if size > MaxXattrs {
			return nil, ErrNoSpace
		}
		return &crdt.Write{Kind: crdt.WriteXattr, Ino: i.Ino, Name: name, Value: append([]byte{}, value...)}, nil
	})
}

// RemoveXattr removes an extended attribute. ErrNoAttr if it is not set.
func (v *Volume) RemoveXattr(r Request, node NodeID, name string) error {
	return v.changeXattr(r, node, func(i *crdt.Inode) (*crdt.Write, error) {
		if _, ok := i.Xattr(name); !ok {
			return nil, ErrNoAttr
		}
		return &crdt.Write{Kind: crdt.WriteXattr, Ino: i.Ino, Name: name, Gone: true}, nil
	})
}

func (v *Volume) changeXattr(r Request, node NodeID, plan func(*crdt.Inode) (*crdt.Write, error)) error {
	ino, _, err := v.node(node)
	if err != nil {
		return err
	}
	return v.change(r.Mount, func(c *change) error {
		if _, _, ok, err := c.done(r); err != nil || ok {
			return err
		}
		i, err := c.Inode(ino)
		if err != nil {
			return err
		}
		if i == nil {
			return ErrStale
		}
		w, err := plan(i)
		if err != nil || w == nil {
			return err
		}
		if err := c.commitSplit([]crdt.Write{*w}, hold{}); err != nil {
			return err
		}
		return c.setDone(r, ino, 0)
	})
}
