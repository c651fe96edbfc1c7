package crdt

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// codecs has each pair of functions, made to look alike.
var codecs = map[string]codecPair{
	"op":           pair(AppendOp, DecodeOp),
	"inode":        pair(AppendInode, DecodeInode),
	"move":         pair(AppendMove, DecodeMove),
	"claims":       pair(AppendClaims, DecodeClaims),
	"vector":       pair(AppendVector, DecodeVector),
	"vector entry": pair(AppendVectorEntry, DecodeVectorEntry),
	"version":      pair(AppendVersion, DecodeVersion),
	"inos":         pair(AppendInos, DecodeInos),
}

type codecPair struct {
	encode func(any) []byte
	decode func([]byte) (any, error)
}

func pair[T any](enc func([]byte, T) []byte, dec func([]byte) (T, error)) codecPair {
	return codecPair{
		func(v any) []byte { return enc(nil, v.(T)) },
		func(b []byte) (any, error) { return dec(b) },
	}
}

var (
	genReplica = rapid.OneOf(rapid.Just(ReplicaID(0)), rapid.Custom(func(t *rapid.T) ReplicaID { return ReplicaID(rapid.Uint64().Draw(t, "replica")) }))
	genStamp   = rapid.OneOf(rapid.Just(LocalStamp), rapid.Custom(func(t *rapid.T) Stamp { return Stamp(rapid.Int64().Draw(t, "stamp")) }), rapid.Just(Stamp(0)))
	genVersion = rapid.Custom(func(t *rapid.T) VersionID {
		return VersionID{genStamp.Draw(t, "s"), genReplica.Draw(t, "r"), rapid.Uint32().Draw(t, "n")}
	})
	genVersions = slice(genVersion, 20)
	genTime     = rapid.Custom(func(t *rapid.T) Time {
		if rapid.Bool().Draw(t, "usual") {
			return TimeOf(rapid.Int64().Draw(t, "ns"))
		}
		return Time{rapid.Int64().Draw(t, "sec"), rapid.Uint32Range(0, 999_999_999).Draw(t, "nsec")}
	})
	genKind  = rapid.Custom(func(t *rapid.T) Kind { return Kind(rapid.IntRange(1, 7).Draw(t, "kind")) })
	genBytes = slice(rapid.Byte(), 40)
	genHash  = rapid.Custom(func(t *rapid.T) (h Hash) {
		h[0], h[31] = rapid.Byte().Draw(t, "h"), rapid.Byte().Draw(t, "h")
		return h
	})
	genPlace = rapid.Custom(func(t *rapid.T) Place {
		return Place{genVersion.Draw(t, "id"), genIno(t), rapid.String().Draw(t, "name"), genVersions.Draw(t, "closed"), false}
	})
	genContent = rapid.Custom(func(t *rapid.T) Content {
		return Content{Size: rapid.Int64Range(0, math.MaxInt64).Draw(t, "size"), Mtime: genTime.Draw(t, "mtime"), Hash: genHash.Draw(t, "hash"), Manifest: rapid.Bool().Draw(t, "manifest")}
	})
	genLeaf = rapid.Custom(func(t *rapid.T) Version {
		return Version{genVersion.Draw(t, "id"), LinkID(rapid.Uint64().Draw(t, "via")), genVersion.Draw(t, "base"), genContent.Draw(t, "content"),
			slice(rapid.Custom(func(t *rapid.T) Closure {
				return Closure{LinkID(rapid.Uint64().Draw(t, "link")), genVersion.Draw(t, "removal")}
			}), 3).Draw(t, "closed"), false}
	})
)

// slice generates nil for an empty slice, as the decoders do.
func slice[T any](of *rapid.Generator[T], most int) *rapid.Generator[[]T] {
	return rapid.Custom(func(t *rapid.T) []T {
		s := rapid.SliceOfN(of, 0, most).Draw(t, "slice")
		if len(s) == 0 {
			return nil
		}
		return s
	})
}

func genIno(t *rapid.T) Ino { return Ino(rapid.Uint64().Draw(t, "ino")) }

