package sim

import (
	"container/heap"
	"time"
	"unsafe"
)

// epoch is what clocks without skew show when a world begins.
const epoch = 1_700_000_000 * int64(time.Second)

// reading is a clock's answer: wall nanoseconds, which may jump, and monotonic
// ones, which never do. The time package makes such values only from the
// machine's own clocks, so this one is put together as time.Now does it.
func reading(wall, monotonic int64) time.Time {
	const since1885 = (1969-1884)*365 + (1969/4 - 1884/4) - (1969/100 - 1884/100) + (1969/400 - 1884/400)
	sec := uint64(wall/1e9 + since1885*86400)
	t := struct {
		wall uint64
		ext  int64
		loc  *time.Location
	}{1<<63 | sec<<30 | uint64(wall%1e9), monotonic, nil}
	return *(*time.Time)(unsafe.Pointer(&t))
}

// An event is something that happens at a time, in order of seq within it.
type event struct {
	at  time.Duration
	seq uint64
	fn  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := len(*e) - 1
	x := (*e)[last]
	*e = (*e)[:last]
	return x
}

// timeline is the virtual clock and what is to happen.
type timeline struct {
	now    time.Duration
	seq    uint64
	queue  events
	events int // that have happened
}

// after has fn called when d is over.
func (t *timeline) after(d time.Duration, fn func()) {
	t.seq++
	heap.Push(&t.queue, event{t.now + max(d, 0), t.seq, fn})
}

// run lets d pass; it stops early if stop says so.
func (t *timeline) run(d time.Duration, stop func() bool) {
	end := t.now + d
	for len(t.queue) > 0 && t.queue[0].at <= end && !stop() {
		e := heap.Pop(&t.queue).(event)
		t.now = e.at
		t.events++
		e.fn()
	}
	if !stop() {
		t.now = end
	}
}
