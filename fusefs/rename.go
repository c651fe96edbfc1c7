package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// Rename moves a name.
func (fs *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	from := nameKey{fs.shown.dir(in.NodeId), oldName}
	to := nameKey{fs.shown.dir(in.Newdir), newName}
	if fs.helpers.is(&in.InHeader) {
		return fs.shown.answerRename(from, to)
	}
	if s, ro := fs.refuse(); ro {
		return s
	}
	mode, ok := renameMode(in.Flags)
	if !ok {
		return fuse.EINVAL
	}
	for _, k := range []nameKey{from, to} {
		if k == to && mode != crdt.RenameExchange {
			continue // whatever is there is replaced
		}
		if p, ok := fs.shown.get(k); ok && p.merged.Ino != 0 && in.Unique&resent == 0 {
			return fs.status("rename", fs.shown.giveWay(k)) // another file than the caller means
		}
	}
	defer fs.shown.begin(from, to)()
	odir, ndir := fs.shown.target(in.NodeId), fs.shown.target(in.Newdir)
	moved, there := fs.entryAt(odir, oldName), fs.entryAt(ndir, newName)
	err := fs.vol.Rename(fs.afterCloses(&in.InHeader), odir, oldName, ndir, newName, mode)
	if err != nil {
		return fs.status("rename", err)
	}
	fs.shown.moved(moved.Ino)
	switch {
	case mode == crdt.RenameExchange:
		fs.shown.moved(there.Ino)
	case there.Kind == crdt.KindDir:
		fs.shown.buried(there.Ino)
	}
	return fuse.OK
}

// renameMode translates renameat2's flags. RENAME_WHITEOUT is overlayfs'.
func renameMode(flags uint32) (crdt.RenameMode, bool) {
	switch flags {
	case 0:
		return crdt.RenameReplace, true
	case unix.RENAME_NOREPLACE:
		return crdt.RenameNoReplace, true
	case unix.RENAME_EXCHANGE:
		return crdt.RenameExchange, true
	}
	return 0, false
}
