package playground

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// makeTree makes the same tree each time, with some of everything.
func makeTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "d/e"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "d/f"), []byte("hello"), 0o644))
	must(os.WriteFile(filepath.Join(dir, "d/\xff"), nil, 0o600))
	must(os.Link(filepath.Join(dir, "d/f"), filepath.Join(dir, "hard")))
	must(os.Symlink("d/f", filepath.Join(dir, "soft")))
	when := time.Unix(1_700_000_000, 123456789)
	for _, name := range []string{"d/f", "d/\xff", "d/e", "d"} {
		must(os.Chtimes(filepath.Join(dir, name), when, when))
	}
	ts := unix.NsecToTimespec(when.UnixNano())
	must(unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, "soft"), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	return dir
}

func sum(t *testing.T, dir string) Tree {
	t.Helper()
	tree, err := Sum(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestSum(t *testing.T) {
	want := sum(t, makeTree(t))
	if want.Files != 3 || want.Other != 3 || want.Bytes != 5 {
		t.Errorf("got %+v", want)
	}
	if got := sum(t, makeTree(t)); got != want {
		t.Errorf("the same tree again is %+v, was %+v", got, want)
	}
	for name, change := range map[string]func(dir string) error{
		"name": func(dir string) error { return os.Rename(dir+"/hard", dir+"/hart") },
		"mode": func(dir string) error { return os.Chmod(dir+"/d/f", 0o640) },
		"mtime": func(dir string) error {
			return os.Chtimes(dir+"/d/e", time.Time{}, time.Unix(1_700_000_000, 123456788))
		},
		"kind": func(dir string) error { return os.Rename(dir+"/soft", dir+"/d/e/soft") },
		"content": func(dir string) error {
			return sameTimes(dir+"/d/f", func(p string) error { return os.WriteFile(p, []byte("hallo"), 0o644) })
		},
		"xattr": func(dir string) error { return unix.Lsetxattr(dir+"/d/f", "user.x", []byte("1"), 0) },
		"link": func(dir string) error {
			return sameTimes(dir+"/hard", func(p string) error {
				if err := os.Remove(p); err != nil {
					return err
				}
				return os.WriteFile(p, []byte("hello"), 0o644)
			})
		},
		"target": func(dir string) error {
			return sameTimes(dir+"/soft", func(p string) error {
				if err := os.Remove(p); err != nil {
					return err
				}
				return os.Symlink("d/g", p)
			})
		},
	} {
		dir := makeTree(t)
		if err := change(dir); err != nil {
			t.Fatal(name, err)
		}
		if got := sum(t, dir); got.Hash == want.Hash {
			t.Errorf("%s: the hash does not tell", name)
		}
	}
}

// sameTimes does something to a file and puts its mtime back.
func sameTimes(path string, fn func(string) error) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if err := fn(path); err != nil {
		return err
	}
	ts := unix.NsecToTimespec(fi.ModTime().UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// What Unpack makes of an archive is what tar makes of it.
func TestUnpackLikeTar(t *testing.T) {
	source := makeTree(t)
	archive := filepath.Join(t.TempDir(), "t.tar.gz")
	if out, err := exec.Command("tar", "-C", source, "--format=posix", "-czf", archive, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s, err := OpenSource(archive)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := s.Unpack(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if got, want := sum(t, dir), sum(t, source); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestUnpackStaysInside(t *testing.T) {
	u := &unpacker{dir: "/a/b"}
	for _, name := range []string{"../../etc/x", "/etc/x", "c/../../../x"} {
		if got := u.path(name); !strings.HasPrefix(got, "/a/b/") {
			t.Errorf("%s goes to %s", name, got)
		}
	}
}

func TestShippedTree(t *testing.T) {
	s, err := OpenSource("")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := s.Unpack(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if tree := sum(t, dir); tree.Files < 20 {
		t.Errorf("got %+v", tree)
	}
}
