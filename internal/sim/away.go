package sim

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/synapsefs/synapsefs/gossip"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// An anew is a replica that began anew.
type anew struct {
	last   crdt.Seq    // its own ops up to there are old ones, made again
	vector crdt.Vector // what it had then
}

// A backup is a copy of a node's disk.
type backup struct {
	mem    *store.Memory
	dir    string
	vector crdt.Vector
	own    crdt.Dot // the last own op, sealed or not
}

func (n *node) speakLoop() {
	n.speak()
	n.later(n.db.TurnEvery(), n.speakLoop)
}

// speak tells the peers which replicas there are.
func (n *node) speak() {
	members, err := n.vol.Speak(n.name)
	if err != nil {
		n.w.fail("%s: speak: %w", n.name, err)
		return
	}
	n.step(gossip.Spoke{Volume: n.w.volume, Members: members, Collected: n.vol.Collected()})
}

func (n *node) verify(e gossip.Verify) {
	forked, err := n.vol.Forked(e.Replica, e.Entry.Seq, func(hash [32]byte) bool { return hash == e.Entry.Hash })
	if err != nil {
		n.w.fail("%s: compare journals: %w", n.name, err)
	}
	n.step(gossip.Verified{Volume: e.Volume, Peer: e.Peer, Replica: e.Replica, Entry: e.Entry, Forked: forked})
}

// playAges does the steps that take long.
func (w *world) playAges(n, other *node, s step) bool {
	long := w.retention + time.Duration(1+s.n)*w.retention/4
	switch s.verb {
	case "pass":
		w.run(long, w.ended)
	case "away":
		n.goAway(long, s.word>>16%2 == 0)
		if s.n > 1 {
			w.run(long/2, w.ended)
		}
	case "forget":
		if n.up && n != other {
			n.guard(func() {
				if _, err := n.vol.Forget(other.name); err != nil {
					w.fail("%s: forget: %w", n.name, err)
				}
				n.speak()
			})
		}
	case "backup":
		if n.up && !n.doubt {
			n.backUp()
		}
	case "restore":
		n.restore()
	default:
		return false
	}
	return true
}

// goAway cuts a node off, or stops it, for a time.
func (n *node) goAway(d time.Duration, stopped bool) {
	if stopped {
		n.stop()
		life := n.life
		n.w.after(d, func() {
			if n.life == life && !n.up {
				n.start()
			}
		})
		return
	}
	n.setCut(true)
	n.w.after(d, func() { n.setCut(false) })
}

func (n *node) setCut(cut bool) {
	n.w.eachWire(func(l *wire) {
		if l.from == n || l.to == n {
			l.setCut(cut)
		}
	})
}

func (n *node) backUp() {
	b := &backup{mem: n.mem.AfterKill(), dir: fmt.Sprintf("%s.backup%d", n.dir, n.life), vector: n.vol.Vector()}
	b.own = crdt.Dot{Replica: n.vol.Replica()}
	b.own.Seq = b.vector[b.own.Replica].Seq + crdt.Seq(n.vol.Stats().Unsealed)
	b.mem.Writeback()
	os.RemoveAll(b.dir) // of a backup before, in this life
	if err := os.CopyFS(b.dir, os.DirFS(n.dir)); err != nil {
		n.w.fail("%s: back up: %w", n.name, err)
	}
	n.backup = b
}

