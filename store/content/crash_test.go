package content

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A copy-up that a crash cut short leaves some pages of the block; the others
// must show the base.
func TestReopenFinishesCopyUp(t *testing.T) {
	const page = 4096
	base := noise(1, 2*BlockSize+3*page+17)
	for name, pages := range map[string][]int{
		"first pages":          {0, 1, 2},
		"pages here and there": {0, 7, 100, 255},
		"last block":           {512, 514},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := openStore(t)
			m := publishBytes(t, s, base)
			limit := m.Size() - 10
			d := must(s.CreateDraft("d", Base{Manifest: m}, limit, m.Size()))(t)
			check(t, d.Close())
			want := append([]byte(nil), base...)
			clear(want[limit:])
			f := must(os.OpenFile(s.draftPath("d"), os.O_RDWR, 0))(t)
			for _, p := range pages {
				b := noise(99, page)
				must(f.WriteAt(b, int64(p*page)))(t)
				copy(want[p*page:], b)
			}
			check(t, f.Close())
			d = must(s.OpenDraft("d", Base{Manifest: m}, limit))(t)
			wantBytes(t, draftBytes(t, d), want)
			must(d.WriteAt([]byte{1}, 5))(t)
			want[5] = 1
			wantBytes(t, contentOf(t, s, must(d.Publish(true, 0))(t).Manifest), want)
		})
	}
}

// A crash between a truncation and the record of the base limit shows nothing
// of the base behind the new end.
func TestReopenAfterUnrecordedTruncate(t *testing.T) {
	s, _ := openStore(t)
	m := publishBytes(t, s, noise(1, 2*BlockSize))
	d := must(s.CreateDraft("d", Base{Manifest: m}, m.Size(), m.Size()))(t)
	check(t, d.Truncate(100))
	check(t, d.Close())
	d = must(s.OpenDraft("d", Base{Manifest: m}, m.Size()))(t)
	defer d.Close()
	check(t, d.Truncate(BlockSize))
	wantBytes(t, draftBytes(t, d), append(noise(1, 2*BlockSize)[:100], make([]byte, BlockSize-100)...))
}

func TestOpenClearsTemporaryFiles(t *testing.T) {
	s, index := openStore(t)
	in := must(s.NewIncoming())(t)
	check(t, os.WriteFile(s.tmpPath("left"), []byte("x"), 0o600))
	must(Open(s.dir, index))(t)
	if entries := must(os.ReadDir(s.tmpPath("")))(t); len(entries) > 0 {
		t.Errorf("left in tmp: %v", entries)
	}
	in.Abort()
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=6m"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("mount a small file system: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	s := must(Open(dir, newMemIndex()))(t)
	defer s.Close()
	base := noise(1, 3*BlockSize)
	m := publishBytes(t, s, base)
	d := must(s.CreateDraft("d", Base{Manifest: m}, m.Size(), m.Size()))(t)
	must(d.WriteAt([]byte{1}, 0))(t)
	base[0] = 1
	filler := must(os.Create(filepath.Join(dir, "filler")))(t)
	io.Copy(filler, io.LimitReader(rand.NewChaCha8([32]byte{}), 6<<20))

	if n, err := d.WriteAt([]byte{2}, BlockSize+5); n != 0 || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("copy-up on a full disk: %d, %v", n, err)
	}
	if _, err := d.Publish(false, 0); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("publish on a full disk: %v", err)
	}
	wantBytes(t, draftBytes(t, d), base)
	check(t, d.Close())
	d = must(s.OpenDraft("d", Base{Manifest: m}, m.Size()))(t)
	wantBytes(t, draftBytes(t, d), base)

	check(t, filler.Truncate(0))
	wantBytes(t, contentOf(t, s, must(d.Publish(false, 0))(t).Manifest), base)
}

func TestErrorsOfTheDisk(t *testing.T) {
	s, _ := openStore(t)
	d := must(s.CreateDraft("d", Base{}, 0, 0))(t)
	want := noise(3, 3*BlockSize)
	must(d.WriteAt(want, 0))(t)
	for _, op := range []string{"read", "place", "sync", "sync directory"} {
		s.fault = func(o string) error {
			if o == op {
				return unix.EIO
			}
			return nil
		}
		for _, final := range []bool{false, true} {
			if _, err := d.Publish(final, 0); !errors.Is(err, unix.EIO) {
				t.Errorf("publish with failing %s: %v", op, err)
			}
		}
		s.fault = nil
		wantBytes(t, draftBytes(t, d), want)
	}
	wantBytes(t, contentOf(t, s, must(d.Publish(true, 0))(t).Manifest), want)
}

