package store

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
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
	mu   sync.Mutex // guards keys; a leaf
	keys map[pastKey]struct{}
	lost atomic.Bool // something lost a conflict since the limit was looked at

	turn  sync.Mutex // one sweep at a time; guards what follows; taken before Volume.mu
	next  []byte     // where the sweep goes on; nil: at the beginning
	swept time.Time  // when the last sweep ended
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

// pruneTurn forgets in the background what is beyond the limits, as much as is due, and says when there is more. A sweep through all
// that is kept is done in portions.
func (v *Volume) pruneTurn() (wait time.Duration) {
	err := v.pruneQueued()
	if err == nil {
		err = v.sweepIfDue()
	}
	if err == nil && v.pruning.lost.Swap(false) {
		err = v.forceOut()
	}
	if err != nil && !errors.Is(err, ErrClosed) {
		v.db.opts.Log.Error("prune history", "volume", v.Name(), "err", err)
	}
	return pruneInterval
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

// sweepIfDue goes on with a sweep, or begins one if the last was long ago.
func (v *Volume) sweepIfDue() error {
	v.pruning.turn.Lock()
	defer v.pruning.turn.Unlock()
	now := v.db.opts.Now()
	if since := now.Sub(v.pruning.swept); 0 <= since && since < sweepInterval {
		return nil
	}
	done, err := v.sweepLocked()
	if done {
		v.pruning.swept = now
		v.pruning.lost.Store(true) // what lost before the daemon started counts too
	}
	return err
}

// sweepLocked looks at the next portion of all that is kept, for what grew too
// old; done says that it was the last. The caller holds pruning.turn.
func (v *Volume) sweepLocked() (done bool, err error) {
	var keys []pastKey
	from := v.pruning.next
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
				v.pruning.next = next
				return err
			}
		}
		v.pruning.next, done = nil, true
		return nil
	})
	if err == nil {
		err = v.pruneKeys(keys)
	}
	return done, err
}

// pruneMost is how much one transaction forgets: nothing is in the way of
// thousands of versions of one file before somebody comes to forget them.
const pruneMost = 2000

// A pruneJob is what is to be looked through.
type pruneJob struct {
	names []pastKey
	inos  map[crdt.Ino]bool
	left  int // that the present transaction may forget
}

// pruneKeys forgets of some inodes and names what is beyond the limits. Names
// go first: an inode that no name holds any more goes with them.
func (v *Volume) pruneKeys(keys []pastKey) error {
	job := &pruneJob{inos: map[crdt.Ino]bool{}}
	for _, k := range keys {
		if k.ino != 0 {
			job.inos[k.ino] = true
		} else {
			job.names = append(job.names, k)
		}
	}
	for len(job.names)+len(job.inos) > 0 {
		if err := v.change(0, func(c *change) error { return c.prune(job) }); err != nil {
			return err
		}
	}
	return nil
}

// prune does as much of a job as one transaction takes.
func (c *change) prune(job *pruneJob) error {
	defer func() { c.past = nil }()
	job.left = pruneMost
	// Names leave room for what their inodes had.
	for ; len(job.names) > 0 && job.left > pruneMost/2; job.names = job.names[1:] {
		if done, err := c.pruneName(job.names[0], job); err != nil {
			return err
		} else if !done {
			break
		}
	}
	for ino := range job.inos {
		if done, err := c.pruneInode(ino, job); err != nil {
			return err
		} else if !done {
			break
		}
		delete(job.inos, ino)
	}
	return nil
}

