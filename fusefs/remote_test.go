package fusefs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
	"github.com/synapsefs/synapsefs/store"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

// tree lists a directory with contents, sorted: "d/", "d/f=text", "l->target".
func tree(t testing.TB, root string) []string {
	t.Helper()
	var out []string
	must(t, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name, _ := filepath.Rel(root, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			name += "/"
		case info.Mode()&os.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			name += "->" + target
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if int64(len(b)) != info.Size() {
				return fmt.Errorf("%s: %d bytes, size %d", path, len(b), info.Size())
			}
			name += "=" + string(b)
		default:
			name += "~" + info.Mode().Type().String()
		}
		out = append(out, name)
		return nil
	}))
	slices.Sort(out)
	return out
}

func expectTree(t testing.TB, root string, want ...string) {
	t.Helper()
	if got := tree(t, root); !slices.Equal(got, want) {
		t.Errorf("%s shows %q\n want %q", root, got, want)
	}
}

// remoteChanges are done in directory d of node A after both sides have seen
// the same start: files a=1, b=2 and directory s with s/x=3.
var remoteChanges = []struct {
	name   string
	do     func(dir string) error
	tree   []string // on B
	events []string // of a watch on B's d; nil: not checked
}{
	{"create", func(d string) error { return os.WriteFile(d+"/n", []byte("new"), 0o644) },
		[]string{"a=1", "b=2", "n=new", "s/", "s/x=3"},
		[]string{"CREATE n", "OPEN n", "MODIFY n", "CLOSE_WRITE n"}},
	{"create empty", func(d string) error { return os.WriteFile(d+"/n", nil, 0o644) },
		[]string{"a=1", "b=2", "n=", "s/", "s/x=3"},
		[]string{"CREATE n", "OPEN n", "CLOSE_WRITE n"}},
	{"rewrite", func(d string) error { return os.WriteFile(d+"/a", []byte("other"), 0o644) },
		[]string{"a=other", "b=2", "s/", "s/x=3"},
		[]string{"OPEN a", "MODIFY a", "CLOSE_WRITE a"}},
	{"append", func(d string) error {
		f, err := os.OpenFile(d+"/a", os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString("23")
		return errors.Join(err, f.Close())
	}, []string{"a=123", "b=2", "s/", "s/x=3"}, []string{"OPEN a", "MODIFY a", "CLOSE_WRITE a"}},
	{"truncate", func(d string) error { return os.Truncate(d+"/a", 0) },
		[]string{"a=", "b=2", "s/", "s/x=3"}, nil},
	{"unlink", func(d string) error { return os.Remove(d + "/a") },
		[]string{"b=2", "s/", "s/x=3"}, []string{"DELETE a"}},
	{"mkdir", func(d string) error { return os.Mkdir(d+"/n", 0o755) },
		[]string{"a=1", "b=2", "n/", "s/", "s/x=3"}, []string{"CREATE n"}},
	{"rmdir", func(d string) error { return os.RemoveAll(d + "/s") },
		[]string{"a=1", "b=2"}, []string{"DELETE s"}},
	{"rename", func(d string) error { return os.Rename(d+"/a", d+"/n") },
		[]string{"b=2", "n=1", "s/", "s/x=3"}, []string{"MOVED_FROM a", "MOVED_TO n"}},
	{"rename over", func(d string) error { return os.Rename(d+"/a", d+"/b") },
		[]string{"b=1", "s/", "s/x=3"}, []string{"MOVED_FROM a", "MOVED_TO b"}},
	{"rename of a directory", func(d string) error { return os.Rename(d+"/s", d+"/n") },
		[]string{"a=1", "b=2", "n/", "n/x=3"}, []string{"MOVED_FROM s", "MOVED_TO n"}},
	{"rename into", func(d string) error { return os.Rename(d+"/a", d+"/s/a") },
		[]string{"b=2", "s/", "s/a=1", "s/x=3"}, []string{"MOVED_FROM a"}},
	{"rename out", func(d string) error { return os.Rename(d+"/s/x", d+"/x") },
		[]string{"a=1", "b=2", "s/", "x=3"}, []string{"MOVED_TO x"}},
	{"exchange", func(d string) error {
		return unix.Renameat2(unix.AT_FDCWD, d+"/a", unix.AT_FDCWD, d+"/b", unix.RENAME_EXCHANGE)
	}, []string{"a=2", "b=1", "s/", "s/x=3"}, nil},
	{"exchange with a directory", func(d string) error {
		return unix.Renameat2(unix.AT_FDCWD, d+"/a", unix.AT_FDCWD, d+"/s", unix.RENAME_EXCHANGE)
	}, []string{"a/", "a/x=3", "b=2", "s=1"}, nil},
	{"symlink", func(d string) error { return os.Symlink("a", d+"/n") },
		[]string{"a=1", "b=2", "n->a", "s/", "s/x=3"}, []string{"CREATE n"}},
	{"hard link", func(d string) error { return os.Link(d+"/a", d+"/n") },
		[]string{"a=1", "b=2", "n=1", "s/", "s/x=3"}, nil},
	{"fifo", func(d string) error { return unix.Mkfifo(d+"/n", 0o600) },
		[]string{"a=1", "b=2", "n~p---------", "s/", "s/x=3"}, []string{"CREATE n"}},
	{"chmod", func(d string) error { return os.Chmod(d+"/a", 0o600) },
		[]string{"a=1", "b=2", "s/", "s/x=3"}, []string{"ATTRIB a"}},
	{"chmod of a directory", func(d string) error { return os.Chmod(d+"/s", 0o700) },
		[]string{"a=1", "b=2", "s/", "s/x=3"}, []string{"ATTRIB s"}},
	{"replacement by rename", func(d string) error {
		if err := os.WriteFile(d+"/.tmp", []byte("new"), 0o644); err != nil {
			return err
		}
		return os.Rename(d+"/.tmp", d+"/a")
	}, []string{"a=new", "b=2", "s/", "s/x=3"}, nil}, // in one batch or in two
	{"unlink and create", func(d string) error {
		if err := os.Remove(d + "/a"); err != nil {
			return err
		}
		return os.WriteFile(d+"/a", []byte("new"), 0o644)
	}, []string{"a=new", "b=2", "s/", "s/x=3"}, nil}, // see TestReplacementInOneBatch
	{"file becomes a directory", func(d string) error {
		if err := os.Remove(d + "/a"); err != nil {
			return err
		}
		return os.Mkdir(d+"/a", 0o755)
	}, []string{"a/", "b=2", "s/", "s/x=3"}, nil},
	{"directory becomes a file", func(d string) error {
		if err := os.RemoveAll(d + "/s"); err != nil {
			return err
		}
		return os.WriteFile(d+"/s", []byte("f"), 0o644)
	}, []string{"a=1", "b=2", "s=f"}, nil},
	{"directory removed and made again", func(d string) error {
		if err := os.RemoveAll(d + "/s"); err != nil {
			return err
		}
		if err := os.Mkdir(d+"/s", 0o755); err != nil {
			return err
		}
		return os.WriteFile(d+"/s/y", []byte("4"), 0o644)
	}, []string{"a=1", "b=2", "s/", "s/y=4"}, nil},
	{"tree", func(d string) error {
		if err := os.MkdirAll(d+"/n/m/o", 0o755); err != nil {
			return err
		}
		return os.WriteFile(d+"/n/m/o/f", []byte("deep"), 0o644)
	}, []string{"a=1", "b=2", "n/", "n/m/", "n/m/o/", "n/m/o/f=deep", "s/", "s/x=3"}, []string{"CREATE n"}},
}

func makeStart(t *testing.T, p *fstest.Pair) (a, b string) {
	t.Helper()
	a, b = p.A.Dir+"/d", p.B.Dir+"/d"
	must(t, os.Mkdir(a, 0o755))
	writeFile(t, a+"/a", "1")
	writeFile(t, a+"/b", "2")
	must(t, os.Mkdir(a+"/s", 0o755))
	writeFile(t, a+"/s/x", "3")
	p.Sync()
	expectTree(t, b, "a=1", "b=2", "s/", "s/x=3")
	for _, absent := range []string{"n", "x", "s/a"} { // the kernel remembers
		if _, err := os.Stat(b + "/" + absent); !os.IsNotExist(err) {
			t.Fatal(absent, err)
		}
	}
	return a, b
}

func TestRemoteChange(t *testing.T) {
	for _, c := range remoteChanges {
		t.Run(c.name, func(t *testing.T) { testRemoteChange(t, fstest.Options{}, c.do, c.tree, c.events) })
	}
}

// Without the helper everything is seen as well, only without events.
func TestRemoteChangeWithoutHelper(t *testing.T) {
	for _, c := range remoteChanges {
		t.Run(c.name, func(t *testing.T) { testRemoteChange(t, fstest.Options{NoHelper: true}, c.do, c.tree, nil) })
	}
}

func testRemoteChange(t *testing.T, opts fstest.Options, do func(string) error, want, events []string) {
	p := fstest.MountPair(t, opts)
	a, b := makeStart(t, p)
	var w *fstest.Watch
	if events != nil {
		w = fstest.NewWatch(t, b)
	}
	before := p.B.Mount.Stats()
	must(t, do(a))
	p.Sync()
	if w != nil {
		w.Expect(events...)
	}
	expectTree(t, b, want...)
	expectTree(t, a, want...)
	after := p.B.Mount.Stats()
	if after.Pending != 0 {
		t.Errorf("still pending: %+v", after)
	}
	if n := after.Fallbacks - before.Fallbacks; n > 0 && !opts.NoHelper && events != nil {
		t.Errorf("%d fallbacks", n)
	}
}

// What is removed and made again at once is replaced for peers: at no moment
// is the name missing.
func TestReplacementInOneBatch(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{Store: store.Options{Hold: time.Second}})
	a, b := makeStart(t, p)
	w := fstest.NewWatch(t, b)
	must(t, os.Remove(a+"/a"))
	writeFile(t, a+"/a", "new")
	must(t, os.RemoveAll(a+"/s"))
	must(t, os.Mkdir(a+"/s", 0o755))
	p.Sync()
	expectTree(t, b, "a=new", "b=2", "s/")
	if got := w.Events(); !slices.Contains(got, "MOVED_TO a") || slices.Contains(got, "DELETE a") || slices.Contains(got, "DELETE s") {
		t.Errorf("events %q", got)
	}
	if s := p.B.Mount.Stats(); s.Fallbacks > 0 {
		t.Errorf("%+v", s)
	}
}