// restore puts the backup in the place of the disk. Only when all others are up
// and have the same ops of this node: else two of them may take different ones
// for the same, before the node meets one that knows. And one in a run: what two
// backups lack may be nowhere.
func (n *node) restore() {
	w, b := n.w, n.backup
	if b == nil || w.lossy || len(w.doubted) > 0 {
		return
	}
	n.stop()
	if n.up || !n.sameElsewhere() {
		n.start()
		return
	}
	theirs := w.other(n).vol.Vector()
	for dot := range w.ops.ops {
		if n.ids[dot.Replica] && dot.Seq > theirs[dot.Replica].Seq && !b.has(dot) {
			delete(w.ops.ops, dot) // nobody has it any more
		}
	}
	if err := os.RemoveAll(n.dir); err == nil {
		err = os.CopyFS(n.dir, os.DirFS(b.dir))
		if err != nil {
			w.fail("%s: restore: %w", n.name, err)
		}
	}
	n.mem = b.mem.AfterKill()
	n.user, n.fuse, n.life = user{saw: n.user.saw}, 0, n.life+1
	w.doubted[b.own.Replica] = true
	n.doubt = theirs[b.own.Replica].Seq > b.vector[b.own.Replica].Seq
	w.note("%s is restored from a backup, in doubt: %v", n.name, n.doubt)
	n.start()
	n.setCut(false)
}

// has reports whether an op is in the backup.
func (b *backup) has(d crdt.Dot) bool {
	return b.vector[d.Replica].Seq >= d.Seq || d.Replica == b.own.Replica && d.Seq <= b.own.Seq
}

func (w *world) other(n *node) *node {
	if w.nodes[0] != n {
		return w.nodes[0]
	}
	return w.nodes[1]
}

// doubt reports whether some replica does not know yet that it was restored.
func (w *world) doubt() bool {
	for _, n := range w.nodes {
		if n.doubt {
			return true
		}
	}
	return false
}

// sameElsewhere reports whether all others have the same ops of this node, and
// no more of them are on the way.
func (n *node) sameElsewhere() bool {
	for _, m := range n.w.nodes {
		if m == n {
			continue
		}
		if !m.up || !m.vol.Ready() {
			return false
		}
		for id := range n.ids {
			if s := m.vol.Vector()[id].Seq; s != n.w.other(n).vol.Vector()[id].Seq || s < n.w.ops.got[id] {
				return false
			}
		}
	}
	return true
}

// checkReason checks that nobody must begin anew who was heard of, where nobody is
// out, as far as disks kept what was said. Where somebody is, a newcomer may have
// been with him.
func (n *node) checkReason(from *node, anew bool) {
	c := from.vol.Collected()
	heard := slices.ContainsFunc(from.vol.Roster(), func(e store.RosterEntry) bool { return e.Replica == n.vol.Replica() })
	if anew && heard && !n.w.lossy && len(n.w.doubted) == 0 && n.vol.Ready() && !n.begun && len(c.Out) == 0 &&
		c.Excludes(n.vol.Replica(), n.vol.Vector()) {
		n.w.fail("P6: %s collected what %s lacks, which counts", from.name, n.name)
	}
}

// begunAnew notes what a replica that began anew has.
func (n *node) begunAnew() {
	id, v := n.vol.Replica(), n.vol.Vector()
	n.w.anews[id] = &anew{last: v[id].Seq + crdt.Seq(n.vol.Stats().Unsealed), vector: v}
	n.ids[id], n.doubt, n.begun = true, false, true
	n.harvest()
	n.user.replica, n.user.beginning, n.user.promises = 0, 0, nil
	for _, d := range n.user.drafts {
		if a, err := n.vol.Attr(d.node); err == nil && a.Ino != d.ino {
			for h := range n.user.saw[d.ino] {
				n.user.knows(a.Ino, h)
			}
			d.ino = a.Ino
		}
	}
	n.acknowledged()
}

// again reports whether an op was made again when its node began anew, or names
// a content that its user saw before that, under another number maybe.
func (n *node) again(d crdt.Dot, base crdt.Hash) bool {
	if a := n.w.anews[d.Replica]; a != nil && d.Seq <= a.last {
		return true
	}
	for id := range n.ids {
		if n.w.anews[id] != nil {
			return n.user.sawAnywhere(base)
		}
	}
	return false
}

// madeAgain reports whether an op was made again when its replica began anew.
func (w *world) madeAgain(d crdt.Dot) bool {
	a := w.anews[d.Replica]
	return a != nil && d.Seq <= a.last
}

