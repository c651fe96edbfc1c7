package fusefs

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// request is the system call that shows a step.
func (r *revealer) request(st step) (*kernel.Request, error) {
	e := st.expect
	req := &kernel.Request{Dir: st.dir, Name: e.key.name}
	var err error
	switch e.kind {
	case expectGone:
		req.Op = kernel.OpUnlink
		if e.entry.Kind == crdt.KindDir {
			req.Op = kernel.OpRmdir
		}
	case expectRename, expectSwap:
		req.Op, req.Dir, req.Name = kernel.OpRename, st.fromDir, e.from.name
		req.Dir2, req.Name2 = st.dir, e.key.name
		if e.kind == expectSwap {
			req.Flags = unix.RENAME_EXCHANGE
		}
	case expectReplace:
		req.Op, req.Dir, req.Name = kernel.OpRename, r.fs.stagingDir(), e.from.name
		req.Dir2, req.Name2 = st.dir, e.key.name
		if e.swap {
			req.Flags = unix.RENAME_EXCHANGE
			req.Dir, req.Name, req.Dir2, req.Name2 = req.Dir2, req.Name2, req.Dir, req.Name
		}
	default:
		err = r.requestNew(req, e.entry)
	}
	if err != nil || !r.fs.helpers.first().NeedsPaths() {
		return req, err
	}
	for _, d := range []*kernel.Dir{&req.Dir, &req.Dir2} {
		switch {
		case d.Node == uint64(staging):
			*d = r.fs.stagingDir()
		case d.Node != 0 && err == nil:
			d.Path, err = r.path(r.shown.dir(d.Node))
		}
	}
	return req, err
}

func (r *revealer) requestNew(req *kernel.Request, e crdt.Entry) error {
	a, err := r.fs.vol.AttrOf(e)
	if err != nil {
		return err
	}
	req.Mode, req.Rdev = a.Mode&0o777, a.Rdev
	switch e.Kind {
	case crdt.KindFile:
		req.Op = kernel.OpCreate
		if a.Size == 0 {
			req.Op = kernel.OpCreateEmpty
		}
		if a.Nlink > 1 {
			r.asLink(req, e)
		}
	case crdt.KindDir:
		req.Op = kernel.OpMkdir
	case crdt.KindSymlink:
		req.Op = kernel.OpSymlink
		req.Target, err = r.fs.vol.Readlink(a.Node)
	default:
		req.Op, req.Mode = kernel.OpMknod, req.Mode|modes[e.Kind]
	}
	return err
}

// asLink makes the request a link(2), if another name of the file is shown.
func (r *revealer) asLink(req *kernel.Request, e crdt.Entry) {
	names, err := r.fs.vol.Names(e.Ino)
	if err != nil {
		return
	}
	for _, n := range names {
		k := nameKey{n.Dir, n.Name}
		dir, known := r.shown.knownDir(n.Dir)
		if _, pending := r.shown.get(k); known && !pending {
			req.Op, req.Dir2, req.Name2 = kernel.OpLink, dir, n.Name
			return
		}
	}
}

// path is a directory's path below the root, for a helper that cannot open
// directories by node id. It is that of the merged state; where that is not
// shown yet, the call fails and is replaced by a notification.
func (r *revealer) path(dir crdt.Ino) (string, error) {
	var parts []string
	for dir != crdt.RootIno {
		names, err := r.fs.vol.Names(dir)
		if err != nil {
			return "", err
		}
		if len(names) == 0 || len(parts) > unix.PathMax {
			return "", fmt.Errorf("path of directory %d: %w", dir, crdt.ErrNotExist)
		}
		parts = append([]string{names[0].Name}, parts...)
		dir = names[0].Dir
	}
	return strings.Join(parts, "/"), nil
}

// inode tells the kernel of an inode's new attributes or content.
func (r *revealer) inode(w work) (done bool) {
	if !r.refresh(w) {
		r.later(w, inFlight)
		return false
	}
	if r.shown.replying(w.ino) {
		r.later(work{kind: workInode, ino: w.ino}, onItsWay)
	}
	if w.old == 0 && !w.content && !w.attrib {
		return true
	}
	names, err := r.fs.vol.Names(w.ino)
	if err != nil {
		r.log.Error("names of a changed file", "inode", uint64(w.ino), "err", err)
		return true
	}
	for _, n := range names {
		if _, pending := r.shown.get(nameKey{n.Dir, n.Name}); pending && w.tries < 3 {
			w.tries++
			r.queue.push(w) // behind the name, which is in the queue
			return false
		}
	}
	var dirs []kernel.Dir
	for _, n := range names {
		if dir, known := r.shown.knownDir(n.Dir); known {
			dirs = append(dirs, dir)
		}
	}
	if r.waitFor(w, dirs...) {
		return false
	}
	r.changed(w, names)
	return true
}

