package fusefs_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
	"github.com/synapsefs/synapsefs/store"
)

// Reports from people who keep files in step on several hosts, as steps on two
// mounts: see also TestRemoveWhileListing and TestListingUnderRemoteChange.

// noRecords fails the test if either node lists a conflict.
func noRecords(t *testing.T, p *fstest.Pair) {
	t.Helper()
	for _, n := range []*fstest.Node{p.A, p.B} {
		records, err := n.Volume.Records()
		must(t, err)
		if len(records) > 0 {
			t.Errorf("%d conflict records, the first of %q", len(records), records[0].Path)
		}
	}
}

// A reader that keeps asking for a file's attributes and has it open reads all
// that was appended elsewhere, as soon as it is shown.
func TestP2StaleSize(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	writeFile(t, p.A.Dir+"/f", "")
	p.Sync()
	path := p.B.Dir + "/f"
	var want []byte
	for k := range 15 { // 60 KiB: what is larger does not travel between these two
		stat(t, path)
		held, err := os.Open(path)
		must(t, err)
		t.Cleanup(func() { held.Close() })
		f, err := os.OpenFile(p.A.Dir+"/f", os.O_WRONLY|os.O_APPEND, 0)
		must(t, err)
		more := bytes.Repeat([]byte{byte('a' + k)}, 4096)
		_, err = f.Write(more)
		must(t, err)
		must(t, f.Close())
		p.Sync()
		old := len(want)
		want = append(want, more...)
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, want) {
			t.Fatalf("round %d: %d bytes, want %d, %v", k, len(b), len(want), err)
		}
		if s := stat(t, path); s.Size != int64(len(want)) {
			t.Fatalf("round %d: size %d, want %d", k, s.Size, len(want))
		}
		// Who had it open keeps the version that he opened, whole.
		if b, err := io.ReadAll(held); err != nil || len(b) != old {
			t.Fatalf("round %d: the old handle reads %d bytes, want %d, %v", k, len(b), old, err)
		}
		must(t, held.Close())
		direct, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
		must(t, err)
		t.Cleanup(func() { direct.Close() })
		buf := aligned(4096)
		if n, err := direct.ReadAt(buf, int64(old)); n != 4096 || err != nil && err != io.EOF || !bytes.Equal(buf, more) {
			t.Fatalf("round %d: %d bytes read directly, %v", k, n, err)
		}
		must(t, unix.Munmap(buf))
		must(t, direct.Close())
	}
}

// Deletion and creation of one name elsewhere, under a cached name and an open
// file.
func TestP2RecreatedUnderCachedName(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	a, b := p.A.Dir+"/f", p.B.Dir+"/f"
	writeFile(t, a, "first")
	p.Sync()
	held, err := os.Open(b)
	must(t, err)
	defer held.Close()
	before := stat(t, b)
	for k := range 100 {
		must(t, os.Remove(a))
		writeFile(t, a, fmt.Sprint("content ", k))
		if k%10 == 0 {
			p.Sync()
			want := stat(t, a)
			if got := stat(t, b); got.Ino != want.Ino || got.Mtim != want.Mtim || got.Ino == before.Ino {
				t.Fatalf("round %d: inode %d mtime %v, want %d %v", k, got.Ino, got.Mtim, want.Ino, want.Mtim)
			}
			if text, err := os.ReadFile(b); string(text) != fmt.Sprint("content ", k) || err != nil {
				t.Fatalf("round %d: %q %v", k, text, err)
			}
		}
	}
	p.Sync()
	if text, err := io.ReadAll(held); string(text) != "first" || err != nil {
		t.Errorf("the open file has %q %v", text, err)
	}
	var s unix.Stat_t
	must(t, unix.Fstat(int(held.Fd()), &s))
	if s.Nlink != 0 || s.Ino != before.Ino {
		t.Errorf("the open file has %d links, inode %d", s.Nlink, s.Ino)
	}
	if link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", held.Fd())); link != b+" (deleted)" || err != nil {
		t.Error(link, err)
	}
}

// What was asked for and was not there is found as soon as it is shown, without
// a listing: a file, a file in a new directory, one in a renamed directory.
func TestP2NegativeNames(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	must(t, os.Mkdir(p.A.Dir+"/d", 0o755))
	p.Sync()
	names := []string{"d/x", "e/x", "D/x"}
	for range 3 {
		for _, name := range names {
			if _, err := os.Stat(p.B.Dir + "/" + name); !os.IsNotExist(err) {
				t.Fatal(name, err)
			}
		}
	}
	found := func(name string) {
		t.Helper()
		p.Sync()
		if _, err := os.Stat(p.B.Dir + "/" + name); err != nil {
			t.Error(err)
		}
	}
	writeFile(t, p.A.Dir+"/d/x", "")
	found("d/x")
	must(t, os.Mkdir(p.A.Dir+"/e", 0o755))
	writeFile(t, p.A.Dir+"/e/x", "")
	found("e/x")
	must(t, os.Rename(p.A.Dir+"/d", p.A.Dir+"/D"))
	found("D/x")
	if _, err := os.Stat(p.B.Dir + "/d/x"); !os.IsNotExist(err) {
		t.Error(err)
	}
}

