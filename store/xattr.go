package store

import "github.com/synapsefs/synapsefs/store/crdt"

// XattrMode is what SetXattr asks of the attribute before.
type XattrMode uint8

// The modes of SetXattr.
const (
	XattrSet XattrMode = iota
	XattrCreate
	XattrReplace
)

// MaxXattrs bounds the extended attributes of one inode, in bytes of names and
// values: they are part of its record.
const MaxXattrs = 128 << 10

// SetXattr sets an extended attribute. ErrNoAttr, crdt.ErrExist by mode;
// ErrNoSpace beyond MaxXattrs.
func (v *Volume) SetXattr(r Request, node NodeID, name string, value []byte, mode XattrMode) error {
	if err := v.db.room(); err != nil {
		return err
	}
	return v.changeXattr(r, node, func(i *crdt.Inode) (*crdt.Write, error) {
		old, ok := i.Xattr(name)
		switch {
		case ok && mode == XattrCreate:
			return nil, crdt.ErrExist
		case !ok && mode == XattrReplace:
			return nil, ErrNoAttr
		case ok && string(old) == string(value):
			return nil, nil
		}
		size := len(name) + len(value)
		for _, x := range i.Xattrs {
			size += len(x.Name) + len(x.Value)
		}
		if size > MaxXattrs {
			return nil, ErrNoSpace
		}
		return &crdt.Write{Kind: crdt.WriteXattr, Ino: i.Ino, Name: name, Value: append([]byte{}, value...)}, nil
	})
}

// RemoveXattr removes an extended attribute. ErrNoAttr if it is not set.
func (v *Volume) RemoveXattr(r Request, node NodeID, name string) error {
	return v.changeXattr(r, node, func(i *crdt.Inode) (*crdt.Write, error) {
		if _, ok := i.Xattr(name); !ok {
			return nil, ErrNoAttr
		}
		return &crdt.Write{Kind: crdt.WriteXattr, Ino: i.Ino, Name: name, Gone: true}, nil
	})
}

func (v *Volume) changeXattr(r Request, node NodeID, plan func(*crdt.Inode) (*crdt.Write, error)) error {
	ino, _, err := v.node(node)
	if err != nil {
		return err
	}
	return v.change(r.Mount, func(c *change) error {
		if _, _, ok, err := c.done(r); err != nil || ok {
			return err
		}
		i, err := c.Inode(ino)
		if err != nil {
			return err
		}
		if i == nil {
			return ErrStale
		}
		w, err := plan(i)
		if err != nil || w == nil {
			return err
		}
		if err := c.commitSplit([]crdt.Write{*w}, hold{}); err != nil {
			return err
		}
		return c.setDone(r, ino, 0)
	})
}
