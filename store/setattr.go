package store

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// SetAttr changes attributes. What is as it should be already is no change.
func (v *Volume) SetAttr(r Request, node NodeID, s SetAttr) (Attr, error) {
	ino, _, err := v.node(node)
	if err != nil {
		return Attr{}, err
	}
	again := false
	if err := v.read(func(t *tree) (err error) {
		_, _, again, err = v.done(t, r)
		return err
	}); err != nil {
		return Attr{}, err
	}
	if again {
		return v.Attr(node)
	}
	if err := v.setAttr(r, node, ino, s); err != nil {
		return Attr{}, err
	}
	a, err := v.Attr(node)
	if err != nil || s.Atime == nil || a.Atime == *s.Atime {
		return a, err
	}
	if err := v.setAtime(ino, *s.Atime); err != nil {
		return Attr{}, err
	}
	return v.Attr(node)
}

// setAttr does the parts of the change, and records the request with the last.
func (v *Volume) setAttr(r Request, node NodeID, ino crdt.Ino, s SetAttr) error {
	var parts []func(Request) error
	if s.Size != nil {
		parts = append(parts, func(r Request) error { return v.truncate(r, node, ino, *s.Size, s.Handle) })
	}
	if s.Mode != nil || s.UID != nil || s.GID != nil {
		parts = append(parts, func(r Request) error {
			return v.change(r.Mount, func(c *change) error { return c.setPermissions(r, ino, s) })
		})
	}
	if s.Mtime != nil {
		parts = append(parts, func(r Request) error { return v.setMtime(r, node, ino, *s.Mtime) })
	}
	for n, part := range parts {
		with := r
		if n < len(parts)-1 {
			with = Request{Mount: r.Mount}
		}
		if err := part(with); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) setPermissions(r Request, ino crdt.Ino, s SetAttr) error {
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
	if err := c.commitSplit(writes, hold{}); err != nil {
		return err
	}
	return c.setDone(r, ino, 0)
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
func (v *Volume) truncate(r Request, node NodeID, ino crdt.Ino, size int64, h Handle) error {
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
	if err := errors.Join(err, v.Release(Request{}, node, own)); err != nil || r.Epoch == 0 {
		return err
	}
	return v.db.kv.update(func(t txn) error { return newTree(t, &v.keys, nil).setDone(r, ino, 0) })
}

// setMtime sets a file's mtime in its draft, if it has one to publish, else as
// a version of the same bytes; of what is no file, as an attribute.
func (v *Volume) setMtime(r Request, node NodeID, ino crdt.Ino, t crdt.Time) error {
	if d := v.draftOf(node); d != nil {
		d.io.Lock()
		dd := d.directly.Load()
		if d.shown() || dd != nil {
			defer d.io.Unlock()
			defer d.note()
			if dd != nil {
				if err := dd.SetMtime(t); err != nil {
					return err
				}
				d.rec.Dirty = true
				if d.rec.Direct != nil { // it is as closed as it was
					at, err := dd.FileMtime()
					if err != nil {
						return err
					}
					d.rec.Direct = &at
				}
			}
			d.rec.Mtime, d.rec.MtimeSet = t, true
			d.ctime = crdt.TimeOf(v.db.opts.Now().UnixNano())
			return v.db.kv.update(func(tx txn) error {
				if err := v.putDraft(tx, d); err != nil {
					return err
				}
				return newTree(tx, &v.keys, nil).setDone(r, ino, 0)
			})
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
		if err := c.setDone(r, ino, 0); err != nil {
			return err
		}
		switch {
		case i.Kind == crdt.KindFile:
			return c.retime(i, t)
		case i.Kind == crdt.KindDir && i.DirMtime() == t, i.Kind != crdt.KindDir && i.Mtime.Value == t:
			return nil
		}
		return c.commitSplit([]crdt.Write{{Kind: crdt.WriteTime, Ino: ino, Time: t}}, hold{})
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

// changedAt has the publication's ctime be that of the last change, not of the
// close, which changes nothing: who compares ctimes would take the file for
// changed. It never goes back.
func (c *change) changedAt(d *draft, i *crdt.Inode) {
	if d.ctime == (crdt.Time{}) {
		return
	}
	at := d.ctime
	if at.Before(i.Changed.Value) {
		at = i.Changed.Value
	}
	c.wall = at.Sec*1e9 + int64(at.Nsec)
}
