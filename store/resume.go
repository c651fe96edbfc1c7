package store

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A mount may outlive the daemon that served it (P9): its kernel goes on with
// what it had open, and knows what it knew. Options.Mounted names such mounts.
// Until each has got a viewer again, or was given up by [Volume.Unmounted],
// every node counts as known.

// writeHandle is what is kept of an open file description that may write.
type writeHandle struct {
	node  NodeID
	mount MountID
}

func (v *Volume) putHandle(t txn, h Handle, w writeHandle) error {
	return t.set(v.keys.key('w', uint64(h)), fmt.Appendf(nil, "%d %d", uint64(w.node), uint64(w.mount)))
}

func (v *Volume) handleRecords() (map[Handle]writeHandle, error) {
	handles := map[Handle]writeHandle{}
	err := v.db.kv.view(func(t txn) error {
		return t.scan(v.keys.key('w'), nil, func(key, value []byte) (bool, error) {
			var w writeHandle
			// Those of earlier versions name no mount: no kernel has them any more.
			if n, err := fmt.Sscan(string(value), &w.node, &w.mount); n < 1 {
				return false, fmt.Errorf("%w: handle record %x: %w", ErrDamaged, key, err)
			}
			handles[Handle(v.keys.tail(key, 0))] = w
			return true, nil
		})
	})
	return handles, err
}

// openDrafts says how the nodes of drafts are open after a restart.
type openDrafts struct {
	handles map[NodeID][]Handle // that kernels still have
	by      map[NodeID]MountID  // one that has it open
	lost    map[NodeID]bool     // a writer ended with its mount
}

// resumeHandles takes over the handles of the mounts that live on.
func (v *Volume) resumeHandles() (openDrafts, error) {
	open := openDrafts{map[NodeID][]Handle{}, map[NodeID]MountID{}, map[NodeID]bool{}}
	records, err := v.handleRecords()
	if err != nil {
		return open, err
	}
	var gone []Handle
	for h, w := range records {
		if !v.awaited[w.mount] {
			open.lost[w.node] = true
			gone = append(gone, h)
			continue
		}
		open.handles[w.node] = append(open.handles[w.node], h)
		open.by[w.node] = w.mount
		v.handles[h] = w.node
		if v.resumed[w.mount] == nil {
			v.resumed[w.mount] = map[Handle]NodeID{}
		}
		v.resumed[w.mount][h] = w.node
	}
	return open, v.forgetHandles(gone)
}

