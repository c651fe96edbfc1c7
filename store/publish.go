package store

import (
	"errors"
	"os"
	"slices"

	"github.com/synapsefs/synapsefs/internal/mutation"
	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// publish makes a version of what the draft holds. Finally, it removes the
// draft and the handle that closed it, in the same transaction; else the draft
// goes on from the version published. The caller holds d.mu.
func (v *Volume) publish(d *draft, final bool, handle ...Handle) error {
	d.io.Lock()
	defer d.io.Unlock()
	defer d.note()
	if final { // first: who has it mapped may write it for the first time
		if err := d.quiet(); err != nil {
			return err
		}
	}
	if err := d.lookDirect(); err != nil {
		return diskError(err)
	}
	if !d.rec.Created && !d.rec.Dirty {
		if !final {
			if d.directly.Load() != nil { // nobody will say when it is written
				v.publishLater(d)
			}
			return nil
		}
		return v.dropDraft(d, handle)
	}
	if final {
		v.mu.Lock()
		err := v.read(func(t *tree) error { return v.letGoLocked(t, d) })
		v.mu.Unlock()
		if err != nil {
			return err // else it would be hashed for nothing
		}
	}
	was := d.rec
	c, err := v.draftContent(d, final)
	if err != nil {
		return diskError(err)
	}
	by := MountID(d.by.Load())
	if v.Node(v.inoOf(d)) != d.node {
		by = 0 // the mount shows another version by now
	}
	err = v.change(by, func(ch *change) error {
		if final {
			if err := v.letGoLocked(ch.tree, d); err != nil {
				return err
			}
		}
		done, err := ch.publish(d, c, final)
		if err != nil {
			return err
		}
		if final {
			ch.after = append(ch.after, func() {
				v.unborn(d)
				d.flushed.Store(false)
			})
			return ch.forgetDraft(d, handle)
		}
		d.rec.Dirty, d.rec.Synced = !done, false
		return v.putDraft(ch.t, d)
	})
	if err != nil {
		d.rec = was
		return errors.Join(err, v.reopenDraft(d, final))
	}
	if final {
		return v.removeDraftFile(d)
	}
	if c != nil && c.Manifest {
		d.published.Store(&c.Hash)
	}
	if dd := d.directly.Load(); dd != nil {
		dd.Recorded()
		v.publishLater(d)
	}
	return nil
}

// errKept says that a draft is not to be finished yet.
var errKept = errors.New("a kernel knows the file, which has no name")

// letGoLocked returns errKept if a draft has no name any more and some mount's
// kernel knows the file: others may have it open. Volume.LetGo will end it.
func (v *Volume) letGoLocked(t *tree, d *draft) error {
	ino := v.inoOf(d)
	i, err := t.Inode(ino)
	if err != nil || v.orphaned(d, ino, i) {
		return err
	}
	if _, gone, err := v.draftLinks(t, d, i); err != nil || !gone {
		return err
	}
	d.kept.Store(true) // first: a kernel that forgets it from now on says so
	if v.knownLocked(d.node) {
		return errKept
	}
	d.kept.Store(false)
	return nil
}

// draftLinks returns the names of a draft's file. gone says that it has none
// because of what was done here: a close does not bring it back.
func (v *Volume) draftLinks(t *tree, d *draft, i *crdt.Inode) (links []crdt.LinkID, gone bool, err error) {
	if i == nil {
		return nil, true, nil
	}
	if links, err = t.links(i); err != nil || len(links) > 0 {
		return links, false, err
	}
	live, err := crdt.LiveLinks(t, i) // a file that is not published has taken their names
	return nil, d.rec.Created || len(live) > 0 || d.rec.Unlinked || i.RemovedBy(v.replica) && !mutation.Off(mutation.DroppedDrafts), err
}

// reopenDraft opens a draft's file again after its final publication, which
// closed it, could not be recorded.
func (v *Volume) reopenDraft(d *draft, closed bool) error {
	if !closed || d.file == nil || d.directly.Load() != nil {
		return nil
	}
	if err := d.file.Close(); err != nil {
		return err
	}
	return v.openDraftFile(d)
}

// openDraftFile opens the file of a draft that has a record. One that was written
// past us may still be mapped, though nobody has it open any more.
func (v *Volume) openDraftFile(d *draft) error {
	if d.rec.Direct != nil {
		dd, err := v.db.content.ResumeDraft(d.name, nil, nil)
		if err != nil {
			return err
		}
		v.setDirect(d, dd)
		return v.markResumed(d, dd, true)
	}
	var base content.Base
	if d.rec.Manifest != nil {
		m, err := v.db.manifest(*d.rec.Manifest)
		if err != nil {
			return err
		}
		base.Manifest = m
	}
	small, ok, err := v.db.content.OpenSmallDraft(d.name)
	if ok {
		d.file = small
	}
	if ok || err != nil {
		return err
	}
	f, err := v.db.content.OpenDraft(d.name, base, d.rec.BaseLimit)
	if errors.Is(err, os.ErrNotExist) && d.rec.Created {
		return nil // created and never written
	}
	if err != nil {
		return err
	}
	d.file = f
	return nil
}

// draftContent turns the draft's bytes into content.
func (v *Volume) draftContent(d *draft, final bool) (*crdt.Content, error) {
	if d.file == nil {
		return &crdt.Content{Hash: emptyHash, Mtime: d.time()}, nil
	}
	mtime := d.time() // first: it may be written past us
	p, err := d.file.Publish(final, v.db.opts.InlineLimit)
	if err != nil {
		return nil, err
	}
	return &crdt.Content{
		Size: p.Size, Mtime: mtime, Hash: p.Hash, Manifest: p.Manifest != nil, Inline: p.Inline,
	}, nil
}

// publish commits the version. done is false if nobody can see the file by a
// name any more: then there is none.
func (c *change) publish(d *draft, content *crdt.Content, final bool) (done bool, err error) {
	ino := c.v.inoOf(d)
	i, err := c.Inode(ino)
	if err != nil {
		return false, err
	}
	if c.v.orphaned(d, ino, i) {
		if !final || !d.rec.Dirty {
			return false, nil
		}
		return true, c.lostFile(d, *content)
	}
	links, gone, err := c.v.draftLinks(c.tree, d, i)
	if err == nil && i != nil {
		c.changedAt(d, i)
	}
	switch {
	case err != nil:
		return false, err
	case gone && d.rec.Created: // nobody else ever knew it
		return false, errors.Join(c.forgetAccess(d.rec.Ino), c.retract(d.rec.Ino))
	case gone:
		return false, nil
	case d.rec.Created:
		return true, c.quietly(d.dir, func() error { return c.publishNew(i, content) })
	}
	return true, c.publishVersion(d, i, links, content)
}

// publishNew commits an inode that peers do not know yet, with all its links.
func (c *change) publishNew(i *crdt.Inode, content *crdt.Content) error {
	replaced, err := c.replaced(i.Ino)
	if err != nil {
		return err
	}
	if replaced, err = c.stillReplaced(i.Ino, replaced); err != nil {
		return err
	}
	p := c.plan()
	if err := p.Publish(i, content, replaced); err != nil {
		return err
	}
	if err := c.keepTimes(p, i); err != nil {
		return err
	}
	if err := c.retract(i.Ino); err != nil {
		return err
	}
	return c.commit(p.Writes, hold{})
}

// quietly publishes what was made in a directory, and drops the directory from
// what the viewers hear if its times are those it has shown since: a kernel that
// is told asks for them again.
func (c *change) quietly(dir crdt.Ino, publish func() error) error {
	b := c.v.birthIn(dir)
	before, err := c.dirTimes(dir, b)
	if err != nil {
		return err
	}
	if err := publish(); err != nil {
		return err
	}
	if b.n == 1 { // it ends with this draft
		b = birth{}
	}
	after, err := c.dirTimes(dir, b)
	if err != nil || after != before {
		return err
	}
	for _, e := range c.effects {
		e.Inodes = slices.DeleteFunc(e.Inodes, func(i crdt.InodeChange) bool { return i.Ino == dir })
	}
	return nil
}

// dirTimes are those of a directory, zero if it is not known.
func (c *change) dirTimes(dir crdt.Ino, b birth) (dirTimes, error) {
	i, err := c.Inode(dir)
	if err != nil || i == nil {
		return dirTimes{}, err
	}
	return dirTimesOf(i, b), nil
}

// keepTimes has the directories of what is published show the times that they
// have shown: for the user the name came with the creation, not with this
// publication. What has changed there since does not go back, and a time that was
// set after the creation is repeated: what tar set last must stand.
func (c *change) keepTimes(p *crdt.Plan, i *crdt.Inode) error {
	for n := range p.Writes {
		w := &p.Writes[n]
		if w.Kind != crdt.WritePlace {
			continue
		}
		dir, err := c.Inode(w.Parent)
		if err != nil {
			return err
		}
		if dir == nil {
			continue
		}
		for _, shown := range []crdt.Time{dir.Named.Value, dir.Changed.Value, c.v.birthIn(dir.Ino).at} {
			if w.Time.Before(shown) {
				w.Time = shown
			}
		}
		if dir.TimeSetAfter(i.Mtime.Value) {
			p.Writes = append(p.Writes, crdt.Write{Kind: crdt.WriteTime, Ino: dir.Ino, Time: dir.Mtime.Value})
		}
	}
	return nil
}

// publishVersion commits a further version, the draft's next base.
func (c *change) publishVersion(d *draft, i *crdt.Inode, links []crdt.LinkID, content *crdt.Content) error {
	h := hold{}
	if d.rec.Truncated && !d.rec.MtimeSet {
		h.mtime = i.Ino
	}
	via := crdt.LinkID(0)
	switch {
	case len(links) > 0:
		via = links[0]
	case len(i.Links) > 0:
		via = i.Links[0].ID
	}
	base := d.rec.Base
	if c.v.became != nil {
		base = c.v.became.Version(base)
	}
	if shown := i.Shown(); shown != nil && mutation.Off(mutation.Base) {
		base = shown.ID
	}
	p := c.plan()
	if err := p.Content(i, via, base, *content); err != nil {
		return err
	}
	if err := c.commit(p.Writes, h); err != nil {
		return err
	}
	last := c.queued[len(c.queued)-1].op
	for n, w := range last.Writes {
		if w.Kind == crdt.WriteContent && w.Ino == i.Ino {
			d.rec.Base = last.ID(n)
		}
	}
	return c.revealOther(i.Ino, d.rec.Base)
}

// revealOther has a version shown that was merged while the draft overshadowed
// it and that is newer than the one just published.
func (c *change) revealOther(ino crdt.Ino, own crdt.VersionID) error {
	i, err := c.Inode(ino)
	if err != nil {
		return err
	}
	shown := i.Shown()
	if shown == nil || shown.ID == own {
		return nil
	}
	c.by = 0
	c.effects = append(c.effects, &crdt.Effects{Inodes: []crdt.InodeChange{{Ino: ino, Content: true, Before: i.Version(own)}}})
	return nil
}

func (c *change) retract(ino crdt.Ino) error {
	e, err := crdt.Retract(c.tree, ino)
	if err == nil {
		c.effects = append(c.effects, e)
	}
	return err
}

func (c *change) forgetDraft(d *draft, handle []Handle) error {
	for _, h := range handle {
		if err := c.t.del(c.keys.key('w', uint64(h))); err != nil {
			return err
		}
	}
	if d.rec.Created {
		if err := c.t.del(c.keys.key('r', uint64(d.node))); err != nil {
			return err
		}
	}
	return c.t.del(c.keys.key('d', uint64(d.node)))
}

// dropDraft forgets a draft without publishing it.
func (v *Volume) dropDraft(d *draft, handle []Handle) error {
	err := v.change(0, func(c *change) error { return c.forgetDraft(d, handle) })
	if err != nil {
		return err
	}
	return v.removeDraftFile(d)
}

// removeDraftFile leaves the draft as new, for those who opened it again
// meanwhile. Bytes that an fsync has promised go after what took their place
// is on the disk.
func (v *Volume) removeDraftFile(d *draft) error {
	synced := d.rec.Synced
	d.rec, d.mtime, d.ctime = draftRecord{Ino: d.rec.Ino}, crdt.Time{}, crdt.Time{}
	if d.file == nil {
		return nil
	}
	if synced {
		if err := v.db.syncs.wait(); err != nil {
			err = errors.Join(err, d.file.Close())
			d.file = nil
			return err
		}
	}
	var err error
	if dd := d.directly.Load(); dd != nil {
		err = v.dropDirect(d, dd)
	} else {
		err = d.file.Remove()
		v.db.backingMu.Lock()
		d.began = false
		v.db.backingMu.Unlock()
	}
	d.file = nil
	return err
}