func genWrite(t *rapid.T) Write {
	w := Write{Kind: WriteKind(rapid.IntRange(1, int(WriteDismiss)).Draw(t, "kind")), Ino: genIno(t)}
	link, from := LinkID(rapid.Uint64().Draw(t, "link")), genIno(t)
	switch w.Kind {
	case WriteInode:
		w.InodeKind, w.Target, w.Rdev = genKind.Draw(t, "kind"), rapid.String().Draw(t, "target"), rapid.Uint32().Draw(t, "rdev")
		w.Mode, w.UID, w.GID = rapid.Uint32().Draw(t, "mode"), rapid.Uint32().Draw(t, "uid"), rapid.Uint32().Draw(t, "gid")
		w.Time = genTime.Draw(t, "time")
	case WritePlace:
		w.Link, w.From, w.Parent, w.Name, w.Base = link, from, genIno(t), rapid.String().Draw(t, "name"), genVersions.Draw(t, "base")
	case WriteContent:
		w.Link, w.Base, w.Content = link, genVersions.Draw(t, "base"), genContent.Draw(t, "content")
		if !w.Content.Manifest {
			w.Content.Inline = genBytes.Draw(t, "inline")
		}
	case WriteRemove:
		w.Link, w.From, w.Base, w.Closes = link, from, genVersions.Draw(t, "base"), genVersions.Draw(t, "closes")
	case WriteVoid, WriteDismiss:
		w.Base = genVersions.Draw(t, "base")
	case WriteMode:
		w.Mode = rapid.Uint32().Draw(t, "mode")
	case WriteOwner:
		w.UID, w.GID = rapid.Uint32().Draw(t, "uid"), rapid.Uint32().Draw(t, "gid")
	case WriteTime:
		w.Time = genTime.Draw(t, "time")
	case WriteXattr:
		w.Name, w.Gone = rapid.String().Draw(t, "name"), rapid.Bool().Draw(t, "gone")
		if !w.Gone {
			w.Value = genBytes.Draw(t, "value")
		}
	}
	return w
}

func genOp(t *rapid.T) *Op {
	op := &Op{Dot: Dot{genReplica.Draw(t, "r"), Seq(rapid.Uint64().Draw(t, "seq"))}, Stamp: genStamp.Draw(t, "stamp"), Wall: rapid.Int64().Draw(t, "wall")}
	op.Deps = slice(rapid.Custom(func(t *rapid.T) Dot {
		return Dot{genReplica.Draw(t, "r"), Seq(rapid.Uint64().Draw(t, "seq"))}
	}), 4).Draw(t, "deps")
	op.Writes = slice(rapid.Custom(genWrite), 5).Draw(t, "writes")
	return op
}

func genInode(t *rapid.T) *Inode {
	i := &Inode{Ino: genIno(t), Kind: genKind.Draw(t, "kind"), Target: rapid.String().Draw(t, "target"), Rdev: rapid.Uint32().Draw(t, "rdev")}
	at := func() VersionID { return genVersion.Draw(t, "at") }
	i.Mode = Register[uint32]{at(), rapid.Uint32().Draw(t, "mode")}
	i.Owner = Register[Owner]{at(), Owner{rapid.Uint32().Draw(t, "uid"), rapid.Uint32().Draw(t, "gid")}}
	i.Mtime = Register[Time]{at(), genTime.Draw(t, "mtime")}
	i.Changed = Register[Time]{at(), genTime.Draw(t, "ctime")}
	if rapid.Bool().Draw(t, "named") {
		i.Named = Register[Time]{at(), genTime.Draw(t, "named")}
	}
	for _, name := range rapid.SliceOfNDistinct(rapid.StringMatching("[a-z]{1,4}"), 0, 3, rapid.ID).Draw(t, "xattrs") {
		i.setXattr(Xattr{Name: name, At: at(), Value: []byte(name)})
	}
	i.Links = slice(rapid.Custom(func(t *rapid.T) Link {
		return Link{LinkID(rapid.Uint64().Draw(t, "link")), slice(genPlace, 3).Draw(t, "places")}
	}), 3).Draw(t, "links")
	i.Contents = slice(genLeaf, 2).Draw(t, "contents")
	if rapid.Bool().Draw(t, "plain") {
		i.Links = []Link{{7, []Place{{ID: at(), Name: "n"}}}}
		for n := range i.Contents {
			i.Contents[n].Via, i.Contents[n].Closed = 7, nil
		}
	}
	if i.Kind == KindDir {
		i.Standing = genPlace.Draw(t, "standing")
		if len(i.Links) > 0 && len(i.Links[0].Places) > 0 && rapid.Bool().Draw(t, "stands") {
			i.Standing = i.Links[0].Places[0]
			i.Standing.Closed = nil
		}
		if o := genPlace.Draw(t, "origin"); !o.ID.IsZero() && rapid.Bool().Draw(t, "moved") {
			i.Origin = Place{ID: o.ID, Parent: o.Parent, Name: o.Name}
		}
	}
	flags, _ := i.leafFlags()
	for _, f := range flags {
		*f = rapid.IntRange(0, 9).Draw(t, "dismissed") == 0
	}
	return i
}

func genEntry(t *rapid.T) VectorEntry {
	return VectorEntry{Seq(rapid.Uint64().Draw(t, "seq")), min(genStamp.Draw(t, "stamp"), MaxStamp), genHash.Draw(t, "hash")}
}

