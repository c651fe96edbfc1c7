package store

import (
	"strings"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// TestP8PowerLossAtAnyCommit cuts the power after each commit of two lives of a
// daemon: the first stops cleanly, and both make ops, which leave. No dot may
// name two ops afterwards.
func TestP8PowerLossAtAnyCommit(t *testing.T) {
	for cut := 1; ; cut++ {
		m := NewMemory()
		dir, id, boot := t.TempDir(), VolumeID{1}, "first"
		var left map[crdt.Dot]string
		var image *Memory
		commits := 0
		m.Hook = func(committed bool) {
			if committed {
				if commits++; commits == cut {
					image = m.AfterPowerLoss("second")
				}
			}
		}
		m.BootID = boot
		left = map[crdt.Dot]string{}
		note := func(b *Batch) {
			if image != nil {
				return
			}
			for n, op := range b.Ops {
				left[crdt.Dot{Replica: b.Origin, Seq: b.First + crdt.Seq(n)}] = string(op)
			}
		}
		v := must(openWith(t, Options{Dir: dir, Memory: m}).CreateReplica(id, "test", true))
		v.OnSeal(note)
		mkdir(t, v, root, "a")
		check(t, v.Sync(), nil)
		check(t, v.db.Close(), nil)
		v = openWith(t, Options{Dir: dir, Memory: m}).Volume(id)
		v.OnSeal(note)
		mkdir(t, v, root, "b")
		check(t, v.sealNow(), nil)
		check(t, v.db.Close(), nil)
		if image == nil {
			return // all commits are done
		}
		for kill := 0; ; kill++ {
			second, killed := image.AfterKill(), false
			if kill > 0 {
				second, killed = killedOpening(t, dir, second, kill)
			}
			after := openWith(t, Options{Dir: dir, Memory: second}).Volume(id)
			if after == nil {
				break // cut before the replica was there for good
			}
			after.OnSeal(func(b *Batch) {
				for n, op := range b.Ops {
					dot := crdt.Dot{Replica: b.Origin, Seq: b.First + crdt.Seq(n)}
					if was, ok := left[dot]; ok && was != string(op) {
						t.Errorf("power lost after commit %d, killed after %d of the next start: dot %v names two ops", cut, kill, dot)
					}
				}
			})
			mkdir(t, after, root, "c")
			check(t, after.sealNow(), nil)
			check(t, after.db.Close(), nil)
			if kill > 0 && !killed {
				break
			}
		}
	}
}

// killedOpening opens a store that is killed at a commit, and returns what it
// leaves.
func killedOpening(t *testing.T, dir string, m *Memory, kill int) (after *Memory, killed bool) {
	m.Hook = func(committed bool) {
		if committed {
			if kill--; kill == 0 {
				panic("killed")
			}
		}
	}
	defer func() {
		killed = recover() != nil
		m.Hook = nil
		after = m.AfterKill()
	}()
	db, err := Open(Options{Dir: dir, Memory: m, Scheduler: never{}})
	check(t, err, nil)
	after = m.AfterKill()
	check(t, db.release(), nil)
	return after, false
}

// TestP8FsyncedDrafts: what was synced is there after a loss of power, whether
// the file was closed since or not; if more was written since, it is unfinished.
func TestP8FsyncedDrafts(t *testing.T) {
	for _, size := range []int{0, 10, 100_000} {
		for _, then := range []string{"", "close", "write"} {
			m := NewMemory()
			o := Options{Dir: t.TempDir(), Memory: m, Scheduler: never{}}
			v := volumeWith(t, NewVolumeID(), o)
			w := create(t, v, root, "f").write(noise(1, size), 0)
			check(t, v.Fsync(w.node), nil)
			switch then {
			case "close":
				w.close()
			case "write":
				w.add("more")
			}
			o.Memory = m.AfterPowerLoss("another")
			after := openWith(t, o).Volume(v.id)
			if _, _, err := after.Lookup(root, "f"); err != nil && then == "write" {
				continue // unfinished
			}
			if got := open(t, after, root, "f", false).read(); !strings.HasPrefix(got, noise(1, size)) {
				t.Errorf("%d bytes, %q: %d bytes are there", size, then, len(got))
			}
		}
	}
}

// patient runs what is to be done later when it is told to.
type patient struct {
	never
	later []func()
}

func (p *patient) After(d time.Duration, fn func()) Timer {
	p.later = append(p.later, fn)
	return time.AfterFunc(time.Hour, fn)
}

// TestP2TruncatedWhileOpen: a file that is held open and changed in place is
// published while open, but not once somebody has begun to write it anew.
func TestP2TruncatedWhileOpen(t *testing.T) {
	for _, begin := range []string{"write", "truncate"} {
		p := &patient{}
		v := volumeWith(t, NewVolumeID(), Options{Scheduler: p})
		w := create(t, v, root, "f")
		w.write("whole", 0).close()
		w = open(t, v, root, "f", false)
		if begin == "write" {
			w.write("x", 0)
		} else {
			size := int64(3)
			check(t, second(v.SetAttr(Request{}, w.node, SetAttr{Size: &size})), nil)
		}
		anew := open(t, v, root, "f", true).write("ha", 0)
		was := opsSince(t, v, nil)
		for _, fn := range p.later {
			fn()
		}
		if opsSince(t, v, nil) != was {
			t.Errorf("%s: half a file was published", begin)
		}
		anew.write("half", 0).close()
		w.close()
	}
}

// never runs nothing in the background.
type never struct{}

func (never) Loop(func() time.Duration) (wake, stop func()) { return func() {}, func() {} }
func (never) After(d time.Duration, fn func()) Timer        { return time.AfterFunc(d, func() {}) }
