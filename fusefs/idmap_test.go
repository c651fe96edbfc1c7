package fusefs_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

// idmapped shows a directory's mount at another one, where the owners 0 to 65535 are
// those from first on: as a runtime does for a pod with a user namespace of its own.
func idmapped(t *testing.T, dir string, first int) string {
	t.Helper()
	holder := exec.Command("sleep", "infinity")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: first, Size: 65536}}
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer holder.Wait()         //nolint:errcheck // it is killed
	defer holder.Process.Kill() //nolint:errcheck // it sleeps
	users, err := os.Open(filepath.Join("/proc", strconv.Itoa(holder.Process.Pid), "ns/user"))
	if err != nil {
		t.Fatal(err)
	}
	defer users.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}); err != nil {
		t.Fatalf("idmap: %v", err)
	}
	at, err := os.MkdirTemp("", "idmapped") // others may enter what it is in
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(at, unix.MNT_DETACH), os.Remove(at)); err != nil {
			t.Error(err)
		}
	})
	return at
}

// A mount can be idmapped: owners are those of the other side, both ways, and who has
// none there may make nothing.
func TestIDMapped(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	mapped := idmapped(t, n.Dir, 100000)
	owner := func(path string) [2]uint32 {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		return [2]uint32{st.Uid, st.Gid}
	}
	is := func(name string, here, there uint32) {
		t.Helper()
		if got := owner(filepath.Join(n.Dir, name)); got != [2]uint32{here, here} {
			t.Errorf("%s has owner %v, want %d", name, got, here)
		}
		if got := owner(filepath.Join(mapped, name)); got != [2]uint32{there, there} {
			t.Errorf("%s shows owner %v, want %d", name, got, there)
		}
	}
	const nobody = 65534
	for name, uid := range map[string]int{"in": 5, "root": 0, "out": 70000} {
		path := filepath.Join(n.Dir, name)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	is("in", 5, 100005)
	is("root", 0, 100000)
	is("out", 70000, nobody)
	if err := os.Chown(filepath.Join(mapped, "in"), 100009, 100009); err != nil {
		t.Fatal(err)
	}
	is("in", 9, 100009)
	if err := os.WriteFile(filepath.Join(mapped, "none"), nil, 0o644); !errors.Is(err, unix.EOVERFLOW) {
		t.Errorf("made by who has no owner there: %v", err)
	}

	// The pod's root, and a user of it.
	must(t, os.Chmod(n.Dir, 0o777))
	for _, uid := range []uint32{0, 1000} {
		sh := exec.Command("sh", "-c", fmt.Sprintf("cd %s && echo x > file%d && mkdir dir%d && ln -s x symlink%d && mkfifo fifo%d && chmod 2755 dir%d && mv file%d moved%d && ! touch in", mapped, uid, uid, uid, uid, uid, uid, uid))
		sh.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 100000 + uid, Gid: 100000 + uid}}
		if out, err := sh.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		for _, name := range []string{"dir", "symlink", "fifo", "moved"} {
			is(fmt.Sprint(name, uid), uid, 100000+uid)
		}
	}
}
