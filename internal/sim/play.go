package sim

import (
	"errors"
	"time"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// expected says that an error is an answer, not a fault.
func expected(err error) bool {
	for _, e := range []error{
		crdt.ErrNotExist, crdt.ErrExist, crdt.ErrNotDir, crdt.ErrIsDir, crdt.ErrNotEmpty, crdt.ErrInvalid,
		store.ErrStale, store.ErrNotRegular, store.ErrNoAttr,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return err == nil
}

// play does a step.
func (w *world) play(i int, s step) {
	n := w.nodes[s.who%len(w.nodes)]
	w.note("%d: %v", i, s)
	if !w.playNetwork(n, s) && n.up && n.vol.Ready() {
		n.user.doing = s.verb
		n.guard(func() {
			err := n.do(s)
			w.note("%s %s: %v", n.name, s.verb, err)
			if !expected(err) {
				w.fail("%s: %v: %w", n.name, s, err)
			}
			n.acknowledged()
		})
		n.user.doing = ""
		if w.chance(20) { // the system brings to the disk what it likes
			n.mem.Writeback()
		}
	}
	w.run(s.wait, w.ended)
}

// playNetwork does the steps that are not file system calls.
func (w *world) playNetwork(n *node, s step) bool {
	other := w.nodes[s.other%len(w.nodes)]
	switch s.verb {
	case "cut":
		if l := w.wires[[2]int{n.index, other.index}]; l != nil {
			l.setCut(true)
			if s.n > 0 {
				l.back().setCut(true)
			}
		}
	case "meet":
		if l := w.wires[[2]int{n.index, other.index}]; l != nil {
			l.setCut(false)
			l.back().setCut(false)
		}
	case "heal":
		w.eachWire(func(l *wire) {
			if s.n > 0 || l.from == n {
				l.setCut(false)
			}
		})
	case "kill", "power":
		n.fuse, n.after, n.power = 1+int(s.word>>8%6), s.n%2 == 0, s.verb == "power" && len(w.doubted) == 0
		if n.power && s.n > 1 && n.up { // at once
			n.died()
		}
	case "restart":
		n.stop()
		life := n.life
		w.after(s.wait/2, func() {
			if n.life == life && !n.up {
				n.start()
			}
		})
	case "clock":
		n.skew += time.Duration(int64(s.word)) % (2 * 365 * 24 * time.Hour)
		n.skew %= 100 * 365 * 24 * time.Hour // crdt.MaxWall is 176 years away
	case "join":
		if len(w.nodes) < 12 && !w.doubt() {
			w.addNode()
		}
	case "writeback": // the system brings to the disk what it likes
		n.mem.Writeback()
	default:
		return w.playAges(n, other, s)
	}
	return true
}
