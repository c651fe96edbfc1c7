package crdt

import (
	"errors"
	"testing"
)

// TestP12ClockIsNotUsedUp: whatever was seen that can be seen, there is a stamp
// beyond it, and the wall clock of this host alone is no reason for one.
func TestP12ClockIsNotUsedUp(t *testing.T) {
	var c Clock
	for _, now := range []Stamp{MaxWall + 1, MaxStamp, 1<<63 - 1} {
		if s, err := c.Next(int64(now)); !errors.Is(err, ErrClock) {
			t.Errorf("at %d: stamp %d, %v", now, s, err)
		}
	}
	if s, err := c.Next(-5); s != 1 || err != nil {
		t.Errorf("stamp %d, %v: a clock that was refused moved on", s, err)
	}
	c.Observe(MaxWall + MaxStep)
	for range 3 {
		was := c.Last()
		if s, err := c.Next(1_700_000_000e9); s != was+1 || err != nil {
			t.Errorf("stamp %d after %d, %v", s, was, err)
		}
	}
	c.Observe(MaxStamp)
	if s, err := c.Next(1_700_000_000e9); !errors.Is(err, ErrClock) {
		t.Errorf("stamp %d, %v", s, err)
	}
}

// TestP12StampBeyondTheLast is no part of a version vector: whoever takes it over
// with a snapshot could stamp nothing any more.
func TestP12StampBeyondTheLast(t *testing.T) {
	for _, s := range []Stamp{MaxStamp, MaxStamp + 1, LocalStamp} {
		v := Vector{7: {Seq: 1, Stamp: s}}
		_, err := DecodeVector(AppendVector(nil, v))
		_, err2 := DecodeVectorEntry(AppendVectorEntry(nil, v[7]))
		if s <= MaxStamp != (err == nil) || s <= MaxStamp != (err2 == nil) {
			t.Errorf("stamp %d: %v, %v", s, err, err2)
		}
	}
}
