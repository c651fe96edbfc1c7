package store

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// TestP9EachCallOnce repeats every mutating call as the kernel does after a
// daemon died before it answered: the result is the same and nothing is done
// twice, also if something else was done in between.
func TestP9EachCallOnce(t *testing.T) {
	size := func(n int64) *int64 { return &n }
	mode := func(n uint32) *uint32 { return &n }
	kind := func(k crdt.Kind) NewNode { return NewNode{Kind: k, Mode: 0o644, Target: "target"} }
	attrs := func(a Attr, err error) (any, error) { a.Atime = crdt.Time{}; return a, err }
	plain := func(err error) (any, error) { return nil, err }
	calls := []struct {
		name    string
		call    func(v *Volume, r Request, f, d NodeID) (any, error)
		between func(t *testing.T, v *Volume, f, d NodeID) // done by others meanwhile
		after   func(v *Volume) string                     // must still be what between made it
	}{
		{name: "create", call: func(v *Volume, r Request, f, d NodeID) (any, error) {
			a, h, err := v.Create(r, d, "new", NewNode{Mode: 0o644})
			return [2]any{a, h}, err
		}},
		{name: "mkdir", call: func(v *Volume, r Request, f, d NodeID) (any, error) {
			return attrs(v.Mknod(r, d, "new", kind(crdt.KindDir)))
		}},
		{name: "mknod file", call: func(v *Volume, r Request, f, d NodeID) (any, error) {
			return attrs(v.Mknod(r, d, "new", kind(crdt.KindFile)))
		}},
		{name: "symlink", call: func(v *Volume, r Request, f, d NodeID) (any, error) {
			return attrs(v.Mknod(r, d, "new", kind(crdt.KindSymlink)))
		}},
		{name: "link", call: func(v *Volume, r Request, f, d NodeID) (any, error) { return attrs(v.Link(r, f, d, "new")) }},
		{
			name:    "unlink",
			call:    func(v *Volume, r Request, f, d NodeID) (any, error) { return plain(v.Unlink(r, root, "f")) },
			between: func(t *testing.T, v *Volume, f, d NodeID) { write(t, v, root, "f", "again") },
			after:   func(v *Volume) string { return readName(v, "f") },
		},
		{
			name:    "rmdir",
			call:    func(v *Volume, r Request, f, d NodeID) (any, error) { return plain(v.Rmdir(r, root, "empty")) },
			between: func(t *testing.T, v *Volume, f, d NodeID) { mkdir(t, v, root, "empty") },
			after:   func(v *Volume) string { return readName(v, "empty") },
		},
		{
			name: "rename",
			call: func(v *Volume, r Request, f, d NodeID) (any, error) {
				return plain(v.Rename(r, root, "f", d, "moved", 0))
			},
			between: func(t *testing.T, v *Volume, f, d NodeID) { write(t, v, root, "f", "again") },
			after:   func(v *Volume) string { return readName(v, "f") },
		},
		{
			name: "exchange",
			call: func(v *Volume, r Request, f, d NodeID) (any, error) {
				return plain(v.Rename(r, root, "f", root, "g", crdt.RenameExchange))
			},
			after: func(v *Volume) string { return readName(v, "f") },
		},
		{
			name: "chmod",
			call: func(v *Volume, r Request, f, d NodeID) (any, error) {
				_, err := v.SetAttr(r, f, SetAttr{Mode: mode(0o600)})
				return nil, err
			},
			between: func(t *testing.T, v *Volume, f, d NodeID) {
				check(t, second(v.SetAttr(Request{}, f, SetAttr{Mode: mode(0o777)})), nil)
			},
			after: func(v *Volume) string { return statName(v, "f") },
		},
		{
			name: "utimens",
			call: func(v *Volume, r Request, f, d NodeID) (any, error) {
				_, err := v.SetAttr(r, f, SetAttr{Mtime: &crdt.Time{Sec: 1}})
				return nil, err
			},
			between: func(t *testing.T, v *Volume, f, d NodeID) {
				check(t, second(v.SetAttr(Request{}, f, SetAttr{Mtime: &crdt.Time{Sec: 2}})), nil)
			},
			after: func(v *Volume) string { return statName(v, "f") },
		},
		{
			name: "truncate",
			call: func(v *Volume, r Request, f, d NodeID) (any, error) {
				_, err := v.SetAttr(r, f, SetAttr{Size: size(1), Mode: mode(0o600)})
				return nil, err
			},
			between: func(t *testing.T, v *Volume, f, d NodeID) { write(t, v, root, "f", "longer again") },
			after:   func(v *Volume) string { return readName(v, "f") },
		},
		{
			name: "truncate alone",
			call: func(v *Volume, r Request, f, d NodeID) (any, error) {
				_, err := v.SetAttr(r, f, SetAttr{Size: size(1)})
				return nil, err
			},
			between: func(t *testing.T, v *Volume, f, d NodeID) { write(t, v, root, "f", "longer again") },
			after:   func(v *Volume) string { return readName(v, "f") },
		},
		{
			name: "setxattr",
			call: func(v *Volume, r Request, f, d NodeID) (any, error) {
				return plain(v.SetXattr(r, f, "user.x", []byte("1"), XattrCreate))
			},
		},
		{
			name: "removexattr",
			call: func(v *Volume, r Request, f, d NodeID) (any, error) {
				return plain(v.RemoveXattr(r, f, "user.old"))
			},
		},
		{
			name: "open",
			call: func(v *Volume, r Request, f, d NodeID) (any, error) { return v.OpenWrite(r, f, false) },
		},
		{
			name: "open with O_TRUNC",
			call: func(v *Volume, r Request, f, d NodeID) (any, error) { return v.OpenWrite(r, f, true) },
			between: func(t *testing.T, v *Volume, f, d NodeID) {
				open(t, v, root, "f", false).write("by another", 0).close()
			},
			after: func(v *Volume) string { return readName(v, "f") },
		},
	}
	for n, c := range calls {
		t.Run(c.name, func(t *testing.T) {
			v := volumeWith(t, NewVolumeID(), Options{PublishInterval: time.Hour})
			f := write(t, v, root, "f", "text")
			write(t, v, root, "g", "other")
			d := mkdir(t, v, root, "d")
			mkdir(t, v, root, "empty")
			check(t, v.SetXattr(Request{}, f, "user.old", nil, XattrSet), nil)
			r := Request{Mount: 1, Epoch: 9, Unique: uint64(100 + 2*n)}
			first, err := c.call(v, r, f, d)
			check(t, err, nil)
			if c.between != nil {
				c.between(t, v, f, d)
			}
			was := ""
			if c.after != nil {
				was = c.after(v)
			}
			open := v.Stats().OpenDrafts
			noOps(t, v, "the repetition", func() {
				r.Resent = true
				again, err := c.call(v, r, f, d)
				check(t, err, nil)
				if !reflect.DeepEqual(first, again) {
					t.Errorf("first %+v, then %+v", first, again)
				}
			})
			if c.after != nil && c.after(v) != was {
				t.Errorf("what was done in between is gone: %s, was %s", c.after(v), was)
			}
			if n := v.Stats().OpenDrafts; n != open {
				t.Errorf("%d drafts, were %d", n, open)
			}
			// Another request is another: it is not taken for done.
			other := Request{Mount: 1, Epoch: 10, Unique: r.Unique, Resent: true}
			if _, _, done, err := doneIn(v, other); err != nil || done {
				t.Errorf("request of another epoch: done %v, %v", done, err)
			}
		})
	}
}

