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
			d.rec.Dir = d.dir
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
		return v.putHandle(c.t, h, writeHandle{d.node, r.Mount})
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
		if was, handle, ok, err := v.done(c.tree, r); err != nil || ok {
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
		if _, _, ok, err := v.done(c.tree, r); err != nil || ok {
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
		if _, _, ok, err := v.done(c.tree, r); err != nil || ok {
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
		if _, _, ok, err := v.done(c.tree, r); err != nil || ok {
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
		given := []givenName{{inos[1], nname, done.Moved.Ino}}
		if mode == crdt.RenameExchange {
			given = append(given, givenName{inos[0], oname, done.Replaced.Ino})
		}
		if err := c.rename(p.Writes, h, given); err != nil {
			return err
		}
		return c.setDone(r, done.Moved.Ino, 0)
	})
}

// A givenName is one that a rename gives to a file.
type givenName struct {
	dir  crdt.Ino
	name string
	to   crdt.Ino
}

// rename applies a rename's writes, so that peers are never without a name that
// it gives. If the file that gets one is not published, neither is the removal
// of what it replaces: it leaves with the publication, as it is known now. What
// is moved away from there, in exchange, is held for it. What lay hidden at a
// name that is given to nobody goes at once.
func (c *change) rename(writes []crdt.Write, h hold, given []givenName) error {
	for _, g := range given {
		i, err := c.Inode(g.to)
		if err != nil {
			return err
		}
		if !i.Unpublished() {
			continue
		}
		var waiting []crdt.Write
		if writes, waiting, err = c.replacing(writes, g, &h); err != nil {
			return err
		}
		if err := c.addReplaced(g.to, waiting); err != nil {
			return err
		}
	}
	return c.commitSplit(writes, h)
}

// replacing parts the removals of what peers have at a name from the other
// writes. If one of these moves what they have there, h is a hold for the name.
func (c *change) replacing(writes []crdt.Write, g givenName, h *hold) (others, removals []crdt.Write, err error) {
	head, err := c.Head(g.dir)
	if err != nil {
		return nil, nil, err
	}
	claims, err := crdt.ClaimsAt(c.tree, head, g.name)
	if err != nil {
		return nil, nil, err
	}
	for _, w := range writes {
		i, err := c.Inode(w.Ino)
		if err != nil {
			return nil, nil, err
		}
		published := !i.Unpublished() && slices.ContainsFunc(claims, func(t crdt.Claim) bool { return t.Ino == w.Ino && t.Link == w.Link })
		switch {
		case published && w.Kind == crdt.WriteRemove:
			removals = append(removals, w)
			continue
		case published && w.Kind == crdt.WritePlace:
			*h = hold{dir: head, name: g.name}
		}
		others = append(others, w)
	}
	return others, removals, nil
}

// addReplaced has removals wait for an inode's publication.
func (c *change) addReplaced(ino crdt.Ino, removals []crdt.Write) error {
	if len(removals) == 0 {
		return nil
	}
	before, err := c.replaced(ino)
	if err != nil {
		return err
	}
	return c.t.set(c.keys.key('r', uint64(ino)), crdt.AppendOp(nil, &crdt.Op{Writes: append(before, removals...)}))
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

// stillReplaced leaves out, of the removals that waited for an inode's
// publication, those of links whose name it does not take now: others have
// removed or moved them meanwhile, or another file that is not published has
// taken the name from it and removes them when it is.
func (c *change) stillReplaced(by crdt.Ino, removals []crdt.Write) (out []crdt.Write, err error) {
	for _, w := range removals {
		i, err := c.Inode(w.Ino)
		if err != nil {
			return nil, err
		}
		if i == nil {
			continue
		}
		place, ok := i.PlaceOf(w.Link)
		if !ok {
			continue
		}
		claims, err := crdt.ClaimsAt(c.tree, place.Parent, place.Name)
		if err != nil {
			return nil, err
		}
		live := slices.ContainsFunc(claims, func(t crdt.Claim) bool { return t.Link == w.Link })
		if live && slices.ContainsFunc(claims, func(t crdt.Claim) bool { return t.Ino == by }) {
			out = append(out, w)
		}
	}
	return out, nil
}
