package fusefs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/synapsefs/synapsefs/store"
)

// A group is what all files of a mount show as theirs (Options.Group). nil: each
// shows its own.
type group uint32

// groupMode is a mode as the group has it: what the owner may.
func groupMode(mode uint32) uint32 { return mode | mode&syscall.S_IRWXU>>3 }

// show puts the group in what the kernel is told of a file.
func (g *group) show(a *fuse.Attr) {
	if g == nil || a.Mode&syscall.S_IFMT == syscall.S_IFLNK {
		return
	}
	a.Gid, a.Mode = uint32(*g), groupMode(a.Mode)
}

// asks reports whether a request asks for a change of what is stored, and takes
// out what only asks for what is shown.
func (g *group) asks(in *fuse.SetAttrIn, was *store.Attr) bool {
	if g == nil || in.Valid == 0 {
		return true
	}
	if gid, ok := in.GetGID(); ok && gid == uint32(*g) {
		in.Valid &^= fuse.FATTR_GID
	}
	if mode, ok := in.GetMode(); ok && mode&0o7777 == groupMode(was.Mode&0o7777) {
		in.Valid &^= fuse.FATTR_MODE
	}
	return in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID|fuse.FATTR_SIZE|
		fuse.FATTR_ATIME|fuse.FATTR_MTIME|fuse.FATTR_KILL_SUIDGID) != 0
}

// limit takes the set-group-id bit from a mode that is asked for a file, if the
// file's group is neither that of the mount nor the caller's: the kernel, which
// asks who may set it, knows that of the mount only. Nor does it say here who
// calls if mounts may be idmapped: root is then taken for anybody.
func (g *group) limit(mode uint32, h *fuse.InHeader, gid uint32) uint32 {
	if g != nil && h.Uid != 0 && gid != uint32(*g) && gid != h.Gid {
		mode &^= syscall.S_ISGID
	}
	return mode
}
