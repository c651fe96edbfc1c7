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
	list, err := fs.list(in, 0)
	for n := range list {
		if !out.AddDirEntry(dirEntry(&list[n])) {
			break
		}
	}
	return fs.status("readdir", err)
}

// ReadDirPlus lists names with attributes, each of which counts as a lookup. The
// directory is locked meanwhile, so nobody waits for what is being changed, or
// did not read whole: without attributes it is the name alone, which the kernel
// will look up.
func (fs *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	list, err := fs.list(in, entrySize)
	if err != nil {
		return fs.status("readdir", err)
	}
	gen := fs.shown.generation()
	attrs := fs.vol.Attrs(list)
	for n := range list {
		e := &list[n]
		entry := out.AddDirLookupEntry(dirEntry(e))
		if entry == nil {
			break
		}
		if e.Cookie <= stagingCookie {
			continue
		}
		if a, err := fs.asShown(e.Entry, attrs[n].Attr, attrs[n].Err); err == nil && fs.shown.knowListed(gen, &a, entry) {
			fs.fillEntry(entry, &a)
		}
	}
	return fuse.OK
}

func dirEntry(e *store.DirEntry) fuse.DirEntry {
	return fuse.DirEntry{Name: e.Name, Ino: uint64(e.Entry.Ino), Mode: modes[e.Entry.Kind], Off: e.Cookie}
}

// list returns the entries after the request's offset, of which the last may not
// fit into the reply. extra is what each takes besides its name.
func (fs *FS) list(in *fuse.ReadIn, extra int) ([]store.DirEntry, error) {
	dir := fs.shown.target(in.NodeId)
	entries, err := fs.entries(dir, in.Offset, int(in.Size), extra)
	if err != nil {
		return nil, err
	}
	if !fs.helpers.is(&in.InHeader) {
		fs.accessed(dir)
	}
	if fs.isStaging(&in.InHeader, fs.staging) && in.Offset < stagingCookie {
		e := store.DirEntry{Name: fs.staging, Cookie: stagingCookie, Entry: crdt.Entry{Ino: crdt.Ino(staging), Kind: crdt.KindDir}}
		entries = slices.Insert(entries, 0, e)
	}
	return entries, nil
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
	listing := fs.shown.beginListing(crdt.Ino(dir))
	room, whole := size, true
	err := fs.vol.ReadDir(dir, after, func(e store.DirEntry) bool {
		list = append(list, e)
		room -= direntSize + len(e.Name) + extra
		whole = room > 0
		return whole
	})
	fs.shown.endListing(crdt.Ino(dir), listing)
	if err != nil {
		return nil, err
	}
	return overlay(list, dots, listing.shows, after, whole), nil
}

// overlay makes a listing of what is merged one of what is shown: it hides
// names, or gives them another entry, and adds those that are removed but not
// yet gone, each in its place.
func overlay(list []store.DirEntry, dots int, shows map[string]crdt.Entry, after uint64, whole bool) []store.DirEntry {
	if len(shows) == 0 {
		return list
	}
	out := slices.Clip(list[:dots])
	last := after
	for _, e := range list[dots:] {
		last = e.Cookie
		if shown, ok := shows[e.Name]; ok {
			delete(shows, e.Name)
			e.Entry = shown
		}
		if e.Entry.Ino != 0 {
			out = append(out, e)
		}
	}
	for name, shown := range shows {
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
