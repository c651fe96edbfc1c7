package store

import (
	"slices"
	"sync"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// Limits bound what a replica keeps of what was. Zero fields mean the default.
type Limits struct {
	// History is how many old versions of a file are kept. Default 10.
	History int
	// HistoryAge is how long they are kept after they were replaced or
	// deleted. Default 30 days.
	HistoryAge time.Duration
	// ConflictBytes is how much the losers of conflicts may take before the
	// oldest are dismissed. Default 1 GiB.
	ConflictBytes int64
}

// SetLimits changes the limits; what is beyond goes some time later.
func (v *Volume) SetLimits(l Limits) {
	if l.History <= 0 {
		l.History = 10
	}
	if l.HistoryAge <= 0 {
		l.HistoryAge = 30 * 24 * time.Hour
	}
	if l.ConflictBytes <= 0 {
		l.ConflictBytes = 1 << 30
	}
	v.limits.Store(&l)
}

// Limits are those in force.
func (v *Volume) Limits() Limits { return *v.limits.Load() }

// pruneQueue is what of history grew lately. It is lost with the daemon: the
// sweep finds what it held.
type pruneQueue struct {
	mu    sync.Mutex // a leaf
	keys  map[pastKey]struct{}
	sweep []byte // where the sweep goes on; nil: at the beginning
}

// pruneQueued bounds the queue; the sweep finds the rest.
const pruneQueued = 100_000

func (q *pruneQueue) add(keys []pastKey) {
	if len(keys) == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.keys == nil {
		q.keys = map[pastKey]struct{}{}
	}
	for _, k := range keys {
		if len(q.keys) < pruneQueued {
			q.keys[k] = struct{}{}
		}
	}
}

// take returns up to n keys.
func (q *pruneQueue) take(n int) (out []pastKey) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for k := range q.keys {
		if len(out) == n {
			break
		}
		delete(q.keys, k)
		out = append(out, k)
	}
	return out
}

const (
	pruneInterval = 10 * time.Second
	pruneTurn     = 200       // keys a transaction
	sweepInterval = time.Hour // from the end of a sweep to the next
)

// pruner returns what forgets in the background what is beyond the limits.
func (v *Volume) pruner() (turn func() time.Duration) {
	var swept time.Time // a start loses the queue
	begun := false
	return func() time.Duration {
		if !begun { // let the daemon start
			begun = true
			return pruneInterval
		}
		err := v.pruneQueued()
		if err == nil && v.db.opts.Now().Sub(swept) >= sweepInterval {
			var done bool
			if done, err = v.sweep(); done {
				swept = v.db.opts.Now()
				if err == nil {
					err = v.forceOut()
				}
			}
		}
		if err != nil {
			v.db.opts.Log.Error("prune history", "volume", v.Name(), "err", err)
		}
		return pruneInterval
	}
}

// pruneQueued prunes what grew since.
func (v *Volume) pruneQueued() error {
	for {
		keys := v.pruning.take(pruneTurn)
		if len(keys) == 0 || v.closed.Load() {
			return nil
		}
		if err := v.pruneKeys(keys); err != nil {
			return err
		}
	}
}

// sweep looks at the next portion of all that is kept, for what grew too old;
// done says that it was the last.
func (v *Volume) sweep() (done bool, err error) {
	var keys []pastKey
	from := v.pruning.sweep
	err = v.read(func(t *tree) error {
		next, n := []byte(nil), 0
		for _, tag := range []byte{'h', 'o'} {
			prefix := t.keys.key(tag)
			at := prefix[len(prefix)-1] // the tag of this generation
			if from != nil && from[len(prefix)-1] > at {
				continue
			}
			start := from
			if from != nil && from[len(prefix)-1] != at {
				start = nil
			}
			if err := t.t.scan(prefix, start, func(key, value []byte) (bool, error) {
				if n == pruneTurn {
					next = slices.Clone(key)
					return false, nil
				}
				n++
				k := pastKey{ino: crdt.Ino(v.keys.tail(key, 0))}
				if tag == 'o' {
					g, err := v.keys.goneIn(key, value)
					if err != nil {
						return false, err
					}
					k = pastKey{dir: g.Dir, name: g.Name}
				}
				if len(keys) == 0 || keys[len(keys)-1] != k {
					keys = append(keys, k)
				}
				return true, nil
			}); err != nil || next != nil {
				v.pruning.sweep = next
				return err
			}
		}
		v.pruning.sweep, done = nil, true
		return nil
	})
	if err == nil {
		err = v.pruneKeys(keys)
	}
	return done, err
}