func second[T any](_ T, err error) error { return err }

func doneIn(v *Volume, r Request) (ino crdt.Ino, h Handle, done bool, err error) {
	err = v.read(func(tr *tree) (err error) {
		ino, h, done, err = v.done(tr, r)
		return err
	})
	return ino, h, done, err
}

func readName(v *Volume, name string) string {
	a, e, err := v.Lookup(root, name)
	if err != nil {
		return err.Error()
	}
	b := make([]byte, a.Size)
	n, err := v.ReadAt(a.Node, b, 0)
	return fmt.Sprint(e.Ino, string(b[:n]), err)
}

func statName(v *Volume, name string) string {
	a, _, err := v.Lookup(root, name)
	return fmt.Sprint(a.Mode, a.Mtime, err)
}

// TestP9HandlesAfterARepeatedOpen: one release is enough, and a release sent
// again is harmless.
func TestP9HandlesAfterARepeatedOpen(t *testing.T) {
	v := volumeWith(t, NewVolumeID(), Options{})
	write(t, v, root, "f", "text")
	w := open(t, v, root, "f", false)
	r := Request{Mount: 1, Epoch: 1, Unique: 8}
	h, err := v.OpenWrite(r, w.node, false)
	check(t, err, nil)
	r.Resent = true
	again, err := v.OpenWrite(r, w.node, false)
	check(t, err, nil)
	if h != again {
		t.Fatalf("handle %x, then %x", h, again)
	}
	w.write("T", 0)
	for range 3 {
		check(t, v.Release(Request{}, w.node, h), nil)
	}
	noOps(t, v, "a handle is open still", func() {})
	if v.Stats().OpenDrafts != 1 {
		t.Error("the draft is gone with one handle left")
	}
	was := v.Vector()
	w.close()
	if n := opsSince(t, v, was); n != 1 || v.Stats().OpenDrafts != 0 {
		t.Errorf("%d ops, %d drafts open", n, v.Stats().OpenDrafts)
	}
}
