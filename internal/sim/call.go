package sim

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// none identifies a call that is never sent again.
var none = store.Request{Mount: mount}

// dirOf returns the directory and last name of a path.
func (n *node) dirOf(path string) (store.NodeID, string, error) {
	dir := store.NodeID(crdt.RootIno)
	parts := strings.Split(path, "/")
	for _, p := range parts[:len(parts)-1] {
		a, _, err := n.vol.Lookup(dir, p)
		if err != nil {
			return 0, "", err
		}
		if a.Kind != crdt.KindDir {
			return 0, "", crdt.ErrNotDir
		}
		dir = a.Node
	}
	return dir, parts[len(parts)-1], nil
}

func (n *node) lookup(path string) (store.Attr, error) {
	dir, name, err := n.dirOf(path)
	if err != nil {
		return store.Attr{}, err
	}
	a, _, err := n.vol.Lookup(dir, name)
	return a, err
}

// at ends the run unless what is at a path is as it should be; 0 is nothing.
func (n *node) at(path string, want crdt.Ino) {
	a, err := n.lookup(path)
	if errors.Is(err, crdt.ErrNotExist) || errors.Is(err, crdt.ErrNotDir) {
		a.Ino, err = 0, nil
	}
	if err != nil || a.Ino != want {
		n.w.fail("%s: inode %x is at %q, want %x, error %v", n.name, uint64(a.Ino), path, uint64(want), err)
	}
}

func second[T any](_ T, err error) error { return err }

// do makes the calls of a step, and compares what they did to the names with
// what POSIX wants.
func (n *node) do(s step) error {
	for _, d := range n.user.drafts {
		n.checkLinks(d, false)
	}
	if s.n%2 == 0 { // with the directories that it takes
		for _, p := range []string{s.path, s.to} {
			if err := n.mkdirAll(p[:max(0, strings.LastIndexByte(p, '/'))]); err != nil {
				return err
			}
		}
	}
	before := n.paths()
	err := n.call(s)
	if err == nil {
		n.checkEffect(s, before, n.paths())
	}
	return err
}

func (n *node) call(s step) error {
	dir, name, err := n.dirOf(s.path)
	if err != nil && s.verb != "append" && s.verb != "close" && s.verb != "flush" {
		return err
	}
	switch s.verb {
	case "write":
		return n.write(s.path, s.content(), s.n > 0)
	case "open", "overwrite":
		return second(n.open(dir, name, s.verb == "overwrite"))
	case "append":
		return n.extend(s)
	case "flush", "close":
		return n.closeOne(s)
	case "replace":
		return n.replace(s, dir, name)
	case "rename", "exchange":
		return n.rename(s, dir, name)
	case "unlink":
		if err := n.vol.Unlink(none, dir, name); err != nil {
			return err
		}
		n.at(s.path, 0)
		return nil
	case "rmdir":
		if err := n.vol.Rmdir(none, dir, name); err != nil {
			return err
		}
		n.at(s.path, 0)
		return nil
	case "mkdir":
		if s.n%2 == 0 {
			return n.mkdirAll(s.path)
		}
		return second(n.vol.Mknod(none, dir, name, store.NewNode{Kind: crdt.KindDir, Mode: 0o755}))
	case "symlink":
		return second(n.vol.Mknod(none, dir, name, store.NewNode{Kind: crdt.KindSymlink, Mode: 0o777, Target: fmt.Sprint(s.word)}))
	case "fsync":
		return n.fsync(s)
	case "sync":
		if err := n.vol.Sync(); err != nil {
			return err
		}
		n.acknowledged()
		n.user.synced = n.user.acked
		return nil
	case "removeall":
		return n.removeAll(dir, name)
	case "dismiss", "recover":
		return n.settleRecord(s)
	case "undelete":
		return n.undelete(s)
	case "limits":
		n.limits = store.Limits{History: 1 + s.n, HistoryAge: time.Duration(s.word%5000) * time.Millisecond, ConflictBytes: int64(s.word % 3000)}
		n.vol.SetLimits(n.limits)
		return nil
	}
	a, _, err := n.vol.Lookup(dir, name)
	if err != nil {
		return err
	}
	return n.change(s, a)
}

// change makes the calls on what is there.
func (n *node) change(s step, a store.Attr) error {
	switch s.verb {
	case "link":
		todir, toname, err := n.dirOf(s.to)
		if err != nil {
			return err
		}
		if err := second(n.vol.Link(none, a.Node, todir, toname)); err != nil {
			return err
		}
		n.at(s.to, a.Ino)
		return nil
	case "truncate":
		return n.truncate(s, a)
	case "xattr":
		return n.vol.SetXattr(none, a.Node, fmt.Sprint("user.", s.n%2), fmt.Append(nil, s.word), 0)
	case "unxattr":
		return n.vol.RemoveXattr(none, a.Node, fmt.Sprint("user.", s.n%2))
	case "chmod":
		mode := uint32(s.word & 0o777)
		return second(n.vol.SetAttr(none, a.Node, store.SetAttr{Mode: &mode}))
	case "chown":
		id := uint32(s.n)
		return second(n.vol.SetAttr(none, a.Node, store.SetAttr{UID: &id, GID: &id}))
	case "utimens":
		if a.Kind == crdt.KindFile {
			n.see(a)
		}
		return second(n.vol.SetAttr(none, a.Node, store.SetAttr{Mtime: &crdt.Time{Sec: int64(s.word % 1000), Nsec: 7}}))
	case "read":
		if a.Kind == crdt.KindFile {
			return second(n.read(a.Node))
		}
	}
	return nil
}

