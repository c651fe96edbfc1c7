package sim

import (
	"time"

	"github.com/synapsefs/synapsefs/store"
)

// background is the store's Scheduler on the virtual clock, during one life of
// a node.
type background struct {
	n    *node
	life int
}

func (b background) Loop(turn func() time.Duration) (wake, stop func()) {
	stopped, generation := false, 0
	var at func(d time.Duration)
	at = func(d time.Duration) {
		generation++
		mine := generation
		b.n.later(d, func() {
			if stopped || mine != generation {
				return
			}
			if d := turn(); mine == generation { // else it was woken meanwhile
				at(max(d, 10*time.Microsecond))
			}
		})
	}
	at(0)
	return func() { at(0) }, func() { stopped = true }
}

type timer struct{ done bool }

func (t *timer) Stop() bool {
	was := t.done
	t.done = true
	return !was
}

func (b background) After(d time.Duration, fn func()) store.Timer {
	t := &timer{}
	b.n.later(d, func() {
		if t.Stop() {
			fn()
		}
	})
	return t
}
