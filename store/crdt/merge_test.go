package crdt

import (
	"fmt"
	"strings"
	"testing"
)

// exchange delivers all ops to all replicas, and checks that they agree.
func exchangeAll(t *testing.T, rs []*replica) {
	t.Helper()
	for _, r := range rs {
		for _, other := range rs {
			must(t, r.pull(other))
		}
		must(t, r.check())
	}
	for _, r := range rs[1:] {
		must(t, same(rs[0], r))
	}
}

// view is the view as text.
func (r *replica) view(t *testing.T) string {
	t.Helper()
	v, err := r.tree()
	must(t, err)
	return v.String()
}

// conflicts counts the records.
func (r *replica) conflicts(t *testing.T) int {
	t.Helper()
	found, err := r.found()
	must(t, err)
	return len(found)
}

// Each row of the design's table. What A and B do is concurrent; want is the
// view if A's stamps are the greater, wantB if B's are (if not the same).
var mergeTable = []struct {
	promise, name string
	base, a, b    string
	want, wantB   string
	records       int
}{
	{promise: "P5", name: "same file written twice",
		base: "create x 0", a: "write x 1", b: "write x 2", want: "x=1", wantB: "x=2", records: 1},
	{promise: "P5", name: "same content written on both sides",
		base: "create x 0", a: "write x 1", b: "write x 1", want: "x=1"},
	{promise: "P5", name: "same tree unpacked on both sides",
		a: "mkdir d; create d/x 1", b: "mkdir d; create d/x 1", want: "d/ d/x=1"},
	{promise: "P5", name: "same name created as two files",
		a: "create x 1", b: "create x 2", want: "x=1", wantB: "x=2", records: 1},
	{promise: "P5", name: "same name created as file and directory",
		a: "create x 1", b: "mkdir x; create x/y 2", want: "x/ x/y=2", records: 1},
	{promise: "P7", name: "same name created as two directories",
		a: "mkdir d; create d/x 1", b: "mkdir d; create d/y 2", want: "d/ d/x=1 d/y=2"},
	{promise: "P7", name: "same name created as two trees",
		a: "mkdir d; mkdir d/e; create d/e/x 1", b: "mkdir d; mkdir d/e; create d/e/y 2",
		want: "d/ d/e/ d/e/x=1 d/e/y=2"},
	{promise: "P7", name: "edit against delete",
		base: "create x 0", a: "write x 1", b: "unlink x", want: "x=1"},
	{promise: "P7", name: "edit against delete of its directory",
		base: "mkdir d; create d/x 0", a: "write d/x 1", b: "unlink d/x; rmdir d", want: "d/ d/x=1"},
	{promise: "P7", name: "rename against delete",
		base: "create x 0", a: "mv x y", b: "unlink x", want: "y=0"},
	{promise: "P7", name: "rename of a directory against delete",
		base: "mkdir d", a: "mv d e", b: "rmdir d", want: "e/"},
	{promise: "P7", name: "mkdir against rename away from that name",
		a: "mkdir d; create d/x 1", b: "mkdir d; mv d e", want: "d/ d/x=1 e/"},
	{promise: "P7", name: "mkdir against rename to that name",
		base: "mkdir d; create d/x 1", a: "mkdir e; create e/y 2", b: "mv d e", want: "e/ e/x=1 e/y=2"},
	{promise: "P7", name: "edit against rename",
		base: "create x 0", a: "write x 1", b: "mv x y", want: "y=1"},
	{promise: "P5", name: "edit in place against replacement by rename",
		base: "create x 0", a: "write x 1", b: "create t 2; mv t x", want: "x=2", records: 1},
	{promise: "P6", name: "chmod and xattr against delete",
		base: "create x 0", a: "chmod x 5", b: "unlink x", want: ""},
	{promise: "P5", name: "reader renames X to X.back while the writer replaces X",
		base: "create X 0", a: "mv X X.back", b: "create t 1; mv t X", want: "X=1 X.back=0"},
	{promise: "P5", name: "file renamed to two names",
		base: "create x 0", a: "mv x y", b: "mv x z", want: "y=0", wantB: "z=0", records: 1},
	{promise: "P7", name: "create inside a directory removed elsewhere",
		base: "mkdir d; create d/x 0", a: "unlink d/x; rmdir d", b: "create d/y 1", want: "d/ d/y=1"},
	{promise: "P7", name: "create deep inside directories removed elsewhere",
		base: "mkdir d; mkdir d/e", a: "rmdir d/e; rmdir d", b: "create d/e/y 1", want: "d/ d/e/ d/e/y=1"},
	{promise: "P7", name: "rename into a directory removed elsewhere",
		base: "mkdir d; create x 0", a: "rmdir d", b: "mv x d/x", want: "d/ d/x=0"},
	{promise: "P7", name: "directory moved to two places",
		base: "mkdir d; create d/x 0", a: "mv d e", b: "mv d f", want: "e/ e/x=0", wantB: "f/ f/x=0", records: 1},
	{promise: "P7", name: "moves that would form a cycle",
		base: "mkdir d; mkdir e", a: "mv d e/d", b: "mv e d/e", want: "d/ d/e/", wantB: "e/ e/d/", records: 1},
}

