package sim

import (
	"time"

	"github.com/synapsefs/synapsefs/gossip"
)

// A wire carries messages one way. They arrive in order or, when the link
// breaks, not at all; but pushes may also be lost, doubled, or come late.
type wire struct {
	w        *world
	from, to *node

	up      bool
	linking bool
	cut     bool
	life    int // of the link: messages of an earlier one are lost
	queue   []gossip.Message
	last    time.Duration // when the last message on its way arrives
}

func (w *world) eachWire(fn func(*wire)) {
	for a := range w.nodes {
		for b := range w.nodes {
			if l := w.wires[[2]int{a, b}]; l != nil {
				fn(l)
			}
		}
	}
}

// relink makes the links that can be.
func (w *world) relink() {
	w.eachWire(func(l *wire) {
		if !l.up && !l.linking && l.possible() {
			l.linking = true
			w.after(w.between(0, 50*time.Millisecond), func() { l.connect() })
		}
	})
}

func (l *wire) back() *wire { return l.w.wires[[2]int{l.to.index, l.from.index}] }

func (l *wire) possible() bool {
	return !l.cut && !l.back().cut && l.from.up && l.to.up
}

func (l *wire) connect() {
	l.linking = false
	if !l.up && l.possible() {
		l.up = true
		l.life++
		l.queue, l.last = nil, l.w.now
		l.from.step(gossip.LinkUp{Peer: l.to.name})
	}
}

// end breaks the link; both sides learn it, unless they are down.
func (l *wire) end() {
	if !l.up {
		return
	}
	l.up = false
	l.life++
	l.queue = nil
	l.from.step(gossip.LinkDown{Peer: l.to.name})
	l.to.step(gossip.PeerGone{Peer: l.from.name})
}

// setCut cuts the wire, or mends it. What is under way stalls; a link that is
// cut for long breaks, in both directions.
func (l *wire) setCut(cut bool) {
	if l.cut == cut {
		return
	}
	l.cut = cut
	if !cut {
		l.w.relink()
		if l.up && len(l.queue) > 0 {
			l.last = l.w.now
			for range l.queue {
				l.schedule()
			}
		}
		return
	}
	life := l.life
	l.w.after(l.w.between(10*time.Millisecond, 5*time.Second), func() {
		if l.cut && l.life == life {
			l.end()
			l.back().end()
		}
	})
}

// send takes a message.
func (l *wire) send(m gossip.Message) {
	if !l.up {
		return
	}
	w := l.w
	if _, push := m.(gossip.Push); push && !w.calm && w.chance(w.loss) {
		switch w.rand.IntN(3) {
		case 0: // lost, as a slow peer's are
			life := l.life
			w.after(0, func() {
				if l.life == life {
					l.from.step(gossip.Overflowed{Peer: l.to.name})
				}
			})
			return
		case 1: // doubled
			l.late(m)
		case 2: // late
			l.late(m)
			return
		}
	}
	l.queue = append(l.queue, m)
	l.schedule()
}

// late delivers a push out of order.
func (l *wire) late(m gossip.Message) {
	life := l.life
	l.w.after(l.w.between(0, 2*time.Second), func() {
		if l.life == life && !l.cut {
			l.to.receive(l.from, m)
		}
	})
}

func (l *wire) schedule() {
	w, life := l.w, l.life
	d := w.between(100*time.Microsecond, 5*time.Millisecond)
	if !w.calm && w.chance(5) {
		d = w.between(0, 500*time.Millisecond)
	}
	l.last = max(l.last, w.now+d)
	w.after(l.last-w.now, func() {
		if l.life != life || l.cut || len(l.queue) == 0 {
			return
		}
		m := l.queue[0]
		l.queue = l.queue[1:]
		l.to.receive(l.from, m)
	})
}

// reaches reports whether one node could call another now.
func (w *world) reaches(a, b *node) bool {
	l := w.wires[[2]int{a.index, b.index}]
	return l != nil && l.up && l.possible()
}
