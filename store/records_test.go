package store

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// listing is a volume's records as text, in order of their paths.
func listing(t testing.TB, v *Volume) string {
	t.Helper()
	var out []string
	for _, r := range must(v.Records()) {
		line := [...]string{"", "content ", "hidden ", "place "}[r.What] + r.Path
		if r.Version != nil {
			line += "=" + readVersion(t, v, r.Ino, r.Version)
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func readVersion(t testing.TB, v *Volume, ino crdt.Ino, version *crdt.Version) string {
	t.Helper()
	r, err := v.ReadVersion(ino, version)
	check(t, err, nil)
	b, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size))
	check(t, err, nil)
	return string(b)
}

// history is what a path was, the newest first.
func history(t testing.TB, v *Volume, path string) string {
	t.Helper()
	var out []string
	for _, p := range must(v.History(path)) {
		line := readVersion(t, v, p.Ino, p.Version)
		if p.Current {
			line += "*"
		}
		out = append(out, line)
	}
	return strings.Join(out, " ")
}

// script runs commands on one volume: write, create, mkdir, mv, unlink, rmdir
// with paths of one or two names.
func script(t testing.TB, v *Volume, program string) {
	t.Helper()
	for _, line := range strings.Split(program, ";") {
		f := append(strings.Fields(line), "", "")
		if f[0] == "" {
			continue
		}
		dir, name := locate(t, v, f[1])
		var err error
		switch f[0] {
		case "write", "create":
			write(t, v, dir, name, f[2])
		case "mkdir":
			mkdir(t, v, dir, name)
		case "unlink":
			err = v.Unlink(Request{}, dir, name)
		case "rmdir":
			err = v.Rmdir(Request{}, dir, name)
		case "mv":
			ndir, nname := locate(t, v, f[2])
			err = v.Rename(Request{}, dir, name, ndir, nname, crdt.RenameReplace)
		default:
			t.Fatalf("no such command: %s", line)
		}
		check(t, err, nil)
	}
}

func locate(t testing.TB, v *Volume, path string) (NodeID, string) {
	t.Helper()
	dir, parts := root, SplitPath(path)
	for _, name := range parts[:len(parts)-1] {
		a, _, err := v.Lookup(dir, name)
		check(t, err, nil)
		dir = a.Node
	}
	return dir, parts[len(parts)-1]
}

// conflict makes two volumes that ran different programs after a common one: a
// its own first, and so with the older stamps.
func conflict(t testing.TB, base, programA, programB string) (a, b *Volume) {
	t.Helper()
	a, b = pair(t, Options{})
	script(t, a, base)
	give(t, a, b)
	script(t, a, programA)
	script(t, b, programB)
	exchange(t, a, b)
	same(t, a, b)
	return a, b
}

// TestP5RecordRows runs the rows of the table on real stores.
func TestP5RecordRows(t *testing.T) {
	for _, row := range []struct{ name, base, a, b, want, wantSwapped string }{
		{"same file written twice", "create x 0", "write x 1", "write x 2", "content x=1", "content x=2"},
		{"same bytes on both sides", "create x 0", "write x 1", "write x 1", "", ""},
		{"same bytes, then edited on one side", "create x 0", "write x 1", "write x 1; write x 2", "", "content x=2"},
		{"same tree unpacked", "", "mkdir d; create d/x 1", "mkdir d; create d/x 1", "", ""},
		{"same name created twice", "", "create x 1", "create x 2", "hidden x=1", "hidden x=2"},
		{"file against directory", "", "create x 1", "mkdir x", "hidden x=1", "hidden x=1"},
		{"edit against delete", "create x 0", "write x 1", "unlink x", "", ""},
		{"edit against replacement", "create x 0", "write x 1", "create t 2; mv t x", "hidden x=1", "hidden x=1"},
		{"file renamed to two names", "create x 0", "mv x y", "mv x z", "place y", "place z"},
		{"rename against delete", "create x 0", "mv x y", "unlink x", "", ""},
		{"directory moved to two places", "mkdir d", "mv d e", "mv d f", "place e", "place f"},
		{"moves that would form a cycle", "mkdir d; mkdir e", "mv d e/d", "mv e d/e", "place e/d/e", "place d/e/d"},
		{"both sides large", "create x 0", "write x " + large(1), "write x " + large(2), "content x=" + large(1), "content x=" + large(2)},
	} {
		t.Run(row.name, func(t *testing.T) {
			a, b := conflict(t, row.base, row.a, row.b)
			c, d := conflict(t, row.base, row.b, row.a)
			d = reopen(t, d)
			for v, want := range map[*Volume]string{a: row.want, b: row.want, c: row.wantSwapped, d: row.wantSwapped} {
				if got := listing(t, v); got != want {
					t.Errorf("%.60q, want %.60q", got, want)
				}
			}
		})
	}
}

// large is 100 KiB without spaces, more than is kept inline.
func large(seed uint64) string { return fmt.Sprintf("%x", noise(seed, 50<<10)) }

func only(t testing.TB, v *Volume) Record {
	t.Helper()
	all := must(v.Records())
	if len(all) != 1 {
		t.Fatalf("%d records, want one: %s", len(all), listing(t, v))
	}
	return all[0]
}

// TestP5DismissReplicates: a dismissal is an op like any other, and changes no
// tree.
func TestP5DismissReplicates(t *testing.T) {
	for _, program := range [][3]string{
		{"create x 0", "write x 1", "write x 2"}, {"", "create x 1", "create x 2"},
		{"create x 0", "mv x y", "mv x z"}, {"mkdir d; mkdir e", "mv d e/d", "mv e d/e"},
	} {
		a, b := conflict(t, program[0], program[1], program[2])
		before := dump(t, a)
		w := watch(t, b, 0)
		check(t, a.Dismiss(only(t, a).ID), nil)
		exchange(t, a, b)
		for _, v := range []*Volume{a, b} {
			if got := listing(t, v); got != "" {
				t.Errorf("after the dismissal: %q", got)
			}
			if now := dump(t, v); !sameLines(before, now) {
				t.Errorf("the tree was %v, is %v", before, now)
			}
		}
		for _, told := range w.told {
			if len(told.Names) > 0 {
				t.Errorf("the dismissal changed %v", told.Names)
			}
		}
		check(t, a.Dismiss(crdt.VersionID{Stamp: 1}), ErrNoRecord)
	}
}

func sameLines(a, b map[string]string) bool {
	for p := range a {
		if a[p] != b[p] {
			return false
		}
	}
	return len(a) == len(b)
}

func TestP5DismissAll(t *testing.T) {
	a, b := conflict(t, "mkdir d; create d/x 0; create y 0", "write d/x 1; write y 1", "write d/x 2; write y 2")
	if n := must(a.DismissAll("d")); n != 1 {
		t.Errorf("%d dismissed", n)
	}
	exchange(t, a, b)
	if got := listing(t, b); got != "content y=1" {
		t.Errorf("%q", got)
	}
	if n := must(b.DismissAll("")); n != 1 {
		t.Errorf("%d dismissed", n)
	}
	exchange(t, a, b)
	if got := listing(t, a); got != "" {
		t.Errorf("%q", got)
	}
}

// TestP5RestoreRecord: what lost comes back, and is no record any more.
func TestP5RestoreRecord(t *testing.T) {
	for _, c := range []struct{ name, base, a, b, to, want, past string }{
		{"content", "create x 0", "write x 1", "write x 2", "", "x=1", "1* 2 1 0"},
		{"content elsewhere", "create x 0", "write x 1", "write x 2", "y", "x=2 y=1", "2* 1 0"},
		{"hidden", "", "create x 1", "create x 2", "", "x=1", "1* 2"},
		{"hidden elsewhere", "", "create x 1", "mkdir x", "new/y", "new/y=1 x/", ""},
		{"place", "create x 0", "mv x y", "mv x z", "", "y=0", ""},
		{"place of a directory", "mkdir d; create d/x 0", "mv d e", "mv d f", "", "e/x=0", ""},
		{"place elsewhere", "mkdir d; create d/x 0", "mv d e", "mv d f", "g/h", "g/h/x=0", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := conflict(t, c.base, c.a, c.b)
			_, err := a.RestoreRecord(only(t, a).ID, c.to)
			check(t, err, nil)
			exchange(t, a, b)
			same(t, a, b)
			for _, v := range []*Volume{a, b} {
				if got := files(t, v); got != c.want {
					t.Errorf("tree %q, want %q", got, c.want)
				}
				if got := listing(t, v); got != "" {
					t.Errorf("still listed: %q", got)
				}
				if c.past != "" {
					if got := history(t, v, "x"); got != c.past {
						t.Errorf("history %q, want %q", got, c.past)
					}
				}
			}
		})
	}
	a, _ := conflict(t, "", "create x 1", "mkdir x")
	_, err := a.RestoreRecord(only(t, a).ID, "")
	check(t, err, crdt.ErrIsDir)
	if got := listing(t, a); got != "hidden x=1" {
		t.Errorf("a restore that failed left %q", got)
	}
}