func TestMergeTable(t *testing.T) {
	for _, row := range mergeTable {
		for way, want := range []string{row.want, row.wantB} {
			if row.wantB == "" {
				want = row.want
			}
			greater := 'A' + rune(way)
			t.Run(fmt.Sprintf("Test%s/%s/%c", row.promise, row.name, greater), func(t *testing.T) {
				rs := newWorld().replicas(2)
				run(t, rs, by("A", row.base)+"; B pull A")
				rs[way].skew = 1000
				run(t, rs, by("A", row.a)+";"+by("B", row.b))
				exchangeAll(t, rs)
				for _, r := range rs {
					if got := r.view(t); got != want {
						t.Errorf("%v shows %q, want %q", r.id, got, want)
					}
					if got := r.conflicts(t); got != row.records {
						t.Errorf("%v has %d records, want %d", r.id, got, row.records)
					}
				}
			})
		}
	}
}

// by puts the replica's letter before each command.
func by(who, program string) string {
	var out []string
	for _, c := range strings.Split(program, ";") {
		if strings.TrimSpace(c) != "" {
			out = append(out, who+" "+strings.TrimSpace(c))
		}
	}
	return strings.Join(out, ";")
}

// The counterexamples that broke earlier wordings of the rules.
var counterexamples = []struct {
	name, program string
	want, wantB   string // if A's clock is ahead, if B's is; * for anything
	records       int    // if not 0
}{
	{name: "F1 edit after unlink of another link",
		program: "A create a 0; A link a b; A unlink b; A write a 1", want: "a=1"},
	{name: "F2 unlink and create against rename",
		program: "A create a 0; B pull A; B mv a b; A unlink a; A create a 1", want: "a=1 b=0"},
	{name: "F3 an edit that lost to one that was deleted",
		program: "A create a 0; B pull A; A write a 1; B write a 2; A unlink a", want: "a=2"},
	{name: "F4 rmdir of one of two directories",
		program: "A mkdir a; B mkdir a; A rmdir a", want: "a/"},
	{name: "F5 the newer of two removals saw less",
		program: "A create a 0; B pull A; B write a 1; C pull B; A unlink a; C unlink a", want: ""},
	{name: "F6 mkdir at a name left by rename",
		program: "A mkdir b; A mv b a; A mkdir b", want: "a/ b/"},
	{name: "F7 publishing by staging on both sides",
		program: "A mkdir t; A create t/f 1; A mv t p; B mkdir t; B create t/g 2; B mv t r", want: "p/ p/f=1 r/ r/g=2"},
	{name: "F8 mkdir against rename",
		program: "B mkdir b; B mv b a; A mkdir b", want: "a/ b/"},
	{name: "F9 hidden file at the source of a rename",
		program: "A create b 1; B mkdir b; B pull A; B mv b a", want: "a/"},
	{name: "F10 rename of two directories that show as one",
		program: "A mkdir a; A create a/x 1; B mkdir a; B create a/y 2; A pull B; B pull A; A mv a b", want: "b/ b/x=1 b/y=2"},
	{name: "F11 the same without children", // run checks that the inode number stays
		program: "A mkdir a; B mkdir a; A pull B; B pull A; A mv a b; B pull A; B mv b c", want: "c/"},
	{name: "F12 unlink in a directory that lives by its child",
		program: "A mkdir a; B pull A; A create a/f 1; B rmdir a; B pull A; B unlink a/f", want: "a/"},
	{name: "F12 rename out of a directory that lives by its child",
		program: "A mkdir a; B pull A; A create a/f 1; B rmdir a; B pull A; B mv a/f b", want: "a/ b=1"},
	{name: "F12 rmdir in a directory that lives by its child",
		program: "A mkdir a; B pull A; A mkdir a/d; B rmdir a; B pull A; B rmdir a/d", want: "a/"},
	{name: "F12 rm -r of a directory that lives by its child",
		program: "A mkdir a; B pull A; A create a/f 1; B rmdir a; B pull A; B unlink a/f; B rmdir a", want: ""},
	{name: "F13 write to a file with a link that lives by its content",
		program: "B create a 0; B link a b; A pull B; B write a 1; A unlink a; B pull A; B write b 2", want: "a=2 b=2"},
	{name: "F13 unlink of the other link",
		program: "B create a 0; B link a b; A pull B; B write a 1; A unlink a; B pull A; B unlink b", want: "a=1"},
	{name: "F13 link of a file that shows an older version",
		program: olderShows + "A link a d", want: "a=1 d=1"},
	{name: "F13 rename of a file that shows an older version",
		program: olderShows + "A mv a d", want: "d=1"},
	{name: "F13 unlink of the link whose version shows",
		program: "A create a 0; A link a b; A link a c; B pull A; C pull A; A write a 1; B write b 3; C write c 2;" +
			"D pull C; D unlink a; D unlink b; D unlink c; A pull B; A pull C; A pull D; A unlink b", want: "*"},
	{name: "F14 close after unlink",
		program: "A create a 0; A open a; A unlink a; A close a 1", want: ""},
	{name: "F14 close after unlink elsewhere",
		program: "A create a 0; B pull A; A open a; B unlink a; A pull B; A close a 1", want: "a=1"},
	{name: "F15 a version that came while the file was open",
		program: "A create a 0; B pull A; A open a; B write a 1; A pull B; A close a 2", want: "a=2", records: 1},
	{name: "F16 records do not depend on arrival",
		program: "A create a 0; B pull A; C pull A; A write a 1; C write a 3; B pull A; B write a 2", want: "a=2", records: 1},
	{name: "F17 exchange of which one half would form a cycle",
		program: "A mkdir a; A mkdir b; A mkdir a/c; B pull A; A exchange a/c b; B mv a b/a",
		want:    "b/ b/a/ b/a/c/", wantB: "a/ a/c/ b/"},
	{name: "F18 file at the name of a directory that lives by its child",
		program: "A mkdir x; B pull A; A rmdir x; A create x 1; B create x/g 2; C pull B; B unlink x/g", want: "x=1"},
}

// olderShows makes a file that shows 1, though the newer 2 is a leaf, removed.
const olderShows = `A create a 0; A link a b; B pull A; A write a 1; B write b 2; C pull B; C unlink a; C unlink b;
	A pull B; A pull C;`

func TestCounterexamples(t *testing.T) {
	for _, c := range counterexamples {
		for way, want := range []string{c.want, c.wantB} {
			if c.wantB == "" {
				want = c.want
			}
			t.Run(fmt.Sprintf("%s/%c", c.name, 'A'+rune(way)), func(t *testing.T) {
				rs := newWorld().replicas(4)
				for _, line := range strings.Split(c.program, ";") {
					rs[way].skew += 9 // ahead of what the others have seen, too
					run(t, rs, line)
				}
				exchangeAll(t, rs)
				if got := rs[0].view(t); got != want && want != "*" {
					t.Errorf("view is %q, want %q", got, want)
				}
				if got := rs[0].conflicts(t); c.records > 0 && got != c.records {
					t.Errorf("%d records, want %d", got, c.records)
				}
			})
		}
	}
}
