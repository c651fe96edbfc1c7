package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/playground"
	"github.com/synapsefs/synapsefs/internal/wire"
)

// P9: a mount that ends while no daemon serves it, by whatever hand, is no
// burden to the next: that starts, has nothing left of it, and can mount anew.
func TestP9MountEndsWithoutDaemon(t *testing.T) {
	forced := "no"
	if *passthrough {
		forced = "yes" // its kernel has the file, and will say ENOTCONN at the close
	}
	for _, c := range []struct {
		name string
		end  func(t *testing.T, nd *playground.Node)
		user string // whether the program that had a file open can write to it
	}{
		{"synapsefs umount", func(t *testing.T, nd *playground.Node) { umount(t, nd, 0, "removed the dead mount") }, forced},
		{"abort", func(t *testing.T, nd *playground.Node) {
			for _, control := range connectionsOf(t, nd.Mount) {
				if err := os.WriteFile(control+"/abort", []byte("1"), 0); err != nil {
					t.Fatal(err)
				}
			}
		}, forced},
		{"umount -l", func(t *testing.T, nd *playground.Node) {
			if err := unix.Unmount(nd.Mount, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		}, "yes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster := keptCluster(t, 1)
			nd := cluster.Nodes[0]
			write(t, nd, "f", "before")
			s := startShell(t)
			s.want("cd "+nd.Mount+" && exec 3>>open 4<f && echo x >&3 && cd / && echo ok", "ok")
			if err := nd.Kill(); err != nil {
				t.Fatal(err)
			}
			c.end(t, nd)
			if err := nd.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := mounts(t, nd); len(got) > 0 {
				t.Errorf("mounts after the end: %v", got)
			}
			s.want("{ echo y >&3; } 2>/dev/null && echo yes || echo no", c.user)
			s.says("exec 3>&- 4<&-")
			if _, err := command(nd, "umount", nd.Mount); err != nil && !strings.Contains(err.Error(), "nothing of synapsefs") {
				t.Error(err)
			}
			until(t, "all of the mount to go", func() bool {
				left, err := os.ReadDir(filepath.Join(nd.State, "mounts"))
				return err == nil && len(left) == 0
			})
			mount(t, nd, false)
			if got, err := os.ReadFile(filepath.Join(nd.Mount, "f")); string(got) != "before" {
				t.Errorf("%q %v", got, err)
			}
			if err := nd.Call(func(a *admin.Client) error {
				status, err := a.Status(t.Context(), &wire.NodeStatusRequest{})
				if err == nil && status.Volumes[0].OpenDrafts > 0 {
					t.Errorf("drafts are left: %v", status.Volumes[0])
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// connectionsOf are the kernel's controls of what is mounted on a directory.
func connectionsOf(t *testing.T, dir string) (controls []string) {
	t.Helper()
	fusectl := t.TempDir()
	if err := unix.Mount("fusectl", fusectl, "fusectl", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(fusectl, 0); err != nil {
			t.Error(err)
		}
	})
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		_, minor, _ := strings.Cut(f[2], ":")
		c := filepath.Join(fusectl, minor)
		if _, err := os.Stat(c); f[4] == dir && err == nil {
			controls = append(controls, c)
		}
	}
	return controls
}

// P9: SIGINT takes the mounts away for good: who still has something open in one
// gets an error, at once, and waits for no daemon.
func TestP9StopFreesPrograms(t *testing.T) {
	c := keptCluster(t, 1)
	nd := c.Nodes[0]
	write(t, nd, "f", "before")
	s := startShell(t)
	s.want("cd "+nd.Mount+" && exec 3>>f && echo ok", "ok")
	if err := nd.Stop(); err != nil {
		t.Fatal(err)
	}
	s.want("{ timeout 5 sh -c 'echo x >&3'; } 2>/dev/null; test $? = 124 && echo hangs || echo ends", "ends")
	s.says("cd /; exec 3>&-")
	wantGuard(t, nd.Mount)
	if err := nd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := mounts(t, nd); len(got) > 0 {
		t.Errorf("mounts after the end: %v", got)
	}
	mount(t, nd, false)
}

// P9, P11: a volume that is deleted while a node is away takes its mount there
// with it when the node comes back: programs get errors, never an empty folder.
func TestP9DeletedWhileAway(t *testing.T) {
	c := keptCluster(t, 2)
	nd := c.Nodes[1]
	write(t, c.Nodes[0], "f", "x")
	equal(t, c.Nodes...)
	user := startShell(t)
	user.want("cd "+nd.Mount+" && exec 3<f && echo ok", "ok")
	if err := nd.Kill(); err != nil {
		t.Fatal(err)
	}
	umount(t, c.Nodes[0], 0, "unmounted")
	if out, err := command(c.Nodes[0], "volumes", "delete", "--force", volume); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	for range 2 { // also the daemon after that one
		if err := nd.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		until(t, "the mount to go", func() bool { return len(mounts(t, nd)) == 0 })
		wantGuard(t, nd.Mount)
		if err := nd.Kill(); err != nil {
			t.Fatal(err)
		}
	}
}

// P9: what a mount is stays: read-only, seen by bind mounts.
func TestP9KindsOfMounts(t *testing.T) {
	eachHandOver(t, func(t *testing.T, next func(*playground.Node)) {
		c := keptCluster(t, 2)
		a, b := c.Nodes[0], c.Nodes[1]
		write(t, a, "f", "0")
		equal(t, c.Nodes...)
		umount(t, b, 0, "unmounted")
		if out, err := command(b, "mount", "--read-only", volume, b.Mount); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		bind := b.Mount + ".bind"
		if err := errors.Join(os.Mkdir(bind, 0o755), unix.Mount(b.Mount, bind, "", unix.MS_BIND, "")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := errors.Join(unix.Unmount(bind, unix.MNT_DETACH), os.Remove(bind)); err != nil {
				t.Error(err)
			}
		})
		s := startShell(t)
		s.want("cd "+bind+" && exec 3<f && cat f", "0")
		for i := range 4 {
			write(t, a, "f", fmt.Sprint(i+1))
			write(t, a, fmt.Sprint("n", i), "x")
			next(b)
			until(t, "the change in the bind mount", func() bool {
				return s.says(fmt.Sprintf("cat f n%d", i)) == fmt.Sprintf("%dx", i+1)
			})
			if err := os.WriteFile(filepath.Join(b.Mount, "f"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
				t.Errorf("a write says %v", err)
			}
			if m, err := mountOf(t, b); err != nil || !m.ReadOnly {
				t.Errorf("%v, %v", m, err)
			}
		}
		s.want("cat <&3; exec 3<&-; cd /", "0")
	})
}
