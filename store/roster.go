package store

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// A Member is what one replica of a volume says of itself; peers pass it on, so
// that a replica that only another peer can reach counts too.
type Member struct {
	Replica crdt.ReplicaID
	Node    string
	// At is its owner's clock when it said so; it only grows.
	At int64
	// Acked is what it has applied, but for what one of its open files would
	// bring back when it is closed.
	Acked crdt.Vector
	// Committed is its last own op by then, sealed or not. Whoever has all
	// ops up to it has all that were made without knowing Acked.
	Committed crdt.Seq
	// Out are the replicas whose changes it does not take any more, ever.
	Out []crdt.ReplicaID
	// Signature is by the replica's node, over Signed: whoever passes the
	// word on need not be trusted. A member that said nothing yet has none,
	// and just Replica and Node.
	Signature []byte
}

// member is a Member of another replica, and when it was new here.
type member struct {
	Member
	heard     time.Time
	effective *Member // the last one whose Committed ops are all here
}

// roster is who has replicas of the volume. Guarded by Volume.mu.
type roster struct {
	self    Member
	members map[crdt.ReplicaID]*member // the others
	out     map[crdt.ReplicaID]bool
	saved   time.Time
	news    bool            // who counts is not as saved
	crowded map[string]bool // nodes with too many replicas, as logged
	full    bool            // too many are out, as logged
}

// rosterRecord is a member as it is kept.
type rosterRecord struct {
	Node      string
	At        int64
	Heard     int64
	Acked     []byte
	Committed crdt.Seq
	Out       []crdt.ReplicaID
	Signature []byte `json:",omitempty"`
}

// saveEvery is how often the roster is written; what is lost with less is a
// little stability. Who counts is kept at once, whatever happens to the machine:
// who forgets a peer collects without it, and who forgets that one is out takes
// its changes again.
const saveEvery = 30 * time.Second

// forgetFactor times the retention after it was last heard of, a member that is
// out is no more listed.
const forgetFactor = 4

// loadRoster reads who was there. The time that this node was down is no
// silence of the others.
func (v *Volume) loadRoster(t txn) error {
	r := &v.roster
	r.members, r.out = map[crdt.ReplicaID]*member{}, map[crdt.ReplicaID]bool{}
	now, last := v.db.opts.Now(), int64(0)
	if err := t.scan(v.keys.key('y'), nil, func(key, value []byte) (bool, error) {
		var rec rosterRecord
		err := json.Unmarshal(value, &rec)
		m := &member{heard: time.Unix(0, rec.Heard)}
		if err == nil {
			m.Acked, err = crdt.DecodeVector(rec.Acked)
		}
		if err != nil {
			return false, fmt.Errorf("%w: roster: %w", ErrDamaged, err)
		}
		m.Replica = crdt.ReplicaID(v.keys.tail(key, 0))
		m.Node, m.At, m.Committed, m.Out, m.Signature = rec.Node, rec.At, rec.Committed, rec.Out, rec.Signature
		if m.Replica == v.replica {
			last = rec.Heard
			r.self = m.Member
			for _, id := range m.Out {
				r.out[id] = true
			}
			return true, nil
		}
		r.members[m.Replica] = m
		v.noteEffectiveLocked(m)
		return true, nil
	}); err != nil {
		return err
	}
	// From here on silence is measured by now's monotonic clock: that of a
	// host without a battery is wrong when it boots, and is set days ahead later.
	for _, m := range r.members {
		m.heard = now.Add(-max(time.Unix(0, last).Sub(m.heard), 0))
	}
	return nil
}

// saveBytes bounds what of the roster one transaction writes: each member names
// every replica that ever wrote.
const saveBytes = 256 << 10

