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
// the name: no moment without the name, and MOVED_TO, as if a program here had
// replaced it. Nobody else can find it: its name is random and in no listing.
const staging = aliasNode // aliases begin after it

// stagingCookie comes before all names, so that the kernel, looking for the
// directory's name in the root, finds it at once.
const stagingCookie = cookieDotDot + 1

func newStagingName() string { return fmt.Sprintf(".synapsefs-%016x", rand.Uint64()) }

// isStaging reports whether the helper looks for the staging directory.
func (fs *FS) isStaging(h *fuse.InHeader, name string) bool {
	return h.NodeId == uint64(rootNode) && name == fs.staging && fs.helper.Is(h)
}

func stagingAttr() *store.Attr {
	return &store.Attr{Ino: crdt.Ino(staging), Node: staging, Kind: crdt.KindDir, Mode: 0o700, Nlink: 1}
}

// lookupStaging answers lookups in the staging directory: there is what the
// helper is about to move, and the directory itself.
func (fs *FS) lookupStaging(h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if !fs.helper.Is(h) {
		return fuse.Status(syscall.ESTALE)
	}
	switch name {
	case ".":
		fs.fillStaging(out)
		return fuse.OK
	case "..":
		return fs.status("lookup", fs.lookupNode(func() (store.NodeID, error) { return rootNode, nil }, out))
	}
	s := fs.shown
	for {
		s.mu.Lock()
		e, gen := s.expected, s.gen
		s.mu.Unlock()
		if e == nil || e.kind != expectReplace || e.from.name != name {
			return fuse.ENOENT
		}
		a, err := fs.shownAttr(e.entry)
		if err != nil {
			return fs.status("reveal", err)
		}
		if s.know(gen, &a, out) {
			fillEntry(out, &a)
			out.SetEntryTimeout(0) // the name is good for one rename
			return fuse.OK
		}
	}
}

func (fs *FS) fillStaging(out *fuse.EntryOut) {
	fillEntry(out, stagingAttr())
	out.NodeId = uint64(staging)
}

// answerReplace answers the helper's rename from the staging directory.
func (s *shown) answerReplace(from, to nameKey) fuse.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.expectedLocked(expectReplace, to)
	if !ok || e.from != from {
		return canceled
	}
	p, ok := s.getLocked(to)
	if !ok || p.merged != e.entry || (p.shown.Kind == crdt.KindDir) != (p.merged.Kind == crdt.KindDir) {
		return canceled
	}
	s.dropLocked(to)
	if p.shown.Kind == crdt.KindDir {
		s.buriedLocked(p.shown.Ino)
	}
	e.met = true
	return fuse.OK
}

// replace lets another file or directory take the place of one.
func (r *revealer) replace(st step) error {
	r.replaced++
	e := st.expect
	e.from = nameKey{crdt.Ino(staging), fmt.Sprintf("r%d", r.replaced)}
	return r.reveal(st)
}

func (fs *FS) stagingDir() kernel.Dir {
	return kernel.Dir{Node: uint64(staging), Path: fs.staging}
}
