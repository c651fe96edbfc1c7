package store

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// diskOf is how much disk the content of a store takes.
func diskOf(t testing.TB, db *DB) (bytes int64) {
	t.Helper()
	check(t, filepath.WalkDir(filepath.Join(db.Dir(), "content"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return err
		}
		bytes += st.Blocks * 512 / int64(st.Nlink)
		return nil
	}), nil)
	return bytes
}

func setSize(t testing.TB, v *Volume, node NodeID, size int64) {
	t.Helper()
	_, err := v.SetAttr(Request{}, node, SetAttr{Size: &size})
	check(t, err, nil)
}

// TestP13AppendToAHugeFile: cost follows the bytes changed.
func TestP13AppendToAHugeFile(t *testing.T) {
	a, b := pair(t, Options{})
	node := write(t, a, root, "huge", "")
	setSize(t, a, node, 10<<30)
	give(t, a, b)
	before := diskOf(t, a.db)
	start := time.Now()
	open(t, a, root, "huge", false).write("x", 10<<30).close()
	took := time.Since(start)
	grown := diskOf(t, a.db) - before
	t.Logf("one byte to 10 GiB, sparse: %v, %d KiB of disk", took, grown>>10)
	if grown > 4<<20 {
		t.Errorf("%d bytes of disk", grown)
	}
	give(t, a, b)
	for _, v := range []*Volume{a, b} {
		p := make([]byte, 3)
		n, err := v.ReadAt(node, p, 10<<30-1)
		check(t, err, nil)
		if string(p[:n]) != "\x00x" {
			t.Errorf("reads %q", p[:n])
		}
		if at, err := v.Seek(node, 0, unix.SEEK_DATA); err != nil || at < 10<<30-1<<20 {
			t.Errorf("data at %d, %v", at, err)
		}
	}
}

// TestP13AppendToALog appends to a file of 1 GiB, opened once and closed each
// time, and held open with an interval.
func TestP13AppendToALog(t *testing.T) {
	const size = 1 << 30
	if testing.Short() {
		t.Skip("writes 1 GiB")
	}
	a := volumeWith(t, NewVolumeID(), Options{PublishInterval: time.Hour})
	w := create(t, a, root, "log")
	block := noise(1, 1<<20)
	for off := int64(0); off < size; off += 1 << 20 {
		w.write(block[off>>20:]+block[:off>>20], off) // each block another
	}
	w.close()
	before := diskOf(t, a.db)
	var worst time.Duration
	line := strings.Repeat("a line of a log. ", 6)
	end := int64(size)
	for range 60 {
		start := time.Now()
		open(t, a, root, "log", false).write(line, end).close()
		worst = max(worst, time.Since(start))
		end += int64(len(line))
	}
	closed := diskOf(t, a.db) - before
	w = open(t, a, root, "log", false)
	for range 60 {
		w.write(line, end)
		end += int64(len(line))
		d := a.draftOf(w.node)
		d.mu.Lock()
		err := a.publish(d, false)
		d.mu.Unlock()
		check(t, err, nil)
	}
	w.close()
	held := diskOf(t, a.db) - before - closed
	t.Logf("60 appends of %d bytes to 1 GiB: closed each time %v at worst, %d KiB of disk; held open %d KiB",
		len(line), worst, closed>>10, held>>10)
	if closed > 4<<20 || held > 4<<20 {
		t.Errorf("%d and %d bytes of disk", closed, held)
	}
	p := make([]byte, 60*2*len(line))
	n, err := a.ReadAt(w.node, p, size)
	check(t, err, nil)
	if string(p[:n]) != strings.Repeat(line, 120) {
		t.Error("the end of the log is not what was written")
	}
}

