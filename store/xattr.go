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
// ErrNoSpace beyond MaxXattrs. What is as it should be already is no change.
func (v *Volume) SetXattr(r Request, node NodeID, name string, value []byte, mode XattrMode) error {
	if err := v.db.room(); err != nil {
		return err
	}
	return v.changeXattr(r, node, func(i *crdt.Inode) ([]crdt.Write, error) {
		old, ok := i.Xattr(name)
		switch {
		case ok && mode == XattrCreate:
			return nil, crdt.ErrExist
		case !ok && mode == XattrReplace:
			return nil, ErrNoAttr
		case name == ACLAccess:
			return setACL(i, value, false)
		case ok && string(old) == string(value):
			return nil, nil
		}
		return []crdt.Write{{Kind: crdt.WriteXattr, Ino: i.Ino, Name: name, Value: append([]byte{}, value...)}}, nil
	})
}

// SetACL sets a file's or directory's access ACL and with it the mode's bits,
// as one change; without the set-group-id bit if the kernel says so.
func (v *Volume) SetACL(r Request, node NodeID, value []byte, killSGID bool) error {
	if err := v.db.room(); err != nil {
		return err
	}
	return v.changeXattr(r, node, func(i *crdt.Inode) ([]crdt.Write, error) { return setACL(i, value, killSGID) })
}

// RemoveXattr removes an extended attribute. ErrNoAttr if it is not set.
func (v *Volume) RemoveXattr(r Request, node NodeID, name string) error {
	return v.changeXattr(r, node, func(i *crdt.Inode) ([]crdt.Write, error) {
		if _, ok := i.Xattr(name); !ok {
			return nil, ErrNoAttr
		}
		return []crdt.Write{{Kind: crdt.WriteXattr, Ino: i.Ino, Name: name, Gone: true}}, nil
	})
}

func (v *Volume) changeXattr(r Request, node NodeID, plan func(*crdt.Inode) ([]crdt.Write, error)) error {
	ino, _, err := v.node(node)
	if err != nil {
		return err
	}
	return v.change(r.Mount, func(c *change) error {
		if _, _, ok, err := v.done(c.tree, r); err != nil || ok {
			return err
		}
		i, err := c.Inode(ino)
		if err != nil {
			return err
		}
		if i == nil {
			return ErrStale
		}
		writes, err := plan(i)
		if err != nil || len(writes) == 0 {
			return err
		}
		if err := xattrsFit(i, writes); err != nil {
			return err
		}
		if err := c.commitSplit(writes, hold{}); err != nil {
			return err
		}
		return c.setDone(r, ino, 0)
	})
}

// xattrsFit returns ErrNoSpace if the inode's attributes would take too much
// with those written.
func xattrsFit(i *crdt.Inode, writes []crdt.Write) error {
	size, grows := 0, false
	for _, x := range i.Xattrs {
		size += len(x.Name) + len(x.Value)
	}
	for _, w := range writes {
		if w.Kind != crdt.WriteXattr || w.Gone {
			continue
		}
		old, _ := i.Xattr(w.Name)
		size += len(w.Name) + len(w.Value) - len(old)
		grows = grows || len(w.Value) > len(old)
	}
	if grows && size > MaxXattrs {
		return ErrNoSpace
	}
	return nil
}