// A reader never sees anything but a whole version (P2), in whatever steps and
// with whatever is cached.
func TestP2NoTornReads(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{Store: store.Options{InlineLimit: 256 << 10}})
	a, b := p.A.Dir+"/f", p.B.Dir+"/f"
	versions := [][]byte{bytes.Repeat([]byte("A"), 100<<10), bytes.Repeat([]byte("B"), 60<<10)}
	must(t, os.WriteFile(a, versions[0], 0o644))
	p.Sync()
	var stop atomic.Bool
	var reads, changes atomic.Int64
	var tasks sync.WaitGroup
	for range 2 {
		tasks.Go(func() {
			for !stop.Load() {
				got, err := readInSteps(b)
				if err != nil || !bytes.Equal(got, versions[0]) && !bytes.Equal(got, versions[1]) {
					t.Errorf("read %d bytes, %d of them A, %d B: %v", len(got), bytes.Count(got, []byte("A")), bytes.Count(got, []byte("B")), err)
					return
				}
				reads.Add(1)
			}
		})
	}
	end := time.Now().Add(4 * time.Second)
	for n := 1; time.Now().Before(end); n++ {
		must(t, os.WriteFile(a, versions[n%2], 0o644))
		changes.Add(1)
	}
	stop.Store(true)
	tasks.Wait()
	p.Sync()
	t.Logf("%d reads of %d versions, %+v", reads.Load(), changes.Load(), p.B.Mount.Stats())
	if s := p.B.Mount.Stats(); s.Frozen > 1 {
		t.Errorf("old versions are kept: %+v", s)
	}
}

