package crdt

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Ino is an inode number: the same on every node and for ever.
type Ino uint64

// RootIno is the root directory of every volume.
const RootIno Ino = 1

// LinkID names one link (name) of an inode. Random.
type LinkID uint64

// ReplicaID names one replica of one volume. Random, never 0.
type ReplicaID uint64

func (r ReplicaID) String() string { return fmt.Sprintf("%016x", uint64(r)) }

// Seq numbers the ops of one replica from 1 without gaps.
type Seq uint64

// Dot names an op.
type Dot struct {
	Replica ReplicaID
	Seq     Seq
}

func (d Dot) String() string { return fmt.Sprintf("%v:%d", d.Replica, d.Seq) }

// A Stamp is a hybrid logical clock reading: nanoseconds of wall time, pushed
// past every stamp seen (Kulkarni et al., "Logical Physical Clocks", 2014; the
// logical counter is folded into the nanoseconds).
type Stamp int64

// LocalStamp is the stamp of what is not yet published: newer than everything.
const LocalStamp Stamp = 1<<63 - 1

// No stamp may use the clock up: everybody's next one must be greater.
const (
	// MaxWall is the year 2200: no host's clock is believed beyond it. What is
	// stamped later only counts on from what it builds on, and until MaxStamp
	// that is more ops than anybody makes.
	MaxWall Stamp = 7_258_118_400_000_000_000
	// MaxStep is how far beyond MaxWall, and beyond all that is applied, a
	// stamp may be.
	MaxStep Stamp = 1 << 20
	// MaxStamp is the last stamp that an op can have.
	MaxStamp = MaxWall + 1<<60
)

// ErrClock says that no op can be stamped: the host's clock is beyond MaxWall.
var ErrClock = errors.New("the clock of this host is beyond the year 2200: set it right")

// Clock is a hybrid logical clock. It reads no wall clock itself.
// The zero value is ready. Not safe for concurrent use.
type Clock struct{ last Stamp }

// Next returns a stamp for a local op made at wall time now (Unix nanoseconds),
// greater than every stamp seen before, or ErrClock.
func (c *Clock) Next(now int64) (Stamp, error) {
	if Stamp(now) > MaxWall {
		return 0, ErrClock
	}
	if c.last >= MaxStamp {
		return 0, fmt.Errorf("%w; or a peer's was, and all stamps are used up", ErrClock)
	}
	c.last = max(Stamp(now), c.last+1)
	return c.last, nil
}

// Observe records a stamp seen in a remote op.
func (c *Clock) Observe(s Stamp) {
	if s != LocalStamp {
		c.last = max(c.last, s)
	}
}

// Last returns the greatest stamp seen or given out.
func (c *Clock) Last() Stamp { return c.last }

// A VersionID names one write of one op: the op by stamp and replica (a
// replica's stamps strictly increase), the write by its position N.
type VersionID struct {
	Stamp   Stamp
	Replica ReplicaID
	N       uint32
}

// Local reports whether the version is not yet published.
func (v VersionID) Local() bool { return v.Replica == 0 }

// IsZero reports whether v names nothing.
func (v VersionID) IsZero() bool { return v == VersionID{} }

// CompareOp orders the ops of two versions: by stamp, ties by replica.
func (v VersionID) CompareOp(w VersionID) int {
	return cmp.Or(cmp.Compare(v.Stamp, w.Stamp), cmp.Compare(v.Replica, w.Replica))
}

// newer reports whether v is shown before w where the newest shows: the later
// op, within one op the earlier write.
func (v VersionID) newer(w VersionID) bool {
	return cmp.Or(v.CompareOp(w), cmp.Compare(w.N, v.N)) > 0
}

// older reports whether v is shown before w where the oldest shows: the
// earlier op, within one op the earlier write.
func (v VersionID) older(w VersionID) bool {
	return cmp.Or(v.CompareOp(w), cmp.Compare(v.N, w.N)) < 0
}

// A VectorEntry is one of a version vector: how far one origin's ops are applied.
type VectorEntry struct {
	Seq   Seq      // the last op applied
	Stamp Stamp    // its stamp
	Hash  [32]byte // the hash chain of the origin's ops after it
}

// A Vector is a version vector. Only replicas that ever wrote have an entry.
type Vector map[ReplicaID]VectorEntry

// Covers reports whether the version is in the past that the vector describes.
func (v Vector) Covers(id VersionID) bool { return id.Stamp <= v[id.Replica].Stamp }

// Min lowers v to the pointwise minimum of v and w.
func (v Vector) Min(w Vector) {
	for r, e := range v {
		switch o := w[r]; {
		case o.Seq == 0:
			delete(v, r)
		case o.Seq < e.Seq:
			v[r] = o
		}
	}
}

// Clone returns a copy.
func (v Vector) Clone() Vector {
	w := make(Vector, len(v))
	for r, e := range v {
		w[r] = e
	}
	return w
}

// Max raises v to the pointwise maximum of v and w.
func (v Vector) Max(w Vector) {
	for r, e := range w {
		if e.Seq > v[r].Seq {
			v[r] = e
		}
	}
}

// Latest returns the vector's greatest stamp.
func (v Vector) Latest() (s Stamp) {
	for _, e := range v {
		s = max(s, e.Stamp)
	}
	return s
}

// Contains reports whether everything in w is also in v.
func (v Vector) Contains(w Vector) bool {
	for r, e := range w {
		if v[r].Seq < e.Seq {
			return false
		}
	}
	return true
}

// Replicas returns the vector's replicas in order.
func (v Vector) Replicas() []ReplicaID {
	out := make([]ReplicaID, 0, len(v))
	for r := range v {
		out = append(out, r)
	}
	slices.Sort(out)
	return out
}

// Compare orders version ids totally: by op, then position.
func (v VersionID) Compare(w VersionID) int { return v.compare(w) }

// String is the version as people and scripts name it: stamp, replica and
// position, the first two in base 36.
func (v VersionID) String() string {
	return strconv.FormatInt(int64(v.Stamp), 36) + "-" + strconv.FormatUint(uint64(v.Replica), 36) + "-" + strconv.FormatUint(uint64(v.N), 10)
}

// ParseVersionID reads what String wrote.
func ParseVersionID(s string) (v VersionID, err error) {
	parts := strings.Split(s, "-")
	if len(parts) != 3 {
		return v, fmt.Errorf("version %q: want STAMP-REPLICA-NUMBER", s)
	}
	stamp, err := strconv.ParseInt(parts[0], 36, 64)
	replica, err2 := strconv.ParseUint(parts[1], 36, 64)
	n, err3 := strconv.ParseUint(parts[2], 10, 32)
	if err := cmp.Or(err, err2, err3); err != nil {
		return v, fmt.Errorf("version %q: %w", s, err)
	}
	return VersionID{Stamp(stamp), ReplicaID(replica), uint32(n)}, nil
}
