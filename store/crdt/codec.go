package crdt

import (
	"encoding/binary"
	"fmt"
	"math"
)

// The binary form of the state and of ops. Each value begins with a version
// byte. Random 64-bit ids, stamps and hashes have their full width, other
// numbers are varints, bytes and lists have their length before them. There is
// exactly one form for each value: the decoders refuse any other.
//
// A VersionID is the uvarint N<<4 | ref. Ref 0 spells out a stamp and a
// replica, which get the next free ref; a record nearly always names very few
// ops, and most of its versions are then one byte. Refs 1 and 2 are the zero
// op and the unpublished one. A time is the nanoseconds since the time before it
// in the record, the first since the stamp that the record begins with.
const codecVersion = 1

const (
	refNew   = 0
	refFirst = 3
	refLimit = 16
)

type opRef struct {
	stamp   Stamp
	replica ReplicaID
}

// refs are the ops named so far in one record.
type refs struct {
	ops  [refLimit]opRef
	next int
}

func newRefs() refs {
	r := refs{next: refFirst}
	r.ops[2].stamp = LocalStamp
	return r
}

// find returns the ref of an op, or refNew.
func (r *refs) find(o opRef) int {
	for n := 1; n < r.next; n++ {
		if r.ops[n] == o {
			return n
		}
	}
	return refNew
}

// add gives an op the next ref, while there are any.
func (r *refs) add(o opRef) {
	if r.next < refLimit {
		r.ops[r.next] = o
		r.next++
	}
}

// encoder appends one record to b.
type encoder struct {
	b    []byte
	refs refs
	last Time // the time encoded last
}

func newEncoder(b []byte) encoder {
	return encoder{b: append(b, codecVersion), refs: newRefs()}
}

func (e *encoder) byte(v byte)        { e.b = append(e.b, v) }
func (e *encoder) uvarint(v uint64)   { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) count(n int)        { e.uvarint(uint64(n)) }
func (e *encoder) fixed(v uint64)     { e.b = binary.BigEndian.AppendUint64(e.b, v) }
func (e *encoder) string(s string)    { e.count(len(s)); e.b = append(e.b, s...) }
func (e *encoder) bytes(s []byte)     { e.count(len(s)); e.b = append(e.b, s...) }
func (e *encoder) hash(h Hash)        { e.b = append(e.b, h[:]...) }
func (e *encoder) relativeTo(s Stamp) { e.last = TimeOf(int64(s)) }

func (e *encoder) bool(v bool) {
	if v {
		e.byte(1)
	} else {
		e.byte(0)
	}
}

// farSeconds is how far apart two times may be to be encoded by their difference.
const farSeconds = 1 << 32

// near reports whether two times are less than farSeconds apart. The difference
// may wrap: the decoder wraps back.
func near(t, u Time) bool {
	sec := u.Sec - t.Sec
	return -farSeconds < sec && sec < farSeconds
}

// A time is the zigzag difference plus one, or 0 and all of it if it is far.
func (e *encoder) time(t Time) {
	if near(e.last, t) {
		ns := (t.Sec-e.last.Sec)*1e9 + int64(t.Nsec) - int64(e.last.Nsec)
		e.uvarint(uint64(ns<<1^ns>>63) + 1)
	} else {
		e.uvarint(0)
		e.fixed(uint64(t.Sec))
		e.b = binary.BigEndian.AppendUint32(e.b, t.Nsec)
	}
	e.last = t
}

func (e *encoder) version(v VersionID) {
	o := opRef{v.Stamp, v.Replica}
	ref := e.refs.find(o)
	e.uvarint(uint64(v.N)<<4 | uint64(ref))
	if ref == refNew {
		e.fixed(uint64(v.Stamp))
		e.fixed(uint64(v.Replica))
		e.refs.add(o)
	}
}

func (e *encoder) versions(vs []VersionID) {
	e.count(len(vs))
	for _, v := range vs {
		e.version(v)
	}
}

