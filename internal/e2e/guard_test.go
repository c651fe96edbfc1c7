package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/playground"
	"github.com/synapsefs/synapsefs/internal/wire"
)

// guarded starts n nodes whose mounts have guards and a file "f".
func guarded(t *testing.T, n int) *playground.Cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("guards need root")
		}
		t.Skip("guards need root")
	}
	c := start(t, n)
	write(t, c.Nodes[0], "f", "x")
	equal(t, c.Nodes...)
	return c
}

// P11: a daemon that is told to stop leaves no empty directory, nor does its
// restart show one.
func TestP11Stop(t *testing.T) {
	c := guarded(t, 1)
	nd := c.Nodes[0]
	unwatch := watch(t, nd.Mount)
	for range 3 {
		if err := nd.Stop(); err != nil {
			t.Fatal(err)
		}
		wantGuard(t, nd.Mount)
		if err := nd.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantGuard(t, nd.Mount)
		mount(t, nd, false)
		if data, err := os.ReadFile(nd.Mount + "/f"); err != nil || string(data) != "x" {
			t.Errorf("after the restart: %q, %v", data, err)
		}
	}
	unwatch()
	umount(t, nd, 0, "unmounted "+nd.Mount)
	wantPlain(t, nd.Mount)
}

// P11: a stop while a program works in the mount.
func TestP11StopInUse(t *testing.T) {
	c := guarded(t, 1)
	nd := c.Nodes[0]
	f, err := os.Open(nd.Mount)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unwatch := watch(t, nd.Mount)
	if err := nd.Stop(); err != nil {
		t.Fatal(err)
	}
	wantGuard(t, nd.Mount)
	unwatch()
}

// P11: a volume deleted on one node is no empty directory on any; another
// volume may take the place, and umount lifts the guard.
func TestP11Delete(t *testing.T) {
	c := guarded(t, 2)
	unwatch := []func(){watch(t, c.Nodes[0].Mount), watch(t, c.Nodes[1].Mount)}
	err := c.Nodes[0].Call(func(a *admin.Client) error {
		_, err := a.DeleteVolume(t.Context(), &wire.DeleteVolumeRequest{Name: volume, Force: true})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, nd := range c.Nodes {
		until(t, "the mount to go", func() bool {
			_, err := os.ReadDir(nd.Mount)
			return errors.Is(err, syscall.ENOTCONN)
		})
		wantGuard(t, nd.Mount)
		unwatch[i]()
	}
	if err := c.Nodes[0].MountVolume(t.Context(), "another", true); err != nil {
		t.Fatal(err)
	}
	write(t, c.Nodes[0], "g", "y")
	umount(t, c.Nodes[0], 0, "unmounted "+c.Nodes[0].Mount)
	umount(t, c.Nodes[1], 0, "lifted the guard that an earlier run left at "+c.Nodes[1].Mount)
	for _, nd := range c.Nodes {
		wantPlain(t, nd.Mount)
	}
}

// umount needs no daemon to clear away what one left, and takes nothing else.
func TestUmountWithoutDaemon(t *testing.T) {
	c := guarded(t, 1)
	nd := c.Nodes[0]
	if err := nd.Stop(); err != nil {
		t.Fatal(err)
	}
	umount(t, nd, 0, "lifted the guard that an earlier run left at "+nd.Mount)
	wantPlain(t, nd.Mount)
	umount(t, nd, 4, "nothing of synapsefs is mounted there")

	if err := nd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	mount(t, nd, false)
	socket := nd.Socket
	nd.Socket += ".none"
	umount(t, nd, 6, "a daemon serves this mount")
	nd.Socket = socket
	if _, err := os.Stat(nd.Mount + "/f"); err != nil {
		t.Errorf("the mount of another daemon: %v", err)
	}
	if err := nd.Kill(); err != nil {
		t.Fatal(err)
	}
	wantGuard(t, nd.Mount)
	umount(t, nd, 0, "removed the dead mount of an earlier run and its guard at "+nd.Mount)
	wantPlain(t, nd.Mount)

	if err := unix.Mount("other", nd.Mount, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	umount(t, nd, 4, "something of type tmpfs")
	if err := unix.Unmount(nd.Mount, 0); err != nil {
		t.Errorf("the mount of somebody else: %v", err)
	}
}

// watch looks at a directory all the time until unwatch or the test's end. It
// may be listed with what is in it, or not at all.
func watch(t *testing.T, dir string) (unwatch func()) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			entries, err := os.ReadDir(dir)
			if err == nil && (len(entries) != 1 || entries[0].Name() != "f") {
				t.Errorf("%s looked like this: %v", dir, entries)
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	unwatch = sync.OnceFunc(func() { close(stop); <-done })
	t.Cleanup(unwatch)
	return unwatch
}

func wantGuard(t *testing.T, dir string) {
	t.Helper()
	if entries, err := os.ReadDir(dir); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("list of a guard: %v, %v", entries, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o644); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("create at a guard: %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("mkdir at a guard: %v", err)
	}
}

// wantPlain checks for an ordinary empty directory.
func wantPlain(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil || strings.Contains(string(mounts), " "+dir+" ") {
		t.Errorf("something is still mounted at %s (%v)", dir, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the bare directory: %v, %v", entries, err)
	}
	probe := filepath.Join(dir, "probe")
	if err := errors.Join(os.WriteFile(probe, nil, 0o644), os.Remove(probe)); err != nil {
		t.Error(err)
	}
}

// umount runs the command and checks its exit code and what it says.
func umount(t *testing.T, nd *playground.Node, code int, says string) {
	t.Helper()
	cmd := exec.Command(binary, "--socket", nd.Socket, "umount", nd.Mount)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code || !strings.Contains(string(out), says) {
		t.Errorf("umount: exit %d, want %d; it says %q, want %q in it", got, code, out, says)
	}
}

// P11: a daemon ends although a mount namespace that was made under its mount
// has a copy of that; who uses the copy gets an error then, and no empty
// directory.
func TestP11StopWithACopyElsewhere(t *testing.T) {
	for _, kept := range []bool{false, true} {
		t.Run(fmt.Sprintf("kept=%v", kept), func(t *testing.T) {
			c := prepareWith(t, 1, func(c *playground.Cluster) { c.MountsEnd = !kept })
			nd := c.Nodes[0]
			if err := nd.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			mount(t, nd, true)
			write(t, nd, "f", "x")
			script := `echo ready; read go; ls "$1" 2>&1`
			elsewhere := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", nd.Mount)
			in, err := elsewhere.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := elsewhere.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := elsewhere.Start(); err != nil {
				t.Fatal(err)
			}
			said := bufio.NewReader(out)
			if line, err := said.ReadString('\n'); err != nil || line != "ready\n" {
				t.Fatalf("it says %q, %v", line, err)
			}
			if err := nd.Stop(); err != nil {
				t.Error(err)
			}
			wantGuard(t, nd.Mount)
			in.Close()
			rest, err := io.ReadAll(said)
			if err != nil || !strings.Contains(string(rest), "not connected") && !strings.Contains(string(rest), "connection abort") {
				t.Errorf("in the other namespace ls says %q, %v", rest, err)
			}
			elsewhere.Wait() //nolint:errcheck // ls fails
		})
	}
}
