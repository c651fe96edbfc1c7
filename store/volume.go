package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/synapsefs/synapsefs/internal/mutation"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A Volume is one replica of one replicated tree.
type Volume struct {
	// Fixed by open.
	db      *DB
	id      VolumeID
	keys    keyspace
	replica crdt.ReplicaID
	portion int // bytes of a snapshot that are read in one transaction

	timers sync.WaitGroup // of drafts
	joinMu sync.Mutex     // one JoinSnapshot at a time; taken before mu
	sets   atomic.Pointer[sets]
	ready  atomic.Bool
	closed atomic.Bool
	ops    atomic.Uint64 // local ops committed since open
	merged atomic.Uint64 // remote ops merged since open

	repeated atomic.Uint64 // requests that came again and were done already, since open

	forcedOut atomic.Uint64 // records dismissed for the conflict-limit since open

	wakeSealer, stopSealer, stopKeeper, stopPruner func()

	mu         sync.Mutex // serialises Commit and Merge; guards what follows
	name       string
	clock      crdt.Clock
	vector     crdt.Vector
	seq        crdt.Seq                    // of the last own op, sealed or not
	deps       map[crdt.ReplicaID]crdt.Seq // merged since the last own op
	queue      sealQueue
	closeWaits bool // the sealer waits for files that were closed
	viewers    map[MountID]Viewer
	awaited    map[MountID]bool // of Options.Mounted, without a viewer yet
	resumed    map[MountID]map[Handle]NodeID
	held       map[MountID][]Held // of awaited mounts
	unfinished int                // drafts whose writer died before closing them
	roster     roster
	journal    journal
	collected  Collected
	// nextCollect is when tombstones are looked at again.
	nextCollect time.Time
	twoStates   bool           // keys of the other generation may be there
	next        crdt.ReplicaID // under which it will begin anew; 0: none yet
	trimmed     crdt.VersionID // the log of moves begins after it
	// became says what was made again when the replica last began anew, and
	// gone which open files were removed by then, as they had been here.
	became     *crdt.Rebase
	gone       map[crdt.Ino]*crdt.Inode
	halfJoined bool // a snapshot is part of the state and part is not

	setsMu sync.RWMutex // held while a transaction and sets must agree; taken after mu
	pinned *pinned      // guarded by setsMu: what readers see while a snapshot is joined
	sealMu sync.Mutex   // one seal at a time; taken before mu

	callMu    sync.Mutex // guards the subscriptions
	callID    int
	onSeal    map[int]func(*Batch)
	onMerge   map[int]func(crdt.Vector)
	onCollect map[int]func()

	nodesMu sync.RWMutex // guards the node ids that are no inode numbers
	nodes   map[NodeID]*nodeRecord
	current map[crdt.Ino]NodeID

	draftsMu  sync.Mutex // guards the maps, not the drafts
	drafts    map[NodeID]*draft
	births    map[crdt.Ino]birth // of directories in which unpublished inodes were made
	published chan struct{}      // closed and renewed when a draft is finished
	handles   map[Handle]NodeID

	backings map[NodeID]*Backing // guarded by DB.backingMu

	pruning pruneQueue // of history
	limits  atomic.Pointer[Limits]

	wanted  wanted
	subdirs subdirs
	atimes  atimes
}

func newVolume(db *DB, id VolumeID, r replicaRecord) *Volume {
	v := &Volume{
		db: db, id: id, keys: newKeyspace(id, r.Gen), twoStates: r.TwoStates, next: r.Next,
		replica: r.Replica, name: r.Name, portion: snapChunk,
		vector: crdt.Vector{}, deps: map[crdt.ReplicaID]crdt.Seq{},
		viewers: map[MountID]Viewer{}, awaited: map[MountID]bool{}, resumed: map[MountID]map[Handle]NodeID{},
		backings: map[NodeID]*Backing{}, held: map[MountID][]Held{},
		onSeal: map[int]func(*Batch){}, onMerge: map[int]func(crdt.Vector){}, onCollect: map[int]func(){},
		nodes: map[NodeID]*nodeRecord{}, current: map[crdt.Ino]NodeID{},
		drafts: map[NodeID]*draft{}, births: map[crdt.Ino]birth{}, wakeSealer: func() {}, handles: map[Handle]NodeID{}, published: make(chan struct{}),
	}
	for _, m := range db.opts.Mounted[id] {
		v.awaited[m] = true
	}
	v.ready.Store(r.Ready)
	v.SetLimits(Limits{})
	v.queue.opts = &db.opts
	return v
}

// restore reads what is on disk.
func (v *Volume) restore() error {
	// Those of earlier versions had no LostIno.
	if err := v.db.kv.update(func(t txn) error { return putFixed(t, &v.keys) }); err != nil {
		return err
	}
	if err := v.load(); err != nil {
		return err
	}
	return v.loadCollected()
}

