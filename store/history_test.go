package store

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// TestHistoryOfAPath spans the files that stood there, however they were
// replaced.
func TestHistoryOfAPath(t *testing.T) {
	a, b := pair(t, Options{})
	script(t, a, "create x 0; write x 1; create t 2; mv t x; write x 3; unlink x; create x 4")
	exchange(t, a, b)
	b = reopen(t, b)
	for _, v := range []*Volume{a, b} {
		if got := history(t, v, "x"); got != "4* 3 2 1 0" {
			t.Errorf("%q", got)
		}
	}
	for _, path := range []string{"none", "none/none"} {
		if _, err := a.History(path); !errors.Is(err, crdt.ErrNotExist) {
			t.Errorf("history of %s: %v", path, err)
		}
	}
}

// TestHistoryLimits: at most so many versions, at most so old, and their bytes
// go with them.
func TestHistoryLimits(t *testing.T) {
	var clock aheadClock
	v := volumeWith(t, NewVolumeID(), Options{Now: clock.now})
	v.SetLimits(Limits{History: 3, HistoryAge: time.Hour})
	_, err := v.Speak("alone") // its peers are known: there is none
	check(t, err, nil)
	for n := range 9 {
		write(t, v, root, "inplace", fmt.Sprint(n))
		write(t, v, root, "t", fmt.Sprint(n))
		script(t, v, "mv t replaced")
	}
	for _, path := range []string{"inplace", "replaced"} {
		if got := history(t, v, path); got != "8* 7 6 5" {
			t.Errorf("%s: %q", path, got)
		}
	}
	check(t, v.sealNow(), nil)
	check(t, v.pruneQueued(), nil)
	if got := count(t, v, 'h'); got != 3 {
		t.Errorf("%d versions kept of the file written in place", got)
	}
	if got := count(t, v, 'o'); got > 3 {
		t.Errorf("%d files kept of those replaced", got)
	}
	v = reopen(t, v)
	v.SetLimits(Limits{History: 3, HistoryAge: time.Hour})
	if got := history(t, v, "inplace"); got != "8* 7 6 5" {
		t.Errorf("after a restart: %q", got)
	}
	clock.by.Store(int64(30 * time.Minute))
	write(t, v, root, "inplace", "9")
	clock.by.Store(int64(80 * time.Minute))
	if got := history(t, v, "inplace"); got != "9* 8" { // 8 was replaced 50 minutes ago
		t.Errorf("later: %q", got)
	}
	sweep(t, v)
	if got := count(t, v, 'h'); got != 1 {
		t.Errorf("later %d versions are kept", got)
	}
	if got := count(t, v, 'o'); got != 0 {
		t.Errorf("later %d deleted files are kept", got)
	}
}

// count counts a volume's keys of one tag.
func count(t testing.TB, v *Volume, tag byte) (n int) {
	t.Helper()
	check(t, v.read(func(tr *tree) error {
		return tr.t.scan(v.keys.key(tag), nil, func(_, _ []byte) (bool, error) { n++; return true, nil })
	}), nil)
	return n
}

// TestP13SweepInPortions goes through more than one turn takes.
func TestP13SweepInPortions(t *testing.T) {
	v := testVolume(t, NewVolumeID())
	_, err := v.Speak("alone")
	check(t, err, nil)
	for n := range pruneTurn {
		script(t, v, fmt.Sprintf("create a%d 0; write a%d 1; write a%d 2; unlink a%d", n, n, n, n))
	}
	v.pruning.take(1 << 30)
	check(t, v.sealNow(), nil)
	v.SetLimits(Limits{HistoryAge: 1})
	turns := sweep(t, v) + sweep(t, v) // names let go of inodes already looked at
	if h, o := count(t, v, 'h'), count(t, v, 'o'); h+o != 0 {
		t.Errorf("%d versions and %d names kept after %d turns", h, o, turns)
	}
	if turns < 4 {
		t.Errorf("%d turns", turns)
	}
}

func TestRestoreVersion(t *testing.T) {
	for _, c := range []struct{ name, program, pick, to, want, past string }{
		{"of a file that stands", "create x 0; write x 1; write x 2", "0", "", "x=0", "0* 2 1 0"},
		{"of one that was replaced", "create x 0; create t 1; mv t x", "0", "", "x=0", "0* 1 0"},
		{"of one that was deleted", "create x 0; write x 1; unlink x", "1", "", "x=1", "1* 1 0"},
		{"an older one of one that was deleted", "create x 0; write x 1; unlink x", "0", "", "x=0", "0* 1 0"},
		{"to another path", "create x 0; write x 1", "0", "d/e/y", "d/e/y=0 x=1", "1* 0"},
		{"in a directory that was deleted", "mkdir d; create d/x 0; unlink d/x; rmdir d", "0", "", "d/x=0", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := pair(t, Options{})
			script(t, a, c.program)
			path := "x"
			if c.past == "" {
				path = "d/x"
			}
			done := false
			for _, p := range must(a.History(path)) {
				if !done && readVersion(t, a, p.Ino, p.Version) == c.pick {
					check(t, a.RestoreVersion(path, p.ID, c.to), nil)
					done = true
				}
			}
			exchange(t, a, b)
			same(t, a, b)
			if got := files(t, b); got != c.want {
				t.Errorf("tree %q, want %q", got, c.want)
			}
			if c.past != "" {
				if got := history(t, b, path); got != c.past {
					t.Errorf("history %q, want %q", got, c.past)
				}
			}
		})
	}
}

