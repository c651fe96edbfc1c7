package node

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A directory is free for a mount as soon as the one before is out of the tree,
// by whose hand ever, although somebody still uses that. Both see what happens,
// and the new one goes on when the old one ends.
func TestMountOverDetached(t *testing.T) {
	mountable(t)
	rooted(t)
	for name, detach := range map[string]func(*Node, string) error{
		"umount --force": func(n *Node, dir string) error { _, err := n.Unmount(dir, true); return err },
		"umount(8) -l":   func(_ *Node, dir string) error { return unix.Unmount(dir, unix.MNT_DETACH) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, other := mountpoint(t), mountpoint(t)
			n := start(t, newCluster(t).config())
			for _, d := range []string{dir, other} {
				if _, err := n.Mount(t.Context(), MountRequest{Volume: "v", Dir: d, Create: true}); err != nil {
					t.Fatal(err)
				}
			}
			old, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer old.Close()
			if err := detach(n, dir); err != nil {
				t.Fatal(err)
			}
			if _, err := n.Mount(t.Context(), MountRequest{Volume: "v", Dir: dir}); err != nil {
				t.Fatal(err)
			}
			expectShown(t, other, dir, "while-used")
			eventually(t, "the old mount shows it", func() bool {
				return unix.Faccessat(int(old.Fd()), "while-used", unix.F_OK, 0) == nil
			})
			old.Close()
			eventually(t, "the old mount to end", func() bool {
				n.mu.Lock()
				defer n.mu.Unlock()
				return len(n.live) == 2
			})
			expectShown(t, other, dir, "when-ended")
		})
	}
}

// umount(8) tells the daemon nothing: a mount right after it is not refused.
func TestMountRightAfterUmount(t *testing.T) {
	mountable(t)
	rooted(t)
	dir := mountpoint(t)
	n := start(t, newCluster(t).config())
	for range 20 {
		if _, err := n.Mount(t.Context(), MountRequest{Volume: "v", Dir: dir, Create: true}); err != nil {
			t.Fatal(err)
		}
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// expectShown makes a file through one mount, whose name another had been asked
// for before.
func expectShown(t *testing.T, from, to, name string) {
	t.Helper()
	path := filepath.Join(to, name)
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Error(path, err)
	}
	write(t, from, name, "x")
	eventually(t, path+" to be shown", func() bool {
		_, err := os.Stat(path)
		return err == nil
	})
}
