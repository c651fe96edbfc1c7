package fusefs

import (
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// Cookies of the entries that every directory has.
const (
	cookieDot    = 1
	cookieDotDot = 2
)

// The least that an entry takes in a READDIR reply, and what READDIRPLUS adds.
const (
	direntSize = 24
	entrySize  = 128
)

// OpenDir lets the kernel cache the listing. Directories need no handle.
func (fs *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if fs.helpers.is(&in.InHeader) {
		return fuse.OK // it sees more than others
	}
	out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// ReleaseDir has nothing to do.
func (fs *FS) ReleaseDir(*fuse.ReleaseIn) {}

// FsyncDir returns when all that was committed before is on disk.
func (fs *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return fs.status("fsync directory", fs.vol.Sync())
}

// ReadDir lists names.
func (fs *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.list(in, 0, func(e *store.DirEntry) (bool, error) {
		return out.AddDirEntry(dirEntry(e)), nil
	})
}

// ReadDirPlus lists names with attributes, each of which counts as a lookup.
func (fs *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.list(in, entrySize, func(e *store.DirEntry) (bool, error) {
		entry := out.AddDirLookupEntry(dirEntry(e))
		if entry == nil || e.Cookie <= stagingCookie {
			return entry != nil, nil
		}
		for {
			gen := fs.shown.generation()
			a, err := fs.shownAttr(e.Entry)
			if err != nil {
				return true, nil // the name alone; the kernel will look it up
			}
			if fs.shown.know(gen, &a, entry) {
				fs.fillEntry(entry, &a)
				return true, nil
			}
		}
	})
}

func dirEntry(e *store.DirEntry) fuse.DirEntry {
	return fuse.DirEntry{Name: e.Name, Ino: uint64(e.Entry.Ino), Mode: modes[e.Entry.Kind], Off: e.Cookie}
}

// list gives add the entries after the request's offset until it is full.
func (fs *FS) list(in *fuse.ReadIn, extra int, add func(*store.DirEntry) (bool, error)) fuse.Status {
	dir := fs.shown.target(in.NodeId)
	if fs.isStaging(&in.InHeader, fs.staging) && in.Offset < stagingCookie {
		e := store.DirEntry{Name: fs.staging, Cookie: stagingCookie, Entry: crdt.Entry{Ino: crdt.Ino(staging), Kind: crdt.KindDir}}
		if _, err := add(&e); err != nil {
			return fs.status("readdir", err)
		}
	}
	entries, err := fs.entries(dir, in.Offset, int(in.Size), extra)
	if err != nil {
		return fs.status("readdir", err)
	}
	if !fs.helpers.is(&in.InHeader) {
		fs.accessed(dir)
	}
	for n := range entries {
		more, err := add(&entries[n])
		if err != nil {
			return fs.status("readdir", err)
		}
		if !more {
			break
		}
	}
	return fuse.OK
}

// entries are the shown entries after a cookie, as many as fit into size.
func (fs *FS) entries(dir store.NodeID, after uint64, size, extra int) ([]store.DirEntry, error) {
	var list []store.DirEntry
	if after < cookieDot {
		list = append(list, store.DirEntry{Name: ".", Cookie: cookieDot, Entry: crdt.Entry{Ino: crdt.Ino(dir), Kind: crdt.KindDir}})
	}
	if after < cookieDotDot {
		parent, err := fs.parent(dir)
		if err != nil {
			return nil, err
		}
		list = append(list, store.DirEntry{Name: "..", Cookie: cookieDotDot, Entry: crdt.Entry{Ino: crdt.Ino(parent), Kind: crdt.KindDir}})
	}
	dots := len(list)
	if after <= cookieDotDot {
		after = 0
	}
	for try := 1; ; try++ {
		ino, gen := fs.shown.settledAt(dir)
		room, whole := size, true
		list = list[:dots]
		err := fs.vol.ReadDir(dir, after, func(e store.DirEntry) bool {
			list = append(list, e)
			room -= direntSize + len(e.Name) + extra
			whole = room > 0
			return whole
		})
		if err != nil {
			return nil, err
		}
		if pending := fs.shown.pendingIn(crdt.Ino(dir)); pending != nil {
			list = overlay(list, dots, pending, after, whole)
		}
		// Of two changes the listing may have seen the one, and what is pending
		// is of both.
		if try == maxSteady || !fs.shown.changedSince(ino, gen) {
			return list, nil
		}
	}
}

// maxSteady bounds how often a directory that changes all the time is read for
// one answer: the kernel keeps it locked meanwhile.
const maxSteady = 3

// overlay makes a listing of what is merged one of what is shown: it hides
// names, or gives them another entry, and adds those that are removed but not
// yet gone, each in its place.
func overlay(list []store.DirEntry, dots int, pending map[string]crdt.Entry, after uint64, whole bool) []store.DirEntry {
	out := slices.Clip(list[:dots])
	last := after
	for _, e := range list[dots:] {
		last = e.Cookie
		if shown, ok := pending[e.Name]; ok {
			delete(pending, e.Name)
			e.Entry = shown
		}
		if e.Entry.Ino != 0 {
			out = append(out, e)
		}
	}
	for name, shown := range pending {
		cookie := store.CookieOf(name)
		if shown.Ino != 0 && cookie > after && (whole || cookie <= last) {
			out = append(out, store.DirEntry{Name: name, Cookie: cookie, Entry: shown})
		}
	}
	slices.SortStableFunc(out[dots:], func(a, b store.DirEntry) int {
		switch {
		case a.Cookie < b.Cookie:
			return -1
		case a.Cookie > b.Cookie:
			return 1
		}
		return 0
	})
	return out
}
