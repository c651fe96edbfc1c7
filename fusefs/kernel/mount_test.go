package kernel

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMountRefuses(t *testing.T) {
	needMount(t)
	empty := t.TempDir()
	file := filepath.Join(empty, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, c := serve(t, Options{FSName: "vol"})
	for dir, want := range map[string]error{
		filepath.Join(empty, "missing"): ErrMountpointMissing,
		file:                            ErrNotDirectory,
		empty:                           ErrNotEmpty,
		c.Dir():                         ErrMounted,
		"/proc":                         ErrMounted,
	} {
		if other, err := Mount(dir, Options{}); !errors.Is(err, want) {
			t.Errorf("Mount(%s) = %v, %v, want %v", dir, other, err, want)
		}
	}
}

func TestMountShowsVolume(t *testing.T) {
	_, c := serve(t, Options{FSName: "my vol,ume"})
	top, ok, err := lookupTop(c.Dir())
	if err != nil || !ok || top.source != "my vol,ume" || top.fstype != FSType {
		t.Errorf("mountinfo: %+v, %v, %v", top, ok, err)
	}
}

func TestUnmountIsIdempotentAndEndsWait(t *testing.T) {
	_, c := serve(t, Options{})
	for range 2 {
		if err := c.Unmount(UnmountOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	if err := Unmount(c.Dir(), UnmountOptions{}); err != nil {
		t.Error(err)
	}
	if err := c.InvalInode(rootNode, 0, 0); !errors.Is(err, ErrUnmounted) {
		t.Errorf("notification after the end: %v", err)
	}
}

// An end at any moment of a request's way is an end, not a failure.
func TestUnmountInTraffic(t *testing.T) {
	for range 50 {
		_, c := serve(t, Options{})
		var traffic sync.WaitGroup
		for range 4 {
			traffic.Go(func() {
				for {
					select {
					case <-c.Done():
						return
					default:
						unix.Access(c.Dir()+"/none", unix.F_OK)
					}
				}
			})
		}
		err := unix.Unmount(c.Dir(), unix.MNT_FORCE|unix.MNT_DETACH)
		if waited := c.Wait(); err != nil || waited != nil {
			t.Errorf("unmount: %v; wait: %v", err, waited)
		}
		traffic.Wait()
	}
}

func TestUnmountBusyNamesHolder(t *testing.T) {
	_, c := serve(t, Options{})
	fd, err := unix.Open(c.Dir(), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Unmount(UnmountOptions{})
	unix.Close(fd)
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "kernel.test") {
		t.Errorf("unmount in use: %v", err)
	}
}

func TestUnmountCovered(t *testing.T) {
	_, c := serve(t, Options{})
	if err := unix.Mount("over", c.Dir(), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	err := c.Unmount(UnmountOptions{})
	if err2 := unix.Unmount(c.Dir(), 0); err2 != nil {
		t.Error(err2)
	}
	if !errors.Is(err, ErrCovered) {
		t.Errorf("unmount below another: %v", err)
	}
}

func TestP11GuardAnswersWhenMountIsGone(t *testing.T) {
	needMount(t)
	dir := t.TempDir()
	_, c := serveOn(t, dir, Options{FSName: "vol", Guard: true})
	if err := c.Unmount(UnmountOptions{}); err != nil {
		t.Fatal(err)
	}
	wantNotConnected(t, dir)

	// A later run finds the guard and mounts on it.
	fs, c := serveOn(t, dir, Options{FSName: "vol", Guard: true})
	if err := unix.Mkdir(dir+"/d", 0o755); err != nil || len(fs.took()) == 0 {
		t.Fatalf("mkdir on the guard's mount: %v", err)
	}
	if n := countMounts(t, c.Dir()); n != 2 {
		t.Errorf("%d mounts with a reused guard, want 2", n)
	}
	if err := c.Unmount(UnmountOptions{Guard: true}); err != nil {
		t.Fatal(err)
	}
	if n := countMounts(t, c.Dir()); n != 0 {
		t.Errorf("%d mounts after a deliberate unmount", n)
	}
}

func wantNotConnected(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.ReadDir(dir); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("list of the guard: %v", err)
	}
	if err := os.Mkdir(dir+"/x", 0o755); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("mkdir in the guard: %v", err)
	}
}

// A crash leaves guard and dead mount. Both with and without a guard the
// next run mounts.
func TestMountAfterCrash(t *testing.T) {
	needMount(t)
	for _, next := range []bool{true, false} {
		dir := t.TempDir()
		c, err := Mount(dir, Options{FSName: "vol", Guard: true})
		if err != nil {
			t.Fatal(err)
		}
		c.Close() // what a crash does
		wantNotConnected(t, dir)
		_, c = serveOn(t, dir, Options{FSName: "vol", Guard: next})
		want := 1
		if next {
			want = 2
		}
		if n := countMounts(t, c.Dir()); n != want {
			t.Errorf("guard %v: %d mounts, want %d", next, n, want)
		}
	}
}

// A guard is not replaced by that of another volume: between the two the bare
// directory would show.
func TestP11GuardIsKeptForAnotherVolume(t *testing.T) {
	needMount(t)
	dir := t.TempDir()
	_, c := serveOn(t, dir, Options{FSName: "one", Guard: true})
	if err := c.Unmount(UnmountOptions{}); err != nil {
		t.Fatal(err)
	}
	guard, _, err := lookupTop(c.Dir())
	if err != nil {
		t.Fatal(err)
	}
	_, c = serveOn(t, dir, Options{FSName: "two", Guard: true})
	if here, err := mounted(guard); err != nil || !here {
		t.Errorf("the guard is gone (%v)", err)
	}
	if n := countMounts(t, c.Dir()); n != 2 {
		t.Errorf("%d mounts, want 2", n)
	}
}

func TestClear(t *testing.T) {
	needMount(t)
	dir := t.TempDir()
	_, c := serveOn(t, dir, Options{FSName: "vol", Guard: true})
	if done, err := Clear(dir); !errors.Is(err, ErrServed) || done != (Cleared{}) {
		t.Errorf("a mount that is served: %+v, %v", done, err)
	}
	if err := c.Unmount(UnmountOptions{}); err != nil {
		t.Fatal(err)
	}
	if done, err := Clear(dir); err != nil || done != (Cleared{Guards: 1}) {
		t.Errorf("a guard: %+v, %v", done, err)
	}
	dead, err := Mount(dir, Options{FSName: "vol", Guard: true})
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	if done, err := Clear(dir); err != nil || done != (Cleared{Dead: 1, Guards: 1}) {
		t.Errorf("a crash: %+v, %v", done, err)
	}
	for _, other := range []string{dir, dir + "/none", "/proc"} {
		if done, err := Clear(other); !errors.Is(err, ErrNotMounted) || done != (Cleared{}) {
			t.Errorf("%s: %+v, %v", other, done, err)
		}
	}
	if n := countMounts(t, c.Dir()); n != 0 {
		t.Errorf("%d mounts are left", n)
	}
}

func countMounts(t *testing.T, point string) int {
	t.Helper()
	entries, err := readMountinfo()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if e.point == point {
			n++
		}
	}
	return n
}

func TestParseMountinfo(t *testing.T) {
	const table = `22 1 0:20 / / rw - ext4 /dev/vda rw
30 22 0:31 / /mnt/a\040b rw,nosuid shared:3 - fuse.synapsefs guard:v\054w rw,user_id=0
31 30 0:32 / /mnt/a\040b rw - fuse.synapsefs v rw
broken
`
	entries, err := parseMountinfo(strings.NewReader(table))
	if err != nil || len(entries) != 3 {
		t.Fatalf("%+v, %v", entries, err)
	}
	if entries[1].source != "guard:v,w" || !isGuard(entries[1]) || isGuard(entries[2]) {
		t.Errorf("guard: %+v", entries[1])
	}
	entries[1], entries[2] = entries[2], entries[1] // the order says nothing
	if top, ok := topMount(entries, "/mnt/a b"); !ok || top.id != 31 {
		t.Errorf("top: %+v", top)
	}
}

// A user mounts by fusermount3, and the helper works without privilege.
func TestMountAsUser(t *testing.T) {
	needMount(t)
	if _, err := fusermountBinary(); err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("", "usermount") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asUserEnv+"="+dir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
