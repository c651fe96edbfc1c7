package crdt

// The least bytes that elements of lists take; see decoder.count.
const (
	leastDot   = 8 + 1
	leastWrite = 1 + 8 + 1
)

// AppendOp appends the op's binary form. Fields of a write that do not count
// for its kind are left out.
func AppendOp(b []byte, op *Op) []byte {
	e := newEncoder(b)
	e.fixed(uint64(op.Dot.Replica))
	e.uvarint(uint64(op.Dot.Seq))
	e.fixed(uint64(op.Stamp))
	e.fixed(uint64(op.Wall))
	e.relativeTo(op.Stamp)
	e.count(len(op.Deps))
	for _, dep := range op.Deps {
		e.fixed(uint64(dep.Replica))
		e.uvarint(uint64(dep.Seq))
	}
	e.count(len(op.Writes))
	for n := range op.Writes {
		e.write(&op.Writes[n])
	}
	return e.b
}

// DecodeOp reads an op. The result shares no memory with b. Whether the op can
// be applied is for [Apply] to say.
func DecodeOp(b []byte) (*Op, error) {
	d := newDecoder(b)
	op := &Op{Dot: Dot{ReplicaID(d.fixed()), Seq(d.uvarint())}}
	op.Stamp = Stamp(d.fixed())
	op.Wall = int64(d.fixed())
	d.relativeTo(op.Stamp)
	if n := d.count(leastDot); n > 0 {
		op.Deps = make([]Dot, n)
		for i := range op.Deps {
			op.Deps[i] = Dot{ReplicaID(d.fixed()), Seq(d.uvarint())}
		}
	}
	if n := d.count(leastWrite); n > 0 {
		op.Writes = make([]Write, n)
		for i := range op.Writes {
			d.write(&op.Writes[i])
			if d.err != nil {
				break
			}
		}
	}
	if err := d.finish("op"); err != nil {
		return nil, err
	}
	return op, nil
}

func (e *encoder) write(w *Write) {
	e.byte(byte(w.Kind))
	e.fixed(uint64(w.Ino))
	switch w.Kind {
	case WriteInode:
		e.byte(byte(w.InodeKind))
		e.string(w.Target)
		e.uvarint(uint64(w.Rdev))
		e.uvarint(uint64(w.Mode))
		e.owner(Owner{w.UID, w.GID})
		e.time(w.Time)
	case WritePlace:
		e.fixed(uint64(w.Link))
		e.uvarint(uint64(w.From))
		e.fixed(uint64(w.Parent))
		e.string(w.Name)
		e.versions(w.Base)
		e.bool(w.Time != Time{})
		if (w.Time != Time{}) {
			e.time(w.Time)
		}
	case WriteContent:
		e.fixed(uint64(w.Link))
		e.versions(w.Base)
		e.content(&w.Content)
		if !w.Content.Manifest {
			e.bytes(w.Content.Inline)
		}
	case WriteRemove:
		e.fixed(uint64(w.Link))
		e.uvarint(uint64(w.From))
		e.versions(w.Base)
		e.versions(w.Closes)
	case WriteVoid, WriteDismiss:
		e.versions(w.Base)
	case WriteMode:
		e.uvarint(uint64(w.Mode))
	case WriteOwner:
		e.owner(Owner{w.UID, w.GID})
	case WriteTime:
		e.time(w.Time)
	case WriteXattr:
		e.string(w.Name)
		e.value(w.Value, w.Gone)
	}
}

func (d *decoder) write(w *Write) {
	w.Kind = WriteKind(d.byte())
	w.Ino = Ino(d.fixed())
	switch w.Kind {
	case WriteInode:
		w.InodeKind = d.kind()
		w.Target = d.string()
		w.Rdev = d.uint32()
		w.Mode = d.uint32()
		o := d.owner()
		w.UID, w.GID = o.UID, o.GID
		w.Time = d.time()
	case WritePlace:
		w.Link = LinkID(d.fixed())
		w.From = Ino(d.uvarint())
		w.Parent = Ino(d.fixed())
		w.Name = d.string()
		w.Base = d.versions()
		if d.bool() {
			if w.Time = d.time(); (w.Time == Time{}) {
				d.fail("a time that says nothing")
			}
		}
	case WriteContent:
		w.Link = LinkID(d.fixed())
		w.Base = d.versions()
		w.Content = d.content()
		if !w.Content.Manifest {
			w.Content.Inline = d.bytes()
		}
	case WriteRemove:
		w.Link = LinkID(d.fixed())
		w.From = Ino(d.uvarint())
		w.Base = d.versions()
		w.Closes = d.versions()
	case WriteVoid, WriteDismiss:
		w.Base = d.versions()
	case WriteMode:
		w.Mode = d.uint32()
	case WriteOwner:
		o := d.owner()
		w.UID, w.GID = o.UID, o.GID
	case WriteTime:
		w.Time = d.time()
	case WriteXattr:
		w.Name = d.string()
		w.Value, w.Gone = d.value()
	default:
		d.fail("unknown kind of write")
	}
}

// content leaves out the inline bytes: only ops have them.
func (e *encoder) content(c *Content) {
	m := uint64(0)
	if c.Manifest {
		m = 1
	}
	e.uvarint(uint64(c.Size)<<1 | m)
	e.time(c.Mtime)
	e.hash(c.Hash)
}

func (d *decoder) content() (c Content) {
	u := d.uvarint()
	c.Size, c.Manifest = int64(u>>1), u&1 == 1
	c.Mtime = d.time()
	c.Hash = d.hash()
	return c
}

func (e *encoder) owner(o Owner) {
	e.uvarint(uint64(o.UID))
	e.uvarint(uint64(o.GID))
}

func (d *decoder) owner() Owner { return Owner{d.uint32(), d.uint32()} }

// value is an extended attribute's; a removed one has none.
func (e *encoder) value(v []byte, gone bool) {
	e.bool(gone)
	if !gone {
		e.bytes(v)
	}
}

func (d *decoder) value() (v []byte, gone bool) {
	if d.bool() {
		return nil, true
	}
	return d.bytes(), false
}