// TestP2LargeFilesAgainstAModel does random writes, truncations and closes over
// block borders, with a restart now and then.
func TestP2LargeFilesAgainstAModel(t *testing.T) {
	v := volumeWith(t, NewVolumeID(), Options{PublishInterval: time.Hour})
	count := 0
	rapid.Check(t, func(rt *rapid.T) {
		count++
		name := fmt.Sprint("f", count)
		node := write(t, v, root, name, "")
		model := []byte{}
		var w *writing
		compare := func() {
			if got := readNode(t, v, node); got != string(model) {
				rt.Fatalf("%d bytes differ from %d", len(got), len(model))
			}
		}
		const top = 3<<20 + 100
		at := rapid.OneOf(rapid.IntRange(0, top), rapid.SampledFrom([]int{
			0, 1, 65535, 65536, 65537, 1<<20 - 1, 1 << 20, 1<<20 + 1, 2<<20 - 1, 2 << 20, 2<<20 + 1,
		}))
		opened := func(trunc bool) {
			if w == nil {
				x := open(t, v, root, name, trunc)
				w = &x
				if trunc {
					model = model[:0]
				}
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				opened(false)
				off := at.Draw(rt, "offset")
				text := noise(uint64(off), rapid.OneOf(rapid.IntRange(0, 3000), rapid.IntRange(0, 1<<20+9)).Draw(rt, "length"))
				w.write(text, int64(off))
				if end := off + len(text); end > len(model) && text != "" {
					model = append(model, make([]byte, end-len(model))...)
				}
				copy(model[min(off, len(model)):], text)
			},
			"truncate": func(rt *rapid.T) {
				size := at.Draw(rt, "size")
				setSize(t, v, node, int64(size))
				model = append(model[:min(size, len(model))], make([]byte, max(0, size-len(model)))...)
			},
			"open O_TRUNC": func(*rapid.T) { opened(true) },
			"punch": func(rt *rapid.T) {
				opened(false)
				off, n := at.Draw(rt, "offset"), at.Draw(rt, "length")+1
				check(t, v.Allocate(node, w.h, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)), nil)
				if off < len(model) {
					clear(model[off:min(off+n, len(model))])
				}
			},
			"publish": func(*rapid.T) {
				if w != nil {
					d := v.draftOf(node)
					d.mu.Lock()
					err := v.publish(d, false)
					d.mu.Unlock()
					check(t, err, nil)
				}
			},
			"close": func(*rapid.T) {
				if w != nil {
					w.close()
					w = nil
				}
			},
			"restart": func(rt *rapid.T) {
				if rapid.IntRange(0, 9).Draw(rt, "whether") > 0 {
					return
				}
				if w != nil {
					w.flush()
					w = nil
				}
				v = reopen(t, v)
			},
			"": func(*rapid.T) { compare() },
		})
		if w != nil {
			w.close()
		}
		compare()
		check(t, v.Unlink(Request{}, root, name), nil)
	})
}

// TestP2LargeVersionsTravel: a peer that has the blocks of the version before
// needs only the others.
func TestP13OnlyChangedBlocksTravel(t *testing.T) {
	a, b := pair(t, Options{})
	node := write(t, a, root, "f", noise(1, 5<<20))
	give(t, a, b)
	open(t, a, root, "f", false).write("x", 3<<20).close()
	m := batches(t, a, b.Vector())[0]
	wants := must(b.Wants(m))
	if len(wants) != 1 {
		t.Fatalf("wants %x", wants)
	}
	missing := must(b.db.content.Missing(must(a.db.manifest(wants[0]))))
	if len(missing) != 1 {
		t.Errorf("%d blocks to fetch, want 1", len(missing))
	}
	check(t, copyContent(a.db, b.db, wants[0]), nil)
	check(t, b.Merge(m), nil)
	same(t, a, b)
	setSize(t, a, node, 1<<20+5)
	setSize(t, a, node, 70_000)
	setSize(t, a, node, 10)
	setSize(t, a, node, 4<<20)
	give(t, a, b)
	same(t, a, b)
	if at, _ := b.Attr(node); at.Ino != crdt.Ino(node) || at.Size != 4<<20 {
		t.Errorf("%+v", at)
	}
}
