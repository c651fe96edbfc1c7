package store

import (
	"cmp"
	"slices"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// change is one transaction on a volume, under its lock: a commit or a merge.
type change struct {
	*tree
	v       *Volume
	now     time.Time
	effects []*crdt.Effects
	queued  []queued
	release []hold
	seq     crdt.Seq
	clock   crdt.Clock
	by      MountID
	wall    int64 // what ctime shows of what is committed, Unix nanoseconds; 0: now
	nodes   nodeChanges
	after   []func() // run when the transaction is committed
}

// change runs fn in one transaction and tells the viewers what it changed.
func (v *Volume) change(by MountID, fn func(c *change) error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.wholeLocked(); err != nil {
		return err
	}
	return v.changeLocked(by, fn)
}

func (v *Volume) changeLocked(by MountID, fn func(c *change) error) error {
	var told *Changes
	c, err := v.transactLocked(by, fn, func(c *change) error {
		told = compose(c.effects)
		told.By = c.by
		if err := c.prepare(told); err != nil {
			return err
		}
		if err := c.flush(); err != nil {
			return err
		}
		v.subdirs.begin(told, c.reset)
		return nil
	})
	v.subdirs.end(err == nil)
	if err != nil {
		if told != nil {
			v.tell(told, Viewer.Aborted)
		}
		return err
	}
	v.settleLocked(c)
	v.tell(told, Viewer.Committed)
	return nil
}

// transactLocked runs fn, and then end, in one transaction.
func (v *Volume) transactLocked(by MountID, fn, end func(c *change) error) (*change, error) {
	if v.closed.Load() {
		return nil, ErrClosed
	}
	var c *change
	reset := false
	err := v.db.kv.update(func(t txn) error {
		counted := &countingTxn{txn: t}
		c = &change{tree: newTree(counted, &v.keys, v.sets.Load()), v: v, now: v.db.opts.Now(), seq: v.seq, clock: v.clock, by: by}
		if err := fn(c); err != nil {
			return err
		}
		if err := end(c); err != nil {
			return err
		}
		if n := len(c.queued); n > 0 {
			c.queued[n-1].size = counted.n
		}
		if reset = c.reset; reset {
			v.setsMu.Lock() // until the commit and the sets can both be seen
		}
		return nil
	})
	if err == nil && reset {
		v.sets.Store(c.sets)
	}
	if reset {
		v.setsMu.Unlock()
	}
	return c, err
}

// countingTxn counts the bytes that a transaction writes.
type countingTxn struct {
	txn
	n int
}

func (c *countingTxn) set(key, value []byte) error {
	c.n += len(key) + len(value)
	return c.txn.set(key, value)
}

// prepare tells the viewers what is about to be seen, and switches the node
// ids of files they ask for.
func (c *change) prepare(told *Changes) error {
	if len(told.Names)+len(told.Inodes) == 0 {
		return nil
	}
	for _, w := range c.v.viewers {
		for _, ino := range w.Prepare(told) {
			if err := c.switchNode(ino, told); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *Volume) tell(told *Changes, how func(Viewer, *Changes)) {
	if len(told.Names)+len(told.Inodes) == 0 {
		return
	}
	for _, w := range v.viewers {
		how(w, told)
	}
}

// settleLocked takes over what the committed transaction changed in memory.
func (v *Volume) settleLocked(c *change) {
	v.applyNodes(&c.nodes)
	v.seq, v.clock = c.seq, c.clock
	if len(c.queued) > 0 {
		clear(v.deps)
		v.ops.Add(uint64(len(c.queued)))
	}
	sooner := len(v.queue.ops) == 0 && len(c.queued) > 0 // than the sealer waits
	for _, o := range c.queued {
		v.queue.add(o, c.now)
	}
	for _, h := range c.release {
		sooner = v.queue.release(h) || sooner
	}
	for _, fn := range c.after {
		fn()
	}
	v.pruning.add(c.past)
	if c.lost {
		v.pruning.lost.Store(true)
	}
	if sooner || v.closeWaits || v.queue.urgent() {
		v.closeWaits = false
		v.wakeSealer()
	}
}

// plan starts the writes of one local op.
func (c *change) plan() *crdt.Plan {
	return &crdt.Plan{S: c.tree, Inline: c.inline}
}

// commit applies a local op and journals it.
func (c *change) commit(writes []crdt.Write, h hold) error {
	if len(writes) == 0 {
		return nil
	}
	stamp, err := c.clock.Next(wallOf(c.now))
	if err != nil {
		return err
	}
	c.seq++
	op := &crdt.Op{
		Dot: crdt.Dot{Replica: c.v.replica, Seq: c.seq}, Stamp: stamp,
		Wall: cmp.Or(c.wall, c.now.UnixNano()), Writes: writes,
	}
	if len(c.queued) == 0 {
		for r, seq := range c.v.deps {
			op.Deps = append(op.Deps, crdt.Dot{Replica: r, Seq: seq})
		}
		slices.SortFunc(op.Deps, func(a, b crdt.Dot) int {
			if a.Replica < b.Replica {
				return -1
			}
			return 1
		})
	}
	e, err := crdt.Apply(c.tree, op)
	if err != nil {
		return err
	}
	c.effects = append(c.effects, e)
	raw := crdt.AppendOp(nil, op)
	if err := c.t.set(c.keys.key('u', uint64(op.Dot.Seq)), raw); err != nil {
		return err
	}
	c.queued = append(c.queued, queued{op: op, raw: raw, hold: h})
	for _, w := range writes {
		if w.Kind == crdt.WritePlace {
			head, err := c.Head(w.Parent)
			if err != nil {
				return err
			}
			c.release = append(c.release, hold{dir: head, name: w.Name})
		}
	}
	return nil
}

// wallOf is a time in Unix nanoseconds, also one that they cannot tell.
func wallOf(t time.Time) int64 {
	if t.Unix() > int64(crdt.MaxStamp/1e9) {
		return int64(crdt.MaxStamp)
	}
	return t.UnixNano()
}

// applyLocal applies writes to what is not published: peers do not hear of it.
func (c *change) applyLocal(writes []crdt.Write) error {
	if len(writes) == 0 {
		return nil
	}
	op := &crdt.Op{Stamp: crdt.LocalStamp, Wall: c.now.UnixNano(), Writes: writes}
	e, err := crdt.Apply(c.tree, op)
	if err != nil {
		return err
	}
	c.effects = append(c.effects, e)
	return nil
}

// split parts the writes on inodes that are not published from the others.
func (c *change) split(writes []crdt.Write) (local, published []crdt.Write, err error) {
	for _, w := range writes {
		i, err := c.Inode(w.Ino)
		if err != nil {
			return nil, nil, err
		}
		if i != nil && i.Unpublished() {
			local = append(local, w)
		} else {
			published = append(published, w)
		}
	}
	return local, published, nil
}

// commitSplit applies each part its own way.
func (c *change) commitSplit(writes []crdt.Write, h hold) error {
	local, published, err := c.split(writes)
	if err != nil {
		return err
	}
	if err := c.applyLocal(local); err != nil {
		return err
	}
	return c.commit(published, h)
}

// compose joins the effects of several ops into what a viewer has to show.
// A name that several ops changed stands where the last of them changed it, and
// what was removed after the first of them comes after it: a symlink is never seen
// to lead to what is gone.
func compose(effects []*crdt.Effects) *Changes {
	type key struct {
		dir  crdt.Ino
		name string
	}
	out := &Changes{}
	first, last := map[key]crdt.Entry{}, map[key]int{}
	born, end := map[crdt.LinkID]key{}, map[key]crdt.Entry{}
	n := 0
	for _, e := range effects {
		for _, c := range e.Names {
			if _, ok := born[c.Before.Link]; !ok {
				born[c.Before.Link] = key{} // it was there before
			}
		}
		for _, c := range e.Names {
			k := key{c.Dir, c.Name}
			if _, ok := first[k]; !ok {
				first[k] = c.Before
			}
			last[k], end[k] = n, c.After
			if _, ok := born[c.After.Link]; !ok && c.After.Ino != 0 {
				born[c.After.Link] = k
			}
			n++
		}
	}
	none := crdt.Entry{}
	var gone []crdt.NameChange // that wait
	n, until := 0, 0
	for _, e := range effects {
		for _, c := range e.Names {
			k := key{c.Dir, c.Name}
			if first[k] != end[k] && end[k] != none {
				until = max(until, last[k])
			}
			if last[k] == n && first[k] != c.After {
				c.Before = first[k]
				if c.After == none && n < until {
					gone = append(gone, c)
				} else {
					out.Names = append(out.Names, c)
				}
				if at := born[c.After.Link]; at != (key{}) && at != k && first[at] == none && end[at] == none {
					if out.Passed == nil {
						out.Passed = make(map[crdt.LinkID]PlacedName)
					}
					out.Passed[c.After.Link] = PlacedName{at.dir, at.name}
				}
			}
			if n == until {
				out.Names = append(out.Names, gone...)
				gone = nil
			}
			n++
		}
	}
	seen := map[crdt.Ino]int{}
	for _, e := range effects {
		for _, c := range e.Inodes {
			at, ok := seen[c.Ino]
			if !ok {
				seen[c.Ino] = len(out.Inodes)
				out.Inodes = append(out.Inodes, c)
			} else if c.Content && !out.Inodes[at].Content {
				out.Inodes[at].Content, out.Inodes[at].Before = true, c.Before
			}
		}
	}
	return out
}

// done reports whether a request that the kernel sends again was done, and
// the inode it made or opened.
func (v *Volume) done(t *tree, r Request) (crdt.Ino, Handle, bool, error) {
	if !r.Resent {
		return 0, 0, false, nil
	}
	var rec doneRecord
	ok, err := getJSON(t.t, t.doneKey(r), &rec)
	ok = ok && rec.Epoch == r.Epoch && rec.Unique == r.Unique
	if ok {
		v.repeated.Add(1)
	}
	return rec.Ino, rec.Handle, ok, err
}

type doneRecord struct {
	Epoch, Unique uint64
	Ino           crdt.Ino
	Handle        Handle
}

// doneSlots is how many requests are remembered: more than can be in flight.
const doneSlots = 4096

func (t *tree) doneKey(r Request) []byte {
	return t.keys.key('x', uint64(r.Mount), r.Unique/2%doneSlots)
}

// setDone remembers a mutating request in its own transaction.
func (t *tree) setDone(r Request, ino crdt.Ino, h Handle) error {
	if r.Epoch == 0 {
		return nil
	}
	return putJSON(t.t, t.doneKey(r), doneRecord{r.Epoch, r.Unique, ino, h})
}
