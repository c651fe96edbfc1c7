package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/gossip"
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
	// memberlist does not wait for a probe of a dead peer, which ends by itself.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
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
	cfg.Keeper = false // the test program is none
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

// rooted skips what only root may do; in CI that is no excuse.
func rooted(t *testing.T) {
	t.Helper()
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("CI") != "":
		t.Fatal("needs root")
	default:
		t.Skip("needs root")
	}
}

// mountpoint is a directory for a mount. Nodes that end later than this test
// would leave a guard there: call it before they start.
func mountpoint(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := kernel.Unmount(dir, kernel.UnmountOptions{Lazy: true, Guard: true}); err != nil {
			t.Error(err)
		}
	})
	return dir
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
	if _, err := n.Unmount(full, false); !errors.Is(err, kernel.ErrNotMounted) {
		t.Errorf("unmount of nothing: %v", err)
	}
}

func TestMountTwoNodes(t *testing.T) {
	mountable(t)
	d1, d2 := mountpoint(t), mountpoint(t)
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
	if nodes, err := n2.Wait(t.Context(), "v"); err != nil || len(nodes) != 1 {
		t.Fatal(nodes, err)
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

// P11: a replica that serves without having caught up is stale, until it has.
func TestP11StaleUntilCaughtUp(t *testing.T) {
	mountable(t)
	d1, d2 := mountpoint(t), mountpoint(t)
	c := newCluster(t)
	one := c.config()
	two := c.config(one.Bind)
	quiet := slog.New(slog.DiscardHandler)
	n1, err := Start(t.Context(), one, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n1.Mount(t.Context(), MountRequest{Volume: "v", Dir: d1, Create: true}); err != nil {
		t.Fatal(err)
	}
	n2, err := Start(t.Context(), two, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n2.Mount(t.Context(), MountRequest{Volume: "v", Dir: d2}); err != nil {
		t.Fatal(err)
	}
	if err := n2.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, d1, "while away", "1")
	released(t, n1)
	if err := n1.Close(); err != nil {
		t.Fatal(err)
	}
	n2 = start(t, two)
	info, err := n2.Mount(t.Context(), MountRequest{Volume: "v", Dir: d2})
	if err != nil || !info.Stale {
		t.Fatalf("no peer is there: %+v, %v", info, err)
	}
	start(t, one)
	eventually(t, "stale no longer", func() bool { return !n2.Mounts()[0].Stale })
	if got := read(d2, "while away"); got != "1" {
		t.Errorf("not stale, but the file is %q", got)
	}
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

// Nobody is said to have a volume when nobody is there.
func TestWaitWithoutPeers(t *testing.T) {
	c := newCluster(t)
	single := start(t, c.config())
	if _, err := single.CreateVolume(t.Context(), "v", nil); err != nil {
		t.Fatal(err)
	}
	if nodes, err := single.Wait(t.Context(), "v"); err != nil || len(nodes) != 0 {
		t.Errorf("a cluster of one: %q, %v", nodes, err)
	}
	second := c.config(single.cfg.Bind)
	n, err := Start(t.Context(), second, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "links", func() bool { return n.linkedBothWays() && single.linkedBothWays() })
	if nodes, err := single.Wait(t.Context(), "v"); !errors.Is(err, ErrNoPeer) {
		t.Errorf("a peer without the volume: %q, %v", nodes, err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the peer is gone", func() bool { return !single.linked() })
	if nodes, err := single.Wait(t.Context(), "v"); !errors.Is(err, ErrNoPeer) {
		t.Errorf("the peer is gone: %q, %v", nodes, err)
	}
	founder := c.config(c.freePort())
	founder.Bootstrap = true
	n = start(t, founder)
	eventually(t, "the founder is ready", n.catalogue.v.Ready)
	if _, err := n.CreateVolume(t.Context(), "v", nil); err != nil {
		t.Fatal(err)
	}
	if nodes, err := n.Wait(t.Context(), "v"); !errors.Is(err, ErrNoPeer) {
		t.Errorf("nobody answered at join: %q, %v", nodes, err)
	}
}

func (n *Node) linkedBothWays() bool {
	for _, p := range n.cluster.Peers() {
		if p.State == gossip.StateUp {
			return true
		}
	}
	return false
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

func TestStateDirectoryInUse(t *testing.T) {
	c := newCluster(t)
	one := c.config()
	start(t, one)
	two := c.config()
	two.StateDir, two.Node, two.Keys = one.StateDir, one.Node, one.Keys
	_, err := Start(t.Context(), two, slog.New(slog.DiscardHandler))
	if !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), one.StateDir) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(two.AdminSocket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// P12: what is written with one node's key is not written on with another's.
func TestP12StateOfAnotherKey(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	c := newCluster(t)
	one := c.config()
	n, err := Start(t.Context(), one, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	renewed := *one // the same name and another key
	renewed.Keys = filepath.Join(c.dir, "renewed")
	if err := keys.Issue(filepath.Join(c.dir, "ca"), renewed.Keys, "node1"); err != nil {
		t.Fatal(err)
	}
	foreign := newCluster(t).config()
	for name, cfg := range map[string]*config.Config{"another node": c.config(), "another key": &renewed, "another cluster": foreign} {
		cfg.StateDir = one.StateDir
		for _, known := range []bool{true, false} { // by the owner file, and by the replicas alone
			_, err := Start(t.Context(), cfg, quiet)
			if !errors.Is(err, gossip.ErrForeignState) || !strings.Contains(err.Error(), one.StateDir) ||
				name != "another cluster" && !strings.Contains(err.Error(), `of node "node1"`) {
				t.Errorf("%s (owner known: %v): %v", name, known, err)
			}
			if err := os.Remove(filepath.Join(one.StateDir, ownerFile)); known && err != nil {
				t.Fatal(err)
			}
		}
		again, err := Start(t.Context(), one, quiet)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A state directory with volumes gets no new catalogue, which would hide them.
func TestP11NoNewCatalogueOverOldVolumes(t *testing.T) {
	for _, bootstrap := range []bool{false, true} {
		c := newCluster(t)
		cfg := c.config()
		if bootstrap {
			cfg.Bootstrap, cfg.Join = true, []string{c.freePort()}
		}
		db, err := store.Open(store.Options{Dir: cfg.StateDir})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.CreateReplica(store.NewVolumeID(), "old", true); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		_, err = Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if !errors.Is(err, ErrNoCatalogue) || !strings.Contains(err.Error(), `"old"`) || !strings.Contains(err.Error(), cfg.StateDir) {
			t.Errorf("bootstrap %v: %v", bootstrap, err)
		}
	}
}

// P11: who held a volume before its cluster was founded anew does not mount the
// new, empty one of its name by accident, and gets the old one back.
func TestP11FoundedAnew(t *testing.T) {
	mountable(t)
	d1, d2 := mountpoint(t), mountpoint(t)
	ctx := t.Context()
	c := newCluster(t)
	one := c.config()
	two := c.config(one.Bind)
	quiet := slog.New(slog.DiscardHandler)
	run := func(cfg *config.Config) *Node {
		n, err := Start(ctx, cfg, quiet)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n1, n2 := run(one), run(two)
	old, err := n1.CreateVolume(ctx, "v", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n2.Mount(ctx, MountRequest{Volume: "v", Dir: d2}); err != nil {
		t.Fatal(err)
	}
	write(t, d2, "precious", "1")
	released(t, n2)
	if err := errors.Join(n2.Close(), n1.Close()); err != nil {
		t.Fatal(err)
	}
	one.StateDir += "2" // lost
	one.Bootstrap = true
	n1 = start(t, one)
	fresh, err := n1.CreateVolume(ctx, "v", nil)
	if err != nil {
		t.Fatal(err)
	}
	n2 = start(t, two)
	eventually(t, "node2 knows the new volume", func() bool {
		l, err := n2.catalogue.find("v")
		return err == nil && l.ID == fresh.ID
	})
	_, err = n2.Mount(ctx, MountRequest{Volume: "v", Dir: d2})
	if !errors.Is(err, ErrTwoVolumes) || !strings.Contains(err.Error(), "volumes delete "+old.ID.String()) {
		t.Fatalf("mount by name: %v", err)
	}
	all, err := n2.ListVolumes(ctx)
	if err != nil || len(all) != 2 || !strings.Contains(all[1].Problem, fresh.ID.String()) {
		t.Errorf("listed: %+v, %v", all, err)
	}
	if _, err := n2.Mount(ctx, MountRequest{Volume: old.ID.String(), Dir: d2}); err != nil {
		t.Fatal(err)
	}
	if got := read(d2, "precious"); got != "1" {
		t.Errorf("mounted by id: %q", got)
	}
	if _, err := n2.DeleteVolume(ctx, fresh.ID.String(), false); err != nil {
		t.Fatal(err)
	}
	if info, err := n2.CreateVolume(ctx, "v", nil); err != nil || info.ID != old.ID {
		t.Fatalf("listed again: %+v, %v", info, err)
	}
	if _, err := n1.Mount(ctx, MountRequest{Volume: "v", Dir: d1}); err != nil {
		t.Fatal(err)
	}
	if got := read(d1, "precious"); got != "1" {
		t.Errorf("on the other node: %q", got)
	}
}

// To drop an old volume by its id leaves the new one of its name alone.
func TestDeleteUnlistedByID(t *testing.T) {
	n := start(t, newCluster(t).config())
	listed, err := n.CreateVolume(t.Context(), "v", nil)
	if err != nil {
		t.Fatal(err)
	}
	old, err := n.replica(Listing{Name: "v", ID: store.NewVolumeID()}, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.findVolume(t.Context(), "v"); !errors.Is(err, ErrTwoVolumes) {
		t.Errorf("by name: %v", err)
	}
	if _, err := n.DeleteVolume(t.Context(), old.ID().String(), false); err != nil {
		t.Fatal(err)
	}
	if l, err := n.findVolume(t.Context(), "v"); err != nil || l.ID != listed.ID {
		t.Errorf("by name, after the old one was dropped: %+v, %v", l, err)
	}
	if _, err := n.findVolume(t.Context(), old.ID().String()); !errors.Is(err, store.ErrNoVolume) {
		t.Errorf("by the id that was dropped: %v", err)
	}
	if _, err := n.DeleteVolume(t.Context(), store.CatalogueID.String(), true); !errors.Is(err, store.ErrNoVolume) {
		t.Errorf("delete of the catalogue: %v", err)
	}
}

// Who died between the making of a volume and its listing finds it by asking
// again, with what was asked for: it would else have one replica for ever.
func TestCreateAgainAfterCrash(t *testing.T) {
	n := start(t, newCluster(t).config())
	v, err := n.replica(Listing{Name: "v", ID: store.NewVolumeID()}, true)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"replicas": "2", "ephemeral": "/pod"}
	if _, err := n.CreateVolume(t.Context(), "v", want); err != nil {
		t.Fatal(err)
	}
	l, err := n.findVolume(t.Context(), "v")
	if err != nil || l.ID != v.ID() || !maps.Equal(l.Options, want) {
		t.Errorf("%+v, %v; want %v with %v", l, err, v.ID(), want)
	}
}

// P6: who had found a volume before it was deleted makes no replica of it any more,
// which nobody would drop.
func TestP6NoReplicaOfDeletedVolume(t *testing.T) {
	n := start(t, newCluster(t).config())
	info, err := n.CreateVolume(t.Context(), "v", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.DeleteVolume(t.Context(), "v", false); err != nil {
		t.Fatal(err)
	}
	if v, err := n.replica(info.Listing, false); !errors.Is(err, store.ErrNoVolume) {
		t.Errorf("made: %v, %v", v != nil, err)
	}
	if n.db.Volume(info.ID) != nil {
		t.Error("there is a replica")
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