// files is the tree as text: files with their bytes, empty directories.
func files(t testing.TB, v *Volume) string {
	t.Helper()
	var out []string
	var walk func(dir NodeID, path string)
	walk = func(dir NodeID, path string) {
		names := list(t, v, dir)
		if len(names) == 0 && path != "" {
			out = append(out, path)
		}
		for _, name := range names {
			a, _, err := v.Lookup(dir, name)
			check(t, err, nil)
			if a.Kind == crdt.KindDir {
				walk(a.Node, path+name+"/")
			} else {
				out = append(out, path+name+"="+readNode(t, v, a.Node))
			}
		}
	}
	walk(root, "")
	slices.Sort(out)
	return strings.Join(out, " ")
}

// TestP5SnapshotCarriesRecords: a newcomer lists what its peers list, and what
// was dismissed stays so.
func TestP5SnapshotCarriesRecords(t *testing.T) {
	a, b := conflict(t, "create x 0; create y 0; create s 0; mkdir d",
		"write x 1; write y 1; write s 1; mv d e", "write x 2; write y 2; write s 1; write s 3; mv d f")
	for _, r := range must(b.Records()) {
		if r.Path == "y" {
			check(t, b.Dismiss(r.ID), nil)
		}
	}
	script(t, b, "unlink y; create z 1; write z 2")
	exchange(t, a, b)
	c := volumeWith(t, a.ID(), Options{})
	join(t, b, c)
	same(t, b, c)
	if got, want := listing(t, c), listing(t, b); got != want || want != "content x=1 place e" {
		t.Errorf("the newcomer lists %q, its peer %q", got, want)
	}
	for _, path := range []string{"x", "s", "y", "z"} {
		if got, want := history(t, c, path), history(t, b, path); got != want {
			t.Errorf("history of %s: %q, of the peer %q", path, got, want)
		}
	}
	script(t, a, "write x 4")
	exchange(t, a, b, c)
	if got := history(t, c, "x"); got != "4* 2 0" {
		t.Errorf("%q", got)
	}
}

