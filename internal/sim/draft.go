package sim

import (
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A draft is a file that is open for writing.
type draft struct {
	node    store.NodeID
	ino     crdt.Ino
	handles []store.Handle
	bytes   []byte // as they should be; nil until something was written
	begun   bool
	whole   bool // published only when it is closed
	flushed bool
	synced  bool
	kept    bool // a sync came since it was truncated: a restart publishes it as it is then
	linked  bool
	gone    bool // it lost its last name by this user's own call
	wroteAt time.Duration
}

// holds reports whether the draft must show what was written to it last: it was
// not published meanwhile, as files that are held open are.
func (d *draft) holds(now time.Duration) bool {
	return d.begun && (d.whole || now < d.wroteAt+time.Second)
}

// open opens a file for writing, making it if it is not there.
func (n *node) open(dir store.NodeID, name string, trunc bool) (*draft, error) {
	a, _, err := n.vol.Lookup(dir, name)
	if errors.Is(err, crdt.ErrNotExist) {
		a, h, err := n.vol.Create(none, dir, name, store.NewNode{Mode: 0o644})
		if err != nil {
			return nil, err
		}
		d := &draft{node: a.Node, ino: a.Ino, handles: []store.Handle{h}, whole: true, linked: true}
		n.user.drafts = append(n.user.drafts, d)
		n.wrote(d, nil)
		return d, nil
	}
	if err != nil {
		return nil, err
	}
	if trunc && a.Kind == crdt.KindFile {
		n.see(a)
	}
	h, err := n.vol.OpenWrite(none, a.Node, trunc)
	if err != nil {
		return nil, err
	}
	d := n.user.draftOf(a.Node)
	if d == nil {
		d = &draft{node: a.Node, ino: a.Ino, linked: true}
		n.user.drafts = append(n.user.drafts, d)
	}
	d.handles = append(d.handles, h)
	if trunc {
		d.whole, d.kept = true, false
		n.wrote(d, nil)
	}
	return d, nil
}

// mayHold says what the draft holds from now on, even if it is killed meanwhile.
func (n *node) mayHold(d *draft, b []byte) {
	h := hashOf(b)
	n.w.states[h] = true
	n.w.whole[h] = n.w.whole[h] || !d.whole || d.kept
}

// wrote takes over what the draft holds from now on.
func (n *node) wrote(d *draft, b []byte) {
	d.bytes, d.begun, d.flushed, d.synced, d.wroteAt = b, true, false, false, n.w.now
	n.mayHold(d, b)
	n.user.sees(d.ino, b)
	got, err := n.read(d.node)
	if err != nil || string(got) != string(b) {
		n.w.fail("%s: inode %x holds %q after a write of %q: %v", n.name, uint64(d.ino), got, b, err)
	}
}

// begin reads what a draft begins from, before its first write.
func (n *node) begin(d *draft) error {
	if d.begun {
		return nil
	}
	b, err := n.read(d.node)
	if err != nil {
		return err
	}
	d.bytes = b
	n.user.sees(d.ino, b)
	return nil
}

// writeAt writes to an open file.
func (n *node) writeAt(d *draft, b []byte, off int) error {
	if len(b) == 0 {
		return nil
	}
	if err := n.begin(d); err != nil {
		return err
	}
	next := slices.Clone(d.bytes)
	if end := off + len(b); end > len(next) {
		next = append(next, make([]byte, end-len(next))...)
	}
	copy(next[off:], b)
	n.mayHold(d, next)
	if _, err := n.vol.WriteAt(d.node, d.handles[0], b, int64(off), false); err != nil {
		return err
	}
	n.wrote(d, next)
	return nil
}

// close closes the draft's last handle.
func (n *node) close(d *draft, flush bool) error {
	h := d.handles[len(d.handles)-1]
	n.checkLinks(d, false)
	if d.gone {
		before := n.paths()
		defer func() {
			if !maps.Equal(before, n.paths()) {
				n.w.fail("P6: %s: inode %x was removed here while it was open, and its close changed the names", n.name, uint64(d.ino))
			}
		}()
	}
	if d.begun {
		n.w.whole[hashOf(d.bytes)] = true
	}
	if flush {
		if err := n.vol.Flush(d.node, h); err != nil {
			return err
		}
		d.flushed = d.begun
	}
	if err := n.vol.Release(none, d.node, h); err != nil {
		return err
	}
	if d.handles = d.handles[:len(d.handles)-1]; len(d.handles) == 0 {
		n.user.drafts = slices.DeleteFunc(n.user.drafts, func(e *draft) bool { return e == d })
		if d.holds(n.w.now) {
			if got, err := n.read(d.node); err == nil && d.linked && string(got) != string(d.bytes) {
				n.w.fail("%s: inode %x holds %q, closed as %q", n.name, uint64(d.ino), got, d.bytes)
			}
		}
	}
	return nil
}

// write makes a whole file, in one go.
func (n *node) write(path string, b []byte, flush bool) error {
	dir, name, err := n.dirOf(path)
	if err != nil {
		return err
	}
	d, err := n.open(dir, name, true)
	if err != nil {
		return err
	}
	if err := n.writeAt(d, b, 0); err != nil {
		return err
	}
	n.acknowledged()
	return n.close(d, flush)
}

// extend appends to an open file, or to one that it opens for it.
func (n *node) extend(s step) error {
	if len(n.user.drafts) > 0 {
		d := n.user.drafts[int(s.word>>4)%len(n.user.drafts)]
		if err := n.begin(d); err != nil {
			return err
		}
		return n.writeAt(d, s.content(), len(d.bytes)/(1+s.n%2))
	}
	a, err := n.lookup(s.path)
	if err != nil || a.Kind != crdt.KindFile {
		return err
	}
	dir, name, _ := n.dirOf(s.path)
	d, err := n.open(dir, name, false)
	if err != nil {
		return err
	}
	if err := n.begin(d); err != nil {
		return err
	}
	if err := n.writeAt(d, s.content(), len(d.bytes)); err != nil {
		return err
	}
	return n.close(d, true)
}

func (n *node) closeOne(s step) error {
	if len(n.user.drafts) == 0 {
		return nil
	}
	d := n.user.drafts[int(s.word>>4)%len(n.user.drafts)]
	if s.verb == "close" {
		return n.close(d, s.n > 0)
	}
	n.w.whole[hashOf(d.bytes)] = n.w.whole[hashOf(d.bytes)] || d.begun
	if err := n.vol.Flush(d.node, d.handles[0]); err != nil {
		return err
	}
	d.flushed = d.begun
	return nil
}

func (n *node) fsync(s step) error {
	a, err := n.lookup(s.path)
	if err != nil {
		return err
	}
	if err := n.vol.Fsync(a.Node); err != nil {
		return err
	}
	n.acknowledged()
	n.user.synced = n.user.acked
	if d := n.user.draftOf(a.Node); d != nil {
		d.synced, d.kept = d.begun, d.kept || d.begun
		n.w.whole[hashOf(d.bytes)] = n.w.whole[hashOf(d.bytes)] || d.begun
	}
	return nil
}

func (n *node) truncate(s step, a store.Attr) error {
	if a.Kind != crdt.KindFile {
		return nil
	}
	d := n.user.draftOf(a.Node)
	shared := d != nil
	if !shared {
		d = &draft{node: a.Node, ino: a.Ino}
	}
	if err := n.begin(d); err != nil {
		return err
	}
	size := int64(s.size)
	next := append(slices.Clone(d.bytes), make([]byte, max(0, s.size-len(d.bytes)))...)[:size]
	n.mayHold(d, next)
	n.w.whole[hashOf(next)] = n.w.whole[hashOf(next)] || !shared
	if err := second(n.vol.SetAttr(none, a.Node, store.SetAttr{Size: &size})); err != nil {
		return err
	}
	n.wrote(d, next)
	return nil
}
