package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/internal/keys"
	"github.com/synapsefs/synapsefs/internal/playground"
	"github.com/synapsefs/synapsefs/store"
)

func TestMain(m *testing.M) {
	if kernel.IsHelper() {
		if err := kernel.RunHelper(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// A cluster of nodes in this process.
type cluster struct {
	t     *testing.T
	dir   string
	nodes int
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: shortDir(t)}
	if err := keys.InitCA(filepath.Join(c.dir, "ca"), "test"); err != nil {
		t.Fatal(err)
	}
	return c
}

// config is that of one more node.
func (c *cluster) config(join ...string) *config.Config {
	c.t.Helper()
	c.nodes++
	name := fmt.Sprintf("node%d", c.nodes)
	dir := filepath.Join(c.dir, name)
	if err := keys.Issue(filepath.Join(c.dir, "ca"), filepath.Join(dir, "keys"), name); err != nil {
		c.t.Fatal(err)
	}
	cfg := config.Default()
	cfg.Node, cfg.Cluster, cfg.Join = name, "test", join
	cfg.StateDir, cfg.Keys = filepath.Join(dir, "state"), filepath.Join(dir, "keys")
	cfg.AdminSocket = filepath.Join(dir, "admin.sock")
	cfg.Bind, cfg.ReplicaBind = c.freePort(), c.freePort()
	cfg.CatchUpTimeout = 2 * time.Second
	return cfg
}

func (c *cluster) freePort() string {
	addr, err := playground.FreeAddress()
	if err != nil {
		c.t.Fatal(err)
	}
	return addr
}

func testLog(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func start(t *testing.T, cfg *config.Config) *Node {
	t.Helper()
	n, err := Start(t.Context(), cfg, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func mountable(t *testing.T) {
	t.Helper()
	if err := playground.Mountable(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func TestVolumesOfOneNode(t *testing.T) {
	n := start(t, newCluster(t).config())
	ctx := t.Context()
	if _, err := n.CreateVolume(ctx, "configs", nil); err != nil {
		t.Fatal(err)
	}
	_, err := n.CreateVolume(ctx, "configs", nil)
	if !errors.Is(err, ErrVolumeExists) {
		t.Errorf("create twice: %v", err)
	}
	for _, bad := range []string{"", "-a", "A", "a_b", "a/b", strings.Repeat("a", 64)} {
		if _, err := n.CreateVolume(ctx, bad, nil); !errors.Is(err, ErrBadName) {
			t.Errorf("create %q: %v", bad, err)
		}
	}
	_, err = n.Mount(ctx, MountRequest{Volume: "confgis", Dir: t.TempDir()})
	if !errors.Is(err, store.ErrNoVolume) || !strings.Contains(err.Error(), "there are configs") {
		t.Errorf("mount of an unknown volume: %v", err)
	}
	if _, err := n.DeleteVolume(ctx, "configs", false); err != nil {
		t.Fatal(err)
	}
	all, err := n.ListVolumes(ctx)
	if err != nil || len(all) != 0 {
		t.Errorf("after the delete: %v, %v", all, err)
	}
}

func TestMountRefuses(t *testing.T) {
	mountable(t)
	n := start(t, newCluster(t).config())
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		dir  string
		want error
	}{
		{filepath.Join(full, "none"), kernel.ErrMountpointMissing},
		{filepath.Join(full, "f"), kernel.ErrNotDirectory},
		{full, kernel.ErrNotEmpty},
		{"/proc", kernel.ErrMounted},
	} {
		_, err := n.Mount(t.Context(), MountRequest{Volume: "v", Dir: tt.dir, Create: true})
		if !errors.Is(err, tt.want) {
			t.Errorf("mount on %s: %v, want %v", tt.dir, err, tt.want)
		}
	}
	if err := n.Unmount(full, false); !errors.Is(err, ErrNotMounted) {
		t.Errorf("unmount of nothing: %v", err)
	}
}

func TestMountTwoNodes(t *testing.T) {
	mountable(t)
	d1, d2 := t.TempDir(), t.TempDir() // removed after the nodes have stopped
	c := newCluster(t)
	one := c.config()
	n1 := start(t, one)
	n2 := start(t, c.config(one.Bind))
	info, err := n1.Mount(t.Context(), MountRequest{Volume: "v", Dir: d1, Create: true})
	if err != nil || !info.Created {
		t.Fatal(info, err)
	}
	if _, err := n1.Mount(t.Context(), MountRequest{Volume: "v", Dir: d1}); !errors.Is(err, kernel.ErrMounted) {
		t.Errorf("mounted twice: %v", err)
	}
	write(t, d1, "before", "1")
	released(t, n1)
	// Not --create: node2 knows the volume from the catalogue alone.
	info, err = n2.Mount(t.Context(), MountRequest{Volume: "v", Dir: d2})
	if err != nil || info.Created || info.Stale {
		t.Fatal(info, err)
	}
	// P11: once mounted, all that was there is there.
	if got := read(d2, "before"); got != "1" {
		t.Errorf("after the mount: %q", got)
	}
	write(t, d2, "after", "2")
	if err := n2.Wait(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "node1 shows the file", func() bool { return read(d1, "after") == "2" })
	if _, err := n1.DeleteVolume(t.Context(), "v", false); !errors.Is(err, ErrVolumeBusy) {
		t.Errorf("delete of a mounted volume: %v", err)
	}
	if _, err := n1.DeleteVolume(t.Context(), "v", true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "node2 drops the deleted volume", func() bool {
		return len(n2.Mounts()) == 0 && len(n2.db.Volumes()) == 1
	})
}

// P11: who has met nobody knows no volumes, and makes none.
func TestP11JoinerKnowsNothing(t *testing.T) {
	c := newCluster(t)
	n := start(t, c.config(c.freePort()))
	_, err := n.CreateVolume(t.Context(), "v", nil)
	if !errors.Is(err, ErrNoCatalogue) {
		t.Errorf("create: %v", err)
	}
	_, err = n.Mount(t.Context(), MountRequest{Volume: "v", Dir: t.TempDir(), Create: true})
	if !errors.Is(err, ErrNoCatalogue) {
		t.Errorf("mount: %v", err)
	}
}

func TestFounderWithJoin(t *testing.T) {
	c := newCluster(t)
	cfg := c.config(c.freePort())
	cfg.Bootstrap = true
	n := start(t, cfg)
	eventually(t, "the founder is ready", n.catalogue.v.Ready)
	if _, err := n.CreateVolume(t.Context(), "v", nil); err != nil {
		t.Error(err)
	}
}

func TestStateDirectoryOfAnother(t *testing.T) {
	c := newCluster(t)
	one := c.config()
	start(t, one)
	two := c.config()
	two.StateDir = one.StateDir
	_, err := Start(t.Context(), two, slog.New(slog.DiscardHandler))
	if !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), one.StateDir) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(two.AdminSocket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestToStatus(t *testing.T) {
	for _, row := range statusCodes {
		err := toStatus(fmt.Errorf("do something: %w", row.err))
		if got := status.Code(err); got != row.code {
			t.Errorf("%v: %v, want %v", row.err, got, row.code)
		}
	}
	if got := status.Code(toStatus(errors.New("x"))); got != codes.Internal {
		t.Errorf("unknown error: %v", got)
	}
}

// released waits for the kernel's RELEASE of what was closed: it comes after
// close returned.
func released(t *testing.T, n *Node) {
	t.Helper()
	eventually(t, "closed files are published", func() bool {
		for _, v := range n.db.Volumes() {
			if s := v.Stats(); s.OpenDrafts+s.Unsealed > 0 {
				return false
			}
		}
		return true
	})
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(dir, name string) string {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// eventually polls until ok, which says what.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not in time: %s", what)
		}
	}
}
