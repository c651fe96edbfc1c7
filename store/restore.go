package store

import (
	"fmt"
	"slices"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// RestoreRecord brings what lost a conflict back, as a local change like any
// other, and takes the record off the list with it. A version of a file
// becomes its newest again, a hidden file replaces the one that shows, a place
// is moved to. With a path it is brought there instead, where nothing may
// stand. It returns the path.
func (v *Volume) RestoreRecord(id crdt.VersionID, to string) (path string, err error) {
	err = v.change(0, func(c *change) error {
		r, err := c.record(id)
		if err != nil {
			return err
		}
		if path = to; to == "" {
			path = r.Path
		}
		i, err := c.Inode(r.Ino)
		if err != nil {
			return err
		}
		switch {
		case r.What == crdt.RecordHidden && to == "":
			return c.surface(r, i)
		case r.What != crdt.RecordContent:
			return c.moveLink(r, i, path)
		}
		live, err := crdt.LiveLinks(c.tree, i)
		if err != nil {
			return err
		}
		if to != "" || len(live) == 0 {
			dismiss := crdt.Write{Kind: crdt.WriteDismiss, Ino: i.Ino, Base: []crdt.VersionID{id}}
			return c.remake(i, r.Version, path, dismiss)
		}
		return c.rewrite(i, r.Link, i, r.Version)
	})
	return path, err
}

// again is the content of an old version as that of a new one.
func (c *change) again(ino crdt.Ino, version *crdt.Version) (crdt.Content, error) {
	content := version.Content
	content.Mtime = crdt.TimeOf(c.now.UnixNano())
	if content.Manifest {
		_, have, err := c.v.db.hasContent(content.Hash)
		if err == nil && !have {
			err = fmt.Errorf("%w: version %v", ErrNoContent, version.ID)
		}
		return content, err
	}
	var err error
	content.Inline, err = c.oldBytes(ino, version)
	return content, err
}

// rewrite gives a file the content of a version, its own or another inode's,
// on top of what shows.
func (c *change) rewrite(i *crdt.Inode, via crdt.LinkID, from *crdt.Inode, version *crdt.Version) error {
	content, err := c.again(from.Ino, version)
	if err != nil {
		return err
	}
	p := c.plan()
	if err := p.Rewrite(i, via, version.ID, content); err != nil {
		return err
	}
	return c.commit(p.Writes, hold{})
}

// surface lets a hidden file replace the one that shows at its name.
func (c *change) surface(r Record, i *crdt.Inode) error {
	if err := c.finished(r.Dir, r.Name, r.Path); err != nil {
		return err
	}
	p := c.plan()
	if err := p.Surface(i, r.Link, r.Dir, r.Name); err != nil {
		return fmt.Errorf("restore %q: %w: name another path for it", r.Path, err)
	}
	return c.commit(p.Writes, hold{})
}

// finished refuses to replace a file at a name that is not published yet: peers
// know nothing of it, and no history would keep it.
func (c *change) finished(dir crdt.Ino, name, path string) error {
	claims, err := crdt.ClaimsAt(c.tree, dir, name)
	if err != nil {
		return err
	}
	for _, claim := range claims {
		if i, err := c.Inode(claim.Ino); err != nil {
			return err
		} else if i != nil && i.Unpublished() {
			return fmt.Errorf("restore %q: %w and is still being written: wait, or name another path", path, crdt.ErrExist)
		}
	}
	return nil
}

// moveLink moves a link, hidden or not, to a free path.
func (c *change) moveLink(r Record, i *crdt.Inode, path string) error {
	dir, name, err := c.target(path)
	if err != nil {
		return err
	}
	p := c.plan()
	if err := p.Move(i, r.Link, dir, name); err != nil {
		return fmt.Errorf("restore to %q: %w", path, err)
	}
	return c.commit(p.Writes, hold{})
}

// remake makes what an inode was, with the content of a version, as a new
// inode at a free path.
func (c *change) remake(i *crdt.Inode, version *crdt.Version, path string, also ...crdt.Write) error {
	dir, name, err := c.target(path)
	if err != nil {
		return err
	}
	n := crdt.NewInode{
		Ino: crdt.Ino(c.v.db.randomID()), Link: crdt.LinkID(c.v.db.randomID()), Kind: i.Kind, Target: i.Target, Rdev: i.Rdev,
		Mode: i.Mode.Value, UID: i.Owner.Value.UID, GID: i.Owner.Value.GID, Time: crdt.TimeOf(c.now.UnixNano()),
	}
	p := c.plan()
	if err := p.Create(dir, name, n); err != nil {
		return fmt.Errorf("restore to %q: %w", path, err)
	}
	for _, x := range i.Xattrs {
		if !x.Gone {
			p.Writes = append(p.Writes, crdt.Write{Kind: crdt.WriteXattr, Ino: n.Ino, Name: x.Name, Value: x.Value})
		}
	}
	if version != nil {
		content, err := c.again(i.Ino, version)
		if err != nil {
			return err
		}
		p.Writes = append(p.Writes, crdt.Write{Kind: crdt.WriteContent, Ino: n.Ino, Link: n.Link, Content: content})
	}
	p.Writes = append(p.Writes, also...)
	return c.commit(p.Writes, hold{})
}

// target returns the directory and name of a path, and makes the directories
// on the way again that are gone.
func (c *change) target(path string) (dir crdt.Ino, name string, err error) {
	parts := SplitPath(path)
	if len(parts) == 0 {
		return 0, "", crdt.ErrExist
	}
	dir, was := crdt.RootIno, crdt.RootIno
	for _, name := range parts[:len(parts)-1] {
		if was != 0 { // the one that was, for its attributes
			if was, err = c.dirAt(was, name); err != nil {
				was = 0
			}
		}
		if dir, err = c.makeDir(dir, name, was); err != nil {
			return 0, "", fmt.Errorf("restore to %q: directory %q: %w", path, name, err)
		}
	}
	return dir, parts[len(parts)-1], nil
}

// makeDir returns the directory at a name, made like another if there is none.
func (c *change) makeDir(dir crdt.Ino, name string, like crdt.Ino) (crdt.Ino, error) {
	claim, ok, err := crdt.Lookup(c.tree, dir, name)
	switch {
	case err != nil:
		return 0, err
	case ok && !claim.Dir():
		return 0, crdt.ErrNotDir
	case ok:
		return claim.Ino, nil
	}
	n := crdt.NewInode{
		Ino: crdt.Ino(c.v.db.randomID()), Link: crdt.LinkID(c.v.db.randomID()), Kind: crdt.KindDir, Mode: 0o755,
		Time: crdt.TimeOf(c.now.UnixNano()),
	}
	var xattrs []crdt.Xattr
	if i, err := c.Inode(like); err != nil {
		return 0, err
	} else if i != nil {
		n.Mode, n.UID, n.GID, xattrs = i.Mode.Value, i.Owner.Value.UID, i.Owner.Value.GID, i.Xattrs
	}
	p := c.plan()
	if err := p.Create(dir, name, n); err != nil {
		return 0, err
	}
	for _, x := range xattrs {
		if !x.Gone {
			p.Writes = append(p.Writes, crdt.Write{Kind: crdt.WriteXattr, Ino: n.Ino, Name: x.Name, Value: x.Value})
		}
	}
	return n.Ino, c.commit(p.Writes, hold{})
}

// RestoreVersion makes an old version of a path the newest again: as the next
// version of the file that stands there, or as a file made anew. With another
// path it is made anew there.
func (v *Volume) RestoreVersion(path string, id crdt.VersionID, to string) error {
	return v.change(0, func(c *change) error {
		dir, name, err := c.at(path)
		if err != nil {
			return err
		}
		all, err := v.history(c.tree, dir, name)
		if err != nil {
			return err
		}
		n := slices.IndexFunc(all, func(p Past) bool { return p.ID == id })
		if n < 0 {
			return fmt.Errorf("%w: %v of %q", ErrNoVersion, id, path)
		}
		i, err := c.Inode(all[n].Ino)
		if err != nil {
			return err
		}
		if to != "" {
			return c.remake(i, all[n].Version, to)
		}
		shown, ok, err := crdt.Lookup(c.tree, dir, name)
		if err != nil {
			return err
		}
		if !ok {
			return c.remake(i, all[n].Version, path)
		}
		if all[n].Current {
			return nil
		}
		if shown.Kind != crdt.KindFile || all[n].Version == nil {
			return fmt.Errorf("restore %q: %w: name another path for it", path, crdt.ErrExist)
		}
		if err := c.finished(dir, name, path); err != nil {
			return err
		}
		over, err := c.Inode(shown.Ino)
		if err != nil {
			return err
		}
		if shown.Kind != crdt.KindFile || all[n].Version == nil || over.Unpublished() {
			return fmt.Errorf("restore %q: %w: name another path for it", path, crdt.ErrExist)
		}
		return c.rewrite(over, shown.Link, i, all[n].Version)
	})
}

// RestoreTree makes a deleted directory anew, with what was deleted in it up
// to the given time before it was itself. Names that stand by now are left as
// they are. It returns how many files and directories it made.
func (v *Volume) RestoreTree(path, to string, since time.Duration) (n int, err error) {
	var lost []burial
	if err := v.read(func(t *tree) error {
		dir, name, err := t.at(path)
		if err != nil {
			return err
		}
		dead, err := t.gravesIn(dir, name)
		if err != nil {
			return err
		}
		dead = slices.DeleteFunc(dead, func(g grave) bool { return g.Kind != crdt.KindDir || g.inode == nil })
		if len(dead) == 0 {
			return fmt.Errorf("%w: no directory was deleted there", ErrNoVersion)
		}
		if to == "" {
			to = path
		}
		first := int64(dead[0].at.Stamp) - int64(since)
		for _, g := range dead {
			if int64(g.at.Stamp) >= first {
				if lost, err = t.unearth(g, to, first, lost); err != nil {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		return 0, err
	}
	for _, b := range lost {
		made := false
		if err := v.change(0, func(c *change) (err error) {
			made, err = c.rebury(b)
			return err
		}); err != nil {
			return n, err
		}
		if made {
			n++
		}
	}
	return n, nil
}

// burial is something deleted, and where it is to stand again.
type burial struct {
	ino  crdt.Ino
	path string
}

// unearth appends a dead directory and what died in it since.
func (t *tree) unearth(g grave, path string, since int64, out []burial) ([]burial, error) {
	out = append(out, burial{g.Ino, path})
	if g.Kind != crdt.KindDir {
		return out, nil
	}
	dead, err := t.deadNames(g.Ino)
	if err != nil {
		return nil, err
	}
	for _, child := range dead {
		if int64(child.at.Stamp) < since {
			continue
		}
		if out, err = t.unearth(child, path+"/"+child.Name, since, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// rebury makes one deleted thing again, unless something stands there.
func (c *change) rebury(b burial) (made bool, err error) {
	i, err := c.Inode(b.ino)
	if err != nil || i == nil {
		return false, err
	}
	dir, name, err := c.target(b.path)
	if err != nil {
		return false, err
	}
	if _, ok, err := crdt.Lookup(c.tree, dir, name); err != nil || ok {
		return false, err
	}
	if i.Kind == crdt.KindDir {
		_, err = c.makeDir(dir, name, i.Ino)
		return err == nil, err
	}
	return true, c.remake(i, i.Latest(), b.path)
}
