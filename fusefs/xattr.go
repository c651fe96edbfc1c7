package fusefs

import (
	"slices"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store"
)

// Limits of the kernel (linux/limits.h).
const (
	maxXattrName  = 255
	maxXattrValue = 64 << 10
)

// xattrNames are the namespaces that are stored whole; of the system's, ACLs
// are.
var xattrNames = []string{"user.", "trusted.", "security."}

// refuseXattr answers attributes that are not stored. Not with ENOSYS, which the
// kernel would remember when a later version has them.
func refuseXattr(name string) (fuse.Status, bool) {
	known := slices.ContainsFunc(xattrNames, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
	switch {
	case !known && name != store.ACLAccess && name != store.ACLDefault:
		return fuse.Status(syscall.EOPNOTSUPP), true
	case len(name) > maxXattrName:
		return fuse.ERANGE, true
	}
	return fuse.OK, false
}

// GetXAttr reads an attribute; an empty dest asks for its size.
func (fs *FS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	if fs.helpers.handshake(h, attr) {
		return 0, fuse.ENODATA
	}
	if s, no := refuseXattr(attr); no {
		return 0, s
	}
	value, err := fs.vol.GetXattr(fs.shown.target(h.NodeId), attr)
	if err != nil {
		return 0, fs.status("getxattr", err)
	}
	return fillXattr(dest, string(value))
}

// ListXAttr reads the attributes' names.
func (fs *FS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	names, err := fs.vol.ListXattr(fs.shown.target(h.NodeId))
	if err != nil {
		return 0, fs.status("listxattr", err)
	}
	var b strings.Builder
	for _, name := range names {
		b.WriteString(name)
		b.WriteByte(0)
	}
	if b.Len() > maxXattrValue {
		return 0, fuse.Status(syscall.E2BIG)
	}
	return fillXattr(dest, b.String())
}

func fillXattr(dest []byte, value string) (uint32, fuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

// SetXAttr sets an attribute.
func (fs *FS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	if s, ro := fs.refuse(); ro {
		return s
	}
	if s, no := refuseXattr(attr); no {
		return s
	}
	if len(data) > maxXattrValue {
		return fuse.Status(syscall.E2BIG)
	}
	node := fs.shown.target(in.NodeId)
	if attr == store.ACLAccess {
		return fs.status("set ACL", fs.vol.SetACL(fs.request(&in.InHeader), node, data, in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0))
	}
	mode := store.XattrSet
	switch in.Flags {
	case unix.XATTR_CREATE:
		mode = store.XattrCreate
	case unix.XATTR_REPLACE:
		mode = store.XattrReplace
	}
	return fs.status("setxattr", fs.vol.SetXattr(fs.request(&in.InHeader), node, attr, data, mode))
}

// RemoveXAttr removes an attribute.
func (fs *FS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, attr string) fuse.Status {
	if s, ro := fs.refuse(); ro {
		return s
	}
	if s, no := refuseXattr(attr); no {
		return s
	}
	return fs.status("removexattr", fs.vol.RemoveXattr(fs.request(h), fs.shown.target(h.NodeId), attr))
}
