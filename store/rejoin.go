package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// Forked reports whether a peer has other ops of this replica, as which it may
// have been known until it began anew, than were made here: its op numbered seq
// was never made here, or same does not know the chain there. What the journal
// no longer has is taken to be the same.
func (v *Volume) Forked(self crdt.ReplicaID, seq crdt.Seq, same func(chain [32]byte) bool) (forked bool, err error) {
	v.mu.Lock()
	last := v.vector[self].Seq
	v.mu.Unlock()
	if seq > last {
		return true, nil // an op is in the journal before it leaves
	}
	err = v.db.kv.view(func(t txn) error {
		b, err := v.batchAt(t, self, seq)
		if err == nil {
			forked = !same(b.Chain(seq))
		}
		return err
	})
	if errors.Is(err, ErrJournalGone) {
		err = nil
	}
	return forked, err
}

// Next is the id under which the replica will begin anew, the same until it has:
// a peer must count it before it gives its snapshot.
func (v *Volume) Next() crdt.ReplicaID {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.nextLocked()
}

func (v *Volume) nextLocked() crdt.ReplicaID {
	if v.next == 0 {
		v.next = crdt.ReplicaID(v.db.randomID())
	}
	return v.next
}

// BeginAnew takes a peer's state in the place of the present one, under the id
// [Volume.Next], and makes the changes that only this replica has again on top of it: for
// one that was away for longer than the retention, was restored from a backup,
// or is a copy. The new state is built beside the present one, which serves
// until all is there; then one transaction changes over, and the difference is
// shown as one batch. After an error the next call goes on with what is staged.
func (v *Volume) BeginAnew(ctx context.Context, source SnapshotSource) error {
	v.joinMu.Lock()
	defer v.joinMu.Unlock()
	if err := v.finishSnapshot(); err != nil {
		return fmt.Errorf("finish earlier snapshot: %w", err)
	}
	s, err := v.beside()
	if err != nil {
		return fmt.Errorf("begin anew: %w", err)
	}
	a := &anew{v: v, s: s, from: source.Node(), done: map[crdt.Dot]bool{}}
	if err = s.JoinSnapshot(ctx, source); err == nil {
		err = a.compare(ctx, source)
	}
	if err == nil {
		err = a.carryJournal()
	}
	if err == nil {
		err = a.finish()
	}
	// What is left is that of before, or what was not finished.
	s.unpin()
	if err := errors.Join(err, v.dropBeside()); err != nil {
		return fmt.Errorf("begin anew: %w", err)
	}
	vector := v.Vector()
	for _, fn := range subscribed(v, v.onMerge) {
		fn(vector)
	}
	return nil
}

// beside returns an empty replica in the other generation of the volume's keys;
// what is staged there of an earlier attempt stays.
func (v *Volume) beside() (*Volume, error) {
	v.mu.Lock()
	id := v.nextLocked()
	v.twoStates = true
	err := v.putRecordLocked()
	gen := v.keys.gen.Load() ^ genBit
	v.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := v.dropGeneration(gen, true); err != nil {
		return nil, err
	}
	s := newVolume(v.db, v.id, replicaRecord{Name: v.Name(), Replica: id, Gen: byte(gen)})
	return s, s.restore()
}

// dropBeside removes the generation that is not the present one, but for what is
// staged for a replica that has not begun anew yet.
func (v *Volume) dropBeside() error {
	v.mu.Lock()
	pending := v.next != 0
	v.mu.Unlock()
	if err := v.dropGeneration(v.keys.gen.Load()^genBit, pending); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.twoStates = false
	return v.putRecordLocked()
}

func (v *Volume) dropGeneration(gen uint32, butStaged bool) error {
	for tag := range byte(genBit) {
		if isLocal(tag) || butStaged && tag == 's' {
			continue
		}
		if err := v.db.deletePrefix(append(slices.Clone(v.keys.prefix[:]), tag|byte(gen))); err != nil {
			return err
		}
	}
	return nil
}

// anew is one replica that begins anew.
type anew struct {
	v, s   *Volume // as it is, and as it will be
	from   string  // node of the snapshot's sender
	rebase *crdt.Rebase
	agreed crdt.Seq          // own ops up to there the snapshot's sender has, the very same
	exact  bool              // and no other
	done   map[crdt.Dot]bool // ops made again
	gone   map[crdt.Ino]*crdt.Inode
	nodes  nodeChanges
	past   []pastKey
}