// checkAnew checks of the contents that were made again, and of those that were
// to be: none is lost, and none comes again that the replica knew to be known
// when it began anew, and so maybe removed.
func (w *world) checkAnew(ops map[crdt.Dot]*sealedOp) {
	all := slices.Concat(slices.Collect(maps.Values(w.ops.ops)), slices.Collect(maps.Values(w.ops.forks)))
	slices.SortFunc(all, func(a, b *sealedOp) int { return cmp.Or(opOrder(a.ID(0), b.ID(0)), bytes.Compare(a.raw, b.raw)) })
	by := map[crdt.Hash][]*sealedOp{}
	for _, o := range all {
		for _, h := range o.contents() {
			by[h] = append(by[h], o)
		}
	}
	for _, o := range all {
		if w.lossy || ops[o.Dot] == o {
			continue
		}
		for _, h := range o.contents() {
			if !slices.ContainsFunc(by[h], func(k *sealedOp) bool { return ops[k.Dot] == k }) {
				w.fail("P6: a content of op %v, made while away, is lost", o.Dot)
			}
		}
	}
	for d, o := range ops {
		if !w.madeAgain(d) {
			continue
		}
		vector := w.anews[d.Replica].vector
		for _, h := range o.contents() {
			known := 0
			for _, k := range by[h] {
				switch {
				case k == o:
				case w.ops.ops[k.Dot] != k, vector[k.Dot.Replica].Seq < k.Dot.Seq:
					known += 1 << 16
				default:
					known++
				}
			}
			if known == 1 { // of more it cannot be told which it is
				w.fail("P6: op %v makes again what was known", d)
			}
		}
	}
}

// contents are the hashes of the contents that an op publishes.
func (o *sealedOp) contents() (out []crdt.Hash) {
	for _, w := range o.Writes {
		if w.Kind == crdt.WriteContent {
			out = append(out, w.Content.Hash)
		}
	}
	return out
}

// age lets the retention pass when all is settled, and checks that what all have
// is forgotten, and nothing else.
func (w *world) age() {
	w.run(2*w.retention, w.ended)
	if w.ended() || !w.await() {
		return
	}
	w.check()
	for _, n := range w.nodes {
		k, err := n.vol.Keeping()
		if err != nil || k.Unstable > 0 || k.Counting != len(w.nodes)-1 {
			w.fail("P13: %s, when all have all: %+v, %w", n.name, k, err)
		}
		if w.journalLimit > 0 && k.JournalBytes > w.journalLimit {
			w.fail("P13: the journal of %s has %d bytes", n.name, k.JournalBytes)
		}
		if len(n.vol.Collected().Vector) > 0 {
			w.collected++
		}
	}
}

// harvest takes the ops of a node's journal: also those that were sealed when it
// died, or while it began anew.
func (n *node) harvest() {
	if n.w.real {
		bs, _, err := n.vol.Batches(nil, 1<<40)
		if err != nil {
			n.w.fail("%s: journal: %w", n.name, err)
		}
		for _, b := range bs {
			n.w.ops.add(n.w, b)
		}
		return
	}
	n.each('j', func(_, value []byte) {
		b, err := store.DecodeBatch(value)
		if err != nil {
			n.w.fail("%s: journal: %w", n.name, err)
			return
		}
		n.w.ops.add(n.w, b)
	})
}

// each calls fn for the keys of a tag in the replica's present state.
func (n *node) each(tag byte, fn func(key, value []byte)) {
	var record struct{ Gen byte }
	n.mem.Each(append([]byte{'V'}, n.w.volume[:]...), func(_, value []byte) {
		if err := json.Unmarshal(value, &record); err != nil {
			n.w.fail("%s: record: %w", n.name, err)
		}
	})
	n.mem.Each(append(append([]byte{'v'}, n.w.volume[:]...), tag|record.Gen), fn)
}
