package store

import (
	"fmt"
	"io"
	"maps"
	"os"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// reclaim has what nobody names condemned, removed, and its files freed.
func reclaim(t testing.TB, db *DB) {
	t.Helper()
	for range 4 {
		must(db.Reclaim())
	}
}

// TestP13OldLargeContentGoes: the disk that a volume takes follows what shows and
// what history keeps, not how often files were changed.
func TestP13OldLargeContentGoes(t *testing.T) {
	a, b := pair(t, Options{})
	for _, v := range []*Volume{a, b} {
		v.SetLimits(Limits{History: 2})
	}
	const size = 3 << 20
	write(t, a, root, "kept", noise(99, size))
	for n := range 20 {
		write(t, a, root, "replaced", noise(uint64(n), size))
		if n > 0 {
			check(t, a.Unlink(Request{}, root, "removed"), nil)
		}
		write(t, a, root, "removed", noise(uint64(100+n), size))
		open(t, a, root, "kept", false).write(fmt.Sprint("changed ", n), int64(n%3)<<20).close()
		give(t, a, b)
	}
	check(t, a.Unlink(Request{}, root, "removed"), nil)
	exchange(t, a, b)
	talk(t, a, b)
	tidy(t, a, b)
	for _, v := range []*Volume{a, b} {
		before := diskOf(t, v.db)
		reclaim(t, v.db)
		after := diskOf(t, v.db)
		t.Logf("%d MiB of disk before, %d after", before>>20, after>>20)
		// Three versions of one, as much of what died at the name, and blocks.
		if most := int64(3+3+3+3) * size; after > most {
			t.Errorf("%d bytes of disk, at most %d are wanted", after, most)
		}
		if got := read(t, v, root, "replaced"); got != noise(19, size) {
			t.Errorf("%d bytes, want those of the last version", len(got))
		}
		want := noise(99, size)
		for n := range int64(3) {
			text := fmt.Sprint("changed ", 17+(n+1)%3)
			want = want[:n<<20] + text + want[int(n<<20)+len(text):]
		}
		if got := read(t, v, root, "kept"); got != want {
			t.Error("what was changed in places reads otherwise")
		}
		historyReads(t, v, "replaced", 2)
	}
}

// historyReads reads all that history lists of a file.
func historyReads(t testing.TB, v *Volume, name string, atLeast int) {
	t.Helper()
	old := must(v.History(name))
	if len(old) < atLeast {
		t.Errorf("%d versions of %s are listed", len(old), name)
	}
	for _, o := range old {
		r, err := v.ReadVersion(o.Ino, o.Version)
		if err == nil {
			_, err = io.Copy(io.Discard, io.NewSectionReader(r, 0, r.Size))
		}
		if err != nil {
			t.Errorf("an old version of %s: %v", name, err)
		}
	}
}

// TestReclaimSparesWhatKernelsHave: a file that a kernel reads by itself stays as
// it is, also where its blocks are known from another place.
func TestReclaimSparesWhatKernelsHave(t *testing.T) {
	v := volumeWith(t, NewVolumeID(), longHold)
	same := noise(1, 1<<20)
	write(t, v, root, "first", same)
	node, h := createAs(t, v, "second")
	made := openPast(t, v, node, h, WritesAnywhere, 11)
	text := noise(2, 1<<20) + noise(3, 1<<20) + same
	must(made.f.WriteString(text))
	reader := must(os.Open(fmt.Sprintf("/proc/self/fd/%d", made.f.Fd())))
	defer reader.Close()
	backing := v.backings[node]
	check(t, made.f.Close(), nil)
	check(t, v.Flush(node, h), nil)
	check(t, v.Release(Request{Mount: mountOne}, node, h), nil)
	read := func() string { return string(must(io.ReadAll(io.NewSectionReader(reader, 0, 1<<30)))) }
	reclaim(t, v.db)
	if read() != text {
		t.Error("what the kernel reads has changed under it")
	}
	check(t, v.Unlink(Request{}, root, "second"), nil)
	v.SetLimits(Limits{History: 1, HistoryAge: time.Nanosecond})
	talk(t, v)
	tidy(t, v)
	reclaim(t, v.db)
	if read() != text {
		t.Error("what the kernel reads has changed under it after the removal")
	}
	check(t, v.Unhold(backing, mountOne), nil)
	check(t, v.CloseBacking(backing), nil)
}

// TestReclaimLosesNothing: whatever writers, peers and history do between the
// turns of a reclaimer, what shows and what is listed can be read.
func TestReclaimLosesNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a, b := pair(t, longHold)
		vs := []*Volume{a, b}
		for _, v := range vs {
			v.SetLimits(Limits{History: 1})
		}
		names := []string{"x", "y", "z"}
		blocks := make([]string, 6)
		for n := range blocks {
			blocks[n] = noise(uint64(n), 1<<20)
		}
		text := func() (s string) { // of few blocks, so that many are the same
			for range rapid.IntRange(1, 3).Draw(rt, "blocks") {
				s += rapid.SampledFrom(blocks).Draw(rt, "block")
			}
			return s + fmt.Sprint(rapid.IntRange(0, 3).Draw(rt, "end"))
		}
		var openFiles []writing
		volume := func() *Volume { return rapid.SampledFrom(vs).Draw(rt, "node") }
		name := func() string { return rapid.SampledFrom(names).Draw(rt, "name") }
		there := func(v *Volume, name string) bool {
			_, _, err := v.Lookup(root, name)
			return err == nil
		}
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(*rapid.T) { write(t, volume(), root, name(), text()) },
			"begin": func(*rapid.T) {
				v, n := volume(), name()
				if there(v, n) {
					openFiles = append(openFiles, open(t, v, root, n, false).write("begun", int64(rapid.IntRange(0, 2).Draw(rt, "at"))<<20))
				}
			},
			"append": func(*rapid.T) {
				v, n := volume(), name()
				if there(v, n) {
					w := open(t, v, root, n, false)
					w.write("more", must(v.Attr(w.node)).Size).close()
				}
			},
			"end": func(*rapid.T) {
				if len(openFiles) > 0 {
					openFiles[0].close()
					openFiles = openFiles[1:]
				}
			},
			"rename": func(*rapid.T) { volume().Rename(Request{}, root, name(), root, name(), 0) }, //nolint:errcheck // or not
			"remove": func(*rapid.T) { volume().Unlink(Request{}, root, name()) },                  //nolint:errcheck // or not
			"give": func(*rapid.T) {
				if rapid.Bool().Draw(rt, "way") {
					give(t, a, b)
				} else {
					give(t, b, a)
				}
			},
			"restore": func(*rapid.T) {
				v, n := volume(), name()
				if there(v, n) {
					if old := must(v.History(n)); len(old) > 1 {
						check(t, v.RestoreVersion(n, old[1].ID, ""), nil)
					}
				}
			},
			"settle":  func(*rapid.T) { exchange(t, a, b); talk(t, a, b) },
			"forget":  func(*rapid.T) { tidy(t, volume()) },
			"reclaim": func(*rapid.T) { reclaim(t, volume().db) },
			"": func(rt *rapid.T) {
				for _, v := range vs {
					for _, n := range names {
						if there(v, n) {
							read(t, v, root, n)
							historyReads(t, v, n, 0)
						}
					}
				}
			},
		})
		for _, w := range openFiles {
			w.close()
		}
		exchange(t, a, b)
		if da, db := dump(t, a), dump(t, b); !maps.Equal(da, db) {
			rt.Fatalf("trees differ: %v and %v", da, db)
		}
	})
}