func openVolume(db *DB, id VolumeID, r replicaRecord, s start) (*Volume, error) {
	v := newVolume(db, id, r)
	if v.twoStates {
		if err := v.dropBeside(); err != nil {
			return nil, err
		}
	}
	if err := v.restore(); err != nil {
		return nil, err
	}
	if err := v.finishSnapshot(); err != nil {
		v.unpin()
		return nil, err
	}
	if (s.unclean || s.moved) && !mutation.Off(mutation.NewID) {
		if err := v.renew(s.moved); err != nil {
			return nil, err
		}
	}
	if err := v.recoverDrafts(s.unclean); err != nil {
		return nil, err
	}
	v.startSealer()
	v.publishResumed()
	_, v.stopKeeper = db.opts.Scheduler.Loop(v.keep)
	_, v.stopPruner = db.opts.Scheduler.Loop(later(pruneInterval, v.pruneTurn))
	return v, nil
}

// load reads what is kept in memory.
func (v *Volume) load() error {
	keys := newKeyspace(v.id, byte(v.keys.gen.Load()))
	s := &sets{keys: &keys, head: map[crdt.Ino]crdt.Ino{}, members: map[crdt.Ino][]crdt.Ino{}}
	err := v.db.kv.view(func(t txn) error {
		if err := t.scan(v.keys.key('g'), nil, func(key, value []byte) (bool, error) {
			members, err := crdt.DecodeInos(value)
			if err != nil {
				return false, fmt.Errorf("%w: directory set: %w", ErrDamaged, err)
			}
			head := crdt.Ino(v.keys.tail(key, 0))
			s.members[head] = members
			for _, m := range members {
				s.head[m] = head
			}
			return true, nil
		}); err != nil {
			return err
		}
		if err := t.scan(v.keys.key('a'), nil, func(key, value []byte) (bool, error) {
			e, err := crdt.DecodeVectorEntry(value)
			if err != nil {
				return false, fmt.Errorf("%w: version vector: %w", ErrDamaged, err)
			}
			v.vector[crdt.ReplicaID(v.keys.tail(key, 0))] = e
			v.clock.Observe(e.Stamp)
			return true, nil
		}); err != nil {
			return err
		}
		if err := v.loadQueue(t); err != nil {
			return err
		}
		if err := v.loadJournal(t); err != nil {
			return err
		}
		return v.loadRoster(t)
	})
	v.sets.Store(s)
	return err
}

// loadQueue reads the own ops that are in no batch yet.
func (v *Volume) loadQueue(t txn) error {
	v.seq = v.vector[v.replica].Seq
	for r, e := range v.vector { // what the last op knew is not kept: name all
		if r != v.replica {
			v.deps[r] = e.Seq
		}
	}
	return t.scan(v.keys.key('u'), nil, func(_, value []byte) (bool, error) {
		raw := slices.Clone(value)
		op, err := crdt.DecodeOp(raw)
		if err != nil {
			return false, fmt.Errorf("%w: unsealed op: %w", ErrDamaged, err)
		}
		v.clock.Observe(op.Stamp)
		v.seq = op.Dot.Seq
		v.queue.add(queued{op: op, raw: raw, size: 3 * len(raw)}, v.db.opts.Now()) // about
		return true, nil
	})
}

// renew gives the replica a new id: after an unclean boot, or on a copy, there
// may be ops under the old one that are not here, and no dot may name two (P8).
// It begins anew from nobody's state: what is not here comes like the ops of any
// other replica.
func (v *Volume) renew(copied bool) error {
	if err := v.sealNow(); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.renewLocked(copied)
}

// renewLocked needs all own ops in batches.
func (v *Volume) renewLocked(copied bool) error {
	old := v.replica
	v.replica = crdt.ReplicaID(v.db.randomID())
	if err := v.putRecordLocked(); err != nil {
		v.replica = old
		return err
	}
	v.seq = 0
	if seq := v.vector[old].Seq; seq > 0 {
		v.deps[old] = seq
	}
	// Else nobody heard of it, or the original may live on.
	if heard := v.roster.self.Node != "" || v.vector[old].Seq > 0; heard && !copied {
		v.roster.out[old] = true // nothing comes from it any more
	}
	return v.saveRosterLocked()
}

func (v *Volume) putRecordLocked() error {
	r := replicaRecord{
		Name: v.name, Replica: v.replica, Ready: v.ready.Load(), Gen: byte(v.keys.gen.Load()), TwoStates: v.twoStates, Next: v.next,
	}
	return v.db.kv.update(func(t txn) error { return putJSON(t, replicaKey(v.id), r) })
}

// close publishes nothing more: what is open stays a draft.
func (v *Volume) close() error {
	if v.closed.Swap(true) {
		return nil
	}
	v.stopPruner()
	v.stopKeeper()
	v.stopSealer()
	err := errors.Join(v.sealNow(), v.closeDrafts(), v.saveAtimes())
	v.unpin()
	v.mu.Lock()
	defer v.mu.Unlock()
	return errors.Join(err, v.saveRosterLocked())
}

// ID is the volume's id.
func (v *Volume) ID() VolumeID { return v.id }

// DB is the store that the replica is in.
func (v *Volume) DB() *DB { return v.db }

// Name is the volume's name, for people.
func (v *Volume) Name() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.name
}

// Replica is the id under which this replica's ops are known.
func (v *Volume) Replica() crdt.ReplicaID {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.replica
}

