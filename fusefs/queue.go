package fusefs

import (
	"sync"

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

// workQueue hands work to the revealer, in order, each once. It holds at most
// one work for each name and inode that the kernel knows.
type workQueue struct {
	wake chan struct{} // capacity 1

	mu      sync.Mutex // guards what follows
	items   []*work
	index   map[workID]*work
	later   int             // works that a timer will push
	working bool            // the revealer has taken one and is at it
	waiting []chan struct{} // closed when there is no work
}

func newWorkQueue() *workQueue {
	return &workQueue{wake: make(chan struct{}, 1), index: make(map[workID]*work)}
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
	q.items = append(q.items, &w)
	q.index[id] = &w
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// pop takes the oldest work and counts the revealer as working on it.
func (q *workQueue) pop() (work, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.working = len(q.items) > 0
	if !q.working {
		q.items = nil
		q.releaseLocked()
		return work{}, false
	}
	w := q.items[0]
	q.items[0] = nil
	q.items = q.items[1:]
	delete(q.index, w.sameAs())
	return *w, true
}

// releaseLocked lets those go on who wait for the work to be done, if it is.
func (q *workQueue) releaseLocked() {
	if len(q.items)+q.later > 0 || q.working {
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
	if q.working {
		n++
	}
	return n
}
