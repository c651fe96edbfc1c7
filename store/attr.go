package store

import (
	"fmt"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// Attr is what stat shows of a node. ErrStale if there is no such node.
func (v *Volume) Attr(node NodeID) (a Attr, err error) {
	err = v.read(func(t *tree) error {
		a, err = v.attr(t, node)
		return err
	})
	return a, err
}

// AttrOf is what stat shows of an entry.
func (v *Volume) AttrOf(e crdt.Entry) (Attr, error) { return v.Attr(v.Node(e.Ino)) }

// An AttrResult is what Attr returns.
type AttrResult struct {
	Attr Attr
	Err  error
}

// Attrs is AttrOf of each of some entries, read at one moment.
func (v *Volume) Attrs(entries []DirEntry) []AttrResult {
	out := make([]AttrResult, len(entries))
	err := v.read(func(t *tree) error {
		for n := range entries {
			out[n].Attr, out[n].Err = v.attr(t, v.Node(entries[n].Entry.Ino))
		}
		return nil
	})
	if err != nil {
		for n := range out {
			out[n].Err = err
		}
	}
	return out
}

func (v *Volume) attr(t *tree, node NodeID) (Attr, error) {
	a, i, rec, err := v.attrBut(t, node)
	if err != nil {
		return Attr{}, err
	}
	if i.Kind == crdt.KindDir {
		a.Nlink, err = v.dirLinks(t, i)
	} else {
		var links []crdt.LinkID
		links, err = t.links(i)
		a.Nlink = uint32(len(links))
	}
	if rec != nil && rec.Frozen != nil {
		a.Nlink = 0 // replaced: the name leads to the new version
	}
	return a, err
}

// times is attr without what takes longer.
func (v *Volume) times(t *tree, node NodeID) (Attr, error) {
	a, _, _, err := v.attrBut(t, node)
	return a, err
}

// attrBut is attr without the link count.
func (v *Volume) attrBut(t *tree, node NodeID) (a Attr, i *crdt.Inode, rec *nodeRecord, err error) {
	ino, rec, err := v.node(node)
	if err != nil {
		return a, nil, nil, err
	}
	if i, err = t.Inode(ino); err != nil {
		return a, nil, nil, err
	}
	if i == nil {
		return a, nil, nil, fmt.Errorf("%w: inode %d", ErrStale, ino)
	}
	a = Attr{
		Ino: ino, Node: node, Kind: i.Kind, Mode: i.Mode.Value, Rdev: i.Rdev,
		UID: i.Owner.Value.UID, GID: i.Owner.Value.GID, Ctime: i.Changed.Value,
	}
	switch i.Kind {
	case crdt.KindDir:
		t := dirTimesOf(i, v.birthIn(ino))
		a.Mtime, a.Ctime = t.mtime, t.ctime
	case crdt.KindFile:
		v.fileAttr(&a, i, rec)
	default:
		a.Mtime, a.Size = i.Mtime.Value, int64(len(i.Target))
	}
	if a.Ctime.Before(a.Mtime) && a.Ctime == (crdt.Time{}) {
		a.Ctime = a.Mtime
	}
	a.Atime = a.Mtime
	r, ok, err := v.access(t, ino)
	if ok {
		a.Atime = r.At
		if a.Ctime.Before(r.Changed) {
			a.Ctime = r.Changed
		}
	}
	return a, i, rec, err
}

func (v *Volume) fileAttr(a *Attr, i *crdt.Inode, rec *nodeRecord) {
	if d := v.draftOf(a.Node); d != nil {
		if st := d.seen(); st != nil && st.shown {
			a.Size, a.Mtime = st.size, st.mtime
			a.Blocks = blocks(v.allocated(d, st.size))
			if a.Ctime.Before(st.ctime) {
				a.Ctime = st.ctime
			}
			return
		}
	}
	shown := i.Shown()
	if rec != nil && rec.Frozen != nil {
		shown = rec.Frozen
	}
	if shown == nil { // unlinked while open: the last version there was
		shown = i.Latest()
	}
	if shown != nil {
		a.Size, a.Mtime = shown.Size, shown.Mtime
		a.Blocks = blocks(a.Size)
		if shown.Manifest {
			a.Blocks = blocks(v.db.manifests.dataBytes(shown.Hash, shown.Size, v.db.manifest))
		}
	}
}

// blocks are the blocks of 512 bytes that so many bytes of disk take.
func blocks(bytes int64) int64 { return (bytes + 4095) / 4096 * 8 }

// allocated is how many bytes of disk a draft of that size takes. While it is
// being published that is what it was before. A small one takes its size, as it
// will when it is published.
func (v *Volume) allocated(d *draft, size int64) int64 {
	if size <= v.smallLimit() {
		return size
	}
	if d.io.TryRLock() {
		defer d.io.RUnlock()
		if d.file != nil {
			if n, err := d.file.Allocated(); err == nil {
				d.taken.Store(n)
			}
		}
	}
	if n := d.taken.Load(); n > 0 {
		return n
	}
	return size
}