func (v *Volume) forgetHandles(handles []Handle) error {
	for some := range slices.Chunk(handles, 1000) {
		if err := v.db.kv.update(func(t txn) error {
			for _, h := range some {
				if err := t.del(v.keys.key('w', uint64(h))); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// loadNodes reads the node ids that kernels may know.
func (v *Volume) loadNodes() error {
	return v.db.kv.view(func(t txn) error {
		return t.scan(v.keys.key('n'), nil, func(key, _ []byte) (bool, error) {
			var r nodeRecord
			if _, err := getJSON(t, key, &r); err != nil {
				return false, err
			}
			id := NodeID(v.keys.tail(key, 0))
			v.nodes[id] = &r
			if r.Frozen == nil {
				v.current[r.Ino] = id
			}
			return true, nil
		})
	})
}

// resumeDrafts goes on with what somebody has open for writing.
func (v *Volume) resumeDrafts(drafts map[NodeID]draftRecord, open openDrafts) error {
	for node := range open.handles {
		rec, begun := drafts[node]
		if !begun { // nothing is written yet
			ino, known := v.Inode(node)
			if !known {
				return fmt.Errorf("%w: an open file is node %x, which means nothing", ErrDamaged, uint64(node))
			}
			rec.Ino = ino
		}
		d, err := v.resumeDraft(node, rec, begun)
		if err != nil {
			return fmt.Errorf("resume draft of inode %d: %w", rec.Ino, err)
		}
		d.handles = len(open.handles[node])
		d.by.Store(uint64(open.by[node]))
		v.drafts[node] = d
	}
	return nil
}

// resumeDraft goes on with a draft as it was.
func (v *Volume) resumeDraft(node NodeID, rec draftRecord, begun bool) (d *draft, err error) {
	d = &draft{node: node, name: v.draftName(node), rec: rec}
	switch {
	case v.isHeld(node):
		err = v.resumeDirect(d, begun)
	case begun:
		err = v.openDraftFile(d)
	}
	if err != nil {
		return nil, err
	}
	d.mtime = v.lastWrite(d)
	d.ctime = d.mtime
	d.note()
	return d, v.resumeBirth(d)
}

// lastWrite is when a draft was written last, as far as that is known.
func (v *Volume) lastWrite(d *draft) crdt.Time {
	if small, ok := d.file.(*content.SmallDraft); ok && small.Closed() != nil {
		d.flushed.Store(true)
		return *small.Closed()
	}
	if d.rec.Flushed {
		d.flushed.Store(true)
		return d.rec.Mtime
	}
	if at, err := v.db.content.DraftMtime(d.name); err == nil {
		return at
	}
	return crdt.TimeOf(v.db.opts.Now().UnixNano())
}

// resumeBirth has the directory of an unpublished inode show its times again.
func (v *Volume) resumeBirth(d *draft) error {
	if d.rec.Dir == 0 {
		return nil
	}
	return v.read(func(t *tree) error {
		i, err := t.Inode(d.rec.Ino)
		if err != nil || i == nil || !i.Unpublished() {
			return err
		}
		d.dir = d.rec.Dir
		v.bornLocked(d.dir, i.Mtime.Value)
		return nil
	})
}

// publishResumed has the drafts that are held open for in-place change
// published from time to time, as before.
func (v *Volume) publishResumed() {
	for _, d := range v.drafts {
		d.mu.Lock()
		if d.rec.Dirty && d.handles > 0 {
			v.publishLater(d)
		}
		d.mu.Unlock()
	}
}

// finishReleased publishes a draft whose last handle was released before the
// restart. One without a name stays as long as some kernel knows the file.
func (v *Volume) finishReleased(d *draft) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := v.publish(d, true)
	if errors.Is(err, errKept) || errors.Is(err, errMapped) {
		d.note()
		v.drafts[d.node] = d
		if errors.Is(err, errMapped) {
			v.after(d, mappedRetry, func() { v.finishUnlessOpen(d) })
		}
		return nil
	}
	return err
}

// Resumed returns the write handles that a mount which outlived the last daemon
// has open. It is to be asked before AddViewer.
func (v *Volume) Resumed(m MountID) map[Handle]NodeID {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.resumed[m])
}

// Unmounted says that a mount of Options.Mounted has ended: its handles are
// closed, and what was kept for it alone is dropped.
func (v *Volume) Unmounted(m MountID) error {
	var errs []error
	for _, held := range v.Held(m) {
		errs = append(errs, v.Unhold(held.Backing, m), v.CloseBacking(held.Backing))
	}
	for h, node := range v.Resumed(m) {
		errs = append(errs, v.Release(Request{Mount: m}, node, h))
	}
	v.mu.Lock()
	v.arrivedLocked(m)
	v.mu.Unlock()
	v.letGoAll()
	return errors.Join(errs...)
}

// Await says that a mount is handed over: its viewer will be canceled, and what
// it has open stays open. Nothing may be merged into the volume any more.
func (v *Volume) Await(m MountID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.awaited[m] = true
}

// arrivedLocked ends the waiting for a mount.
func (v *Volume) arrivedLocked(m MountID) {
	delete(v.awaited, m)
	delete(v.resumed, m)
	delete(v.held, m)
}

// EachNode calls fn with every node that a kernel may know, and with what reads
// its inode, which is good during the call: there may be a million. It ends with
// the first error.
func (v *Volume) EachNode(fn func(node NodeID, ino crdt.Ino, inode func() (*crdt.Inode, error)) error) error {
	err := v.db.kv.view(func(t txn) error {
		return t.scan(v.keys.key('i'), nil, func(key, value []byte) (bool, error) {
			ino := crdt.Ino(v.keys.tail(key, 0))
			return true, fn(v.Node(ino), ino, func() (*crdt.Inode, error) { return crdt.DecodeInode(value) })
		})
	})
	if err != nil {
		return err
	}
	v.nodesMu.RLock()
	nodes := maps.Clone(v.nodes)
	v.nodesMu.RUnlock()
	for _, id := range slices.Sorted(maps.Keys(nodes)) {
		if nodes[id].Frozen == nil {
			continue
		}
		ino := nodes[id].Ino
		if err := fn(id, ino, func() (i *crdt.Inode, err error) {
			err = v.read(func(t *tree) error { i, err = t.Inode(ino); return err })
			return i, err
		}); err != nil {
			return err
		}
	}
	return nil
}

// FrozenOf returns the inode of which a node keeps an old version.
func (v *Volume) FrozenOf(id NodeID) (crdt.Ino, bool) {
	v.nodesMu.RLock()
	defer v.nodesMu.RUnlock()
	r := v.nodes[id]
	if r == nil || r.Frozen == nil {
		return 0, false
	}
	return r.Ino, true
}