// TestRestoreKeepsAttributes of a file that is made anew.
func TestRestoreKeepsAttributes(t *testing.T) {
	v := testVolume(t, NewVolumeID())
	d := mkdir(t, v, root, "d")
	mode := uint32(0o710)
	_, err := v.SetAttr(Request{}, d, SetAttr{Mode: &mode})
	check(t, err, nil)
	f := write(t, v, d, "f", "text")
	mode = 0o4751
	_, err = v.SetAttr(Request{}, f, SetAttr{Mode: &mode})
	check(t, err, nil)
	check(t, v.SetXattr(Request{}, f, "user.a", []byte("b"), XattrSet), nil)
	_, err = v.Mknod(Request{}, d, "l", NewNode{Kind: crdt.KindSymlink, Target: "f"})
	check(t, err, nil)
	script(t, v, "unlink d/f; unlink d/l; rmdir d")
	n, err := v.RestoreTree("d", "", time.Hour)
	check(t, err, nil)
	if n != 3 {
		t.Errorf("%d made", n)
	}
	a, _, err := v.Lookup(root, "d")
	check(t, err, nil)
	if a.Mode != 0o710 {
		t.Errorf("directory mode %o", a.Mode)
	}
	a, _, err = v.Lookup(a.Node, "f")
	check(t, err, nil)
	if a.Mode != 0o4751 || string(must(v.GetXattr(a.Node, "user.a"))) != "b" || readNode(t, v, a.Node) != "text" {
		t.Errorf("mode %o, text %q", a.Mode, readNode(t, v, a.Node))
	}
	dir, name := locate(t, v, "d/l")
	a, _, err = v.Lookup(dir, name)
	check(t, err, nil)
	if got := must(v.Readlink(a.Node)); got != "f" {
		t.Errorf("-> %q", got)
	}
}

// TestRestoreTree: a deleted tree comes back as it was, not with what was
// deleted from it long before.
func TestRestoreTree(t *testing.T) {
	var clock aheadClock
	id := NewVolumeID()
	a, b := volumeWith(t, id, Options{Now: clock.now}), volumeWith(t, id, Options{})
	script(t, a, "mkdir d; mkdir d/e; create d/old 0; unlink d/old; create d/x 1; write d/x 2")
	clock.by.Store(int64(2 * time.Hour))
	script(t, a, "create d/e/y 3; unlink d/e/y; rmdir d/e; unlink d/x; rmdir d")
	exchange(t, a, b)
	deleted := must(b.Deleted(""))
	if len(deleted) != 1 || deleted[0].Path != "d" || deleted[0].Kind != crdt.KindDir {
		t.Errorf("deleted: %+v", deleted)
	}
	var names []string
	for _, p := range must(b.Deleted("d")) {
		names = append(names, p.Path)
	}
	if got := fmt.Sprint(names); got != "[e old x]" {
		t.Errorf("deleted in d: %s", got)
	}
	n, err := b.RestoreTree("d", "", time.Hour)
	check(t, err, nil)
	exchange(t, a, b)
	if got := files(t, a); got != "d/e/y=3 d/x=2" || n != 4 {
		t.Errorf("%d made: %q", n, got)
	}
	if left := must(a.Deleted("")); len(left) != 0 {
		t.Errorf("still deleted: %+v", left)
	}
}

// TestHistoryOfLargeContent is read and restored like that of small.
func TestHistoryOfLargeContent(t *testing.T) {
	a, b := pair(t, Options{})
	first, second := noise(1, 3<<20), noise(2, 2<<20)
	write(t, a, root, "big", first)
	write(t, a, root, "big", second)
	exchange(t, a, b)
	past := must(b.History("big"))
	if len(past) != 2 || readVersion(t, b, past[1].Ino, past[1].Version) != first {
		t.Fatalf("%d versions", len(past))
	}
	check(t, b.RestoreVersion("big", past[1].ID, ""), nil)
	exchange(t, a, b)
	if read(t, a, root, "big") != first {
		t.Error("not restored")
	}
	c := volumeWith(t, a.ID(), Options{})
	join(t, a, c)
	past = must(c.History("big"))
	_, err := c.ReadVersion(past[1].Ino, past[1].Version)
	check(t, err, ErrNoContent)
}

