package fusefs

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

const (
	// busyRetry is how long to wait for a mount point to become free that a
	// peer has removed.
	busyRetry = time.Second
	// inFlight is how soon to notify again of a node whose lookup is counted
	// and not yet answered.
	inFlight = 2 * time.Millisecond
	maxTries = 50
	// usualPatience is how long a call on the mount may be blocked by others
	// before the revealer goes on with what is elsewhere. A busy host takes some
	// of it, too.
	usualPatience = time.Second
	// tellPatience is how long a notification may take before the revealer
	// goes on meanwhile: nothing is lost by that.
	tellPatience = 100 * time.Millisecond
	// maxBlocked bounds the notifications that are blocked in the kernel,
	// each of which takes a thread.
	maxBlocked = 32
)

// revealer makes the kernel and programs see what was merged. Its one goroutine
// does the work of the queue in order.
type revealer struct {
	// Fixed by newRevealer.
	fs     *FS
	shown  *shown
	queue  *workQueue
	kernel notifier
	log    *slog.Logger
	ctx    context.Context // ends with the mount
	stop   context.CancelFunc
	// patience is usualPatience. Tests change it, holding the gate.
	patience   time.Duration
	startSpare func(*kernel.Helper) error // fixed before run

	gate    sync.Mutex    // held during each work; a leaf, for tests to stop the revealer
	blocked chan struct{} // a token for each notification in progress
	tasks   sync.WaitGroup

	mu      sync.Mutex     // guards what follows; a leaf
	leaving []store.NodeID // to be let go; the first is in progress

	// Owned by the goroutine.
	callers  []*caller
	holds    uint64 // numbers of calls that keep a file open
	replaced uint64 // numbers of names in the staging directory

	reveals, fallbacks, notifies atomic.Uint64
}

func newRevealer(fs *FS, n notifier) *revealer {
	ctx, stop := context.WithCancel(context.Background())
	return &revealer{
		fs: fs, shown: fs.shown, queue: fs.shown.queue, kernel: n, log: fs.log,
		ctx: ctx, stop: stop, blocked: make(chan struct{}, maxBlocked), patience: usualPatience,
		callers: []*caller{{helper: fs.helpers.first()}},
	}
}

// run does the work until the mount ends.
func (r *revealer) run() {
	for r.ctx.Err() == nil { // looked at first: what is taken is done
		r.gate.Lock()
		r.settle()
		r.gate.Unlock()
		w, ok := r.queue.pop()
		if !ok {
			select {
			case <-r.queue.wake:
			case <-r.ctx.Done():
			}
			continue
		}
		r.gate.Lock()
		upTo := r.shown.promised()
		if r.do(w) {
			r.shown.kept(&w, upTo)
		}
		r.gate.Unlock()
	}
}

// do does one work, and reports whether nothing is left of it to do.
func (r *revealer) do(w work) bool {
	switch w.kind {
	case workName:
		return r.name(w.key)
	case workDrop:
		if dir, known := r.shown.knownDir(w.key.dir); known {
			r.dropped(dir, w.key.name, crdt.Entry{})
		}
	case workInode:
		return r.inode(w)
	case workLetGo:
		r.letGo(w.node)
	case workForgotten:
		r.forgotten(w.node)
	}
	return true
}

// letGo drops what was kept of a node. That waits for the volume's lock, behind
// merges: what is to be shown does not wait for it.
func (r *revealer) letGo(node store.NodeID) {
	r.queue.suspend()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leaving = append(r.leaving, node); len(r.leaving) == 1 {
		r.tasks.Go(r.letGoAll)
	}
}

func (r *revealer) letGoAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.leaving) > 0 {
		node := r.leaving[0]
		r.mu.Unlock()
		r.fs.vol.LetGo(node)
		r.queue.ended()
		r.mu.Lock()
		r.leaving = r.leaving[1:]
	}
}

// later pushes work again after some time.
func (r *revealer) later(w work, after time.Duration) {
	w.tries++
	r.queue.mu.Lock()
	r.queue.later++
	r.queue.mu.Unlock()
	r.tasks.Go(func() {
		t := time.NewTimer(after)
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.ctx.Done():
		}
		r.queue.mu.Lock()
		defer r.queue.mu.Unlock()
		r.queue.later--
		r.queue.pushLocked(w)
	})
}