// changed shows a file's change at each of its names.
func (r *revealer) changed(w work, names []store.PlacedName) {
	a, err := r.fs.vol.AttrOf(crdt.Entry{Ino: w.ino})
	if err != nil {
		return // removed since
	}
	for _, n := range names {
		dir, known := r.shown.knownDir(n.Dir)
		switch {
		case !known:
		case w.content:
			r.rewritten(dir, n.Name, w.old, &a)
		case w.old != 0:
			r.tell("switch version", func(c notifier) error { return dropVersion(c, dir, n.Name, w.old) })
		case w.attrib:
			r.attributes(dir, n.Name, &a)
		}
	}
}

// refresh drops what the kernel has cached of an inode. It returns false if
// the kernel does not know a node yet whose lookup is counted: the reply is on
// its way, with attributes that may be old.
func (r *revealer) refresh(w work) bool {
	node, _, ok := r.shown.known(w.ino)
	if !ok {
		return true
	}
	if w.pages {
		r.tell("invalidate pages", func(n notifier) error { return n.InvalInode(uint64(node), 0, 0) })
	}
	knows := true
	answer := make(chan bool, 1)
	r.tell("invalidate attributes", func(n notifier) error {
		known, err := n.KernelKnows(uint64(node))
		answer <- known || err != nil
		return err
	})
	select {
	case knows = <-answer:
	default: // blocked, hence known
	}
	return knows || w.tries >= maxTries
}

// rewritten shows a file's new content: the watchers of the old version and of
// the directory see what a local writer causes, and after the first event the
// name leads to the new version.
func (r *revealer) rewritten(dir kernel.Dir, name string, old store.NodeID, a *store.Attr) {
	if old == 0 {
		r.modified(dir, name, crdt.Entry{Ino: a.Ino, Kind: a.Kind})
		return
	}
	var finish func()
	if a.Mode&0o111 == 0 {
		finish = r.hold(dir, name)
	}
	r.tell("switch version", func(n notifier) error { return dropVersion(n, dir, name, old) })
	if finish != nil {
		finish()
	} else {
		r.event(&kernel.Request{Op: kernel.OpModifyPath, Dir: dir, Name: name}) //nolint:errcheck // an event that cannot be made is missed
	}
}

// hold opens a file for writing, which the returned function ends as a writer
// does; nil if it cannot be opened.
func (r *revealer) hold(dir kernel.Dir, name string) (finish func()) {
	r.holds++
	req := &kernel.Request{Op: kernel.OpHold, Dir: dir, Name: name, Hold: r.holds}
	c, err := r.event(req)
	switch {
	case c != nil && c.blocked != nil:
		return func() {} // it is finished when it returns
	case err != nil:
		return nil
	}
	return func() {
		req := &kernel.Request{Op: kernel.OpFinish, Hold: req.Hold}
		r.count(req, r.make(c, req, nil))
		if c.blocked != nil { // by what is done with the file
			c.blocked.req = &kernel.Request{Op: req.Op, Dir: dir, Hold: req.Hold}
		}
	}
}

// modified gives the events of a rewrite of what is shown already. A program
// is not opened for writing: that would make starting it fail meanwhile.
func (r *revealer) modified(dir kernel.Dir, name string, e crdt.Entry) {
	a, err := r.fs.vol.AttrOf(e)
	if err != nil || a.Kind != crdt.KindFile {
		return
	}
	op := kernel.OpModify
	if a.Mode&0o111 != 0 {
		op = kernel.OpModifyPath
	}
	r.event(&kernel.Request{Op: op, Dir: dir, Name: name}) //nolint:errcheck // an event that cannot be made is missed
}

// attributes gives ATTRIB.
func (r *revealer) attributes(dir kernel.Dir, name string, a *store.Attr) {
	op := kernel.OpChmod
	if a.Kind == crdt.KindSymlink {
		op = kernel.OpTouch
	}
	r.event(&kernel.Request{Op: op, Dir: dir, Name: name, Mode: a.Mode & 0o7777}) //nolint:errcheck // an event that cannot be made is missed
}

// event makes a call that changes nothing. One that is blocked comes later.
func (r *revealer) event(req *kernel.Request) (*caller, error) {
	if r.fs.helpers.first().NeedsPaths() {
		path, err := r.path(crdt.Ino(r.shown.target(req.Dir.Node)))
		if err != nil {
			return nil, err
		}
		req.Dir.Path = path
	}
	c, err := r.callerFor(req)
	if err == nil {
		err = r.make(c, req, nil)
	}
	if c == nil || c.blocked == nil {
		r.count(req, err)
	}
	return c, err
}

// count counts a call that has returned, or could not be made.
func (r *revealer) count(req *kernel.Request, err error) {
	if err == nil {
		r.reveals.Add(1)
	} else if r.ctx.Err() == nil && !errors.Is(err, errBlocked) {
		r.fallbacks.Add(1)
		r.log.Debug("no event for a change", "op", req.Op, "name", req.Name, "err", err)
	}
}
