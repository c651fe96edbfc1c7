package sim

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/zeebo/blake3"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// inlineLimit is small, so that some contents are files of their own.
const inlineLimit = 256

// A user is the programs on one node, and what they were promised.
type user struct {
	drafts []*draft
	saw    map[crdt.Ino]map[crdt.Hash]bool // contents read before they were replaced
	doing  string                          // the step under way

	replica  crdt.ReplicaID
	acked    crdt.Seq // own ops whose call returned
	synced   crdt.Seq // of these, those that a sync came after
	vector   crdt.Vector
	lost     bool // the machine lost power since
	promises []promise
}

// A promise is a content that was closed and must be published.
type promise struct {
	Ino  crdt.Ino
	Hash crdt.Hash
}

// A draft is a file that is open for writing.
type draft struct {
	node    store.NodeID
	ino     crdt.Ino
	handles []store.Handle
	bytes   []byte // as they should be; nil until something was written
	begun   bool
	whole   bool // published only when it is closed
	flushed bool
	synced  bool
	kept    bool // a sync came since it was truncated: a restart publishes it as it is then
	linked  bool
	gone    bool // it lost its last name by this user's own call
	wroteAt time.Duration
}

// holds reports whether the draft must show what was written to it last: it was
// not published meanwhile, as files that are held open are.
func (d *draft) holds(now time.Duration) bool {
	return d.begun && (d.whole || now < d.wroteAt+time.Second)
}

func hashOf(b []byte) crdt.Hash { return crdt.Hash(blake3.Sum256(b)) }

func (u *user) forgetHandles() { u.drafts = nil }

// died keeps what was promised of the open files.
func (u *user) died(power bool) {
	if harmless(u.doing) {
		for _, d := range u.drafts {
			if d.linked && (d.synced || d.flushed && !power) {
				u.promises = append(u.promises, promise{d.ino, hashOf(d.bytes)})
			}
		}
	}
	u.drafts, u.doing, u.lost = nil, "", u.lost || power
}

// harmless reports whether a step leaves open files as they are.
func harmless(verb string) bool {
	return slices.Contains([]string{"", "mkdir", "symlink", "xattr", "unxattr", "chmod", "chown", "read", "fsync"}, verb)
}

// pledges are the promises that a kill now would leave.
func (u *user) pledges() (out []promise) {
	for _, d := range u.drafts {
		if d.linked && (d.flushed || d.synced) {
			out = append(out, promise{d.ino, hashOf(d.bytes)})
		}
	}
	return append(out, u.promises...)
}

// checkRestart compares what a restart finds with what was promised (P8).
func (n *node) checkRestart() {
	u := &n.user
	if u.replica == 0 {
		return
	}
	v := n.vol.Vector()
	least := u.acked
	if u.lost {
		least = u.synced
	}
	got := v[u.replica].Seq
	if n.vol.Replica() == u.replica {
		got += crdt.Seq(n.vol.Stats().Unsealed)
	}
	if got < least {
		n.w.fail("P8: %s has %d own ops after a restart, %d were acknowledged", n.name, got, least)
	}
	if !u.lost && !v.Contains(u.vector) {
		n.w.fail("P8: %s forgot merges at a restart", n.name)
	}
	u.lost = false
	n.acknowledged()
}

// acknowledged notes what must survive from now on.
func (n *node) acknowledged() {
	u := &n.user
	u.vector = n.vol.Vector()
	if r := n.vol.Replica(); r != u.replica {
		u.replica, u.synced = r, 0
	}
	u.acked = u.vector[u.replica].Seq + crdt.Seq(n.vol.Stats().Unsealed)
	for _, d := range u.drafts {
		n.checkLinks(d, true)
	}
}

// checkLinks sees whether a draft has a name, and who took it.
func (n *node) checkLinks(d *draft, byUser bool) {
	a, err := n.vol.Attr(d.node)
	was := d.linked
	d.linked = err == nil && a.Nlink > 0
	d.gone = !d.linked && (d.gone || was && byUser)
}