// finish makes again what only this replica has, first while it goes on being
// written, then what came meanwhile, and changes over.
func (a *anew) finish() error {
	v := a.v
	a.rebase = crdt.NewRebase(nil, &pastState{v: v}, v.db.randomID)
	if err := v.sealNow(); err != nil {
		return err
	}
	if err := a.makeAgain(false); err != nil {
		return err
	}
	v.sealMu.Lock()
	defer v.sealMu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed.Load() {
		return ErrClosed
	}
	if err := a.makeAgain(true); err != nil {
		return err
	}
	return a.change()
}

// pastState reads the state as it was, each inode in a transaction of its own.
type pastState struct {
	crdt.State
	v *Volume
}

func (p *pastState) Inode(ino crdt.Ino) (i *crdt.Inode, err error) {
	err = p.v.read(func(t *tree) error {
		i, err = t.Inode(ino)
		return err
	})
	return i, err
}

// change puts the new state in the place of the old one. The locks are held.
// What may be much is written first, in portions: nobody reads it before the
// replica's record names the new state.
func (a *anew) change() error {
	v, s := a.v, a.s
	if err := a.carryUnpublished(); err != nil {
		return err
	}
	told, err := a.difference()
	if err != nil {
		return err
	}
	record := replicaRecord{Name: v.name, Replica: s.replica, Ready: v.ready.Load(), Gen: byte(s.keys.gen.Load()), TwoStates: true}
	err = a.carryNodes(told)
	locked := false
	if err == nil {
		err = v.db.kv.update(func(t txn) error {
			if err := putJSON(t, replicaKey(v.id), record); err != nil {
				return err
			}
			v.setsMu.Lock() // until the commit and the sets can both be seen
			locked = true
			return nil
		})
	}
	if err == nil {
		v.sets.Store(s.sets.Load())
	}
	if locked {
		v.setsMu.Unlock()
	}
	if err != nil {
		v.tell(told, Viewer.Aborted)
		return err
	}
	a.takeOver()
	v.subdirs.reset()
	v.tell(told, Viewer.Committed)
	return v.saveRosterLocked()
}

// takeOver is change in memory.
func (a *anew) takeOver() {
	v, s := a.v, a.s
	old := v.replica
	v.next, v.trimmed = 0, s.trimmed
	v.keys.gen.Store(s.keys.gen.Load())
	v.replica, v.vector, v.seq, v.deps, v.journal = s.replica, s.vector, s.seq, s.deps, s.journal
	v.queue.ops, v.queue.bytes = s.queue.ops, s.queue.bytes
	v.clock.Observe(s.clock.Last())
	v.collected, v.roster.out = s.collected, s.roster.out
	v.roster.out[old] = true
	v.roster.self = Member{Node: v.roster.self.Node, At: v.roster.self.At}
	for _, m := range v.roster.members {
		m.effective = nil
		v.noteEffectiveLocked(m)
	}
	v.became = a.rebase
	v.gone = a.gone
	v.pruning.add(a.past)
	v.applyNodes(&a.nodes)
	v.wakeSealer()
}

// carryUnpublished takes what is open and not published over to the new state.
func (a *anew) carryUnpublished() error {
	open := a.v.openInodes()
	a.gone = map[crdt.Ino]*crdt.Inode{}
	return a.v.read(func(t *tree) error {
		for _, ino := range slices.Sorted(maps.Keys(open)) {
			i, err := t.Inode(ino)
			if err != nil {
				return err
			}
			if i == nil {
				continue
			}
			if err := a.s.change(0, func(c *change) error { return a.carry(c, i) }); err != nil {
				return err
			}
		}
		return nil
	})
}

func (a *anew) carry(c *change, i *crdt.Inode) error {
	a.rebase.S = c.tree
	if i.Unpublished() {
		writes, err := a.rebase.Unpublished(i)
		if err != nil {
			return err
		}
		return c.applyLocal(writes)
	}
	gone, err := a.rebase.Gone(i.Ino)
	if gone {
		a.gone[i.Ino] = i
	}
	return err
}

