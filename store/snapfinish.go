package store

import (
	"fmt"
	"slices"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// finish shows the new state: it moves the vector past the snapshot; what came
// before the tail is in no journal here.
func (j *joining) finish() error {
	v := j.Volume
	told := compose(j.effects)
	nodes, err := j.switchNodes(told)
	if err == nil {
		err = j.dropJournal()
	}
	if err == nil {
		err = j.adopt()
	}
	if err != nil {
		v.tell(told, Viewer.Aborted)
		return err
	}
	v.applyNodes(nodes)
	v.unpin()
	v.subdirs.reset()
	v.tell(told, Viewer.Committed)
	return nil
}

// switchNodes gives files whose content the kernel knows new node ids.
func (j *joining) switchNodes(told *Changes) (*nodeChanges, error) {
	nodes := &nodeChanges{}
	if len(told.Names)+len(told.Inodes) == 0 {
		return nodes, nil
	}
	for _, w := range j.viewers {
		for part := range slices.Chunk(w.Prepare(told), joinPart) {
			if err := j.db.kv.update(func(t txn) error {
				c := &change{tree: newTree(t, &j.keys, j.sets.Load()), v: j.Volume, nodes: *nodes}
				for _, ino := range part {
					if err := c.switchNode(ino, told); err != nil {
						return err
					}
				}
				*nodes = c.nodes
				return nil
			}); err != nil {
				return nil, err
			}
		}
	}
	return nodes, nil
}

// dropJournal forgets the batches that a gap parts from the tail: they bring
// nobody any further.
func (j *joining) dropJournal() error {
	for r, e := range j.since {
		if e.Seq <= j.Volume.vector[r].Seq {
			continue
		}
		if err := j.eachStaged(j.keys.key('j', uint64(r)), func(key, raw []byte) error {
			b, err := DecodeBatch(raw)
			if err != nil {
				return fmt.Errorf("%w: journal: %w", ErrDamaged, err)
			}
			if b.Last > e.Seq {
				return errEnough
			}
			return j.db.kv.update(func(t txn) error { return t.del(key) })
		}); err != nil && err != errEnough {
			return err
		}
	}
	return nil
}

// adopt moves the vector; in the same transaction the snapshot is done.
func (j *joining) adopt() error {
	v := j.Volume
	if err := v.db.kv.update(func(t txn) error {
		for r, e := range j.vector {
			if e.Seq <= v.vector[r].Seq {
				continue
			}
			if err := t.set(v.keys.key('a', uint64(r)), crdt.AppendVectorEntry(nil, e)); err != nil {
				return err
			}
		}
		for n := range j.ranges {
			r := &j.ranges[n]
			if !v.vector.Contains(r.collected.Vector) && r.trimmed.Compare(v.trimmed) > 0 {
				v.trimmed = r.trimmed // some of what went before was never here
			}
			if err := v.adoptCollectedLocked(t, r.collected); err != nil {
				return err
			}
		}
		return t.del(v.keys.key('S'))
	}); err != nil {
		return err
	}
	for r, e := range j.vector {
		if e.Seq > v.vector[r].Seq {
			v.vector[r] = e
			v.deps[r] = e.Seq
			v.clock.Observe(e.Stamp)
		}
	}
	for _, m := range v.roster.members {
		v.noteEffectiveLocked(m)
	}
	return v.db.kv.view(v.loadJournal) // the tail is in it, and what was dropped is not
}