// TestP5ConflictLimit: beyond it the oldest records go, and stay in history.
func TestP5ConflictLimit(t *testing.T) {
	a, b := conflict(t, "create x 0; create y 0; create z 0",
		"write x 1111; write y 1111; write z 1111", "write x 2; write y 2; write z 2")
	a.SetLimits(Limits{ConflictBytes: 9})
	a.pruneTurn()
	exchange(t, a, b)
	for _, v := range []*Volume{a, b} {
		if got := listing(t, v); got != "content y=1111 content z=1111" {
			t.Errorf("%q", got)
		}
	}
	if got := a.Stats().ForcedOut; got != 1 {
		t.Errorf("%d counted", got)
	}
	if got := history(t, b, "x"); got != "2* 1111 0" {
		t.Errorf("history %q", got)
	}
}

// TestP13ListingRecordsScansNoFiles: what nobody contests is in no index, and
// costs no write to it.
func TestP13ListingRecordsScansNoFiles(t *testing.T) {
	a, b := pair(t, Options{})
	script(t, a, "mkdir d; create d/x 0; create t 1; mv t d/x; write d/x 2; unlink d/x; create d/x 3; mv d e")
	create(t, a, root, "open").write("1", 0).close()
	exchange(t, a, b)
	for _, v := range []*Volume{a, b} {
		check(t, v.read(func(tr *tree) error {
			return tr.EachContest(func(c crdt.Contest) error {
				t.Errorf("contested: %+v", c)
				return nil
			})
		}), nil)
	}
}