// carryNodes asks the mounts what they show on, and keeps the bytes of old
// versions that the kernel still shows, and the node ids of files that have new
// numbers.
func (a *anew) carryNodes(told *Changes) error {
	v := a.v
	a.nodes = nodeChanges{put: map[NodeID]*nodeRecord{}, current: map[crdt.Ino]NodeID{}}
	a.past = nil
	if len(told.Names)+len(told.Inodes) > 0 {
		for _, w := range v.viewers {
			if err := inPortions(a, w.Prepare(told), func(c *change, ino crdt.Ino) error { return c.switchNode(ino, told) }); err != nil {
				return err
			}
		}
	}
	v.nodesMu.RLock()
	nodes := maps.Clone(v.nodes)
	v.nodesMu.RUnlock()
	maps.Copy(nodes, a.nodes.put)
	for _, r := range nodes {
		if r.Frozen == nil || r.Frozen.Manifest {
			continue
		}
		if err := a.write(func(c *change) error { return a.keepFrozen(c, r) }); err != nil {
			return err
		}
	}
	made := a.rebase.Inodes()
	return inPortions(a, slices.Sorted(maps.Keys(made)), func(c *change, old crdt.Ino) error {
		node, ino := v.Node(old), made[old]
		if r := c.nodes.put[node]; r != nil && r.Frozen != nil {
			return nil
		}
		c.nodes.current[ino] = node
		if err := c.putNode(node, &nodeRecord{Ino: ino}); err != nil {
			return err
		}
		// The old number is that of another file, should its op still come, from
		// a peer that has it.
		c.nodes.current[old] = v.freshNode()
		return c.putNode(c.nodes.current[old], &nodeRecord{Ino: old})
	})
}

// inPortions runs fn on each inode, some of them in one transaction.
func inPortions(a *anew, inos []crdt.Ino, fn func(*change, crdt.Ino) error) error {
	for part := range slices.Chunk(inos, joinPart) {
		if err := a.write(func(c *change) error {
			for _, ino := range part {
				if err := fn(c, ino); err != nil {
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

// write runs fn on the new state.
func (a *anew) write(fn func(c *change) error) error {
	return a.v.db.kv.update(func(t txn) error {
		c := &change{tree: newTree(t, &a.s.keys, a.s.sets.Load()), v: a.v, now: a.v.db.opts.Now(), nodes: a.nodes}
		err := fn(c)
		a.past = append(a.past, c.past...)
		return err
	})
}

func (a *anew) keepFrozen(c *change, r *nodeRecord) error {
	b, err := newTree(c.t, &a.v.keys, a.v.sets.Load()).inline(r.Ino, r.Frozen.ID)
	if err != nil {
		return err
	}
	if err := c.PutInline(r.Ino, r.Frozen.ID, b); err != nil {
		return err
	}
	return crdt.JoinHistory(c.tree, r.Ino, r.Frozen) // that somebody forgets it one day
}

// difference is what mounts have to show.
func (a *anew) difference() (told *Changes, err error) {
	err = a.v.db.kv.view(func(t txn) error {
		was, is := newTree(t, &a.v.keys, a.v.sets.Load()), newTree(t, &a.s.keys, a.s.sets.Load())
		e, err := crdt.Diff(uncached{was}, uncached{is}, func(fn func(crdt.Ino) error) error {
			seen := map[crdt.Ino]bool{}
			for _, x := range []*tree{was, is} {
				if err := t.scan(x.keys.key('i'), nil, func(key, _ []byte) (bool, error) {
					ino := crdt.Ino(x.keys.tail(key, 0))
					if seen[ino] {
						return true, nil
					}
					seen[ino] = true
					return true, fn(ino)
				}); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			told = compose([]*crdt.Effects{e})
		}
		return err
	})
	return told, err
}

// uncached is a tree that remembers no inodes: all of a volume are too many.
type uncached struct{ *tree }

func (u uncached) Inode(ino crdt.Ino) (*crdt.Inode, error) {
	i, err := u.tree.Inode(ino)
	delete(u.inodes, ino)
	return i, err
}

// inoOf is the inode of a draft: its file may have another number since the
// replica began anew.
func (v *Volume) inoOf(d *draft) crdt.Ino {
	if ino, _, err := v.node(d.node); err == nil {
		return ino
	}
	return d.rec.Ino
}

// orphaned reports whether a draft's file is gone since the replica began anew:
// its bytes will be a lost file.
func (v *Volume) orphaned(d *draft, ino crdt.Ino, i *crdt.Inode) bool {
	return !d.rec.Created && (i == nil || v.gone[ino] != nil)
}

// lostFile keeps the content of a draft whose file is gone.
func (c *change) lostFile(d *draft, content crdt.Content) error {
	made, w := crdt.LostFile(c.v.gone[d.rec.Ino], d.rec.Ino, content, crdt.Ino(c.v.db.randomID()), crdt.LinkID(c.v.db.randomID()))
	return c.commit(append(made, w), hold{})
}
