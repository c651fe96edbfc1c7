package gossip

import (
	"sync"

	"github.com/synapsefs/synapsefs/internal/wire"
	"github.com/synapsefs/synapsefs/store"
)

// Limits of what waits for one peer. Pushes over them are dropped, the peer
// pulls them later; other frames are few, and over maxQueued the link is cut.
const (
	maxQueuedPushes = 4096
	maxQueuedBytes  = 32 << 20
	maxQueued       = 4 * maxQueuedPushes
)

// A queue holds the frames that wait for one peer. Of the digests of a volume
// only the newest is kept; they go after the frames, so that no digest speaks
// of a push that is still behind it.
type queue struct {
	ready    chan struct{} // holds a token if there is something
	maxBytes int           // of pushes

	mu      sync.Mutex // guards what follows
	open    bool
	frames  []*wire.Frame
	bytes   int
	digests map[store.VolumeID]*wire.Frame
	writing bool // what was taken is not yet written
}

func newQueue() *queue {
	return &queue{ready: make(chan struct{}, 1), maxBytes: maxQueuedBytes, digests: map[store.VolumeID]*wire.Frame{}}
}

// setOpen empties the queue, and lets frames in or not.
func (q *queue) setOpen(open bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open, q.frames, q.bytes, q.writing = open, nil, 0, false
	clear(q.digests)
}

// push adds a batch; false if there is no room.
func (q *queue) push(f *wire.Frame, size int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.open {
		return true // the link is down: the peer compares vectors when it is up
	}
	if len(q.frames) > 0 && (len(q.frames) >= maxQueuedPushes || q.bytes+size > q.maxBytes) {
		return false
	}
	q.frames = append(q.frames, f)
	q.bytes += size
	q.wakeLocked()
	return true
}

// control adds any other frame; false if even those are too many.
func (q *queue) control(f *wire.Frame) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.open {
		return true
	}
	q.frames = append(q.frames, f)
	q.wakeLocked()
	return len(q.frames) <= maxQueued
}

// digest replaces the digest of a volume.
func (q *queue) digest(id store.VolumeID, f *wire.Frame) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.open {
		q.digests[id] = f
		q.wakeLocked()
	}
}

func (q *queue) wakeLocked() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// take returns all that waits. The writer calls it again when that is written.
func (q *queue) take() []*wire.Frame {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.frames
	for _, f := range q.digests {
		out = append(out, f)
	}
	clear(q.digests)
	q.frames, q.bytes, q.writing = nil, 0, len(out) > 0
	return out
}

// idle reports whether all was written.
func (q *queue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.writing && len(q.frames)+len(q.digests) == 0
}