func readInSteps(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []byte
	buf := make([]byte, 16<<10)
	for {
		n, err := f.Read(buf)
		all = append(all, buf[:n]...)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
	}
}

// Who has a file open keeps its version; stat by name shows the new one under
// the same inode number.
func TestOldVersionStaysWhole(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	writeFile(t, p.A.Dir+"/f", "old")
	p.Sync()
	f, err := os.Open(p.B.Dir + "/f")
	must(t, err)
	defer f.Close()
	w := fstest.NewWatch(t, p.B.Dir+"/f")
	before, _ := f.Stat()
	writeFile(t, p.A.Dir+"/f", "newer")
	p.Sync()
	b := make([]byte, 10)
	if n, _ := f.ReadAt(b, 0); string(b[:n]) != "old" {
		t.Errorf("the open file reads %q", b[:n])
	}
	after, err := os.Stat(p.B.Dir + "/f")
	must(t, err)
	if got, want := after.Sys().(*syscall.Stat_t).Ino, before.Sys().(*syscall.Stat_t).Ino; got != want {
		t.Errorf("inode number %d, was %d", got, want)
	}
	if got, _ := os.ReadFile(p.B.Dir + "/f"); string(got) != "newer" {
		t.Errorf("by name: %q", got)
	}
	w.Expect("OPEN ", "MODIFY ", "CLOSE_WRITE ")
	f.Close()
	fstest.Eventually(t, func() error {
		if got := w.Events(); !slices.Contains(got, "DELETE_SELF ") {
			return fmt.Errorf("events %v", got)
		}
		return nil
	})
}

