package store

import (
	"errors"
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
