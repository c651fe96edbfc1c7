package kernel

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// asUserEnv makes the test binary play a user's daemon (see userMain).
const asUserEnv = "SYNAPSEFS_TEST_AS_USER"

func TestMain(m *testing.M) {
	if IsHelper() {
		exitWith(RunHelper())
	}
	if os.Getenv(asUserEnv) != "" {
		exitWith(userMain(os.Getenv(asUserEnv)))
	}
	goleak.VerifyTestMain(m)
}

func exitWith(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// needMount skips where no mount is possible.
func needMount(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("no mounts here: %v", err)
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
}

// serve mounts a memFS on a new directory and unmounts it in the end.
func serve(t *testing.T, opts Options) (*memFS, *Conn) {
	t.Helper()
	needMount(t)
	return serveOn(t, t.TempDir(), opts)
}

func serveOn(t *testing.T, dir string, opts Options) (*memFS, *Conn) {
	t.Helper()
	c, err := Mount(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	fs := newMemFS()
	t.Cleanup(func() {
		fs.helper.Close()
		if err := c.Unmount(UnmountOptions{Lazy: true, Guard: true}); err != nil {
			t.Error(err)
		}
		c.Close()
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	})
	if err := c.Serve(fs); err != nil {
		t.Fatal(err)
	}
	return fs, c
}

// startHelper starts the test binary as the helper of c.
func startHelper(t *testing.T, fs *memFS, c *Conn) {
	t.Helper()
	if err := fs.helper.Start(c, "/proc/self/exe"); err != nil {
		t.Fatal(err)
	}
}