// expected says that an error is an answer, not a fault.
func expected(err error) bool {
	for _, e := range []error{
		crdt.ErrNotExist, crdt.ErrExist, crdt.ErrNotDir, crdt.ErrIsDir, crdt.ErrNotEmpty, crdt.ErrInvalid,
		store.ErrStale, store.ErrNotRegular, store.ErrNoAttr,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return err == nil
}

// play does a step.
func (w *world) play(i int, s step) {
	n := w.nodes[s.who%len(w.nodes)]
	w.note("%d: %v", i, s)
	if !w.playNetwork(n, s) && n.up && n.vol.Ready() {
		n.user.doing = s.verb
		n.guard(func() {
			err := n.do(s)
			w.note("%s %s: %v", n.name, s.verb, err)
			if !expected(err) {
				w.fail("%s: %v: %w", n.name, s, err)
			}
			n.acknowledged()
		})
		n.user.doing = ""
		if w.chance(20) { // the system brings to the disk what it likes
			n.mem.Writeback()
		}
	}
	w.run(s.wait, w.ended)
}

// playNetwork does the steps that are not file system calls.
func (w *world) playNetwork(n *node, s step) bool {
	other := w.nodes[s.other%len(w.nodes)]
	switch s.verb {
	case "cut":
		if l := w.wires[[2]int{n.index, other.index}]; l != nil {
			l.setCut(true)
			if s.n > 0 {
				l.back().setCut(true)
			}
		}
	case "meet":
		if l := w.wires[[2]int{n.index, other.index}]; l != nil {
			l.setCut(false)
			l.back().setCut(false)
		}
	case "heal":
		w.eachWire(func(l *wire) {
			if s.n > 0 || l.from == n {
				l.setCut(false)
			}
		})
	case "kill", "power":
		n.fuse, n.after, n.power = 1+int(s.word>>8%6), s.n%2 == 0, s.verb == "power"
		if n.power && s.n > 1 && n.up { // at once
			n.died()
		}
	case "restart":
		n.stop()
		life := n.life
		w.after(s.wait/2, func() {
			if n.life == life && !n.up {
				n.start()
			}
		})
	case "clock":
		n.skew += time.Duration(int64(s.word)) % (2 * 365 * 24 * time.Hour)
	case "join":
		if len(w.nodes) < 12 {
			w.addNode()
		}
	case "writeback": // the system brings to the disk what it likes
		n.mem.Writeback()
	case "leave":
		// A replica that goes for good once others have what it has.
	default:
		return false
	}
	return true
}

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

// none identifies a call that is never sent again.
var none = store.Request{Mount: mount}

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

func (u *user) sees(ino crdt.Ino, b []byte) {
	if u.saw == nil {
		u.saw = map[crdt.Ino]map[crdt.Hash]bool{}
	}
	if u.saw[ino] == nil {
		u.saw[ino] = map[crdt.Hash]bool{}
	}
	u.saw[ino][hashOf(b)] = true
}

func (u *user) draftOf(node store.NodeID) *draft {
	for _, d := range u.drafts {
		if d.node == node {
			return d
		}
	}
	return nil
}

// open opens a file for writing, making it if it is not there.
func (n *node) open(dir store.NodeID, name string, trunc bool) (*draft, error) {
	a, _, err := n.vol.Lookup(dir, name)
	if errors.Is(err, crdt.ErrNotExist) {
		a, h, err := n.vol.Create(none, dir, name, store.NewNode{Mode: 0o644})
		if err != nil {
			return nil, err
		}
		d := &draft{node: a.Node, ino: a.Ino, handles: []store.Handle{h}, whole: true, linked: true}
		n.user.drafts = append(n.user.drafts, d)
		n.wrote(d, nil)
		return d, nil
	}
	if err != nil {
		return nil, err
	}
	if trunc && a.Kind == crdt.KindFile {
		n.see(a)
	}
	h, err := n.vol.OpenWrite(none, a.Node, trunc)
	if err != nil {
		return nil, err
	}
	d := n.user.draftOf(a.Node)
	if d == nil {
		d = &draft{node: a.Node, ino: a.Ino, linked: true}
		n.user.drafts = append(n.user.drafts, d)
	}
	d.handles = append(d.handles, h)
	if trunc {
		d.whole, d.kept = true, false
		n.wrote(d, nil)
	}
	return d, nil
}

// mayHold says what the draft holds from now on, even if it is killed meanwhile.
func (n *node) mayHold(d *draft, b []byte) {
	h := hashOf(b)
	n.w.states[h] = true
	n.w.whole[h] = n.w.whole[h] || !d.whole || d.kept
}

// wrote takes over what the draft holds from now on.
func (n *node) wrote(d *draft, b []byte) {
	d.bytes, d.begun, d.flushed, d.synced, d.wroteAt = b, true, false, false, n.w.now
	n.mayHold(d, b)
	n.user.sees(d.ino, b)
	got, err := n.read(d.node)
	if err != nil || string(got) != string(b) {
		n.w.fail("%s: inode %x holds %q after a write of %q: %v", n.name, uint64(d.ino), got, b, err)
	}
}

// begin reads what a draft begins from, before its first write.
func (n *node) begin(d *draft) error {
	if d.begun {
		return nil
	}
	b, err := n.read(d.node)
	if err != nil {
		return err
	}
	d.bytes = b
	n.user.sees(d.ino, b)
	return nil
}

// writeAt writes to an open file.
func (n *node) writeAt(d *draft, b []byte, off int) error {
	if len(b) == 0 {
		return nil
	}
	if err := n.begin(d); err != nil {
		return err
	}
	next := slices.Clone(d.bytes)
	if end := off + len(b); end > len(next) {
		next = append(next, make([]byte, end-len(next))...)
	}
	copy(next[off:], b)
	n.mayHold(d, next)
	if _, err := n.vol.WriteAt(d.node, d.handles[0], b, int64(off), false); err != nil {
		return err
	}
	n.wrote(d, next)
	return nil
}

// close closes the draft's last handle.
func (n *node) close(d *draft, flush bool) error {
	h := d.handles[len(d.handles)-1]
	n.checkLinks(d, false)
	if d.gone {
		before := n.paths()
		defer func() {
			if !maps.Equal(before, n.paths()) {
				n.w.fail("P6: %s: inode %x was removed here while it was open, and its close changed the names", n.name, uint64(d.ino))
			}
		}()
	}
	if d.begun {
		n.w.whole[hashOf(d.bytes)] = true
	}
	if flush {
		if err := n.vol.Flush(d.node, h); err != nil {
			return err
		}
		d.flushed = d.begun
	}
	if err := n.vol.Release(none, d.node, h); err != nil {
		return err
	}
	if d.handles = d.handles[:len(d.handles)-1]; len(d.handles) == 0 {
		n.user.drafts = slices.DeleteFunc(n.user.drafts, func(e *draft) bool { return e == d })
		if d.holds(n.w.now) {
			if got, err := n.read(d.node); err == nil && d.linked && string(got) != string(d.bytes) {
				n.w.fail("%s: inode %x holds %q, closed as %q", n.name, uint64(d.ino), got, d.bytes)
			}
		}
	}
	return nil
}

// write makes a whole file, in one go.
func (n *node) write(path string, b []byte, flush bool) error {
	dir, name, err := n.dirOf(path)
	if err != nil {
		return err
	}
	d, err := n.open(dir, name, true)
	if err != nil {
		return err
	}
	if err := n.writeAt(d, b, 0); err != nil {
		return err
	}
	n.acknowledged()
	return n.close(d, flush)
}

// extend appends to an open file, or to one that it opens for it.
func (n *node) extend(s step) error {
	if len(n.user.drafts) > 0 {
		d := n.user.drafts[int(s.word>>4)%len(n.user.drafts)]
		if err := n.begin(d); err != nil {
			return err
		}
		return n.writeAt(d, s.content(), len(d.bytes)/(1+s.n%2))
	}
	a, err := n.lookup(s.path)
	if err != nil || a.Kind != crdt.KindFile {
		return err
	}
	dir, name, _ := n.dirOf(s.path)
	d, err := n.open(dir, name, false)
	if err != nil {
		return err
	}
	if err := n.begin(d); err != nil {
		return err
	}
	if err := n.writeAt(d, s.content(), len(d.bytes)); err != nil {
		return err
	}
	return n.close(d, true)
}

func (n *node) closeOne(s step) error {
	if len(n.user.drafts) == 0 {
		return nil
	}
	d := n.user.drafts[int(s.word>>4)%len(n.user.drafts)]
	if s.verb == "close" {
		return n.close(d, s.n > 0)
	}
	n.w.whole[hashOf(d.bytes)] = n.w.whole[hashOf(d.bytes)] || d.begun
	if err := n.vol.Flush(d.node, d.handles[0]); err != nil {
		return err
	}
	d.flushed = d.begun
	return nil
}

func (n *node) fsync(s step) error {
	a, err := n.lookup(s.path)
	if err != nil {
		return err
	}
	if err := n.vol.Fsync(a.Node); err != nil {
		return err
	}
	n.acknowledged()
	n.user.synced = n.user.acked
	if d := n.user.draftOf(a.Node); d != nil {
		d.synced, d.kept = d.begun, d.kept || d.begun
		n.w.whole[hashOf(d.bytes)] = n.w.whole[hashOf(d.bytes)] || d.begun
	}
	return nil
}

func (n *node) truncate(s step, a store.Attr) error {
	if a.Kind != crdt.KindFile {
		return nil
	}
	d := n.user.draftOf(a.Node)
	shared := d != nil
	if !shared {
		d = &draft{node: a.Node, ino: a.Ino}
	}
	if err := n.begin(d); err != nil {
		return err
	}
	size := int64(s.size)
	next := append(slices.Clone(d.bytes), make([]byte, max(0, s.size-len(d.bytes)))...)[:size]
	n.mayHold(d, next)
	n.w.whole[hashOf(next)] = n.w.whole[hashOf(next)] || !shared
	if err := second(n.vol.SetAttr(none, a.Node, store.SetAttr{Size: &size})); err != nil {
		return err
	}
	n.wrote(d, next)
	return nil
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