const killedDir = "CONTENT_TEST_KILLED_DIR"

// killedWrite returns the offset and bytes of the writer's write i.
func killedWrite(i uint64) (off int64, b []byte) {
	r := rand.New(rand.NewPCG(i, 7))
	n := 1 + r.IntN(300<<10)
	return r.Int64N(8 * BlockSize), noise(i, n)
}

// TestWriterToBeKilled is the child of TestKilledWriterLosesNothing: it writes
// and tells how far it got until it is killed.
func TestWriterToBeKilled(t *testing.T) {
	dir := os.Getenv(killedDir)
	if dir == "" {
		t.Skip("runs as a child of TestKilledWriterLosesNothing")
	}
	s, base := openKilled(t, dir)
	d := must(s.OpenDraft("d", base, base.Manifest.Size()))(t)
	for i := uint64(0); ; i++ {
		off, b := killedWrite(i)
		must(d.WriteAt(b, off))(t)
		fmt.Println("wrote", i)
	}
}

// openKilled opens the store that parent and child share.
func openKilled(t *testing.T, dir string) (*Store, Base) {
	index := newMemIndex()
	var entries []IndexEntry
	check(t, json.Unmarshal(must(os.ReadFile(filepath.Join(dir, "index")))(t), &entries))
	check(t, index.PutBlocks(entries))
	s := must(Open(dir, index))(t)
	return s, Base{Manifest: must(DecodeManifest(must(os.ReadFile(filepath.Join(dir, "manifest")))(t)))(t)}
}

func TestKilledWriterLosesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	dir := t.TempDir()
	index := newMemIndex()
	s := must(Open(dir, index))(t)
	bytes := noise(1000, 8*BlockSize)
	m := publishBytes(t, s, bytes)
	encoded, _ := m.Encode()
	check(t, os.WriteFile(filepath.Join(dir, "manifest"), encoded, 0o600))
	var entries []IndexEntry
	for h, l := range index.blocks {
		entries = append(entries, IndexEntry{h, l})
	}
	check(t, os.WriteFile(filepath.Join(dir, "index"), must(json.Marshal(entries))(t), 0o600))
	for round := range 8 {
		d := must(s.CreateDraft("d", Base{Manifest: m}, m.Size(), m.Size()))(t)
		check(t, d.Close())
		wrote := runKilled(t, dir, time.Duration(round)*3*time.Millisecond)
		d = must(s.OpenDraft("d", Base{Manifest: m}, m.Size()))(t)
		checkKilled(t, draftBytes(t, d), bytes, wrote)
		check(t, d.Remove())
	}
}

// runKilled runs the writer, kills it a while after its first write and
// returns how many writes it told of.
func runKilled(t *testing.T, dir string, after time.Duration) (wrote uint64) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestWriterToBeKilled$")
	cmd.Env = append(os.Environ(), killedDir+"="+dir)
	out := must(cmd.StdoutPipe())(t)
	check(t, cmd.Start())
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var i uint64
		if _, err := fmt.Sscanf(lines.Text(), "wrote %d", &i); err == nil {
			if wrote = i + 1; wrote == 1 {
				time.AfterFunc(after, func() { cmd.Process.Kill() })
			}
		}
	}
	cmd.Wait()
	if wrote == 0 {
		t.Fatal("the writer wrote nothing")
	}
	return wrote
}

// checkKilled checks that got is the base with the first wrote writes. Of one
// more, which was under way, any part may be there.
func checkKilled(t *testing.T, got, base []byte, wrote uint64) {
	want := make([]byte, len(base), len(base)+BlockSize)
	copy(want, base)
	apply := func(i uint64) {
		off, b := killedWrite(i)
		want = want[:max(len(want), int(off)+len(b))]
		copy(want[off:], b)
	}
	for i := range wrote {
		apply(i)
	}
	certain := append([]byte(nil), want...)
	apply(wrote)
	if len(got) < len(certain) || len(got) > len(want) {
		t.Fatalf("%d bytes after %d writes, want %d to %d", len(got), wrote, len(certain), len(want))
	}
	certain = append(certain, make([]byte, len(want)-len(certain))...)
	for i := range got {
		if got[i] != certain[i] && got[i] != want[i] {
			t.Fatalf("byte %d is %#x after %d writes, want %#x or %#x", i, got[i], wrote, certain[i], want[i])
		}
	}
}
