package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// recoverDrafts publishes, after a restart, the drafts that were closed after
// their last write, or synced (P8). Those that were not are kept aside as
// unfinished: the last version stands. After an unclean boot only what was
// synced is known to be whole.
func (v *Volume) recoverDrafts(unclean bool) error {
	drafts, err := v.draftRecords()
	if err != nil {
		return err
	}
	held := v.db.content.LeftHeld(v.id)
	open, err := v.resumeHandles()
	if err != nil {
		return err
	}
	if len(v.awaited) > 0 {
		err = v.loadNodes()
	} else {
		err = v.recoverNodes(drafts)
	}
	if err == nil {
		err = v.resumeHeld(held)
	}
	if err != nil {
		return err
	}
	if err := v.dropLeftDrafts(drafts); err != nil {
		return err
	}
	// What was not closed gives its names back first; then new files take
	// theirs, with what stood there as they knew it.
	var closed []*draft
	if err := v.resumeDrafts(drafts, open); err != nil {
		return err
	}
	for _, node := range slices.Sorted(maps.Keys(drafts)) {
		rec := drafts[node]
		if len(open.handles[node]) > 0 {
			continue
		}
		var d *draft
		if v.isHeld(node) && !rec.Abandoned {
			d, err = v.resumeDraft(node, rec, true)
		} else {
			closed := len(v.awaited) > 0 && !open.lost[node] // by all that had it open
			d, err = v.recoverDraft(node, rec, closed, unclean)
		}
		if err != nil {
			return fmt.Errorf("recover draft of inode %d: %w", rec.Ino, err)
		}
		switch {
		case d != nil && rec.Created:
			closed = slices.Insert(closed, 0, d)
		case d != nil:
			closed = append(closed, d)
		}
	}
	for _, d := range closed {
		if err := v.finishReleased(d); err != nil {
			return fmt.Errorf("publish recovered draft of inode %d: %w", d.rec.Ino, err)
		}
	}
	if len(v.awaited) > 0 {
		return nil
	}
	clear(v.nodes)
	return v.clearNodes()
}

// recoverNodes finds what the nodes of drafts mean: files that were made again
// have other numbers. Those of an attempt to begin anew that was broken off name
// inodes that are not known.
func (v *Volume) recoverNodes(drafts map[NodeID]draftRecord) error {
	return v.read(func(t *tree) error {
		for node := range drafts {
			var r nodeRecord
			ok, err := getJSON(t.t, v.keys.key('n', uint64(node)), &r)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			if i, err := t.Inode(r.Ino); err != nil {
				return err
			} else if i != nil {
				v.nodes[node] = &r
			}
		}
		return nil
	})
}

// dropLeftDrafts removes files of drafts that had no record yet, or none any
// more, when the daemon ended.
func (v *Volume) dropLeftDrafts(drafts map[NodeID]draftRecord) error {
	names, err := v.db.content.Drafts()
	if err != nil {
		return err
	}
	known := make(map[string]bool, len(drafts))
	for node := range drafts {
		known[v.draftName(node)] = true
	}
	for node := range v.backings {
		known[v.draftName(node)] = true
	}
	prefix := v.id.String() + "-"
	for _, name := range names {
		if strings.HasPrefix(name, prefix) && !known[name] {
			if err := v.db.content.RemoveDraft(name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *Volume) draftRecords() (map[NodeID]draftRecord, error) {
	drafts := map[NodeID]draftRecord{}
	err := v.db.kv.view(func(t txn) error {
		return t.scan(v.keys.key('d'), nil, func(key, value []byte) (bool, error) {
			var r draftRecord
			if err := json.Unmarshal(value, &r); err != nil {
				return false, fmt.Errorf("%w: draft record %x: %w", ErrDamaged, key, err)
			}
			drafts[NodeID(v.keys.tail(key, 0))] = r
			return true, nil
		})
	})
	return drafts, err
}

// removeDrafts removes the bytes of all drafts of a volume that is deleted.
func (v *Volume) removeDrafts() error {
	drafts, err := v.draftRecords()
	for node := range drafts {
		err = errors.Join(err, v.removeDraftBytes(v.draftName(node)))
	}
	return err
}

// removeDraftBytes removes what there is of a draft that is not open.
func (v *Volume) removeDraftBytes(name string) error {
	small, ok, err := v.db.content.OpenSmallDraft(name)
	if ok {
		err = small.Remove()
	}
	return errors.Join(err, v.db.content.RemoveDraft(name))
}

// recoverDraft returns a draft that was synced, or closed after the last write;
// another one is abandoned. closed says that nobody has it open, whatever the
// record tells of flushes: what was mapped may be written after the last of them.
func (v *Volume) recoverDraft(node NodeID, rec draftRecord, closed, unclean bool) (*draft, error) {
	d := &draft{node: node, name: v.draftName(node), rec: rec}
	d.mtime = rec.Mtime
	switch {
	case rec.Abandoned:
		v.unfinished++
		return nil, nil
	case unclean && !rec.Synced:
		return nil, v.abandon(d)
	}
	if err := v.openDraftFile(d); err != nil {
		return nil, err
	}
	if small, ok := d.file.(*content.SmallDraft); ok && small.Closed() != nil {
		d.mtime, d.rec.Flushed = *small.Closed(), true
	}
	if d.rec.Flushed && d.rec.Direct != nil {
		at, err := v.db.content.DraftMtime(d.name)
		if err != nil {
			return nil, err
		}
		if d.rec.Flushed = at == *d.rec.Direct; !d.rec.Flushed && !d.rec.MtimeSet {
			d.mtime = at
		}
	}
	d.rec.Flushed = d.rec.Flushed || closed
	if d.rec.Flushed && d.mtime == (crdt.Time{}) {
		d.mtime = v.lastWrite(d)
	}
	if d.rec.Flushed || d.rec.Synced {
		return d, nil
	}
	if d.file != nil {
		if err := d.file.Close(); err != nil {
			return nil, err
		}
	}
	return nil, v.abandon(d)
}

// abandon keeps the bytes of a draft that was not closed, and takes it out of
// the view.
func (v *Volume) abandon(d *draft) error {
	if !d.rec.Created && !d.rec.Dirty {
		return v.dropDraft(d, nil)
	}
	named := true
	err := v.change(0, func(c *change) error {
		if d.rec.Created {
			i, err := c.Inode(d.rec.Ino)
			if err != nil {
				return err
			}
			named = i == nil || len(i.Links) > 0
			if err := c.retract(d.rec.Ino); err != nil {
				return err
			}
		}
		if !named { // made by O_TMPFILE: it was to go with its writer
			return c.forgetDraft(d, nil)
		}
		d.rec.Abandoned = true
		return v.putDraft(c.t, d)
	})
	if err == nil && !named {
		return v.removeDraftBytes(d.name)
	}
	v.unfinished++
	return err
}