// What comes from elsewhere while a listing is read in small steps is neither
// missed nor doubled once the listing is read again; what stays is listed once.
func TestListingAcrossRemoteChanges(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	const files = 300
	for n := range files {
		writeFile(t, fmt.Sprintf("%s/f%03d", p.A.Dir, n), "")
	}
	p.Sync()
	d, err := os.Open(p.B.Dir)
	must(t, err)
	defer d.Close()
	seen := map[string]int{}
	for n := 0; ; n++ {
		names, err := d.Readdirnames(20)
		for _, name := range names {
			seen[name]++
		}
		if err == io.EOF {
			break
		}
		must(t, err)
		writeFile(t, fmt.Sprintf("%s/g%03d", p.A.Dir, n), "")
		must(t, os.Remove(fmt.Sprintf("%s/f%03d", p.A.Dir, 2*n)))
		p.Sync()
	}
	for n := range files {
		name := fmt.Sprintf("f%03d", n)
		if seen[name] > 1 || seen[name] == 0 && n%2 == 1 {
			t.Errorf("%s was listed %d times", name, seen[name])
		}
	}
	var got, want []string
	got, want = append(got, tree(t, p.B.Dir)...), append(want, tree(t, p.A.Dir)...)
	if !slices.Equal(got, want) {
		t.Errorf("B shows %q, A %q", got, want)
	}
}

// Concurrent changes on both sides end in the same tree on both mounts.
func TestP4ConcurrentChanges(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	a, b := makeStart(t, p)
	heal := p.Cut()
	must(t, os.Mkdir(a+"/both", 0o755))
	must(t, os.Mkdir(b+"/both", 0o755))
	writeFile(t, a+"/both/fromA", "A")
	writeFile(t, b+"/both/fromB", "B")
	writeFile(t, a+"/a", "edited")
	must(t, os.Remove(b+"/a"))
	must(t, os.RemoveAll(a+"/s"))
	writeFile(t, b+"/s/y", "kept")
	writeFile(t, a+"/same", "A")
	must(t, os.Mkdir(b+"/same", 0o755))
	cwd, err := os.Open(b + "/both")
	must(t, err)
	defer cwd.Close()
	heal()
	p.Sync()
	want := []string{"a=edited", "b=2", "both/", "both/fromA=A", "both/fromB=B", "s/", "s/y=kept", "same/"}
	expectTree(t, a, want...)
	expectTree(t, b, want...)
	// A directory that is one of two keeps working for who is in it, and in
	// both directions.
	writeFile(t, b+"/both/later", "B")
	writeFile(t, a+"/both/too", "A")
	p.Sync()
	want = slices.Insert(want, 5, "both/later=B", "both/too=A")
	expectTree(t, a, want...)
	expectTree(t, b, want...)
	names, err := cwd.Readdirnames(-1)
	must(t, err)
	slices.Sort(names)
	if got := strings.Join(names, " "); got != "fromA fromB later too" {
		t.Errorf("the open directory lists %s", got)
	}
}
