package store

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// emptyHash is that of a file without bytes.
var emptyHash = crdt.Hash(blake3.Sum256(nil))

// read runs fn on the state as it is now.
func (v *Volume) read(fn func(t *tree) error) error {
	if v.closed.Load() {
		return ErrClosed
	}
	// The transaction and the sets must be of one moment.
	v.setsMu.RLock()
	locked := true
	unlock := func() {
		if locked {
			locked = false
			v.setsMu.RUnlock()
		}
	}
	defer unlock()
	if p := v.pinned; p != nil {
		p.readers.Add(1)
		defer p.readers.Done()
		unlock()
		return fn(newTree(p.t, &v.keys, p.sets))
	}
	turn := v.subdirs.turn.Load()
	return v.db.kv.view(func(t txn) error {
		s := v.sets.Load()
		unlock()
		tree := newTree(t, &v.keys, s)
		tree.turn = turn
		return fn(tree)
	})
}

// Lookup returns what shows at a name. crdt.ErrNotExist if nothing does.
func (v *Volume) Lookup(dir NodeID, name string) (a Attr, e crdt.Entry, err error) {
	if len(name) > crdt.MaxName {
		return a, e, crdt.ErrNameTooLong
	}
	ino, _, err := v.node(dir)
	if err != nil {
		return a, e, err
	}
	err = v.read(func(t *tree) error {
		c, ok, err := crdt.Lookup(t, ino, name)
		if err != nil {
			return err
		}
		if !ok {
			return crdt.ErrNotExist
		}
		e = crdt.Entry{Ino: c.Ino, Link: c.Link, Kind: c.Kind}
		a, err = v.attr(t, v.Node(c.Ino))
		return err
	})
	return a, e, err
}

// contentOf returns the published version that a node shows, nil if none, with
// its bytes if they are inline.
func (v *Volume) contentOf(node NodeID) (version *crdt.Version, inline []byte, err error) {
	ino, rec, err := v.node(node)
	if err != nil {
		return nil, nil, err
	}
	err = v.read(func(t *tree) error {
		version, err = versionIn(t, ino, rec)
		if err == nil && version != nil && !version.Manifest {
			inline, err = t.inline(ino, version.ID)
		}
		return err
	})
	return version, inline, err
}

// versionOf is contentOf without the bytes.
func (v *Volume) versionOf(node NodeID) (version *crdt.Version, err error) {
	ino, rec, err := v.node(node)
	if err != nil {
		return nil, err
	}
	err = v.read(func(t *tree) error {
		version, err = versionIn(t, ino, rec)
		return err
	})
	return version, err
}

func versionIn(t *tree, ino crdt.Ino, rec *nodeRecord) (*crdt.Version, error) {
	if rec != nil && rec.Frozen != nil {
		return rec.Frozen, nil
	}
	i, err := t.Inode(ino)
	if err != nil {
		return nil, err
	}
	if i == nil {
		return nil, fmt.Errorf("%w: inode %d", ErrStale, ino)
	}
	if shown := i.Shown(); shown != nil {
		return shown, nil
	}
	return i.Latest(), nil
}

// ReadAt reads what the node shows. At the end of the file it returns fewer
// bytes, and no error.
func (v *Volume) ReadAt(node NodeID, p []byte, off int64) (int, error) {
	if d := v.draftOf(node); d != nil {
		d.io.RLock()
		if d.shown() && d.file == nil {
			d.io.RUnlock()
			return 0, nil
		}
		if d.shown() || d.directly.Load() != nil {
			defer d.io.RUnlock()
			n, err := d.file.ReadAt(p, off)
			return n, eof(err)
		}
		d.io.RUnlock()
	}
	version, inline, err := v.contentOf(node)
	if err != nil || version == nil || off >= version.Size {
		return 0, err
	}
	if !version.Manifest {
		return copy(p, inline[off:]), nil
	}
	m, err := v.db.manifests.get(version.Hash, v.db.manifest)
	if err != nil {
		return 0, err
	}
	n, err := v.db.content.ReadAt(m, p, off)
	return n, unreadable(eof(err))
}

// unreadable makes content that the state names and the disk does not have an error
// of its own: to a reader the file exists, whatever the disk calls it.
func unreadable(err error) error {
	var missing *content.MissingBlockError
	if errors.Is(err, os.ErrNotExist) || errors.As(err, &missing) {
		return fmt.Errorf("%w: %v", ErrNoContent, err) //nolint:errorlint // not ENOENT to the kernel
	}
	return err
}

