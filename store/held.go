package store

import (
	"errors"
	"io/fs"
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

// Held returns what a mount that outlived the last daemon has open without us.
// It is to be asked before AddViewer. Who does not take the mount over after all
// calls Unmounted.
func (v *Volume) Held(m MountID) []Held {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := slices.Clone(v.held[m])
	for n := range out {
		for h, node := range v.resumed[m] {
			if node == out[n].Node {
				out[n].Handles = append(out[n].Handles, h)
			}
		}
	}
	return out
}

// resumeHeld makes what living mounts have open what it was before. It is part of
// opening the volume.
func (v *Volume) resumeHeld(held map[int]content.Held) error {
	for slot, r := range held {
		m, node := MountID(r.Mount), NodeID(r.Node)
		if !v.awaited[m] {
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
		if b != nil {
			b.held[m] = slot
			v.held[m] = append(v.held[m], Held{Node: node, ID: r.ID, Backing: b})
		}
	}
	return nil
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

// isHeld reports whether kernels have the file of a node's draft, when the volume
// is opened.
func (v *Volume) isHeld(node NodeID) bool {
	b := v.backings[node]
	return b != nil && b.named
}

// resumeDirect goes on with a draft that kernels have the file of. One that is not
// recorded was begun from what its node shows.
func (v *Volume) resumeDirect(d *draft, recorded bool) error {
	b := v.backings[d.node]
	dd, err := v.db.content.ResumeDraft(d.name, b.file, b.link)
	if err != nil {
		return err
	}
	b.named = false
	d.file, d.began = dd, true
	d.directly.Store(dd)
	return v.markResumed(d, dd, recorded)
}

// markResumed finds out whether a resumed draft was written past us.
func (v *Volume) markResumed(d *draft, dd *content.DirectDraft, recorded bool) error {
	if d.rec.Created || d.rec.Dirty {
		return nil
	}
	version, _, err := v.contentOf(d.node)
	if err != nil || version == nil {
		return err
	}
	if !recorded {
		d.rec.Base = version.ID
	}
	// Of what was written past us only the file tells.
	size, at, _, err := dd.Stat()
	if err == nil && size == version.Size && at == version.Mtime {
		err = dd.MarkClean(version.Mtime)
	}
	return err
}
