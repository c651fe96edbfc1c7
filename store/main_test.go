package store

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"go.uber.org/goleak"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// children are what the test binary does when it is started again by a test.
var children = map[string]func(dir string) error{}

const childEnv = "SYNAPSEFS_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if name, dir, ok := strings.Cut(os.Getenv(childEnv), ":"); ok {
		if err := children[name](dir); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// openWith opens a store with options, in a directory of its own unless one is
// given.
func openWith(t testing.TB, o Options) *DB {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	db, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func volumeWith(t testing.TB, id VolumeID, o Options) *Volume {
	t.Helper()
	v, err := openWith(t, o).CreateReplica(id, "test", true)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// reopen closes a volume's store and opens it again.
func reopen(t testing.TB, v *Volume) *Volume {
	t.Helper()
	o := v.db.opts
	if err := v.db.Close(); err != nil {
		t.Fatal(err)
	}
	return openWith(t, o).Volume(v.id)
}

// must returns a value or ends the test.
func must[T any](x T, err error) T {
	if err != nil {
		panic(err)
	}
	return x
}

// check ends the test if err is not what is wanted; nil wants none.
func check(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) || want == nil && err != nil {
		t.Fatalf("error %v, want %v", err, want)
	}
}

// writing is a file held open for writing.
type writing struct {
	t    testing.TB
	v    *Volume
	node NodeID
	h    Handle
}

func create(t testing.TB, v *Volume, dir NodeID, name string) writing {
	t.Helper()
	a, h, err := v.Create(Request{}, dir, name, NewNode{Mode: 0o644})
	check(t, err, nil)
	return writing{t, v, a.Node, h}
}

func open(t testing.TB, v *Volume, dir NodeID, name string, trunc bool) writing {
	t.Helper()
	a, _, err := v.Lookup(dir, name)
	check(t, err, nil)
	h, err := v.OpenWrite(Request{}, a.Node, trunc)
	check(t, err, nil)
	return writing{t, v, a.Node, h}
}

// again opens the same file once more.
func (w writing) again() writing {
	w.t.Helper()
	h, err := w.v.OpenWrite(Request{}, w.node, false)
	check(w.t, err, nil)
	return writing{w.t, w.v, w.node, h}
}

func (w writing) write(text string, off int64) writing {
	w.t.Helper()
	n, err := w.v.WriteAt(w.node, w.h, []byte(text), off, false)
	check(w.t, err, nil)
	if n != len(text) {
		w.t.Fatalf("wrote %d of %d bytes", n, len(text))
	}
	return w
}

// add appends.
func (w writing) add(text string) writing {
	w.t.Helper()
	a, err := w.v.Attr(w.node)
	check(w.t, err, nil)
	return w.write(text, a.Size)
}

func (w writing) flush() writing {
	w.t.Helper()
	check(w.t, w.v.Flush(w.node, w.h), nil)
	return w
}

func (w writing) close() {
	w.t.Helper()
	w.flush()
	check(w.t, w.v.Release(Request{}, w.node, w.h), nil)
}

func (w writing) read() string { return readNode(w.t, w.v, w.node) }

func readNode(t testing.TB, v *Volume, node NodeID) string {
	t.Helper()
	a, err := v.Attr(node)
	check(t, err, nil)
	b := make([]byte, a.Size+1)
	n, err := v.ReadAt(node, b, 0)
	check(t, err, nil)
	if int64(n) != a.Size {
		t.Fatalf("read %d bytes of a file of %d", n, a.Size)
	}
	return string(b[:n])
}

func mkdir(t testing.TB, v *Volume, dir NodeID, name string) NodeID {
	t.Helper()
	a, err := v.Mknod(Request{}, dir, name, NewNode{Kind: crdt.KindDir, Mode: 0o755})
	check(t, err, nil)
	return a.Node
}

func absent(t testing.TB, v *Volume, dir NodeID, name string) {
	t.Helper()
	if _, _, err := v.Lookup(dir, name); !errors.Is(err, crdt.ErrNotExist) {
		t.Fatalf("%q: error %v, want that it does not exist", name, err)
	}
}

func list(t testing.TB, v *Volume, dir NodeID) []string {
	t.Helper()
	var out []string
	check(t, v.ReadDir(dir, 0, func(e DirEntry) bool { out = append(out, e.Name); return true }), nil)
	slices.Sort(out)
	return out
}

// dump is a volume's whole tree as users see it, by path. Node ids, which are
// local, and access times are left out.
func dump(t testing.TB, v *Volume) map[string]string {
	t.Helper()
	out := map[string]string{}
	var walk func(dir NodeID, path string)
	walk = func(dir NodeID, path string) {
		for _, name := range list(t, v, dir) {
			a, e, err := v.Lookup(dir, name)
			check(t, err, nil)
			p := path + "/" + name
			line := fmt.Sprintf("ino %x kind %d mode %o owner %d:%d links %d mtime %v", e.Ino, a.Kind, a.Mode, a.UID, a.GID, a.Nlink, a.Mtime)
			for _, x := range must(v.ListXattr(a.Node)) {
				line += fmt.Sprintf(" %s=%q", x, must(v.GetXattr(a.Node, x)))
			}
			switch a.Kind {
			case crdt.KindFile:
				line += fmt.Sprintf(" size %d hash %x", a.Size, hashOf(t, v, a))
			case crdt.KindSymlink:
				line += " -> " + must(v.Readlink(a.Node))
			case crdt.KindDir:
				walk(a.Node, p)
			}
			out[p] = line
		}
	}
	walk(root, "")
	return out
}

func hashOf(t testing.TB, v *Volume, a Attr) []byte {
	t.Helper()
	h := blake3.New()
	b := make([]byte, 1<<20)
	for off := int64(0); off < a.Size; {
		n, err := v.ReadAt(a.Node, b, off)
		check(t, err, nil)
		if n == 0 {
			t.Fatalf("end of file at %d of %d", off, a.Size)
		}
		h.Write(b[:n])
		off += int64(n)
	}
	return h.Sum(nil)[:8]
}

// conflicts are the records of a volume, as text.
func conflicts(t testing.TB, v *Volume) (out []string) {
	t.Helper()
	for _, r := range must(v.Records()) {
		out = append(out, fmt.Sprintf("%v %s against %v", r.ID, r.Path, r.Against))
	}
	return out
}

// same ends the test unless all volumes show one tree and list one set of
// conflicts.
func same(t testing.TB, vs ...*Volume) {
	t.Helper()
	first := dump(t, vs[0])
	for n, v := range vs[1:] {
		if a, b := conflicts(t, vs[0]), conflicts(t, v); !slices.Equal(a, b) {
			t.Fatalf("conflicts:\n0: %q\n%d: %q", a, n+1, b)
		}
	}
	for n, v := range vs[1:] {
		other := dump(t, v)
		if maps.Equal(first, other) {
			continue
		}
		for _, p := range slices.Sorted(maps.Keys(first)) {
			if first[p] != other[p] {
				t.Errorf("%s:\n0: %s\n%d: %s", p, first[p], n+1, other[p])
			}
		}
		for p := range other {
			if first[p] == "" {
				t.Errorf("%s: only on %d", p, n+1)
			}
		}
		t.FailNow()
	}
}

// batches seals what waits and returns what a replica with the vector lacks.
func batches(t testing.TB, v *Volume, since crdt.Vector) []*Batch {
	t.Helper()
	check(t, v.sealNow(), nil)
	bs, more, err := v.Batches(since, 1<<40)
	check(t, err, nil)
	if more {
		t.Fatal("more")
	}
	return bs
}

// exchange lets all volumes have all batches.
func exchange(t testing.TB, vs ...*Volume) {
	t.Helper()
	for _, from := range vs {
		check(t, from.sealNow(), nil)
	}
	for _, from := range vs {
		for _, to := range vs {
			if from != to {
				give(t, from, to)
			}
		}
	}
}

// give hands over what is missing, with large content.
func give(t testing.TB, from, to *Volume) {
	t.Helper()
	for _, b := range batches(t, from, to.Vector()) {
		raw, err := DecodeBatch(b.Encode())
		check(t, err, nil)
		for _, h := range must(to.Wants(raw)) {
			check(t, copyContent(from.db, to.db, h), nil)
		}
		check(t, to.Merge(raw), nil)
	}
}

// copyContent copies a manifest's blocks from one node to another.
func copyContent(from, to *DB, h crdt.Hash) error {
	m, err := from.manifest(h)
	if err != nil {
		return err
	}
	in, err := to.content.NewIncoming()
	if err != nil {
		return err
	}
	defer in.Abort()
	missing, err := to.content.Missing(m)
	if err != nil {
		return err
	}
	for _, block := range missing {
		b, err := from.content.Block(block)
		if err == nil {
			err = in.Put(block, b)
		}
		if err != nil {
			return err
		}
	}
	encoded, _ := m.Encode()
	return errors.Join(in.Commit(), to.Index().PutManifest(h, encoded))
}

// opsSince counts the own ops after a vector, sealed or not.
func opsSince(t testing.TB, v *Volume, since crdt.Vector) int {
	t.Helper()
	check(t, v.sealNow(), nil)
	return int(v.Vector()[v.Replica()].Seq - since[v.Replica()].Seq)
}

// noOps ends the test if fn makes an op.
func noOps(t testing.TB, v *Volume, what string, fn func()) {
	t.Helper()
	check(t, v.sealNow(), nil)
	was := v.Vector()
	fn()
	if n := opsSince(t, v, was); n != 0 {
		t.Errorf("%s: %d ops, want none", what, n)
	}
}

// stepClock is a clock that moves by a microsecond each time it is read.
func stepClock() func() time.Time {
	var reads atomic.Int64
	return func() time.Time { return time.Unix(1_700_000_000, 1000*reads.Add(1)) }
}

// aheadClock is a clock that runs ahead of the machine's by what it is told.
type aheadClock struct{ by atomic.Int64 }

func (c *aheadClock) now() time.Time { return time.Now().Add(time.Duration(c.by.Load())) }

// noise is a file's worth of bytes that no compression helps with.
func noise(seed uint64, n int) string {
	h := blake3.New()
	fmt.Fprint(h, seed)
	b := make([]byte, n)
	h.Digest().Read(b)
	return string(bytes.Clone(b))
}