func eof(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// Seek does SEEK_DATA and SEEK_HOLE.
func (v *Volume) Seek(node NodeID, off int64, whence int) (int64, error) {
	extent, size, err := v.extents(node)
	if err != nil {
		return 0, err
	}
	if off < 0 || off >= size {
		return 0, unix.ENXIO
	}
	want := content.Hole
	if whence == unix.SEEK_DATA {
		want = content.Data
	}
	for off < size {
		kind, end, err := extent(off)
		if err != nil {
			return 0, err
		}
		if kind == want {
			return off, nil
		}
		off = end
	}
	if whence == unix.SEEK_DATA {
		return 0, unix.ENXIO
	}
	return size, nil
}

func (v *Volume) extents(node NodeID) (func(int64) (content.ExtentKind, int64, error), int64, error) {
	if d := v.draftOf(node); d != nil {
		d.io.RLock()
		defer d.io.RUnlock()
		if d.file != nil && (d.shown() || d.directly.Load() != nil) {
			return d.file.Extent, d.file.Size(), nil
		}
	}
	version, _, err := v.contentOf(node)
	if err != nil || version == nil {
		return nil, 0, err
	}
	if !version.Manifest {
		return func(int64) (content.ExtentKind, int64, error) {
			return content.Data, version.Size, nil
		}, version.Size, nil
	}
	m, err := v.db.manifests.get(version.Hash, v.db.manifest)
	if err != nil {
		return nil, 0, err
	}
	return func(off int64) (content.ExtentKind, int64, error) {
		kind, end := m.Extent(off)
		return kind, end, nil
	}, version.Size, nil
}

// Readlink returns a symlink's target.
func (v *Volume) Readlink(node NodeID) (target string, err error) {
	err = v.inode(node, func(_ *tree, i *crdt.Inode) error {
		if i.Kind != crdt.KindSymlink {
			return crdt.ErrInvalid
		}
		target = i.Target
		return nil
	})
	return target, err
}

// inode runs fn on the inode of a node.
func (v *Volume) inode(node NodeID, fn func(*tree, *crdt.Inode) error) error {
	ino, _, err := v.node(node)
	if err != nil {
		return err
	}
	return v.read(func(t *tree) error {
		i, err := t.Inode(ino)
		if err != nil {
			return err
		}
		if i == nil {
			return fmt.Errorf("%w: inode %d", ErrStale, ino)
		}
		return fn(t, i)
	})
}

// GetXattr returns the value of an extended attribute. ErrNoAttr if it is not set.
func (v *Volume) GetXattr(node NodeID, name string) (value []byte, err error) {
	err = v.inode(node, func(_ *tree, i *crdt.Inode) error {
		var ok bool
		if value, ok = i.Xattr(name); !ok {
			return ErrNoAttr
		}
		if name == ACLAccess {
			value = shownACL(value, i.Mode.Value)
		}
		return nil
	})
	return value, err
}

// ListXattr returns the names of the extended attributes, in order.
func (v *Volume) ListXattr(node NodeID) (names []string, err error) {
	err = v.inode(node, func(_ *tree, i *crdt.Inode) error {
		for _, x := range i.Xattrs {
			if !x.Gone {
				names = append(names, x.Name)
			}
		}
		return nil
	})
	return names, err
}

// Parent is the node of the directory that a directory stands in.
func (v *Volume) Parent(dir NodeID) (parent NodeID, err error) {
	err = v.inode(dir, func(t *tree, i *crdt.Inode) error {
		if i.Kind != crdt.KindDir {
			return crdt.ErrNotDir
		}
		if i.Ino == crdt.RootIno || i.Ino == crdt.LostIno {
			parent = dir
			return nil
		}
		head, err := t.Head(i.Standing.Parent)
		parent = NodeID(head)
		return err
	})
	return parent, err
}

// PlacedName is one name of an inode.
type PlacedName struct {
	Dir  crdt.Ino // the head of its directory set
	Name string
}

// Names returns the names at which an inode shows.
func (v *Volume) Names(ino crdt.Ino) (out []PlacedName, err error) {
	err = v.read(func(t *tree) error {
		i, err := t.Inode(ino)
		if err != nil || i == nil {
			return err
		}
		links, err := t.links(i)
		if err != nil {
			return err
		}
		for _, l := range links {
			p, _ := i.PlaceOf(l)
			head, err := t.Head(p.Parent)
			if err != nil {
				return err
			}
			out = append(out, PlacedName{Dir: head, Name: p.Name})
		}
		return nil
	})
	return out, err
}

// Statfs is what df shows: the file system that holds the state directory.
func (v *Volume) Statfs() (Statfs, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(v.db.opts.Dir, &st); err != nil {
		return Statfs{}, fmt.Errorf("statfs %s: %w", v.db.opts.Dir, err)
	}
	reserve := (v.db.reserve.Load() + v.db.headroom()) / uint64(st.Bsize)
	return Statfs{
		BlockSize: uint32(st.Bsize), Blocks: st.Blocks,
		Free: st.Bfree - min(st.Bfree, reserve), Available: st.Bavail - min(st.Bavail, reserve),
		Files: st.Files, FilesFree: st.Ffree,
	}, nil
}
