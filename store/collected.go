package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// ErrBehind says that a replica may not know what was collected here.
var ErrBehind = errors.New("replica was away for longer than the retention: it must begin anew from a snapshot")

// Collected is what a replica may have forgotten. A peer exchanges ops with it
// only if it has all of Vector, is none of Out, and has no ops of these beyond
// the sequence given: others may bring back what was removed.
type Collected struct {
	Vector crdt.Vector
	Out    map[crdt.ReplicaID]crdt.Seq
}

// noLimit is the limit of a replica that is out as long as nothing was
// collected without it.
const noLimit crdt.Seq = math.MaxUint64

// Excludes reports whether a replica with this id and vector must begin anew.
func (c *Collected) Excludes(r crdt.ReplicaID, has crdt.Vector) bool {
	if _, out := c.Out[r]; out || !has.Contains(c.Vector) {
		return true
	}
	for id, limit := range c.Out {
		if has[id].Seq > limit {
			return true
		}
	}
	return false
}

// Weight orders replicas that exclude each other: the one that collected less
// begins anew.
func (c *Collected) Weight() (n uint64) {
	for _, e := range c.Vector {
		n += uint64(e.Seq)
	}
	return n
}

// Collected returns what was collected here and who is out.
func (v *Volume) Collected() Collected {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.collectedLocked()
}

func (v *Volume) collectedLocked() Collected {
	c := Collected{Vector: v.collected.Vector.Clone(), Out: map[crdt.ReplicaID]crdt.Seq{}}
	for id := range v.roster.out {
		if limit, ok := v.collected.Out[id]; ok {
			c.Out[id] = limit
		} else {
			c.Out[id] = noLimit
		}
	}
	return c
}

// encodeCollectedLocked is what a snapshot says of it.
func (v *Volume) encodeCollectedLocked() ([]byte, error) {
	c := v.collectedLocked()
	return json.Marshal(collectedRecord{crdt.AppendVector(nil, c.Vector), c.Out, v.trimmed})
}

func decodeCollected(b []byte) (c Collected, trimmed crdt.VersionID, err error) {
	var rec collectedRecord
	if err = json.Unmarshal(b, &rec); err == nil {
		c.Out, trimmed = rec.Out, rec.Trimmed
		c.Vector, err = crdt.DecodeVector(rec.Vector)
	}
	if err != nil {
		err = fmt.Errorf("%w: snapshot: collected: %w", ErrBadBatch, err)
	}
	return c, trimmed, err
}

// adoptCollectedLocked makes what the sender of a snapshot may have forgotten
// what this replica may have.
func (v *Volume) adoptCollectedLocked(t txn, c Collected) error {
	v.collected.Vector.Max(c.Vector)
	for id, limit := range c.Out {
		if id == v.replica {
			continue
		}
		v.roster.out[id] = true
		if was, ok := v.collected.Out[id]; limit != noLimit && (!ok || limit < was) {
			v.collected.Out[id] = limit
		}
	}
	return v.putCollected(t)
}
