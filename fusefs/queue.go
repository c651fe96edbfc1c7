package fusefs

import (
	"sync"
	"time"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

type workKind uint8

const (
	workName      workKind = iota + 1 // show a pending name
	workDrop                          // make the kernel look up a name that is no directory's
	workInode                         // tell of an inode's attributes or content
	workLetGo                         // drop what was kept of a file that the kernel has forgotten
	workForgotten                     // ask whether the kernel has forgotten a node, of which it knew before this daemon
)

// work is one thing the revealer has to do.
type work struct {
	kind workKind
	key  nameKey      // workName, workDrop
	ino  crdt.Ino     // workInode
	node store.NodeID // workLetGo, workForgotten

	// Of workInode. Attributes are dropped from the cache in any case.
	old     store.NodeID // the node that kept the version before, or 0
	content bool         // somebody else wrote it: OPEN MODIFY CLOSE_WRITE
	pages   bool         // cached pages or the cached listing are to be dropped
	attrib  bool         // permissions may have changed: ATTRIB
	tries   int

	since   time.Time // it waits
	changed bool      // of workName: by a commit, not by the revealer itself
	again   bool      // within pushNames: it is to be moved
}

// sameAs reports whether two works can be done as one.
func (w *work) sameAs() workID {
	return workID{w.kind, w.key, w.ino, w.node, w.old}
}

type workID struct {
	kind workKind
	key  nameKey
	ino  crdt.Ino
	node store.NodeID
	old  store.NodeID
}

// maxDeferred is how long a name that changes again and again may be moved back
// in the queue.
const maxDeferred = 5 * time.Second

// workQueue hands work to the revealer, in order, each once. It holds at most
// one work for each name and inode that the kernel knows.
type workQueue struct {
	wake chan struct{} // capacity 1
	now  func() time.Time

	mu      sync.Mutex // guards what follows
	items   []*work
	index   map[workID]*work
	later   int             // works that a timer will push
	doing   *work           // the revealer has taken it and is at it
	waiting []chan struct{} // closed when there is no work
}

func newWorkQueue() *workQueue {
	return &workQueue{wake: make(chan struct{}, 1), now: time.Now, index: make(map[workID]*work)}
}

// push adds work, or joins it to the same that waits already.
func (q *workQueue) push(w work) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pushLocked(w)
}

func (q *workQueue) pushLocked(w work) {
	id := w.sameAs()
	if have := q.index[id]; have != nil {
		have.content = have.content || w.content
		have.pages = have.pages || w.pages
		have.attrib = have.attrib || w.attrib
		return
	}
	if w.since.IsZero() {
		w.since = q.now()
	}
	q.items = append(q.items, &w)
	q.index[id] = &w
	q.wakeUp()
}

// suspend counts work that waits for something and will be resumed.
func (q *workQueue) suspend() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.later++
}

// ended takes back a suspend of which nothing is left to do.
func (q *workQueue) ended() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.later--
	q.releaseLocked()
}

// resume adds work that was suspended, before all that waits. What has changed
// meanwhile waits already, where it belongs.
func (q *workQueue) resume(works []work) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.later -= len(works)
	rest := q.items
	q.items = nil
	for _, w := range works {
		q.pushLocked(w)
	}
	q.items = append(q.items, rest...)
}

// wakeUp lets the revealer look around.
func (q *workQueue) wakeUp() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// pushNames adds the names that a commit has changed. One that waits already, or
// is being shown, is to be shown in its newest state, so it comes behind what was
// there before that; and what goes, as goes says of a name, comes behind those it
// waited behind: who follows a symlink must find what it leads to. It is the
// order of the names of one commit (see store.Changes).
func (q *workQueue) pushNames(names []nameKey, goes func(nameKey) bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	again, last := map[nameKey]*work{}, -1
	for n, k := range names {
		w := q.index[workID{kind: workName, key: k}]
		if w != nil {
			w.changed = true
		} else if w = q.doing; w == nil || w.sameAs() != (workID{kind: workName, key: k}) {
			continue
		}
		if now.Sub(w.since) < maxDeferred {
			again[k], last = w, n
			w.again = true
		}
	}
	gone := q.takeLocked(len(again), goes)
	for n, k := range names {
		switch w := q.nextLocked(k, again, now); {
		case w == nil:
		case n < last && goes(k):
			gone = append(gone, w)
		default:
			q.items = append(q.items, w)
		}
		if n == last {
			q.items = append(q.items, gone...)
		}
	}
	q.wakeUp()
}

// nextLocked is the work of a name that has changed, to be put into the order;
// nil if it has its place.
func (q *workQueue) nextLocked(k nameKey, again map[nameKey]*work, now time.Time) *work {
	w := again[k]
	delete(again, k) // a commit may name it twice
	if w != nil {
		w.again = false
	}
	if w != nil && w != q.doing {
		return w
	}
	fresh := &work{kind: workName, key: k, since: now, changed: true}
	if w != nil {
		fresh.since = w.since
	}
	if q.index[fresh.sameAs()] != nil {
		return nil
	}
	q.index[fresh.sameAs()] = fresh
	return fresh
}

// takeLocked takes the works that are to be moved, some, out of the order, and, to
// return them, what goes behind the first of them.
func (q *workQueue) takeLocked(some int, goes func(nameKey) bool) (gone []*work) {
	if some == 0 {
		return nil
	}
	rest := make([]*work, 0, len(q.items)+some)
	behind := q.doing != nil && q.doing.again
	for _, w := range q.items {
		switch {
		case w.again:
			behind = true
		case behind && w.kind == workName && goes(w.key):
			gone = append(gone, w)
		default:
			rest = append(rest, w)
		}
	}
	q.items = rest
	return gone
}

// changedAgain reports whether a name has changed since its work was taken.
func (q *workQueue) changedAgain(k nameKey) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	w := q.index[workID{kind: workName, key: k}]
	return w != nil && w.changed
}

// pop takes the oldest work and counts the revealer as working on it.
func (q *workQueue) pop() (work, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.doing = nil
	if len(q.items) == 0 {
		q.items = nil
		q.releaseLocked()
		return work{}, false
	}
	w := q.items[0]
	q.items[0] = nil
	q.items = q.items[1:]
	delete(q.index, w.sameAs())
	q.doing = w
	return *w, true
}

// releaseLocked lets those go on who wait for the work to be done, if it is.
func (q *workQueue) releaseLocked() {
	if len(q.items)+q.later > 0 || q.doing != nil {
		return
	}
	for _, done := range q.waiting {
		close(done)
	}
	q.waiting = nil
}

// idle returns a channel that is closed when there is no work.
func (q *workQueue) idle() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	done := make(chan struct{})
	q.waiting = append(q.waiting, done)
	q.releaseLocked()
	return done
}

// concerned are the inodes and nodes that the work is about, but for names.
func (q *workQueue) concerned() (inos map[crdt.Ino]bool, nodes map[store.NodeID]bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	inos, nodes = make(map[crdt.Ino]bool), make(map[store.NodeID]bool)
	for _, w := range q.items {
		inos[w.ino], nodes[w.node] = true, true
	}
	return inos, nodes
}

// length is how much work there is, with what is being done and what waits
// for a timer.
func (q *workQueue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := len(q.items) + q.later
	if q.doing != nil {
		n++
	}
	return n
}
