package gossip

import "sync"

// A worker does things one after the other, in a goroutine that exists only
// while there is something to do. What bounds it is that the protocol bounds
// what it hands over.
type worker struct {
	mu      sync.Mutex // guards what follows
	todo    []func()
	running bool
	closed  bool
	done    sync.WaitGroup
}

// add has fn done, unless the worker is closed.
func (w *worker) add(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	w.todo = append(w.todo, fn)
	if !w.running {
		w.running = true
		w.done.Go(w.run)
	}
}

func (w *worker) run() {
	for {
		w.mu.Lock()
		if len(w.todo) == 0 {
			w.running = false
			w.mu.Unlock()
			return
		}
		fn := w.todo[0]
		w.todo = w.todo[1:]
		w.mu.Unlock()
		fn()
	}
}

// close drops what was not begun and waits for what was.
func (w *worker) close() {
	w.mu.Lock()
	w.todo, w.closed = nil, true
	w.mu.Unlock()
	w.done.Wait()
}
