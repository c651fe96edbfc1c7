package store

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// The extended attributes that hold POSIX ACLs, in the kernel's own form. The
// kernel enforces them; what is kept here are mode and ACL in step: what both
// say, only the mode says, and the stored ACL has zeros there. So they cannot
// part, whatever concurrent changes of either are merged.
const (
	ACLAccess  = "system.posix_acl_access"
	ACLDefault = "system.posix_acl_default"
)

// Tags of ACL entries (linux/posix_acl.h).
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

const (
	aclVersion   = 2
	aclHeader    = 4
	aclEntrySize = 8
)

// acl is a POSIX ACL as the kernel encodes it, once checked by parseACL.
type acl []byte

// parseACL copies an ACL. crdt.ErrInvalid if it is none.
func parseACL(b []byte) (acl, error) {
	if len(b) < aclHeader || (len(b)-aclHeader)%aclEntrySize != 0 || binary.LittleEndian.Uint32(b) != aclVersion {
		return nil, crdt.ErrInvalid
	}
	a := acl(slices.Clone(b))
	for _, tag := range []uint16{aclUserObj, aclGroupObj, aclOther} {
		if a.entry(tag) == nil {
			return nil, crdt.ErrInvalid
		}
	}
	return a, nil
}

// entry returns the first entry with a tag, nil if there is none.
func (a acl) entry(tag uint16) []byte {
	for b := a[aclHeader:]; len(b) >= aclEntrySize; b = b[aclEntrySize:] {
		if binary.LittleEndian.Uint16(b) == tag {
			return b[:aclEntrySize]
		}
	}
	return nil
}

// minimal reports whether a mode says all that the ACL says.
func (a acl) minimal() bool { return len(a) == aclHeader+3*aclEntrySize }

// classes calls fn with the entry of each class of the mode's bits.
func (a acl) classes(fn func(perm []byte, shift uint)) {
	group := a.entry(aclMask)
	if group == nil {
		group = a.entry(aclGroupObj)
	}
	fn(a.entry(aclUserObj)[2:], 6)
	fn(group[2:], 3)
	fn(a.entry(aclOther)[2:], 0)
}

// mode is the permission bits that the ACL stands for.
func (a acl) mode() (mode uint32) {
	a.classes(func(perm []byte, shift uint) {
		mode |= uint32(binary.LittleEndian.Uint16(perm)&7) << shift
	})
	return mode
}

// setMode gives the entries of the mode's classes its bits.
func (a acl) setMode(mode uint32) {
	a.classes(func(perm []byte, shift uint) {
		binary.LittleEndian.PutUint16(perm, uint16(mode>>shift&7))
	})
}

// shownACL is the access ACL as programs see it, and nil if what is stored is none.
func shownACL(stored []byte, mode uint32) []byte {
	a, err := parseACL(stored)
	if err != nil {
		return nil
	}
	a.setMode(mode)
	return a
}

// accessACL returns what to store of an access ACL, nil if nothing, and the
// mode that goes with it.
func accessACL(a acl, mode uint32) (stored []byte, with uint32) {
	with = mode&^0o777 | a.mode()
	if a.minimal() {
		return nil, with
	}
	a.setMode(0)
	return a, with
}

// setACL plans the change of an access ACL. killSGID is the kernel's word that
// the caller may not keep the set-group-id bit.
func setACL(i *crdt.Inode, value []byte, killSGID bool) ([]crdt.Write, error) {
	a, err := parseACL(value)
	if err != nil {
		return nil, err
	}
	stored, mode := accessACL(a, i.Mode.Value)
	if killSGID {
		mode &^= unix.S_ISGID
	}
	var writes []crdt.Write
	if mode != i.Mode.Value {
		writes = append(writes, crdt.Write{Kind: crdt.WriteMode, Ino: i.Ino, Mode: mode})
	}
	old, had := i.Xattr(ACLAccess)
	switch {
	case stored == nil && had:
		writes = append(writes, crdt.Write{Kind: crdt.WriteXattr, Ino: i.Ino, Name: ACLAccess, Gone: true})
	case stored != nil && string(old) != string(stored):
		writes = append(writes, crdt.Write{Kind: crdt.WriteXattr, Ino: i.Ino, Name: ACLAccess, Value: stored})
	}
	return writes, nil
}

// inheritACL gives what is made in a directory the directory's default ACL,
// which takes the place of the umask, and a subdirectory that default, too.
func inheritACL(i *crdt.NewInode, parent *crdt.Inode, umask uint32) (xattrs []crdt.Write) {
	if i.Kind == crdt.KindSymlink {
		return nil
	}
	value, ok := parent.Xattr(ACLDefault)
	a, err := parseACL(value)
	if !ok || err != nil {
		i.Mode &^= umask & 0o777
		return nil
	}
	if i.Kind == crdt.KindDir {
		xattrs = append(xattrs, crdt.Write{Kind: crdt.WriteXattr, Ino: i.Ino, Name: ACLDefault, Value: slices.Clone(value)})
	}
	a.setMode(a.mode() & i.Mode)
	stored, mode := accessACL(a, i.Mode)
	i.Mode = mode
	if stored != nil {
		xattrs = append(xattrs, crdt.Write{Kind: crdt.WriteXattr, Ino: i.Ino, Name: ACLAccess, Value: stored})
	}
	return xattrs
}