// pruneName forgets the links that died at a name before the newest that the
// limits keep, and says which inodes it touched. A link stays as long as its
// inode's bytes must: it is what remembers them.
func (c *change) pruneName(at pastKey, job *pruneJob) (done bool, err error) {
	dead, err := c.graves(at.dir, at.name)
	if err != nil {
		return false, err
	}
	limits, kept := c.v.Limits(), 0
	for _, g := range dead {
		if job.left <= pruneMost/2 {
			return false, nil
		}
		job.inos[g.Ino] = true
		if kept < limits.History && !c.v.expired(g.at) {
			kept++
			continue
		}
		if may, err := c.forgettable(g.inode); err != nil {
			return false, err
		} else if !may {
			continue
		}
		if err := c.PutGone(g.Gone, false); err != nil {
			return false, err
		}
		job.left--
	}
	return true, nil
}

// forgettable reports whether the bytes of a dead inode can go: no op that is
// still to come can bring it back, and no kernel here has it open.
func (c *change) forgettable(i *crdt.Inode) (bool, error) {
	if i == nil {
		return true, nil
	}
	live, err := crdt.LiveLinks(c.tree, i)
	if err != nil || len(live) > 0 {
		return true, err // not dead: only the name is forgotten
	}
	node := c.v.Node(i.Ino)
	// As long as nobody has spoken for this replica it may have peers that it does not know.
	spoken := c.v.roster.self.Node != ""
	return spoken && i.Settled(c.v.stableLocked()) && c.v.draftOf(node) == nil && !c.v.knownLocked(node), nil
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

// pruneInode forgets the versions of an inode that are beyond the limits. The
// bytes of leaves go only when nothing leads to the inode any more: until then
// they may show again.
func (c *change) pruneInode(ino crdt.Ino, job *pruneJob) (done bool, err error) {
	if job.left <= 0 {
		return false, nil
	}
	i, err := c.Inode(ino)
	if err != nil {
		return false, err
	}
	held, err := c.held(i)
	if err != nil {
		return false, err
	}
	if done, err := c.pruneVersions(i, ino, held, job); err != nil || !done || i == nil || held {
		return done, err
	}
	for _, id := range i.Spent() {
		if c.v.frozen(ino, id) {
			continue // until it is let go
		}
		if err := c.t.del(c.keys.version('c', ino, id)); err != nil {
			return false, err
		}
		job.left--
	}
	return true, nil
}

// chainKept is how many versions of a contested file stay known, without their
// bytes: records are told from the versions that what shows goes back to.
const chainKept = 1000

// pruneVersions forgets versions that are no leaves.
func (c *change) pruneVersions(i *crdt.Inode, ino crdt.Ino, held bool, job *pruneJob) (done bool, err error) {
	versions, err := c.historyOf(ino)
	if err != nil {
		return false, err
	}
	replaced := crdt.VersionID{}
	if i != nil && i.Latest() != nil {
		replaced = i.Latest().ID
	}
	limits, kept := c.v.Limits(), 0
	contested := held && len(i.Contents) > 1
	var old []*crdt.Version // that go, the newest first
	known := 0              // how many of them stay known
	for n, version := range slices.Backward(versions) {
		at := replaced
		replaced = version.ID
		if held && kept < limits.History && !c.v.expired(at) || c.v.frozen(ino, version.ID) {
			kept++
			continue
		}
		if contested && len(versions)-n <= chainKept {
			known++
		}
		old = append(old, version)
	}
	// The oldest go first: of the others it stays known when they were replaced.
	for n, version := range slices.Backward(old) {
		if job.left <= 0 {
			return false, nil
		}
		if err := c.forget(ino, version, n < known, job); err != nil {
			return false, err
		}
	}
	return true, nil
}

// forget drops the bytes of a version of history and, unless it is to stay
// known, the version.
func (c *change) forget(ino crdt.Ino, old *crdt.Version, known bool, job *pruneJob) error {
	if !known {
		job.left--
		if err := c.t.del(c.keys.version('h', ino, old.ID)); err != nil {
			return err
		}
	}
	key := c.keys.version('c', ino, old.ID)
	b, err := c.t.get(key)
	if err != nil || b == nil {
		return err // forgotten before: no write for nothing
	}
	job.left--
	return c.t.del(key)
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