var generators = map[string]func(t *rapid.T) any{
	"op":    func(t *rapid.T) any { return genOp(t) },
	"inode": func(t *rapid.T) any { return genInode(t) },
	"move": func(t *rapid.T) any {
		return &Move{genVersion.Draw(t, "id"), genIno(t), genIno(t), rapid.String().Draw(t, "name"), genPlace.Draw(t, "prev"), rapid.Bool().Draw(t, "skipped")}
	},
	"claims": func(t *rapid.T) any {
		return slice(rapid.Custom(func(t *rapid.T) Claim {
			return Claim{genIno(t), LinkID(rapid.Uint64().Draw(t, "link")), genKind.Draw(t, "kind"), genVersion.Draw(t, "at")}
		}), 20).Draw(t, "claims")
	},
	"vector": func(t *rapid.T) any {
		v := Vector{}
		for _, r := range rapid.SliceOf(genReplica).Draw(t, "replicas") {
			v[r] = genEntry(t)
		}
		return v
	},
	"vector entry": func(t *rapid.T) any { return genEntry(t) },
	"version":      func(t *rapid.T) any { v := genLeaf.Draw(t, "version"); return v.past() },
	"inos": func(t *rapid.T) any {
		return slice(rapid.Custom(genIno), 20).Draw(t, "inos")
	},
}

func TestCodecRoundTrip(t *testing.T) {
	for name, c := range codecs {
		t.Run(name, rapid.MakeCheck(func(t *rapid.T) {
			v := generators[name](t)
			b := c.encode(v)
			input := bytes.Clone(b)
			got, err := c.decode(input)
			if err != nil {
				t.Fatal(err)
			}
			for n := range input {
				input[n] = 0xff // nothing decoded may share the input
			}
			if !reflect.DeepEqual(got, v) {
				t.Fatalf("decoded\n%+v, encoded\n%+v", got, v)
			}
			if _, err := c.decode(append(bytes.Clone(b), 0)); !errors.Is(err, ErrMalformed) {
				t.Fatalf("trailing byte: %v", err)
			}
			cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut")
			if _, err := c.decode(b[:cut]); !errors.Is(err, ErrMalformed) {
				t.Fatalf("cut at %d of %d: %v", cut, len(b), err)
			}
		}))
	}
}

func TestDecodeOpUnknownWrite(t *testing.T) {
	b := AppendOp(nil, &Op{Writes: []Write{{Kind: 99}}})
	if _, err := DecodeOp(b); !errors.Is(err, ErrMalformed) {
		t.Fatal(err)
	}
}

func TestInodeRecordIsSmall(t *testing.T) {
	i := plainInode(t)
	name := i.Links[0].Places[0].Name
	if n := len(AppendInode(nil, i)) - len(name); n >= 100 {
		t.Fatalf("%d bytes besides the name", n)
	}
}

func plainInode(t testing.TB) *Inode {
	w := newWorld()
	r := w.replica(ReplicaID(w.rand.Uint64()))
	must(t, r.create("synapse.xml", "data"))
	c, err := r.lookup("synapse.xml")
	must(t, err)
	i, err := r.st.Inode(c.Ino)
	must(t, err)
	return i
}

// seeds are real values: of a program that leaves traces of all kinds.
func seeds(f *testing.F, kind string) {
	rs := newWorld().replicas(2)
	run(f, rs, `A mkdir d; A create a 1; A link a b; B pull A; A write a 2; B write b 3; B unlink b; A mkdir d/e;
		B mv d e; A mv d f; A chmod a 3; A pull B; B pull A; A create x 4; A unlink x; A write a 5;
		B pull A; A write a 6; B write a 7; A pull B; A dismiss 0 0`)
	add := func(k string, v any) {
		if k == kind {
			f.Add(codecs[k].encode(v))
		}
	}
	for _, r := range rs {
		for _, op := range r.log {
			add("op", op)
		}
		for _, ino := range r.st.Inodes() {
			i, _ := r.st.Inode(ino)
			add("inode", i)
		}
		for _, v := range r.st.history {
			add("version", v)
		}
		for _, names := range r.st.claims {
			for _, cs := range names {
				add("claims", cs)
			}
		}
		for n := range r.st.moves {
			add("move", &r.st.moves[n])
		}
		add("vector", r.vec)
		add("vector entry", r.vec[r.id])
		add("inos", r.st.Inodes())
	}
	last := NewMapState()
	for _, op := range rs[0].log {
		e, err := Apply(last, op)
		must(f, err)
		add("effects", e)
	}
}

// fuzz checks that what decodes, encodes to the same bytes.
func fuzz(f *testing.F, kind string) {
	seeds(f, kind)
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := codecs[kind].decode(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if again := codecs[kind].encode(v); !bytes.Equal(again, b) {
			t.Fatalf("%x decodes to %+v, which encodes to %x", b, v, again)
		}
	})
}

func FuzzDecodeOp(f *testing.F)          { fuzz(f, "op") }
func FuzzDecodeInode(f *testing.F)       { fuzz(f, "inode") }
func FuzzDecodeClaims(f *testing.F)      { fuzz(f, "claims") }
func FuzzDecodeMove(f *testing.F)        { fuzz(f, "move") }
func FuzzDecodeVector(f *testing.F)      { fuzz(f, "vector") }
func FuzzDecodeVectorEntry(f *testing.F) { fuzz(f, "vector entry") }
func FuzzDecodeVersion(f *testing.F)     { fuzz(f, "version") }
func FuzzDecodeInos(f *testing.F)        { fuzz(f, "inos") }
