package fusefs

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
)

var (
	errSlow = errors.New("the helper's call is blocked")
	// errBlocked says that a directory is locked: its turn comes when the call
	// that found that out has returned.
	errBlocked = fmt.Errorf("%w, and with it its directory", errSlow)
)

// A caller is a helper as the revealer uses it. Its call may be blocked, by who
// uses the directory: then it is left to itself, with what is expected of it,
// what concerns the directory waits, and others go on with another caller.
type caller struct {
	helper  *kernel.Helper
	blocked *blockedCall // nil if it is idle
}

type blockedCall struct {
	req    *kernel.Request
	expect *expectation // nil: it changes nothing
	done   chan error   // capacity 1
	waits  []work       // for its end
}

// inWay reports whether a call would wait for the one that is blocked: in the
// same directory for that, and from one to another for any other such, since
// there is one lock for these.
func (b *blockedCall) inWay(req *kernel.Request) error {
	for _, dir := range []kernel.Dir{req.Dir, req.Dir2} {
		if dir.Node != 0 && dir.Node != uint64(staging) && (dir.Node == b.req.Dir.Node || dir.Node == b.req.Dir2.Node) {
			return errBlocked
		}
	}
	if crosses(req) && crosses(b.req) {
		return errSlow
	}
	return nil
}

func crosses(req *kernel.Request) bool {
	return req.Op == kernel.OpRename && req.Dir.Node != req.Dir2.Node
}

// callerFor returns who can make a call.
func (r *revealer) callerFor(req *kernel.Request) (*caller, error) {
	r.settle()
	for _, c := range r.callers {
		if c.blocked != nil {
			if err := c.blocked.inWay(req); err != nil {
				return nil, err
			}
		}
	}
	for _, c := range r.callers {
		if c.blocked == nil {
			return c, nil
		}
	}
	if len(r.callers) > maxSpare || r.ctx.Err() != nil {
		return nil, errSlow
	}
	helper := r.fs.helpers.add()
	if err := r.startSpare(helper); err != nil {
		r.fs.helpers.remove(helper)
		return nil, fmt.Errorf("%w: %w", errSlow, err)
	}
	r.log.Debug("a spare reveal helper is started")
	c := &caller{helper: helper}
	r.callers = append(r.callers, c)
	return c, nil
}

// make has a caller make a system call on the mount. If it is blocked, it is left
// to itself and the error is errBlocked.
func (r *revealer) make(c *caller, req *kernel.Request, e *expectation) error {
	done := make(chan error, 1)
	r.tasks.Go(func() {
		done <- c.helper.Do(r.ctx, req)
		r.queue.wakeUp() // if nobody waits any more
	})
	t := time.NewTimer(r.patience)
	defer t.Stop()
	select {
	case err := <-done:
		if c != r.callers[0] && errors.Is(err, kernel.ErrHelperGone) {
			r.callers = slices.DeleteFunc(r.callers, func(other *caller) bool { return other == c })
			r.fs.helpers.remove(c.helper)
		}
		return err
	case <-t.C:
		r.log.Debug("a call of the reveal helper is blocked", "op", req.Op, "dir", req.Dir.Node, "name", req.Name)
		c.blocked = &blockedCall{req: req, expect: e, done: done}
		return errBlocked
	}
}

// settle looks which of the blocked calls have returned, and lets go on what
// waited for them.
func (r *revealer) settle() {
	for _, c := range slices.Clone(r.callers) {
		if c.blocked == nil {
			continue
		}
		select {
		case err := <-c.blocked.done:
			r.returned(c, err)
		default:
		}
	}
	// One is enough again.
	if len(r.callers) > 1 && !slices.ContainsFunc(r.callers, func(c *caller) bool { return c.blocked != nil }) {
		for _, c := range r.callers[1:] {
			r.fs.helpers.remove(c.helper)
		}
		r.callers = r.callers[:1]
	}
}

// returned ends what a blocked call has begun.
func (r *revealer) returned(c *caller, err error) {
	b := c.blocked
	c.blocked = nil
	switch {
	case b.expect != nil:
		r.ended(b.expect, b.req) // what it has not shown is tried again, by what waits
	case err == nil:
		r.reveals.Add(1)
	}
	if b.req.Op == kernel.OpHold && err == nil {
		finish := &kernel.Request{Op: kernel.OpFinish, Hold: b.req.Hold}
		if r.make(c, finish, nil) == nil {
			r.reveals.Add(1)
		} else if c.blocked != nil { // by what is done with the file
			c.blocked.req = &kernel.Request{Op: kernel.OpFinish, Dir: b.req.Dir, Hold: b.req.Hold}
		}
	}
	r.queue.resume(b.waits)
}

// waitFor has work wait until no call is in the way of what it does in some
// directories. It returns false if none is.
func (r *revealer) waitFor(w work, dirs ...kernel.Dir) bool {
	r.settle()
	for _, c := range r.callers {
		for _, dir := range dirs {
			if b := c.blocked; b != nil && b.inWay(&kernel.Request{Dir: dir}) != nil {
				b.waits = append(b.waits, w)
				r.queue.suspend()
				return true
			}
		}
	}
	return false
}
