package store

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/synapsefs/synapsefs/store/content"
)

// A Held is what a mount that outlives the daemon has open without us.
type Held struct {
	Node NodeID
	// ID is by what number the connection knows the Backing: it is to be given
	// with every further open of the node.
	ID int32
	// Backing is the file. It has this mount for a user: CloseBacking is due at
	// the node's last release.
	Backing *Backing
	// Handles write the node. They are open: Release is due for each.
	Handles []Handle
}

// Hold records that a mount's kernel has a backing, by which number, to be called
// before the open is answered; Unhold when the mount has closed it. The record
// outlives the daemon, not the machine.
func (v *Volume) Hold(b *Backing, m MountID, id int32) error {
	r := content.Held{Volume: v.id, Mount: uint64(m), Node: uint64(b.node), ID: id}
	v.db.backingMu.Lock()
	defer v.db.backingMu.Unlock()
	if b.link != nil {
		r.Link = *b.link
	}
	slot, err := v.db.content.Hold(b.file, r)
	if err != nil {
		return diskError(err)
	}
	if b.held == nil {
		b.held = map[MountID]int{}
	}
	b.held[m] = slot
	return nil
}

// Unhold removes what Hold recorded.
func (v *Volume) Unhold(b *Backing, m MountID) error {
	v.db.backingMu.Lock()
	defer v.db.backingMu.Unlock()
	slot, ok := b.held[m]
	if !ok {
		return nil
	}
	delete(b.held, m)
	return v.db.content.LetGo(slot)
}

// Held returns what a mount had open when the store was opened, if
// Options.Lives said that the mount lives. Who does not take the mount over after
// all closes everything in it.
func (v *Volume) Held(m MountID) (out []Held) {
	v.draftsMu.Lock()
	defer v.draftsMu.Unlock()
	for _, h := range v.resumed[m] {
		out = append(out, *h)
	}
	return out
}

// handleRecord is what is kept of a write handle.
func handleRecord(node NodeID, m MountID) []byte {
	return fmt.Appendf(nil, "%d %d", uint64(node), uint64(m))
}

// resumeHeld makes what living mounts have open what it was before, and takes
// the drafts among it out of drafts. It is part of opening the volume.
func (v *Volume) resumeHeld(drafts map[NodeID]draftRecord, held map[int]content.Held) error {
	for slot, r := range held {
		m, node := MountID(r.Mount), NodeID(r.Node)
		if !v.db.opts.Lives(m) {
			if err := v.db.content.LetGo(slot); err != nil {
				return err
			}
			continue
		}
		b, err := v.resumeBacking(node, r)
		if errors.Is(err, fs.ErrNotExist) { // who has it open still reads it
			v.db.opts.Log.Error("a file that is open cannot be found", "volume", v.name, "node", r.Node, "err", err)
			err = v.db.content.LetGo(slot)
			b = nil
		}
		if err != nil {
			return err
		}
		if b == nil {
			continue
		}
		b.held[m] = slot
		v.resumed[m] = append(v.resumed[m], &Held{Node: node, ID: r.ID, Backing: b})
		if rec, ok := drafts[node]; ok && !rec.Abandoned && b.named {
			if err := v.resumeDraft(node, rec, b); err != nil {
				return fmt.Errorf("resume draft of inode %d: %w", rec.Ino, err)
			}
			delete(drafts, node)
		}
	}
	return v.resumeHandles()
}

// resumeBacking opens the file that a living kernel has.
func (v *Volume) resumeBacking(node NodeID, r content.Held) (*Backing, error) {
	if b := v.backings[node]; b != nil { // another mount has it too
		b.users++
		return b, nil
	}
	f, isDraft, link, err := v.db.content.OpenHeld(r, v.draftName(node))
	if err != nil {
		return nil, err
	}
	b := &Backing{node: node, file: f, users: 1, link: link, named: isDraft, held: map[MountID]int{}}
	if link != nil {
		v.db.backed[*link] = true
	}
	v.backings[node] = b
	return b, nil
}

// resumeDraft goes on with a draft that kernels have the file of.
func (v *Volume) resumeDraft(node NodeID, rec draftRecord, b *Backing) error {
	dd, err := v.db.content.ResumeDraft(v.draftName(node), b.file, b.link)
	if err != nil {
		return err
	}
	d := &draft{node: node, name: v.draftName(node), rec: rec, file: dd, mtime: rec.Mtime, began: true}
	b.named = false
	d.directly.Store(dd)
	v.drafts[node] = d
	version, _, err := v.contentOf(node)
	if err != nil || version == nil || rec.Created || rec.Dirty {
		return err
	}
	// Of what was written past us only the file tells.
	size, at, _, err := dd.Stat()
	if err == nil && size == version.Size && at == version.Mtime {
		err = dd.MarkClean(version.Mtime)
	}
	return err
}

// resumeHandles opens the handles of resumed drafts again, and removes the
// records of all others.
func (v *Volume) resumeHandles() error {
	return v.db.kv.update(func(t txn) error {
		return v.deleteRecords(t, 'w', func(key, value []byte) bool {
			var node, m uint64
			if _, err := fmt.Sscan(string(value), &node, &m); err != nil {
				return true // of an earlier version, and long released
			}
			held, d := v.heldNode(MountID(m), NodeID(node)), v.drafts[NodeID(node)]
			if held == nil || d == nil {
				return true
			}
			h := Handle(v.keys.tail(key, 0))
			held.Handles = append(held.Handles, h)
			v.handles[h] = d.node
			d.handles++
			return false
		})
	})
}

func (v *Volume) heldNode(m MountID, node NodeID) *Held {
	for _, h := range v.resumed[m] {
		if h.Node == node {
			return h
		}
	}
	return nil
}

// dropRest ends what nobody has open any more: what node ids meant, and drafts
// whose last handle was released before they were published.
func (v *Volume) dropRest() error {
	for _, d := range slices.Collect(maps.Values(v.drafts)) {
		d.mu.Lock()
		d.io.Lock()
		d.note()
		d.io.Unlock()
		if d.handles == 0 {
			v.finish(d, 0) //nolint:errcheck // logs and tries again
		} else {
			v.publishLater(d)
		}
		d.mu.Unlock()
	}
	if len(v.backings) == 0 {
		clear(v.nodes)
		return v.clearNodes()
	}
	for id, r := range v.nodes {
		if v.backings[id] == nil {
			delete(v.nodes, id)
		} else if r.Frozen == nil {
			v.current[r.Ino] = id
		}
	}
	return v.db.kv.update(func(t txn) error {
		return v.deleteRecords(t, 'n', func(key, _ []byte) bool { return v.nodes[NodeID(v.keys.tail(key, 0))] == nil })
	})
}

// deleteRecords removes those records under a tag that gone says so of.
func (v *Volume) deleteRecords(t txn, tag byte, gone func(key, value []byte) bool) error {
	var keys [][]byte
	err := t.scan(v.keys.key(tag), nil, func(key, value []byte) (bool, error) {
		if gone(key, value) {
			keys = append(keys, slices.Clone(key))
		}
		return true, nil
	})
	for _, key := range keys {
		err = errors.Join(err, t.del(key))
	}
	return err
}