// decoder consumes b. After the first error it yields zeros, and nothing is
// left to consume.
type decoder struct {
	b    []byte
	err  error
	refs refs
	last Time
}

func newDecoder(b []byte) decoder {
	d := decoder{b: b, refs: newRefs()}
	if v := d.byte(); v != codecVersion {
		d.fail("unknown version")
	}
	return d
}

func (d *decoder) fail(why string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrMalformed, why)
	}
	d.b = nil
}

// finish returns the error, if any, of the whole record.
func (d *decoder) finish(what string) error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("trailing bytes")
	}
	if d.err != nil {
		return fmt.Errorf("decode %s: %w", what, d.err)
	}
	return nil
}

// take returns the next n bytes, or nil.
func (d *decoder) take(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.fail("too short")
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) bool() bool {
	v := d.byte()
	if v > 1 {
		d.fail("neither true nor false")
	}
	return v == 1
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || n > 1 && d.b[n-1] == 0 {
		d.fail("bad varint")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) uint32() uint32 {
	v := d.uvarint()
	if v > math.MaxUint32 {
		d.fail("number too large")
		return 0
	}
	return uint32(v)
}

func (d *decoder) fixed() uint64 {
	if b := d.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// count reads the length of a list whose elements take at least least bytes
// each, so that a list is never made larger than its bytes allow.
func (d *decoder) count(least int) int {
	n := d.uvarint()
	if n > uint64(len(d.b)/least) {
		d.fail("list longer than its record")
		return 0
	}
	return int(n)
}

func (d *decoder) string() string { return string(d.take(d.uvarint())) }

func (d *decoder) bytes() []byte {
	b := d.take(d.uvarint())
	if len(b) == 0 {
		return nil
	}
	return append(make([]byte, 0, len(b)), b...)
}

func (d *decoder) hash() (h Hash) {
	copy(h[:], d.take(uint64(len(h))))
	return h
}

func (d *decoder) kind() Kind {
	k := Kind(d.byte())
	if d.err == nil && (k < KindFile || k > KindBlock) {
		d.fail("unknown kind of inode")
	}
	return k
}

func (d *decoder) relativeTo(s Stamp) { d.last = TimeOf(int64(s)) }

func (d *decoder) time() Time {
	var t Time
	u := d.uvarint()
	far := u == 0
	if far {
		t.Sec = int64(d.fixed())
		if b := d.take(4); b != nil {
			t.Nsec = binary.BigEndian.Uint32(b)
		}
	} else {
		u--
		t = TimeOf(int64(u>>1) ^ -int64(u&1))
		t.Sec += d.last.Sec
		if t.Nsec += d.last.Nsec; t.Nsec >= 1e9 {
			t.Sec, t.Nsec = t.Sec+1, t.Nsec-1e9
		}
	}
	if d.err == nil && (t.Nsec >= 1e9 || near(d.last, t) == far) {
		d.fail("bad time")
	}
	d.last = t
	return t
}

func (d *decoder) version() VersionID {
	u := d.uvarint()
	ref, n := int(u&(refLimit-1)), u>>4
	if n > math.MaxUint32 || ref >= d.refs.next {
		d.fail("bad version")
		return VersionID{}
	}
	o := d.refs.ops[ref]
	if ref == refNew {
		o = opRef{Stamp(d.fixed()), ReplicaID(d.fixed())}
		if d.err == nil && d.refs.find(o) != refNew {
			d.fail("op spelled out twice")
		}
		d.refs.add(o)
	}
	return VersionID{Stamp: o.stamp, Replica: o.replica, N: uint32(n)}
}

func (d *decoder) versions() []VersionID {
	n := d.count(1)
	if n == 0 {
		return nil
	}
	vs := make([]VersionID, n)
	for i := range vs {
		vs[i] = d.version()
	}
	return vs
}
