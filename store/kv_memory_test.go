package store

import (
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

// never runs nothing in the background.
type never struct{}

func (never) Loop(func() time.Duration) (wake, stop func()) { return func() {}, func() {} }
func (never) After(d time.Duration, fn func()) Timer        { return time.AfterFunc(d, func() {}) }