// pruneKeys forgets of some inodes and names what is beyond the limits. Names
// go first: an inode that no name holds any more goes with them.
func (v *Volume) pruneKeys(keys []pastKey) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.wholeLocked(); err != nil {
		return err
	}
	return v.changeLocked(0, func(c *change) error {
		inos := map[crdt.Ino]bool{}
		for _, k := range keys {
			if k.ino != 0 {
				inos[k.ino] = true
			} else if err := c.pruneName(k.dir, k.name, inos); err != nil {
				return err
			}
		}
		for ino := range inos {
			if err := c.pruneInode(ino); err != nil {
				return err
			}
		}
		c.past = nil
		return nil
	})
}

// pruneName forgets the links that died at a name before the newest that the
// limits keep, and says which inodes it touched.
func (c *change) pruneName(dir crdt.Ino, name string, inos map[crdt.Ino]bool) error {
	dead, err := c.graves(dir, name)
	if err != nil {
		return err
	}
	limits, kept := c.v.Limits(), 0
	for _, g := range dead {
		inos[g.Ino] = true
		if kept < limits.History && !c.expired(g.at, limits) {
			kept++
			continue
		}
		if err := c.PutGone(g.Gone, false); err != nil {
			return err
		}
	}
	return nil
}

// grave is a dead link, and when it died.
type grave struct {
	crdt.Gone
	at    crdt.VersionID
	inode *crdt.Inode // nil if it was collected
}

// graves returns the links that died at a name, the latest first.
func (t *tree) graves(dir crdt.Ino, name string) ([]grave, error) {
	gone, err := t.goneAt(dir, name)
	if err != nil {
		return nil, err
	}
	return t.dig(gone)
}

func (t *tree) dig(gone []crdt.Gone) ([]grave, error) {
	out := make([]grave, len(gone))
	for n, g := range gone {
		i, err := t.Inode(g.Ino)
		if err != nil {
			return nil, err
		}
		out[n] = grave{Gone: g, inode: i}
		if i != nil {
			out[n].at = i.Died(g.Link)
		}
	}
	slices.SortStableFunc(out, func(a, b grave) int { return b.at.Compare(a.at) })
	return out, nil
}

// expired reports whether what was replaced or deleted then is too old.
func (c *change) expired(at crdt.VersionID, l Limits) bool {
	return int64(at.Stamp) < c.now.Add(-l.HistoryAge).UnixNano()
}

// pruneInode forgets the versions of an inode that are beyond the limits. The
// bytes of leaves are not history's to forget: they may show again.
func (c *change) pruneInode(ino crdt.Ino) error {
	i, err := c.Inode(ino)
	if err != nil {
		return err
	}
	held, err := c.held(i)
	if err != nil {
		return err
	}
	versions, err := c.historyOf(ino)
	if err != nil {
		return err
	}
	if i != nil && len(i.Contents) > 1 && held {
		return nil // records are told from the versions they go back to
	}
	limits := c.v.Limits()
	replaced := crdt.VersionID{}
	if i != nil && i.Latest() != nil {
		replaced = i.Latest().ID
	}
	kept := 0
	for _, old := range slices.Backward(versions) {
		at := replaced
		replaced = old.ID
		if held && kept < limits.History && !c.expired(at, limits) || c.v.frozen(ino, old.ID) {
			kept++
			continue
		}
		if err := c.forget(ino, old.ID); err != nil {
			return err
		}
	}
	return nil
}

// forget drops a version of history with its bytes.
func (c *change) forget(ino crdt.Ino, id crdt.VersionID) error {
	if err := c.t.del(c.keys.version('h', ino, id)); err != nil {
		return err
	}
	return c.t.del(c.keys.version('c', ino, id))
}

// held reports whether some name leads to an inode: where it lives, or where
// it died.
func (t *tree) held(i *crdt.Inode) (bool, error) {
	if i == nil {
		return false, nil
	}
	for n := range i.Links {
		live, err := crdt.Live(t, i, &i.Links[n])
		if err != nil || live {
			return live, err
		}
		p, ok := i.PlaceOf(i.Links[n].ID)
		if !ok {
			continue
		}
		b, err := t.t.get(t.keys.gone(crdt.Gone{Dir: p.Parent, Name: p.Name, Ino: i.Ino, Link: i.Links[n].ID}))
		if err != nil || b != nil {
			return b != nil, err
		}
	}
	return false, nil
}
