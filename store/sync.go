package store

import "sync"

// syncGroup lets one sync serve all callers that are waiting when it begins.
type syncGroup struct {
	sync func() error

	mu      sync.Mutex
	running bool
	next    *syncRun // the run that callers of now wait for
}

type syncRun struct {
	done chan struct{}
	err  error
}

// wait returns when a sync that began after the call has ended.
func (g *syncGroup) wait() error {
	g.mu.Lock()
	if g.next == nil {
		g.next = &syncRun{done: make(chan struct{})}
	}
	run := g.next
	if !g.running {
		g.running = true
		go g.serve()
	}
	g.mu.Unlock()
	<-run.done
	return run.err
}

// serve syncs as long as somebody waits.
func (g *syncGroup) serve() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for r := g.next; r != nil; r = g.next {
		g.next = nil
		g.mu.Unlock()
		r.err = g.sync()
		close(r.done)
		g.mu.Lock()
	}
	g.running = false
}
