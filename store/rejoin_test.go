package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// beginAnew has a replica take another's state for its own.
func beginAnew(t testing.TB, from, to *Volume) {
	t.Helper()
	id := to.Next()
	from.Know(id, to.db.opts.Dir)
	check(t, to.BeginAnew(context.Background(), &peer{t: t, from: from, to: to}), nil)
	if to.Replica() != id {
		t.Errorf("replica %v, want %v", to.Replica(), id)
	}
}

// lost lists what has no place any more, by what it was called, with its bytes.
func lost(t testing.TB, v *Volume) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, name := range list(t, v, NodeID(crdt.LostIno)) {
		a, _, err := v.Lookup(NodeID(crdt.LostIno), name)
		check(t, err, nil)
		text := "/"
		if a.Kind == crdt.KindFile {
			text = readNode(t, v, a.Node)
		}
		out[name[17:]] = text
	}
	return out
}

func TestP6ReturnAfterTheRetention(t *testing.T) {
	clock, vs := cluster(t, 3, longHold)
	a, b, c := vs[0], vs[1], vs[2]
	d := mkdir(t, a, root, "dir")
	for _, name := range []string{"kept", "removed", "edited", "renamed", "open"} {
		write(t, a, d, name, "old "+name)
	}
	gone := mkdir(t, a, root, "gone")
	write(t, a, gone, "f", "old f")
	write(t, a, root, "big", noise(1, 2_000_000))
	settled(t, clock, vs...)
	// c is cut off: a and b remove much, c works on.
	for _, name := range []string{"removed", "edited", "renamed", "open"} {
		check(t, a.Unlink(Request{}, d, name), nil)
	}
	check(t, b.Unlink(Request{}, gone, "f"), nil)
	check(t, b.Rmdir(Request{}, root, "gone"), nil)
	write(t, b, root, "by b", "b")
	write(t, c, d, "edited", "edited by c")
	write(t, c, d, "kept", "kept, edited by c")
	write(t, c, d, "new", "new")
	write(t, c, d, "new", "new, again")
	write(t, c, gone, "made", "made in what is gone")
	sub := mkdir(t, c, gone, "sub")
	write(t, c, sub, "below", "below it")
	write(t, c, root, "big by c", noise(2, 2_000_000))
	check(t, c.Rename(Request{}, d, "renamed", root, "elsewhere", 0), nil)
	check(t, c.sealNow(), nil)
	check(t, c.Unlink(Request{}, root, "big"), nil) // stays unsealed
	draft := create(t, c, d, "draft").write("not yet published", 0)
	orphan := create(t, c, gone, "orphan").write("in what is gone", 0)
	patched := open(t, c, d, "open", false).write("OLD", 0)
	own := open(t, c, d, "new", false).write("NEW", 0)
	for range 5 {
		clock.pass(week / 3)
		settled(t, clock, a, b)
	}
	if collected := a.Collected(); tombstones(t, a) != 0 || !collected.Excludes(c.Replica(), c.Vector()) {
		t.Fatal("the replica that was away is not excluded")
	}
	old, shows := c.Replica(), dump(t, c)
	v := &recorder{shows: shows}
	c.AddViewer(1, v)
	beginAnew(t, a, c)
	v.compare(t, c)
	for _, w := range []writing{draft, orphan, patched, own} {
		w.close()
	}
	talk(t, a, b, c)
	exchange(t, a, b, c)
	same(t, a, b, c)
	for _, name := range []string{"removed", "edited", "renamed", "open"} {
		absent(t, a, d, name)
	}
	for _, name := range []string{"gone", "elsewhere", "big"} {
		absent(t, a, root, name)
	}
	for name, want := range map[string]string{"kept": "kept, edited by c", "new": "NEW, again", "draft": "not yet published"} {
		if got := read(t, a, d, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if got := read(t, b, root, "big by c"); got != noise(2, 2_000_000) {
		t.Error("large content is not there")
	}
	want := map[string]string{
		"edited": "edited by c", "made": "made in what is gone", "sub": "/", "orphan": "in what is gone", "open": "OLD open",
	}
	for _, x := range []*Volume{a, b, c} {
		if got := lost(t, x); !maps.Equal(got, want) {
			t.Errorf("lost: %q, want %q", got, want)
		}
	}
	if keysOf(t, c, 'u') != 0 || c.Vector()[old].Seq != a.Vector()[old].Seq {
		t.Error("ops under the old id are there still")
	}
	// What is lost is restored by a rename, and the replica works on.
	for _, name := range list(t, b, NodeID(crdt.LostIno)) {
		check(t, b.Rename(Request{}, NodeID(crdt.LostIno), name, root, name[17:], 0), nil)
	}
	fill(t, c, "again")
	exchange(t, a, b, c)
	c = reopen(t, c)
	write(t, c, root, "last", "word")
	exchange(t, a, b, c)
	same(t, a, b, c)
	if n := len(lost(t, a)); n != 0 {
		t.Errorf("%d are lost still", n)
	}
}

// recorder is a mount: it holds what it was shown against what there is.
type recorder struct {
	shows map[string]string
	names []crdt.NameChange
	calls int
}

func (r *recorder) Prepare(c *Changes) []crdt.Ino {
	var out []crdt.Ino
	for _, i := range c.Inodes {
		if i.Content {
			out = append(out, i.Ino)
		}
	}
	return out
}
func (r *recorder) Shows(crdt.Ino) bool  { return false }
func (r *recorder) Knows(NodeID) bool    { return true }
func (r *recorder) Committed(c *Changes) { r.calls++; r.names = append(r.names, c.Names...) }
func (r *recorder) Aborted(*Changes)     {}

// compare applies the name changes of the root to what was shown.
func (r *recorder) compare(t testing.TB, v *Volume) {
	t.Helper()
	if r.calls != 1 {
		t.Errorf("shown in %d batches", r.calls)
	}
	names := map[string]bool{}
	for p := range r.shows {
		if strings.Count(p, "/") == 1 {
			names[p[1:]] = true
		}
	}
	for _, c := range r.names {
		if c.Dir != crdt.RootIno {
			continue
		}
		if c.After == (crdt.Entry{}) {
			delete(names, c.Name)
		} else {
			names[c.Name] = true
		}
	}
	if got := slices.Sorted(maps.Keys(names)); !slices.Equal(got, list(t, v, root)) {
		t.Errorf("a mount shows %q, there is %q", got, list(t, v, root))
	}
}

// copyDir copies a state directory.
func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir() + "/state"
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v: %s", err, out)
	}
	check(t, os.RemoveAll(to+"/lock"), nil)
	return to
}