// content is what a step writes: nobody else writes the same, but for a few.
func (s step) content() []byte {
	text := fmt.Sprintf("%x:", s.word)
	if s.n == 3 {
		text = "common:"
	}
	if s.size == 0 {
		return nil
	}
	return []byte(strings.Repeat(text, s.size/len(text)+1)[:s.size])
}

// read returns the bytes of a file, which are whole (P2).
func (n *node) read(node store.NodeID) ([]byte, error) {
	a, err := n.vol.Attr(node)
	if err != nil {
		return nil, err
	}
	b := make([]byte, a.Size+1)
	k, err := n.vol.ReadAt(node, b, 0)
	if err == nil && int64(k) != a.Size {
		err = fmt.Errorf("read %d bytes of %d", k, a.Size)
	}
	if err != nil {
		return nil, fmt.Errorf("read inode %x: %w", uint64(a.Ino), err)
	}
	if h := hashOf(b[:k]); !n.w.states[h] && !n.w.real {
		n.w.fail("P2: %s shows %d bytes of inode %x that nobody wrote", n.name, k, uint64(a.Ino))
	}
	return b[:k], nil
}

// see notes that the user knows what a file holds.
func (n *node) see(a store.Attr) {
	if b, err := n.read(a.Node); err == nil {
		n.user.sees(a.Ino, b)
	}
}

// replace writes a file beside another and renames it over it.
func (n *node) replace(s step, dir store.NodeID, name string) error {
	d, err := n.open(dir, "tmp", true)
	if err != nil {
		return err
	}
	if err := n.writeAt(d, s.content(), 0); err != nil {
		return err
	}
	early := s.n == 1 // renamed before it is closed
	if !early {
		if err := n.close(d, true); err != nil {
			return err
		}
	}
	err = n.vol.Rename(none, dir, "tmp", dir, name, crdt.RenameReplace)
	if err == nil {
		n.at(s.path, d.ino)
	}
	if early {
		n.acknowledged()
		err = errors.Join(err, n.close(d, true))
	}
	return err
}

func (n *node) rename(s step, dir store.NodeID, name string) error {
	todir, toname, err := n.dirOf(s.to)
	if err != nil {
		return err
	}
	from, _, err := n.vol.Lookup(dir, name)
	if err != nil {
		return err
	}
	to, err := n.lookup(s.to)
	if err != nil && !errors.Is(err, crdt.ErrNotExist) {
		return err
	}
	if s.verb == "exchange" {
		if err := n.vol.Rename(none, dir, name, todir, toname, crdt.RenameExchange); err != nil {
			return err
		}
		n.at(s.to, from.Ino)
		n.at(s.path, to.Ino)
		return nil
	}
	if err := n.vol.Rename(none, dir, name, todir, toname, crdt.RenameReplace); err != nil {
		return err
	}
	n.at(s.to, from.Ino)
	if from.Ino != to.Ino { // else POSIX wants nothing done
		n.at(s.path, 0)
	}
	return nil
}

// mkdirAll is mkdir -p.
func (n *node) mkdirAll(path string) error {
	dir := store.NodeID(crdt.RootIno)
	for _, p := range strings.FieldsFunc(path, func(r rune) bool { return r == '/' }) {
		a, _, err := n.vol.Lookup(dir, p)
		if errors.Is(err, crdt.ErrNotExist) {
			a, err = n.vol.Mknod(none, dir, p, store.NewNode{Kind: crdt.KindDir, Mode: 0o755})
		}
		if err != nil {
			return err
		}
		if a.Kind != crdt.KindDir {
			return crdt.ErrNotDir
		}
		dir = a.Node
	}
	return nil
}

// removeAll is rm -r.
func (n *node) removeAll(dir store.NodeID, name string) error {
	a, _, err := n.vol.Lookup(dir, name)
	if err != nil {
		return err
	}
	if a.Kind != crdt.KindDir {
		return n.vol.Unlink(none, dir, name)
	}
	var below []string
	if err := n.vol.ReadDir(a.Node, 0, func(e store.DirEntry) bool { below = append(below, e.Name); return true }); err != nil {
		return err
	}
	for _, b := range below {
		if err := n.removeAll(a.Node, b); err != nil {
			return fmt.Errorf("remove %q of a listing: %w", b, err)
		}
	}
	return n.vol.Rmdir(none, dir, name)
}