// Ready reports whether the replica was made with its volume or has once
// caught up with a ready one: only then may it serve, and be a source (P11).
func (v *Volume) Ready() bool { return v.ready.Load() }

// SetReady records that the replica has caught up with a ready one.
func (v *Volume) SetReady() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ready.Load() {
		return nil
	}
	v.ready.Store(true)
	if err := v.putRecordLocked(); err != nil {
		v.ready.Store(false)
		return fmt.Errorf("mark volume %q ready: %w", v.name, err)
	}
	return nil
}

// Vector is what is applied here; own ops count once they are in a batch.
func (v *Volume) Vector() crdt.Vector {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.vector.Clone()
}

// AddViewer shows every later change to a mount, until it is canceled: the
// mount has ended, and what it alone knew is dropped.
func (v *Volume) AddViewer(m MountID, w Viewer) (cancel func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.viewers[m] = w
	v.arrivedLocked(m)
	return func() {
		v.mu.Lock()
		delete(v.viewers, m)
		v.mu.Unlock()
		v.letGoAll()
	}
}

// OnSeal calls fn with each own batch, in order, from one goroutine. fn must
// not block.
func (v *Volume) OnSeal(fn func(*Batch)) (cancel func()) { return subscribe(v, v.onSeal, fn) }

// OnMerge calls fn after each merge. fn must not block.
func (v *Volume) OnMerge(fn func(crdt.Vector)) (cancel func()) { return subscribe(v, v.onMerge, fn) }

// OnCollect calls fn when [Volume.Collected] has grown, before anything is
// collected. fn must not block.
func (v *Volume) OnCollect(fn func()) (cancel func()) { return subscribe(v, v.onCollect, fn) }

func subscribe[F any](v *Volume, to map[int]F, fn F) func() {
	v.callMu.Lock()
	defer v.callMu.Unlock()
	v.callID++
	id := v.callID
	to[id] = fn
	return func() {
		v.callMu.Lock()
		defer v.callMu.Unlock()
		delete(to, id)
	}
}

func subscribed[F any](v *Volume, to map[int]F) []F {
	v.callMu.Lock()
	defer v.callMu.Unlock()
	out := make([]F, 0, len(to))
	for _, fn := range to {
		out = append(out, fn)
	}
	return out
}

// Stats is what status shows of a replica.
type Stats struct {
	Ops        uint64 // local ops committed since the daemon started
	Merged     uint64 // remote ops merged since then
	Unsealed   int    // own ops that have not left yet
	OpenDrafts int
	Kept       int // of them, closed ones without a name that a kernel knows
	Frozen     int // old versions that a kernel knows
	Unfinished int // drafts whose writer died before closing them
	Full       bool
	ForcedOut  uint64 // conflicts dismissed for the conflict-limit since the daemon started
}

// Repeated counts the requests that kernels sent again and that were done
// already, since the store was opened.
func (v *Volume) Repeated() uint64 { return v.repeated.Load() }

// Stats returns the replica's counters.
func (v *Volume) Stats() Stats {
	v.mu.Lock()
	s := Stats{Ops: v.ops.Load(), Merged: v.merged.Load(), Unsealed: len(v.queue.ops), Unfinished: v.unfinished}
	v.mu.Unlock()
	v.draftsMu.Lock()
	s.OpenDrafts = len(v.drafts)
	for _, d := range v.drafts {
		if d.kept.Load() {
			s.Kept++
		}
	}
	v.draftsMu.Unlock()
	v.nodesMu.RLock()
	for _, r := range v.nodes {
		if r.Frozen != nil {
			s.Frozen++
		}
	}
	v.nodesMu.RUnlock()
	s.Full = v.db.full.Load()
	s.ForcedOut = v.forcedOut.Load()
	return s
}

// PutIdentity keeps a replica's identity record, which this package does not
// look into.
func (v *Volume) PutIdentity(r crdt.ReplicaID, record []byte) error {
	return v.db.kv.update(func(t txn) error { return t.set(v.keys.key('k', uint64(r)), record) })
}

// Identities returns all identity records.
func (v *Volume) Identities() (map[crdt.ReplicaID][]byte, error) {
	out := map[crdt.ReplicaID][]byte{}
	err := v.db.kv.view(func(t txn) error {
		return t.scan(v.keys.key('k'), nil, func(key, value []byte) (bool, error) {
			out[crdt.ReplicaID(v.keys.tail(key, 0))] = slices.Clone(value)
			return true, nil
		})
	})
	return out, err
}

// Identity returns one identity record, nil if it is not known.
func (v *Volume) Identity(r crdt.ReplicaID) (record []byte, err error) {
	err = v.db.kv.view(func(t txn) (err error) {
		record, err = t.get(v.keys.key('k', uint64(r)))
		return err
	})
	return record, err
}

func getJSON(t txn, key []byte, into any) (bool, error) {
	b, err := t.get(key)
	if err != nil || b == nil {
		return false, err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return false, fmt.Errorf("%w: record %x: %w", ErrDamaged, key, err)
	}
	return true, nil
}
