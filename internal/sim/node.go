package sim

import (
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/synapsefs/synapsefs/gossip"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A node is one host: a disk, and while it is up a store and a protocol on it.
type node struct {
	w      *world
	index  int
	name   string
	dir    string
	mem    *store.Memory
	random *rand.ChaCha8
	skew   time.Duration
	boots  int

	up    bool
	life  int // counts starts: events of an earlier life are void
	db    *store.DB
	vol   *store.Volume
	proto *gossip.Protocol
	wake  time.Time // of the protocol, as it is scheduled
	merge time.Duration

	arrived []*gossip.Batch // to be merged
	limits  store.Limits
	ids     map[crdt.ReplicaID]bool // under which it ever worked
	backup  *backup
	begun   bool // anew, once or more
	doubt   bool // restored, and does not know yet that others know more of it

	fuse  int  // writes until it is killed, 0 if it is not to be
	after bool // killed after that write, else before
	power bool // with its machine
	dead  bool // killed, and about to be down

	mounted bool
	user    user
}

// mount is the one through which users work.
const mount store.MountID = 1

// A kernel knows every file: one that a peer changes gets a new node.
type kernel struct{}

func (kernel) Prepare(c *store.Changes) (switched []crdt.Ino) {
	for _, i := range c.Inodes {
		if i.Content && c.By == 0 {
			switched = append(switched, i.Ino)
		}
	}
	return switched
}

func (kernel) Committed(*store.Changes) {}

func (kernel) Aborted(*store.Changes) {}

// Shows says no: what is merged is shown at once.
func (kernel) Shows(crdt.Ino) bool { return false }

// Knows says no: nothing is read from a node whose handles are closed.
func (kernel) Knows(store.NodeID) bool { return false }

// killed is what a node's death panics with.
type killed struct{ n *node }

// clock is the node's: its wall clock is wrong by its skew.
func (n *node) clock() time.Time {
	return reading(epoch+int64(n.w.now+n.skew), int64(n.w.now))
}

// steady is the clock that the protocol sees: it only measures.
func (n *node) steady() time.Time { return reading(epoch, int64(n.w.now)) }

// start opens the store on what is on the disk.
func (n *node) start() {
	n.life++
	n.user.forgetHandles()
	mem := n.mem
	mem.Hook = func(committed bool) {
		if n.fuse > 0 && committed == n.after {
			n.fuse--
			n.dead = n.fuse == 0
		}
		if n.dead || n.mem != mem {
			panic(killed{n}) // a dead process writes no more
		}
	}
	n.guard(func() {
		disk := mem
		if n.w.real {
			disk = nil
		}
		db, err := store.Open(store.Options{
			Dir: n.dir, Memory: disk, Random: n.source(), Now: n.clock, Scheduler: background{n, n.life},
			InlineLimit: inlineLimit, ReserveBytes: 1, Log: n.log(),
			ReplicaRetention: n.w.retention, JournalLimit: n.w.journalLimit,
		})
		if err != nil {
			n.w.fail("%s: open: %w", n.name, err)
			return
		}
		v := db.Volume(n.w.volume)
		if v == nil {
			if v, err = db.CreateReplica(n.w.volume, "sim", n.index == 0); err != nil {
				n.w.fail("%s: create replica: %w", n.name, err)
				return
			}
			if err := v.Sync(); err != nil {
				n.w.fail("%s: sync: %w", n.name, err)
			}
		}
		n.db, n.vol, n.up, n.merge, n.arrived = db, v, true, n.w.now, nil
		n.ids[v.Replica()] = true
		v.SetLimits(n.limits)
		n.harvest()
		n.checkRestart()
		if n.mounted {
			v.AddViewer(mount, kernel{})
		}
		v.OnSeal(func(b *store.Batch) {
			n.w.ops.add(n.w, b)
			n.checkSealed(b)
			n.step(gossip.LocalBatch{Volume: b.Volume, Batch: batchOf(b, nil)})
		})
		n.proto, n.wake = gossip.NewProtocol(gossip.Limits{SnapshotOver: 3, PullBytes: 4000}), time.Time{}
		n.step(gossip.VolumeOpened{Holding: gossip.Holding{Volume: v.ID(), Replica: v.Replica(), Ready: v.Ready(), Vector: v.Vector(), Collected: v.Collected()}})
		n.later(n.w.between(0, time.Millisecond), n.speakLoop)
	})
	if n.up {
		n.w.note("%s is up as %v", n.name, n.vol.Replica())
		n.w.relink()
	}
}

// source is where the node's ids come from.
func (n *node) source() io.Reader {
	if n.w.real {
		return nil // it lives more often than its world
	}
	return n.random
}

func (n *node) log() *slog.Logger {
	if n.w.verbose == nil {
		return nil
	}
	return slog.New(slog.NewTextHandler(n.w.verbose, nil)).With("node", n.name)
}

// guard runs what the node does; if it is killed doing it, it is down. It
// reports whether it came to the end.
func (n *node) guard(fn func()) (whole bool) {
	defer func() {
		if e := recover(); e != nil {
			if k, ok := e.(killed); !ok || k.n != n {
				panic(e)
			}
			n.died()
		}
	}()
	fn()
	return true
}

// died leaves on the disk what the kill left, and starts the node again later.
func (n *node) died() {
	w := n.w
	w.note("%s is killed, power loss: %v", n.name, n.power)
	n.user.died(n.power)
	if n.power {
		w.lossy = true
		n.boots++
		n.mem = n.mem.AfterPowerLoss(fmt.Sprint("boot", n.boots))
	} else {
		n.mem = n.mem.AfterKill()
	}
	n.fuse, n.dead = 0, false
	n.down()
	life := n.life
	w.after(w.between(0, 2*time.Second), func() {
		if n.life == life && !n.up {
			n.start()
		}
	})
}

// down takes the node off the network.
func (n *node) down() {
	n.up, n.db, n.vol, n.proto = false, nil, nil, nil
	n.life++
	n.w.eachWire(func(l *wire) {
		if l.from == n || l.to == n {
			l.end()
		}
	})
}

// stop closes the store, if the node is up.
func (n *node) stop() {
	if !n.up {
		return
	}
	db := n.db
	whole := n.guard(func() {
		if err := db.Close(); err != nil {
			n.w.fail("%s: close: %w", n.name, err)
		}
	})
	if whole {
		n.user.died(false)
		n.user.synced = n.user.acked
		n.mem = n.mem.AfterKill()
		n.down()
	}
}

// later has fn called when d is over, if the node is not restarted before.
func (n *node) later(d time.Duration, fn func()) {
	life := n.life
	n.w.after(d, func() {
		if n.life == life {
			n.guard(fn)
		}
	})
}
