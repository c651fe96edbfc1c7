package fusefs_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

// File handles, as an NFS server keeps them: one finds its file by whatever name
// it has, and no file that has none, unless somebody has it open.
func TestFileHandles(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	root, err := os.Open(n.Dir)
	must(t, err)
	defer root.Close()
	must(t, os.Mkdir(n.Dir+"/d", 0o755))
	for name, c := range map[string]struct {
		do   func(path string) error
		want error
	}{
		"left alone": {func(string) error { return nil }, nil},
		"renamed":    {func(path string) error { return os.Rename(path, path+".new") }, nil},
		"moved":      {func(path string) error { return os.Rename(path, n.Dir+"/d/moved") }, nil},
		"has another link": {func(path string) error {
			return errors.Join(os.Link(path, path+".link"), os.Remove(path))
		}, nil},
		"removed":  {os.Remove, unix.ESTALE},
		"replaced": {func(path string) error { return os.Rename(n.Dir+"/other", path) }, unix.ESTALE},
		"removed while open": {func(path string) error {
			f, err := os.Open(path)
			t.Cleanup(func() { f.Close() })
			return errors.Join(err, os.Remove(path))
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			path := n.Dir + "/f"
			writeFile(t, path, "text")
			writeFile(t, n.Dir+"/other", "other")
			handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
			must(t, err)
			must(t, c.do(path))
			fd, err := unix.OpenByHandleAt(int(root.Fd()), handle, unix.O_RDONLY)
			if err != c.want {
				t.Errorf("opened by its handle: %v, want %v", err, c.want)
			}
			if err == nil {
				f := os.NewFile(uintptr(fd), name)
				defer f.Close()
				if got := readAll(t, f); got != "text" {
					t.Errorf("it holds %q", got)
				}
			}
		})
	}
}
