package kernel

import (
	"errors"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// bindDir is a directory that is freed in the end, before the connections of
// mounts made earlier are awaited.
func bindDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := Unbind(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestBind(t *testing.T) {
	needMount(t)
	_, c := serve(t, Options{FSName: "vol", Guard: true})
	rw, ro := bindDir(t), bindDir(t)
	for range 2 { // again is no error
		if err := c.Bind(rw, false, Flags{}); err != nil {
			t.Fatal(err)
		}
		if err := c.Bind(ro, true, Flags{NoExec: true}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Bind(ro, false, Flags{}); !errors.Is(err, ErrNotLikeThat) {
		t.Errorf("another way: %v", err)
	}
	if err := unix.Mkdir(rw+"/d", 0o755); err != nil {
		t.Errorf("write: %v", err)
	}
	if err := unix.Mkdir(ro+"/e", 0o755); err != unix.EROFS {
		t.Errorf("write to what is read-only: %v", err)
	}
	if _, err := os.Stat(ro + "/d"); err != nil {
		t.Error(err)
	}
	places, err := c.Places()
	if err != nil || len(places) != 3 || !slices.Contains(places, rw) || !slices.Contains(places, ro) {
		t.Errorf("places: %v, %v", places, err)
	}
	// In use, it goes all the same, and alone.
	held, err := os.Open(ro + "/d")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	for range 2 {
		if err := Unbind(ro); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(ro); err != nil {
		t.Error(err)
	}
	if err := Unbind(ro); err != nil {
		t.Errorf("no such directory: %v", err)
	}
	if err := unix.Mkdir(rw+"/f", 0o755); err != nil {
		t.Errorf("the other one: %v", err)
	}
	if err := c.Bind("/proc", false, Flags{}); !errors.Is(err, ErrMounted) {
		t.Errorf("over another mount: %v", err)
	}
	if err := Unbind("/proc"); !errors.Is(err, ErrMounted) {
		t.Errorf("unbind another mount: %v", err)
	}
	full := t.TempDir()
	if err := os.WriteFile(full+"/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Bind(full, false, Flags{}); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("over files: %v", err)
	}
}

// What a crash left is replaced; what lives is not.
func TestBindOverDead(t *testing.T) {
	needMount(t)
	_, c := serve(t, Options{FSName: "vol"})
	_, other := serve(t, Options{FSName: "other"})
	dir := bindDir(t)
	dead, err := Mount(t.TempDir(), Options{FSName: "vol"})
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.Bind(dir, false, Flags{}); err != nil {
		t.Fatal(err)
	}
	dead.Close()
	if err := Unbind(dead.Dir()); err != nil {
		t.Error(err)
	}
	if err := c.Bind(dir, false, Flags{}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkdir(dir+"/d", 0o755); err != nil {
		t.Error(err)
	}
	if err := other.Bind(dir, false, Flags{}); !errors.Is(err, ErrNotLikeThat) {
		t.Errorf("over a live one: %v", err)
	}
}

// A mount that nobody answers is bound and unbound as quickly, and so is one that
// a keeper holds for a daemon to come.
func TestBindAsksNobody(t *testing.T) {
	needMount(t)
	dir := bindDir(t)
	c, err := Mount(t.TempDir(), Options{FSName: "vol"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := errors.Join(c.Bind(dir, true, Flags{}), Unbind(dir), c.Bind(dir, false, Flags{}), Unbind(dir), Unbind(c.Dir())); err != nil {
		t.Error(err)
	}
}
