package fusefs

import (
	"fmt"
	"math/rand/v2"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// staging is a directory of the mount that exists for the helper alone. A file
// that takes another's place in one batch is shown by a rename from there over
// the name, or, where that cannot be, by an exchange: no moment without the
// name, and MOVED_TO, as if a program here had replaced it. Nobody else can find
// it: its name is random and in no listing.
const staging = aliasNode // aliases begin after it

// stagingIno is staging among the directories of pending names: what was
// exchanged for something from there is shown there until it has gone on.
const stagingIno = crdt.Ino(staging)

// stagingCookie comes before all names, so that the kernel, looking for the
// directory's name in the root, finds it at once.
const stagingCookie = cookieDotDot + 1

func newStagingName() string { return fmt.Sprintf(".synapsefs-%016x", rand.Uint64()) }

// isStaging reports whether the helper looks for the staging directory.
func (fs *FS) isStaging(h *fuse.InHeader, name string) bool {
	return h.NodeId == uint64(rootNode) && name == fs.staging && fs.helpers.is(h)
}

func stagingAttr() *store.Attr {
	return &store.Attr{Ino: stagingIno, Node: staging, Kind: crdt.KindDir, Mode: 0o700, Nlink: 1}
}

// lookupStaging answers lookups in the staging directory: there is what the
// helper is about to move there or from there, and the directory itself.
func (fs *FS) lookupStaging(h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if !fs.helpers.is(h) {
		return fuse.Status(syscall.ESTALE)
	}
	switch name {
	case ".":
		fs.fillStaging(out)
		return fuse.OK
	case "..":
		return fs.status("lookup", fs.lookupNode(func() (store.NodeID, error) { return rootNode, nil }, out))
	}
	for {
		e, gen := fs.shown.staged(name)
		if e.Ino == 0 {
			return fuse.ENOENT
		}
		a, err := fs.shownAttr(e)
		if err != nil {
			return fs.status("reveal", err)
		}
		if fs.shown.know(gen, &a, out) {
			fs.fillEntry(out, &a)
			out.SetEntryTimeout(0) // the name is good for one rename
			return fuse.OK
		}
	}
}

func (fs *FS) fillStaging(out *fuse.EntryOut) {
	fs.fillEntry(out, stagingAttr())
	out.NodeId = uint64(staging)
}

// staged is what is at a name of the staging directory.
func (s *shown) staged(name string) (crdt.Entry, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.expected {
		if e.kind == expectReplace && e.from.name == name {
			return e.entry, s.gen
		}
	}
	p, _ := s.getLocked(nameKey{stagingIno, name})
	return p.shown, s.gen
}

// replaceLocked shows what an expected rename from the staging directory does,
// or an exchange with it. That is called the other way round, so that the last
// that watchers hear is that something came to the name.
func (s *shown) replaceLocked(e *expectation, from, to nameKey) bool {
	if e.swap {
		from, to = to, from
	}
	p, ok := s.getLocked(to)
	if !ok || e.key != to || e.from != from || p.merged != e.entry || p.shown.Ino == 0 || !e.swap && !sameKind(p.shown, p.merged) {
		return false
	}
	s.dropLocked(to)
	switch {
	case e.swap:
		s.showLocked(from, pendingName{shown: p.shown})
		s.movedLocked(p.shown.Ino)
	case p.shown.Kind == crdt.KindDir:
		s.buriedLocked(p.shown.Ino)
	}
	return true
}

// replace lets another file or directory take the place of one.
func (r *revealer) replace(st step) error {
	r.replaced++
	e := st.expect
	e.from = nameKey{stagingIno, fmt.Sprintf("r%d", r.replaced)}
	return r.reveal(st)
}

func (fs *FS) stagingDir() kernel.Dir {
	return kernel.Dir{Node: uint64(staging), Path: fs.staging}
}