// tell sends a notification. If it is blocked, it is left to itself: the state
// has changed before, so it may come at any time.
func (r *revealer) tell(what string, send func(notifier) error) {
	r.blocked <- struct{}{}
	r.notifies.Add(1)
	done := make(chan struct{})
	r.tasks.Go(func() {
		err := send(r.kernel)
		if err != nil && !errors.Is(err, kernel.ErrUnmounted) {
			r.log.Warn(what, "err", err)
		}
		<-r.blocked
		close(done)
	})
	t := time.NewTimer(min(r.patience, tellPatience))
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		r.log.Debug("notification is blocked", "what", what)
		r.queue.suspend() // the work is not done before
		r.tasks.Go(func() {
			<-done
			r.queue.ended()
		})
	}
}

// name shows a pending name.
func (r *revealer) name(k nameKey) (done bool) {
	for range maxTries {
		st := r.shown.plan(k)
		var err error
		switch st.kind {
		case stepNone:
			if r.shown.doubt(k) {
				continue
			}
			return true
		case stepLater:
			return false
		case stepReplace:
			err = r.replace(st)
		default:
			err = r.reveal(st)
		}
		switch {
		case err == nil:
			r.shown.certain(k) // on to the next step
		case errors.Is(err, syscall.ECANCELED):
			// On to what changed meanwhile.
		case errors.Is(err, errBlocked):
			if r.waitFor(work{kind: workName, key: k}, st.dir, st.fromDir) {
				return false
			}
		case errors.Is(err, syscall.EBUSY):
			r.log.Warn("a peer removed a directory that is in use as a mount point here; it stays until that is unmounted",
				"dir", uint64(k.dir), "name", k.name)
			r.later(work{kind: workName, key: k}, busyRetry)
			return false
		case r.ctx.Err() != nil:
			return false
		default:
			r.fallback(st.expect.key, err)
			if st.kind == stepReplace {
				r.modified(st.dir, st.expect.key.name, st.expect.entry)
			}
			if st.expect.key == k {
				return true
			}
		}
	}
	r.fallback(k, errSlow)
	return true
}

// reveal makes one call and returns nil if it has shown the name.
func (r *revealer) reveal(st step) error {
	req, err := r.request(st)
	if err != nil {
		return err
	}
	c, err := r.callerFor(req)
	if err != nil {
		return err
	}
	r.shown.expect(st.expect)
	if err = r.make(c, req, st.expect); c.blocked != nil {
		return err
	}
	if r.ended(st.expect, req) {
		return nil
	}
	if err == nil {
		err = syscall.ECANCELED // the kernel had nothing to ask
	}
	return err
}

// ended ends a call and reports whether it has shown what was expected of it.
func (r *revealer) ended(e *expectation, req *kernel.Request) bool {
	if !r.shown.unexpect(e) {
		return false
	}
	r.reveals.Add(1)
	if req.Op == kernel.OpMkdir {
		r.prune(e.entry.Ino)
	}
	return true
}

// prune lets the kernel forget a directory that appeared, if nobody watches:
// then what comes into it needs no call.
func (r *revealer) prune(dir crdt.Ino) {
	node, _, ok := r.shown.known(dir)
	if !ok {
		return
	}
	r.tell("prune", func(n notifier) error {
		err := n.Prune(uint64(node))
		if errors.Is(err, syscall.EINVAL) { // before Linux 6.18
			return nil
		}
		return err
	})
}

// fallback shows a name without the call: the state, then a notification. No
// watcher hears of it.
func (r *revealer) fallback(k nameKey, why error) {
	dir, known := r.shown.knownDir(k.dir)
	p, ok := r.shown.force(k)
	if !ok || !known {
		return
	}
	r.fallbacks.Add(1)
	r.log.Debug("shown without an event", "dir", uint64(k.dir), "name", k.name, "why", why)
	if p.shown.Kind == crdt.KindDir {
		if node, _, ok := r.shown.known(p.shown.Ino); ok {
			r.tell("invalidate removed directory", func(n notifier) error { return n.InvalInode(uint64(node), -1, 0) })
		}
		r.tell("invalidate listing", func(n notifier) error { return n.InvalInode(dir.Node, 0, 0) })
		return
	}
	r.dropped(dir, k.name, p.shown)
}

// dropped makes the kernel look up a name again, and list its directory.
func (r *revealer) dropped(dir kernel.Dir, name string, shown crdt.Entry) {
	node, _, known := r.shown.known(shown.Ino)
	r.tell("invalidate entry", func(n notifier) error {
		if known { // the watchers of the file hear of it, and it is not kept
			return dropVersion(n, dir, name, node)
		}
		return dropName(n, dir, name, shown)
	})
	if known { // it may have other links
		r.queue.push(work{kind: workInode, ino: shown.Ino})
	}
	r.tell("invalidate listing", func(n notifier) error { return n.InvalInode(dir.Node, 0, 0) })
}