// Two nodes that are cut from each other unpack the same files: one tree, and
// no conflict.
func TestP5SameTreeTwice(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	heal := p.Cut()
	for k, n := range []*fstest.Node{p.A, p.B} {
		dir := n.Dir + "/webapps/x/WEB-INF"
		must(t, os.MkdirAll(dir, 0o755))
		for i := range 200 {
			path := fmt.Sprintf("%s/f%d", dir, i)
			writeFile(t, path, fmt.Sprint("bytes of ", i))
			must(t, os.Chmod(path, os.FileMode(0o640+4*k)))
			when := time.Unix(int64(1000+k), 0)
			must(t, os.Chtimes(path, when, when))
		}
	}
	watch := fstest.NewWatch(t, p.B.Dir+"/webapps/x/WEB-INF")
	heal()
	p.Sync()
	for _, e := range watch.Events() {
		if strings.HasPrefix(e, "DELETE f") || strings.HasPrefix(e, "MOVED_FROM") {
			t.Errorf("B saw %s", e)
		}
	}
	got := tree(t, p.A.Dir)
	if other := tree(t, p.B.Dir); len(got) != 203 || strings.Join(got, "\n") != strings.Join(other, "\n") {
		t.Errorf("%d and %d names", len(got), len(other))
	}
	for i := range 200 {
		name := fmt.Sprintf("/webapps/x/WEB-INF/f%d", i)
		if a, b := stat(t, p.A.Dir+name), stat(t, p.B.Dir+name); a.Mode != b.Mode || a.Mtim != b.Mtim {
			t.Fatalf("%s: mode %o and %o, mtime %v and %v", name, a.Mode, b.Mode, a.Mtim, b.Mtim)
		}
	}
	noRecords(t, p)
}

// Fast edits of one side, with the other reading and receiving late, are no
// conflicts.
func TestP5OneSidedEdits(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	const files, rounds = 50, 20
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			// What goes while it is looked at is no fault here.
			filepath.WalkDir(p.B.Dir, func(path string, d fs.DirEntry, err error) error { //nolint:errcheck // see above
				if err == nil && !d.IsDir() {
					os.ReadFile(path) //nolint:errcheck // see above
				}
				return nil
			})
		}
	})
	heal := func() {}
	for r := range rounds {
		if r%5 == 0 {
			heal()
			heal = p.Cut()
		}
		for k := range files {
			path := fmt.Sprintf("%s/f%d", p.A.Dir, k)
			writeFile(t, path, fmt.Sprint("round ", r, " of ", k))
			must(t, os.Chmod(path, os.FileMode(0o600+r%8)))
		}
	}
	heal()
	p.Sync()
	close(stop)
	reader.Wait()
	noRecords(t, p)
	for k := range files {
		if b, err := os.ReadFile(fmt.Sprintf("%s/f%d", p.B.Dir, k)); string(b) != fmt.Sprint("round ", rounds-1, " of ", k) || err != nil {
			t.Fatalf("%q %v", b, err)
		}
	}
}

// Kubernetes changes owner and mode of each file when a pod starts. Where they
// are so already that is nothing at all; where two nodes do it at once, one wins,
// and nobody is ever shut out.
func TestP5OwnerStorm(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	must(t, os.Mkdir(p.A.Dir+"/d", 0o2775))
	for k := range 300 {
		writeFile(t, fmt.Sprintf("%s/d/f%d", p.A.Dir, k), "text")
	}
	storm := func(n *fstest.Node, gid int) {
		must(t, filepath.WalkDir(n.Dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if err := os.Lchown(path, -1, gid); err != nil {
				return err
			}
			mode := uint32(0o664)
			if d.IsDir() {
				mode = 0o2775
			}
			return unix.Chmod(path, mode)
		}))
	}
	storm(p.A, 2000)
	p.Sync()
	before := stat(t, p.A.Dir+"/d/f7")
	watch := fstest.NewWatch(t, p.B.Dir+"/d")
	if got := ops(t, p.A, func() { storm(p.A, 2000) }); got > 0 {
		t.Errorf("nothing to change, and %d ops", got)
	}
	p.Sync()
	watch.Expect()
	if after := stat(t, p.A.Dir+"/d/f7"); after.Ctim != before.Ctim {
		t.Error("ctime changed")
	}

	var both sync.WaitGroup
	for k, n := range []*fstest.Node{p.A, p.B} {
		both.Go(func() { storm(n, 3000+k) })
	}
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for k := range 300 {
				s, err := os.Stat(fmt.Sprintf("%s/d/f%d", p.B.Dir, k))
				if err != nil || s.Mode().Perm() != 0o664 {
					t.Errorf("in between: %v %v", s, err)
					return
				}
			}
		}
	})
	both.Wait()
	p.Sync()
	close(stop)
	reader.Wait()
	for k := range 300 {
		name := fmt.Sprintf("/d/f%d", k)
		if a, b := stat(t, p.A.Dir+name), stat(t, p.B.Dir+name); a.Gid != b.Gid || a.Gid < 3000 {
			t.Fatalf("%s: groups %d and %d", name, a.Gid, b.Gid)
		}
	}
	noRecords(t, p)
}