// TestP8RestoredCopyOfTheDirectory: a state directory that was copied takes a new
// id before its first op, whatever was done meanwhile where it came from, and
// hears of that as of any replica's work.
func TestP8RestoredCopyOfTheDirectory(t *testing.T) {
	t.Run("in another place", func(t *testing.T) { restoredCopy(t, false) })
	t.Run("over the original", func(t *testing.T) { restoredCopy(t, true) })
}

func restoredCopy(t *testing.T, over bool) {
	a, b := pair(t, Options{})
	write(t, b, root, "common", "1")
	exchange(t, a, b)
	o := b.db.opts
	check(t, b.db.Close(), nil)
	backup := copyDir(t, o.Dir)
	b = openWith(t, o).Volume(a.ID())
	old := b.Replica()
	write(t, b, root, "after", "forgotten by the backup")
	check(t, b.Unlink(Request{}, root, "common"), nil)
	exchange(t, a, b)
	check(t, b.db.Close(), nil)
	if over {
		if out, err := exec.Command("cp", "-a", backup+"/.", o.Dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	} else {
		o.Dir = backup
	}
	b = openWith(t, o).Volume(a.ID())
	if b.Replica() == old {
		t.Fatal("it goes on under the old id")
	}
	write(t, b, root, "restored", "written since the restore")
	exchange(t, a, b)
	same(t, a, b)
	for _, v := range []*Volume{a, b} {
		absent(t, v, root, "common")
		if got := read(t, v, root, "after") + ", " + read(t, v, root, "restored"); got != "forgotten by the backup, written since the restore" {
			t.Error(got)
		}
	}
	now := b.Replica()
	if b = reopen(t, b); b.Replica() != now {
		t.Error("a mere restart gave it another id")
	}
}

// TestP8CopyOfALiveReplica: whoever is started from a copy of the directory of one
// that lives on takes a new id, and does not put the other out.
func TestP8CopyOfALiveReplica(t *testing.T) {
	clock, vs := cluster(t, 2, Options{})
	a, b := vs[0], vs[1]
	settled(t, clock, a, b)
	for _, clean := range []bool{true, false} {
		o := b.db.opts
		if clean {
			check(t, b.db.Close(), nil)
		}
		o.Dir = copyDir(t, o.Dir)
		if clean {
			b = openWith(t, b.db.opts).Volume(a.ID())
		}
		c := openWith(t, o).Volume(a.ID())
		if c.Replica() == b.Replica() {
			t.Fatal("two replicas have one id")
		}
		write(t, c, root, "by the copy", "c")
		write(t, b, root, "by the original", "b")
		settled(t, clock, a, b, c)
		for _, v := range []*Volume{a, b, c} {
			for _, w := range []*Volume{a, b, c} {
				if col := v.Collected(); col.Excludes(w.Replica(), w.Vector()) {
					t.Errorf("%v excludes %v", v.Replica(), w.Replica())
				}
			}
		}
		same(t, a, b, c)
	}
}

// TestP8RestoredWithOwnWork: no dot names two ops, and work done since the
// restore is kept, whether more or fewer ops than were forgotten.
func TestP8RestoredWithOwnWork(t *testing.T) {
	was := placeOf
	t.Cleanup(func() { placeOf = was })
	placeOf = func(string) (string, error) { return "that of the whole disk's copy", nil }
	for _, since := range []int{0, 1, 12} {
		t.Run(fmt.Sprint(since), func(t *testing.T) {
			clock, vs := cluster(t, 2, Options{})
			a, b := vs[0], vs[1]
			write(t, b, root, "common", "1")
			write(t, b, root, "sent", "in the backup, and sent")
			settled(t, clock, a, b)
			write(t, b, root, "late", "in the backup, and sent, and nobody said so")
			check(t, b.sealNow(), nil)
			o := b.db.opts
			check(t, b.db.Close(), nil)
			backup := copyDir(t, o.Dir)
			b = openWith(t, o).Volume(a.ID())
			for n := range 5 {
				write(t, b, root, fmt.Sprint("after", n), "forgotten by the backup")
			}
			exchange(t, a, b)
			write(t, a, root, "late", "edited by a since")
			check(t, b.db.Close(), nil)
			clock.pass(week / 8)
			o.Dir = backup
			b = openWith(t, o).Volume(a.ID())
			old := b.Replica()
			for n := range since {
				write(t, b, root, fmt.Sprint("restored", n), "written since the restore")
			}
			if since > 0 {
				write(t, b, root, "common", "edited since the restore")
			}
			check(t, b.sealNow(), nil)
			e := a.Vector()[old]
			forked, err := b.Forked(old, e.Seq, func(h [32]byte) bool { return h == e.Hash })
			check(t, err, nil)
			if more := b.Vector()[old].Seq < e.Seq; !more && !forked {
				t.Fatal("that the peer has other ops is not noticed")
			}
			beginAnew(t, a, b)
			talk(t, a, b)
			exchange(t, a, b)
			same(t, a, b)
			if a.Vector()[old] != e {
				t.Error("ops came under the old id")
			}
			for n := range since {
				if got := read(t, a, root, fmt.Sprint("restored", n)); got != "written since the restore" {
					t.Errorf("restored%d: %q", n, got)
				}
			}
			for n := range 5 {
				if got := read(t, b, root, fmt.Sprint("after", n)); got != "forgotten by the backup" {
					t.Errorf("after%d: %q", n, got)
				}
			}
			if got := read(t, b, root, "late"); got != "edited by a since" {
				t.Errorf("late: %q: an op that was known already was made again", got)
			}
			if got := read(t, a, root, "common"); since > 0 && got != "edited since the restore" {
				t.Errorf("common: %q", got)
			}
		})
	}
}

// A crash while the new state is built leaves the present one.
func TestP8BeginAnewIsAllOrNothing(t *testing.T) {
	clock, vs := cluster(t, 2, Options{})
	a, b := vs[0], vs[1]
	fill(t, a, "")
	settled(t, clock, a, b)
	fill(t, b, "own")
	check(t, b.sealNow(), nil)
	was, id, next := dump(t, b), b.Replica(), b.Next()
	a.portion = 100_000
	for cut := range 4 {
		p := &peer{t: t, from: a, to: b, cut: cut + 1}
		check(t, b.BeginAnew(context.Background(), p), errCut)
		if !maps.Equal(was, dump(t, b)) || b.Replica() != id {
			t.Fatalf("cut after %d chunks: the state changed", cut+1)
		}
		if cut > 0 && len(p.asked[0].After) == 0 {
			t.Errorf("after %d cuts it begins again", cut)
		}
		if cut == 1 {
			b = reopen(t, b)
		}
	}
	if b.Next() != next {
		t.Error("each attempt is another replica to its peers")
	}
	// As after a crash: what was built is there, and does no harm.
	s, err := b.beside()
	check(t, err, nil)
	check(t, s.JoinSnapshot(context.Background(), &peer{t: t, from: a, to: s}), nil)
	n := keysOf(t, s, 'i')
	b = reopen(t, b)
	s.db = b.db
	if !maps.Equal(was, dump(t, b)) || b.Replica() != id || n == 0 || keysOf(t, s, 'i') != 0 {
		t.Error("a restart does not end what was begun")
	}
	beginAnew(t, a, b)
	exchange(t, a, b)
	same(t, a, b)
	for p, line := range was {
		if strings.Contains(line, "kind 1") && dump(t, a)[p] == "" {
			t.Errorf("%s is lost", p)
		}
	}
	b = reopen(t, b)
	same(t, a, b)
}

// TestP5ReturnWithManyFiles: what was made while away is more than one
// transaction takes.
func TestP5ReturnWithManyFiles(t *testing.T) {
	const files = 14_000
	clock, vs := cluster(t, 3, longHold)
	a, b, c := vs[0], vs[1], vs[2]
	write(t, a, root, "removed", "old")
	settled(t, clock, vs...)
	check(t, a.Unlink(Request{}, root, "removed"), nil)
	for n := range files {
		_, err := c.Mknod(Request{}, root, fmt.Sprint("f", n), NewNode{Kind: crdt.KindFile, Mode: 0o644})
		check(t, err, nil)
	}
	a1, _, err := c.Lookup(root, "f7")
	check(t, err, nil)
	for range 5 {
		clock.pass(week / 3)
		settled(t, clock, a, b)
	}
	beginAnew(t, a, c)
	if got := len(list(t, c, root)); got != files {
		t.Errorf("%d files", got)
	}
	if a2, _, err := c.Lookup(root, "f7"); err != nil || a2.Node != a1.Node || a2.Ino == a1.Ino {
		t.Errorf("node %x, was %x, inode %x: %v", uint64(a2.Node), uint64(a1.Node), uint64(a2.Ino), err)
	}
}

// TestP2ReturnToManyChangedFiles: the old versions that a kernel goes on showing
// are more than one transaction takes.
func TestP2ReturnToManyChangedFiles(t *testing.T) {
	const files, size = 60, 60_000
	alone := longHold
	alone.Scheduler = still{} // nobody else uses the database that fails
	clock, vs := cluster(t, 3, alone)
	a, b, c := vs[0], vs[1], vs[2]
	var known []crdt.Ino
	for n := range files {
		known = append(known, crdt.Ino(write(t, a, root, fmt.Sprint("f", n), noise(uint64(n), size))))
	}
	write(t, a, root, "removed", "old")
	settled(t, clock, vs...)
	w := watch(t, c, known...)
	check(t, a.Unlink(Request{}, root, "removed"), nil)
	for n := range files {
		write(t, a, root, fmt.Sprint("f", n), noise(uint64(1000+n), size))
	}
	for range 5 {
		clock.pass(week / 3)
		settled(t, clock, a, b)
	}
	// The last transaction fails: what was there is still read.
	kv := c.db.kv
	c.db.kv = &failingCommit{kv: kv, key: replicaKey(c.id)}
	id := c.Next()
	a.Know(id, c.db.opts.Dir)
	if err := c.BeginAnew(context.Background(), &peer{t: t, from: a, to: c}); !errors.Is(err, errCommit) {
		t.Fatalf("begin anew: %v", err)
	}
	c.db.kv = kv
	if got := read(t, c, root, "f1"); got != noise(1, size) || w.pending != nil {
		t.Error("after a failure")
	}
	beginAnew(t, a, c)
	for n, ino := range known {
		if got := readNode(t, c, NodeID(ino)); got != noise(uint64(n), size) {
			t.Fatalf("the old node reads %d other bytes", len(got))
		}
		if got := read(t, c, root, fmt.Sprint("f", n)); got != noise(uint64(1000+n), size) {
			t.Fatalf("the name reads %d other bytes", len(got))
		}
	}
}

var errCommit = errors.New("no room for the commit")

// failingCommit fails a transaction that has written the other generation's
// record, when it is committed.
type failingCommit struct {
	kv
	key []byte
}

func (f *failingCommit) update(fn func(txn) error) error {
	return f.kv.update(func(t txn) error {
		w := &watchedTxn{txn: t, key: f.key}
		if err := fn(w); err != nil {
			return err
		}
		if w.switched {
			return errCommit
		}
		return nil
	})
}

type watchedTxn struct {
	txn
	key      []byte
	switched bool
}

func (w *watchedTxn) set(key, value []byte) error {
	var r replicaRecord
	if bytes.Equal(key, w.key) && json.Unmarshal(value, &r) == nil && r.Next == 0 && r.TwoStates {
		w.switched = true
	}
	return w.txn.set(key, value)
}

// TestP8ClosedDraftOfAFileMadeAgain is published, also when the daemon dies
// before the kernel releases it.
func TestP8ClosedDraftOfAFileMadeAgain(t *testing.T) {
	clock, vs := cluster(t, 3, longHold)
	a, b, c := vs[0], vs[1], vs[2]
	write(t, a, root, "removed", "old")
	write(t, a, root, "kept", "old kept")
	settled(t, clock, vs...)
	check(t, a.Unlink(Request{}, root, "removed"), nil)
	write(t, c, root, "made", "old made")
	for _, name := range []string{"kept", "made"} {
		open(t, c, root, name, false).write("NEW", 0).flush()
	}
	create(t, c, root, "begun").write("NEW begun", 0).flush()
	for range 5 {
		clock.pass(week / 3)
		settled(t, clock, a, b)
	}
	beginAnew(t, a, c)
	c = reopen(t, c)
	for _, name := range []string{"kept", "made", "begun"} {
		if got := read(t, c, root, name); got != "NEW "+name {
			t.Errorf("%s is %q", name, got)
		}
	}
	if l := lost(t, c); len(l) > 0 {
		t.Errorf("lost: %q", l)
	}
}

// TestP4OpsOfBeforeComeAfterAll: what a replica had made again when it began
// anew comes under the old id too, from a peer that had it: both are there, and
// each is shown as itself.
func TestP4OpsOfBeforeComeAfterAll(t *testing.T) {
	clock, vs := cluster(t, 3, Options{})
	a, b, c := vs[0], vs[1], vs[2]
	write(t, a, root, "common", "text")
	settled(t, clock, a, b, c)
	d := mkdir(t, c, root, "dir")
	write(t, c, d, "f", "text")
	exchange(t, b, c)
	c.mu.Lock()
	c.roster.members = map[crdt.ReplicaID]*member{} // as if b had not said so
	c.mu.Unlock()
	beginAnew(t, a, c)
	exchange(t, a, b, c)
	exchange(t, a, b, c)
	same(t, a, b, c)
	write(t, c, d, "g", "more")
	exchange(t, a, b, c)
	same(t, a, b, c)
}

// TestP8WorkOfAllThatBeginAnew: what only replicas had that begin anew, each
// from the same, is made again, whatever they were known to have.
func TestP8WorkOfAllThatBeginAnew(t *testing.T) {
	clock, vs := cluster(t, 3, Options{})
	a, b, c := vs[0], vs[1], vs[2]
	write(t, a, root, "f", "text")
	settled(t, clock, a, b, c)
	write(t, b, root, "new", "text")
	exchange(t, b, c)
	talk(t, b, c)
	for range 4 {
		clock.pass(week / 2)
		talk(t, b, c)
	}
	talk(t, a) // puts the others out
	beginAnew(t, a, b)
	beginAnew(t, a, c)
	exchange(t, a, b, c)
	if got := read(t, a, root, "new"); got != "text" {
		t.Errorf("new: %q", got)
	}
	same(t, a, b, c)
}

// TestP5TwoBeginAnewFromAThird: what only those two have is not lost between
// them, each believing that the other has it.
func TestP5TwoBeginAnewFromAThird(t *testing.T) {
	clock, vs := cluster(t, 3, longHold)
	a, b, c := vs[0], vs[1], vs[2]
	for _, name := range []string{"removed", "edited", "by c"} {
		write(t, a, root, name, "old")
	}
	settled(t, clock, vs...)
	check(t, a.Unlink(Request{}, root, "removed"), nil)
	write(t, a, root, "edited", "by a")
	write(t, a, root, "new", "by a")
	for range 20 { // c has the longer history, and collects it
		write(t, c, root, "c", "by c")
	}
	check(t, c.Unlink(Request{}, root, "by c"), nil)
	for range 6 {
		clock.pass(week / 3)
		settled(t, clock, a, b)
		settled(t, clock, c)
	}
	ours, theirs := a.Collected(), c.Collected()
	if !ours.Excludes(c.Replica(), c.Vector()) || !theirs.Excludes(a.Replica(), a.Vector()) || ours.Weight() >= theirs.Weight() {
		t.Fatal("the two sides do not exclude each other")
	}
	beginAnew(t, c, a)
	beginAnew(t, c, b)
	talk(t, a, b, c)
	exchange(t, a, b, c)
	same(t, a, b, c)
	absent(t, c, root, "removed")
	for _, name := range []string{"edited", "new"} {
		if got := read(t, c, root, name); got != "by a" {
			t.Errorf("%s is %q", name, got)
		}
	}
}

// TestP5BeginsAnewTwice: what a replica had made before it began anew the first
// time is made again the second time, if that is from one that lacks it.
func TestP5BeginsAnewTwice(t *testing.T) {
	clock, vs := cluster(t, 3, Options{})
	a, b, c := vs[0], vs[1], vs[2]
	write(t, a, root, "f", "text")
	settled(t, clock, a, b, c)
	for n := range 3 {
		write(t, b, root, fmt.Sprint("made by b ", n), "b")
		check(t, b.sealNow(), nil)
	}
	exchange(t, a, b)
	beginAnew(t, a, b)
	if got := read(t, b, root, "made by b 0"); got != "b" {
		t.Fatalf("%q", got)
	}
	b = reopen(t, b)
	same(t, a, b)
	// The journal covers what was carried over.
	d := volumeWith(t, a.ID(), Options{})
	check(t, d.SetReady(), nil)
	give(t, b, d)
	same(t, b, d)
	beginAnew(t, c, b)
	beginAnew(t, c, a)
	exchange(t, a, b, c)
	same(t, a, b, c)
	for n := range 3 {
		if got := read(t, c, root, fmt.Sprint("made by b ", n)); got != "b" {
			t.Errorf("file %d: %q", n, got)
		}
	}
}

// compactingKV has a replica drop what it may of its journal before one of its
// writes.
type compactingKV struct {
	kv
	v    *Volume
	left int
}

func (k *compactingKV) update(fn func(txn) error) error {
	if k.left--; k.left == 0 && k.v.mu.TryLock() { // else it could not run now
		k.v.mu.Unlock()
		if err := k.v.compactJournal(); err != nil {
			return err
		}
	}
	return k.kv.update(fn)
}

// TestP5CompactedWhileBeginningAnew: whenever the keeper of the journal comes by
// while a replica begins anew, the journal has no hole.
func TestP5CompactedWhileBeginningAnew(t *testing.T) {
	o := Options{JournalLimit: 1, Scheduler: still{}}
	a := volumeWith(t, NewVolumeID(), o)
	for n := range 3 {
		write(t, a, root, fmt.Sprint("f", n), "text")
		check(t, a.sealNow(), nil)
	}
	for n := range 16 { // writes after all came from the peer
		o.Memory = NewMemory()
		b := volumeWith(t, a.ID(), o)
		give(t, a, b)
		talk(t, a, b)
		intact := b.db.kv
		k := &compactingKV{kv: intact, v: b}
		b.db.kv = k
		a.Know(b.Next(), "b")
		p := &peer{t: t, from: a, to: b, between: func() { k.left = n + 1 }}
		check(t, b.BeginAnew(context.Background(), p), nil)
		b.db.kv = intact
		give(t, a, b)
		for r, e := range must(b.journalStart()) {
			if _, _, err := b.Batches(crdt.Vector{r: e}, 1<<20); err != nil {
				t.Errorf("compacted before write %d: %v", n, err)
			}
		}
		b = reopen(t, b)
		same(t, a, b)
		check(t, b.compactJournal(), nil)
	}
}