// TestReclaimKeepsWhatIsNamed by nothing that shows, and no history.
func TestReclaimKeepsWhatIsNamed(t *testing.T) {
	const size = 3 << 20
	rewrite := func(v *Volume, from, to int) {
		for n := from; n < to; n++ {
			write(t, v, root, "f", noise(uint64(n), size))
		}
	}
	begin := func(t *testing.T, n int) []*Volume {
		_, vs := cluster(t, n, longHold)
		for _, v := range vs {
			v.SetLimits(Limits{History: 1})
		}
		rewrite(vs[0], 0, 1)
		exchange(t, vs...)
		talk(t, vs...)
		return vs
	}
	t.Run("draft", func(t *testing.T) { // begun from a version that is forgotten meanwhile
		vs := begin(t, 2)
		w := open(t, vs[0], root, "f", false).write("changed", 1<<20)
		rewrite(vs[1], 1, 5)
		exchange(t, vs...)
		talk(t, vs...)
		tidy(t, vs...)
		reclaim(t, vs[0].db)
		w.close()
		text := noise(0, size)
		text = text[:1<<20] + "changed" + text[1<<20+7:]
		found := read(t, vs[0], root, "f") == text
		for _, r := range must(vs[0].Records()) {
			got := must(vs[0].ReadRecord(r.ID, false))
			b := must(io.ReadAll(io.NewSectionReader(got, 0, got.Size)))
			found = found || string(b) == text
		}
		if !found {
			t.Error("what was written is lost")
		}
	})
	t.Run("open draft", func(t *testing.T) { // that was published, and goes on
		vs := begin(t, 2)
		w := open(t, vs[0], root, "f", false).write("changed", 1<<20)
		d := vs[0].draftOf(w.node)
		d.mu.Lock()
		err := vs[0].publish(d, false)
		d.mu.Unlock()
		check(t, err, nil)
		exchange(t, vs...)
		rewrite(vs[1], 1, 5)
		exchange(t, vs...)
		talk(t, vs...)
		tidy(t, vs...)
		for _, v := range vs {
			reclaim(t, v.db)
		}
		w.write("again", 0).close()
		read(t, vs[0], root, "f")
		exchange(t, vs...)
		same(t, vs...)
	})
	t.Run("journal", func(t *testing.T) { // of which a peer lacks something
		vs := begin(t, 2)
		rewrite(vs[0], 1, 5)
		tidy(t, vs[0])
		reclaim(t, vs[0].db)
		give(t, vs[0], vs[1])
		if read(t, vs[1], root, "f") != noise(4, size) {
			t.Error("the peer shows another version")
		}
	})
	t.Run("batch", func(t *testing.T) { // that waits for more of it
		vs := begin(t, 2)
		rewrite(vs[0], 1, 3)
		for _, b := range batches(t, vs[0], vs[1].Vector()) {
			for _, h := range must(vs[1].Wants(b)) {
				check(t, copyContent(vs[0].db, vs[1].db, h), nil)
				reclaim(t, vs[1].db)
			}
			check(t, vs[1].Merge(b), nil)
		}
		if read(t, vs[1], root, "f") != noise(2, size) {
			t.Error("the peer shows another version")
		}
	})
	t.Run("snapshot", func(t *testing.T) { // of a replica that has forgotten something
		vs := begin(t, 1)
		rewrite(vs[0], 1, 5)
		check(t, vs[0].Unlink(Request{}, root, "f"), nil)
		write(t, vs[0], root, "f", noise(9, size))
		check(t, vs[0].Unlink(Request{}, root, "f"), nil)
		write(t, vs[0], root, "f", noise(10, size))
		talk(t, vs...)
		tidy(t, vs...)
		reclaim(t, vs[0].db)
		c := volumeWith(t, vs[0].ID(), longHold)
		join(t, vs[0], c)
		if read(t, c, root, "f") != noise(10, size) {
			t.Error("the newcomer shows another version")
		}
	})
}