// Names are bytes: those that look alike, differ in case or are no text at all
// stay apart, also when they are made on two nodes that are cut from each other.
func TestP5NamesAreBytes(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	pairs := [][2]string{
		{"\u00e9.xml", "e\u0301.xml"}, {"\u00c5", "\u212b"}, {"A\u030a", "\u00c5 "}, {"\ud55c", "\u1112\u1161\u11ab"}, {"\ufb01", "fi"},
		{"Main.xml", "main.xml"}, {"MAIN.XML", "Main.XML"}, {"\u00df.xml", "ss.xml"}, {"\u0130.xml", "i.xml"}, {"I.xml", "\u0131.xml"},
		{"\x80", "\xff"}, {"caf\xe9.xml", "caf\u00e9.xml"}, {"\xc0\xaf", "\xed\xa0\x80"}, {"abc\xe2\x82", "abc\xe2\x82\xac"},
		{"new\nline", "\n"}, {"\t", "\r"}, {"\x1b[31m", "\x7f"}, {" x", "x "}, {"\u00a0", "\u200b"}, {"...", "..data"}, {"\u202etxt", "name."},
	}
	heal := p.Cut()
	for _, pair := range pairs {
		writeFile(t, p.A.Dir+"/"+pair[0], "A "+pair[0])
		writeFile(t, p.B.Dir+"/"+pair[1], "B "+pair[1])
	}
	heal()
	p.Sync()
	for _, n := range []*fstest.Node{p.A, p.B} {
		entries, err := os.ReadDir(n.Dir)
		must(t, err)
		if len(entries) != 2*len(pairs) {
			t.Errorf("%d names, want %d", len(entries), 2*len(pairs))
		}
		for _, pair := range pairs {
			for k, name := range pair {
				if b, err := os.ReadFile(n.Dir + "/" + name); string(b) != "AB"[k:k+1]+" "+name || err != nil {
					t.Errorf("%q: %q %v", name, b, err)
				}
			}
		}
	}
	noRecords(t, p)
	// A rename from one form to the other is one rename, over what is there.
	watch := fstest.NewWatch(t, p.A.Dir)
	must(t, os.Rename(p.B.Dir+"/"+pairs[0][1], p.B.Dir+"/"+pairs[0][0]))
	p.Sync()
	watch.Expect("MOVED_FROM "+pairs[0][1], "MOVED_TO "+pairs[0][0])
	if b, err := os.ReadFile(p.A.Dir + "/" + pairs[0][0]); string(b) != "B "+pairs[0][1] || err != nil {
		t.Errorf("%q %v", b, err)
	}
}

// Programs that open for writing and write nothing, probe locks, or set what is
// set, cause no change, no event and no traffic.
func TestNoTraffic(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{Store: store.Options{PublishInterval: time.Millisecond}})
	path := p.A.Dir + "/f"
	writeFile(t, path, "text")
	must(t, unix.Setxattr(path, "user.a", []byte("1"), 0))
	p.Sync()
	watch := fstest.NewWatch(t, p.B.Dir)
	s := stat(t, path)
	if got := ops(t, p.A, func() {
		for _, flags := range []int{os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_CREATE} {
			f, err := os.OpenFile(path, flags, 0o600)
			must(t, err)
			l := unix.Flock_t{Type: unix.F_WRLCK}
			must(t, unix.FcntlFlock(f.Fd(), unix.F_SETLK, &l))
			must(t, f.Truncate(4))
			must(t, f.Sync())
			must(t, f.Close())
		}
		must(t, os.Chmod(path, 0o644))
		must(t, os.Chown(path, 0, 0))
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{s.Atim, s.Mtim}, 0))
		must(t, unix.Setxattr(path, "user.a", []byte("1"), 0))
		must(t, os.Rename(path, path))
		fd, err := unix.Open(p.A.Dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
		must(t, err)
		must(t, unix.Close(fd))
	}); got > 0 {
		t.Errorf("%d ops", got)
	}
	p.Sync()
	watch.Expect()
	if after := stat(t, path); after != s {
		t.Errorf("%v, was %v", after, s)
	}
}