// TestP13BytesOfDeletedFilesGo when nobody can bring them back, nor has them
// open, and they are beyond the limits.
func TestP13BytesOfDeletedFilesGo(t *testing.T) {
	a, b := pair(t, Options{})
	talk(t, a, b)
	a.SetLimits(Limits{History: 2})
	var open NodeID
	for n := range 6 {
		node := write(t, a, root, "t", fmt.Sprint(n))
		if n == 1 {
			open = node
		}
		script(t, a, "mv t x")
	}
	exchange(t, a, b)
	bytes := func() int { return count(t, a, 'c') }
	all := bytes()
	prune := func() {
		a.pruning.add([]pastKey{{dir: crdt.RootIno, name: "x"}})
		check(t, a.pruneQueued(), nil)
	}
	prune()
	if got := bytes(); got != all {
		t.Errorf("%d of %d kept, though a peer may bring them back", got, all)
	}
	talk(t, a, b)
	cancel := a.AddViewer(1, &viewer{t: t, nodes: map[NodeID]bool{open: true}})
	prune()
	if got := bytes(); got != 1+2+1 { // shown, history, open
		t.Errorf("%d kept", got)
	}
	if got := readNode(t, a, open); got != "1" {
		t.Errorf("the open file reads %q", got)
	}
	cancel()
	prune()
	if got := bytes(); got != 1+2 {
		t.Errorf("%d kept at the end", got)
	}
	if got := history(t, a, "x"); got != "5* 4 3" {
		t.Errorf("history: %q", got)
	}
	c := volumeWith(t, a.ID(), Options{})
	join(t, a, c)
	same(t, a, c)
	if got := history(t, c, "x"); got != "5* 4 3" {
		t.Errorf("history of a newcomer: %q", got)
	}
}

// sweep goes once through all that is kept, and says in how many turns.
func sweep(t testing.TB, v *Volume) (turns int) {
	t.Helper()
	v.pruning.turn.Lock()
	defer v.pruning.turn.Unlock()
	for done := false; !done; turns++ {
		var err error
		done, err = v.sweepLocked()
		check(t, err, nil)
	}
	return turns
}

// TestP13HistoryOfAContestedFile is bounded too, and the record stays what it is.
func TestP13HistoryOfAContestedFile(t *testing.T) {
	a, b := conflict(t, "create same 0; create x 0", "write same 1; write x 1", "write same 1; write same 2; write x 2")
	for _, v := range []*Volume{a, b} {
		v.SetLimits(Limits{History: 2})
	}
	for n := 3; n < 12; n++ {
		script(t, b, fmt.Sprintf("write x %d; write same %d", n, n))
	}
	exchange(t, a, b)
	for _, v := range []*Volume{a, b} {
		before := count(t, v, 'c')
		check(t, v.pruneQueued(), nil)
		if after := count(t, v, 'c'); after >= before || after > 2*(2+2) { // leaves and history of two files
			t.Errorf("bytes of %d versions kept, of %d", after, before)
		}
		if got := history(t, v, "x"); got != "11* 10 9" {
			t.Errorf("history %q", got)
		}
		if got := listing(t, v); got != "content x=1" {
			t.Errorf("conflicts %q", got)
		}
	}
}

// TestP13ManyVersionsOfOneFile: they are more than one transaction forgets.
func TestP13ManyVersionsOfOneFile(t *testing.T) {
	v := volumeWith(t, NewVolumeID(), Options{})
	write(t, v, root, "f", "0")
	a, _, err := v.Lookup(root, "f")
	check(t, err, nil)
	for n := range 100 {
		check(t, v.change(0, func(c *change) error {
			for m := range 100 {
				i, err := c.Inode(a.Ino)
				if err != nil {
					return err
				}
				p := c.plan()
				if err := p.Content(i, i.Links[0].ID, i.Shown().ID, crdt.Content{Size: 3, Inline: fmt.Appendf(nil, "%03d", (n+m)%1000)}); err != nil {
					return err
				}
				if err := c.commit(p.Writes, hold{}); err != nil {
					return err
				}
			}
			return nil
		}), nil)
		check(t, v.sealNow(), nil)
	}
	check(t, v.pruneQueued(), nil)
	if got := count(t, v, 'h'); got != 10 {
		t.Errorf("%d versions are kept", got)
	}
}

// TestP4RestoreOverWhatIsNotPublished: no op names a file that nobody else
// knows, since it is open still.
func TestP4RestoreOverWhatIsNotPublished(t *testing.T) {
	v := testVolume(t, NewVolumeID())
	write(t, v, root, "f", "old")
	check(t, v.Unlink(Request{}, root, "f"), nil)
	w := create(t, v, root, "f").write("new", 0)
	past, err := v.History("f")
	check(t, err, nil)
	check(t, v.RestoreVersion("f", past[0].ID, ""), crdt.ErrExist)
	w.close()
	check(t, v.RestoreVersion("f", past[0].ID, ""), nil)
	if got := read(t, v, root, "f"); got != "old" {
		t.Errorf("f: %q", got)
	}
}