// saveRosterLocked writes the roster. Each member is for itself: that some are
// older than others after a crash costs a little stability.
func (v *Volume) saveRosterLocked() error {
	r, now := &v.roster, v.db.opts.Now()
	self := r.self
	self.Replica, self.Out = v.replica, slices.Sorted(maps.Keys(r.out))
	all := []*member{{Member: self, heard: now}}
	for _, id := range slices.Sorted(maps.Keys(r.members)) {
		all = append(all, r.members[id])
	}
	for len(all) > 0 {
		if err := v.db.kv.update(func(t txn) error {
			c := &countingTxn{txn: t}
			for ; len(all) > 0 && c.n < saveBytes; all = all[1:] {
				m := all[0]
				if err := putJSON(c, v.keys.key('y', uint64(m.Replica)), rosterRecord{
					Node: m.Node, At: m.At, Heard: now.Add(-now.Sub(m.heard)).UnixNano(), // by the clock as it is now
					Acked:     crdt.AppendVector(nil, m.Acked),
					Committed: m.Committed, Out: m.Out, Signature: m.Signature,
				}); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if err := v.dropForgotten(); err != nil {
		return err
	}
	if r.news {
		if err := v.db.kv.sync(); err != nil {
			return err
		}
	}
	r.saved, r.news = now, false
	return nil
}

// dropForgotten removes the records of members that are none any more.
func (v *Volume) dropForgotten() error {
	var keys [][]byte
	if err := v.db.kv.view(func(t txn) error {
		return t.scan(v.keys.key('y'), nil, func(key, _ []byte) (bool, error) {
			id := crdt.ReplicaID(v.keys.tail(key, 0))
			if id != v.replica && v.roster.members[id] == nil {
				keys = append(keys, slices.Clone(key))
			}
			return true, nil
		})
	}); err != nil || len(keys) == 0 {
		return err
	}
	for part := range slices.Chunk(keys, 1000) {
		if err := v.db.kv.update(func(t txn) error {
			for _, key := range part {
				if err := t.del(key); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// Speak renews what this replica says of itself and returns it, signed, after
// all that is known of the others: each set of members makes sense in this order.
// node is this node's name.
func (v *Volume) Speak(node string) ([]Member, error) {
	members, err := v.words(node)
	if err == nil && v.db.opts.Sign != nil {
		self := &members[len(members)-1]
		self.Signature = v.db.opts.Sign(self.Signed(v.id))
	}
	return members, err
}

func (v *Volume) words(node string) ([]Member, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.roster.self.Node = node
	if err := v.speakLocked(); err != nil {
		return nil, err
	}
	out := make([]Member, 0, len(v.roster.members)+1)
	for _, id := range slices.Sorted(maps.Keys(v.roster.members)) {
		if !v.roster.out[id] {
			out = append(out, v.roster.members[id].Member)
		}
	}
	return append(out, v.roster.self), nil
}

func (v *Volume) speakLocked() error {
	r, now := &v.roster, v.db.opts.Now()
	v.expireLocked(now)
	r.self.Replica, r.self.At = v.replica, max(min(now.UnixNano(), int64(crdt.MaxWall)), r.self.At+1)
	pinned, err := v.pinnedLocked()
	if err != nil {
		return err
	}
	if !pinned {
		r.self.Acked, r.self.Committed = v.vector.Clone(), v.seq
		r.self.Out = slices.Sorted(maps.Keys(r.out))
	}
	if now.Sub(r.saved) < saveEvery && !r.saved.IsZero() && !r.news {
		return nil
	}
	return v.saveRosterLocked()
}

// pinnedLocked reports whether closing a file that is open here would bring
// something back that a peer removed: then that removal is not acknowledged.
func (v *Volume) pinnedLocked() (pinned bool, err error) {
	open := v.openInodes()
	if len(open) == 0 {
		return false, nil
	}
	err = v.read(func(t *tree) error {
		for ino := range open {
			i, err := t.Inode(ino)
			if err != nil {
				return err
			}
			if i == nil || v.gone[ino] != nil {
				continue // its bytes will be a lost file
			}
			if pinned, err = crdt.Revives(t, i, v.replica); err != nil || pinned {
				return err
			}
		}
		return nil
	})
	return pinned, err
}

// openInodes are the inodes that somebody here has open for writing.
func (v *Volume) openInodes() map[crdt.Ino]bool {
	v.draftsMu.Lock()
	nodes := slices.Collect(maps.Keys(v.drafts))
	v.draftsMu.Unlock()
	out := make(map[crdt.Ino]bool, len(nodes))
	for _, node := range nodes {
		if ino, _, err := v.node(node); err == nil {
			out[ino] = true
		}
	}
	return out
}

// expireLocked puts out whoever was not heard of for the retention, for ever:
// what others may collect on the strength of it cannot be taken back. Of who
// has been out for long just that stays. One that is
// not ready yet puts nobody out: it has nothing without them.
func (v *Volume) expireLocked(now time.Time) {
	if !v.ready.Load() {
		return
	}
	for id, m := range v.roster.members {
		if v.roster.out[id] {
			if now.Sub(m.heard) > forgetFactor*v.db.opts.ReplicaRetention {
				delete(v.roster.members, id)
			}
			continue
		}
		if silent := now.Sub(m.heard); silent > v.db.opts.ReplicaRetention {
			v.db.opts.Log.Warn("replica is out: it must take a snapshot when it comes back",
				"volume", v.name, "replica", id, "node", m.Node, "silent", silent)
			v.roster.out[id], v.roster.news = true, true
		}
	}
}

// Know counts a replica from now on, whatever it has: before it is given
// anything, or what it does with that could be of what is collected meanwhile.
func (v *Volume) Know(r crdt.ReplicaID, node string) {
	v.Hear([]Member{{Replica: r, Node: node}})
}

// Hear takes what a peer passed on. Members that are out have no say. The
// signatures must have been verified.
func (v *Volume) Hear(members []Member) {
	v.mu.Lock()
	defer v.mu.Unlock()
	r, now := &v.roster, v.db.opts.Now()
	v.expireLocked(now)
	for _, in := range members {
		if in.Replica == v.replica {
			// After a crash, or with a clock that was set back, this one must
			// go on from what it said last, or nobody listens.
			r.self.At = max(r.self.At, in.At)
			continue
		}
		if in.Replica == 0 || r.out[in.Replica] {
			continue
		}
		m := r.members[in.Replica]
		if m == nil {
			r.makeRoom(in.Node, v.name, v.db.opts.Log)
			m = &member{Member: Member{Replica: in.Replica, Node: in.Node}, heard: now}
			r.members[in.Replica], r.news = m, true
		}
		if in.At <= m.At {
			continue
		}
		m.Member, m.heard = in, now
		v.noteEffectiveLocked(m)
		if err := v.putOutLocked(m); err != nil {
			v.db.opts.Log.Error("look for identities", "volume", v.name, "err", err)
		}
	}
	if r.news {
		if err := v.saveRosterLocked(); err != nil {
			v.db.opts.Log.Error("keep roster", "volume", v.name, "err", err)
		}
	}
}

// noteEffectiveLocked takes a member's word once all that it did before is
// here.
func (v *Volume) noteEffectiveLocked(m *member) {
	if m.Acked != nil && v.vector[m.Replica].Seq >= m.Committed {
		word := m.Member
		m.effective = &word
	}
}

// Forget puts the replicas of a node out for good: nothing waits for them any
// more, and should the node come back, it takes a snapshot. It returns how many
// there were.
func (v *Volume) Forget(node string) (n int, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id, m := range v.roster.members {
		if m.Node == node && !v.roster.out[id] {
			v.roster.out[id], v.roster.news = true, true
			n++
		}
	}
	if n == 0 {
		return 0, nil
	}
	if err := v.saveRosterLocked(); err != nil {
		return 0, fmt.Errorf("forget node %q: %w", node, err)
	}
	return n, nil
}

// countsLocked calls fn for each other replica that counts.
func (v *Volume) countsLocked(fn func(*member)) {
	for _, id := range slices.Sorted(maps.Keys(v.roster.members)) {
		if !v.roster.out[id] {
			fn(v.roster.members[id])
		}
	}
}

// RosterEntry is one known replica, for people.
type RosterEntry struct {
	Replica crdt.ReplicaID
	Node    string
	Heard   time.Time
	Out     bool   // it does not count, and must take a snapshot
	Lag     uint64 // ops that it has not said to have
}

// Roster lists the other replicas known.
func (v *Volume) Roster() []RosterEntry {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make([]RosterEntry, 0, len(v.roster.members))
	for _, id := range slices.Sorted(maps.Keys(v.roster.members)) {
		m := v.roster.members[id]
		e := RosterEntry{Replica: id, Node: m.Node, Heard: m.heard, Out: v.roster.out[id]}
		for r, own := range v.vector {
			if a := m.Acked[r].Seq; a < own.Seq {
				e.Lag += uint64(own.Seq - a)
			}
		}
		out = append(out, e)
	}
	return out
}
