package e2e

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/fstest"
	"github.com/synapsefs/synapsefs/internal/playground"
	"github.com/synapsefs/synapsefs/internal/wire"
)

var (
	kills    = flag.Int("kills", 25, "how often the daemon under a workload is killed")
	upgrades = flag.Int("upgrades", 8, "how often the daemon under a workload is upgraded")
	oldBuild = flag.String("upgrade.old", "", "another build of synapsefs: it takes turns, and its upgrades are told apart")
	filesBy  = flag.Int("upgrade.files", 5_000, "files in the volume that is upgraded")
)

// keptCluster starts n nodes whose mounts outlive the daemons.
func keptCluster(t *testing.T, n int) *playground.Cluster {
	t.Helper()
	c := prepareWith(t, n, func(*playground.Cluster) {})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, nd := range c.Nodes {
		mount(t, nd, i == 0)
	}
	return c
}

// mountOf is what the daemon says of its one mount.
func mountOf(t *testing.T, nd *playground.Node) (m *wire.MountStatus, err error) {
	t.Helper()
	err = nd.Call(func(c *admin.Client) error {
		reply, err := c.Mounts(t.Context(), &wire.MountsRequest{})
		if err == nil && len(reply.Mounts) != 1 {
			err = fmt.Errorf("%d mounts", len(reply.Mounts))
		}
		if err == nil {
			m = reply.Mounts[0]
		}
		return err
	})
	return m, err
}

func seedOf(t *testing.T) uint64 {
	seed := *programSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-program.seed=%d", seed)
	return seed
}

// faulty is a program that dies by itself now and then, when it has done
// something and not answered yet.
func faulty(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "synapsefs")
	if out, err := exec.Command("go", "build", "-tags", "faults", "-o", path, "../../cmd/synapsefs").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// P9: programs of all kinds work in a mount whose daemon is killed again and
// again, half of the time just before an answer: none of them sees an error.
func TestP9Kills(t *testing.T) {
	seed := seedOf(t)
	r := rand.New(rand.NewPCG(seed, 99))
	c := prepareWith(t, 2, func(c *playground.Cluster) { c.Binary = faulty(t) })
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, nd := range c.Nodes {
		mount(t, nd, i == 0)
	}
	nd := c.Nodes[0]
	t.Setenv("SYNAPSEFS_FAULT_DIE_EVERY", "0")
	t.Setenv("SYNAPSEFS_FAULT_CHECK", "1") // that each start finds all content whole
	w := startWorkload(t, nd.Mount, seed)
	died, starts := 0, uint64(1)
	var hit int // kills that hit a request which was read and not answered
	var resent, repeated uint64
	for i := range *kills {
		// Not to wait for anything: any moment is to be hit.
		kill := time.NewTimer(time.Duration(r.IntN(150)) * time.Millisecond)
		if i%2 == 1 {
			kill.Reset(patience) // it does so itself
		}
		select {
		case <-kill.C:
		case <-nd.Exited():
			died++
		}
		if err := nd.Kill(); err != nil {
			t.Fatal(err)
		}
		t.Setenv("SYNAPSEFS_FAULT_DIE_EVERY", fmt.Sprint(100*((i+1)%2)))
		err := nd.Start(t.Context())
		for starts++; errors.Is(err, playground.ErrKilled); starts++ {
			died++
			err = nd.Start(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		m, err := mountOf(t, nd)
		if errors.Is(err, admin.ErrNotRunning) {
			continue // it has died by itself
		}
		if err != nil || !m.Kept || m.Generation < uint64(i+2) {
			t.Fatalf("after %d kills and %d starts: %v %v", i+1, starts, m, err)
		}
		if m.Resent > 0 {
			hit++
		}
		resent += m.Resent
		repeated += m.Repeated
		if t.Failed() {
			break
		}
	}
	t.Setenv("SYNAPSEFS_FAULT_DIE_EVERY", "0") // the last one is to live
	if err := errors.Join(nd.Kill(), nd.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	used := w.finish(t)
	t.Logf("%d kills, %d of them by itself, %d under a request; %d requests came again, %d of them were done already; %d calls, the longest took %v",
		*kills, died, hit, resent, repeated, used.Calls, used.Longest)
	defer func() {
		if t.Failed() {
			for _, nd := range c.Nodes {
				t.Log(synapsefs(t, nd, "status"), synapsefs(t, nd, "conflicts", volume))
			}
			t.Log(difference(t, nd.Mount, c.Nodes[1].Mount))
		}
	}()
	// Of a long run the other node has thousands of large versions to fetch.
	fstest.Until(t, patience+time.Duration(*kills)*time.Second, "the nodes to meet again", func() bool { _, same := sums(t, c.Nodes); return same })
	if lost := listed(t, nd, "conflicts", volume); len(lost) > 0 {
		t.Errorf("only one node was written to, and there are conflicts: %v", lost)
	}
}

// P9: the same under planned upgrades to a program that was built anew.
func TestP9Upgrades(t *testing.T) {
	seed := seedOf(t)
	r := rand.New(rand.NewPCG(seed, 98))
	c := prepareWith(t, 2, func(c *playground.Cluster) {
		c.Binary = filepath.Join(t.TempDir(), "synapsefs") // to be replaced
		copyFile(t, binary, c.Binary)
	})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, nd := range c.Nodes {
		mount(t, nd, i == 0)
	}
	nd := c.Nodes[0]
	many := filepath.Join(nd.Mount, "many")
	if err := os.Mkdir(many, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range *filesBy {
		if i%1000 == 0 {
			if err := os.Mkdir(filepath.Join(many, fmt.Sprint(i/1000)), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		write(t, nd, filepath.Join("many", fmt.Sprint(i/1000), fmt.Sprint(i)), "x")
	}
	w := startWorkload(t, nd.Mount, seed)
	pid := nd.PID()
	builds := []string{binary}
	if *oldBuild != "" { // each hands over to itself, too
		builds = append(builds, binary, *oldBuild, *oldBuild)
	}
	var begun []time.Time
	for i := range *upgrades {
		time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond) // any moment is to be hit
		rebuilt := c.Binary + ".new"
		copyFile(t, builds[i%len(builds)], rebuilt)
		if err := os.Rename(rebuilt, c.Binary); err != nil {
			t.Fatal(err)
		}
		begun = append(begun, time.Now())
		err := nd.Call(func(c *admin.Client) error {
			_, err := c.Upgrade(t.Context(), &wire.UpgradeRequest{})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		until(t, "the next daemon", func() bool {
			var generation uint64
			err := nd.Call(func(c *admin.Client) error {
				reply, err := c.Mounts(t.Context(), &wire.MountsRequest{})
				if err == nil && len(reply.Mounts) == 1 {
					generation = reply.Mounts[0].Generation
				}
				return err
			})
			return err == nil && generation == uint64(i+2)
		})
		if t.Failed() {
			break
		}
	}
	used := w.finish(t)
	if nd.PID() != pid {
		t.Errorf("process %d became %d", pid, nd.PID())
	}
	t.Logf("%d upgrades with %d files; %d calls, the longest took %v", *upgrades, *filesBy, used.Calls, used.Longest)
	begun = append(begun, time.Now())
	longest := map[string][]time.Duration{}
	was := binary
	for i := range len(begun) - 1 {
		build := builds[i%len(builds)]
		if build == was {
			longest[build] = append(longest[build], used.longestBetween(begun[i], begun[i+1]))
		}
		was = build
	}
	for build, took := range longest {
		slices.Sort(took)
		t.Logf("the longest calls at %d upgrades of %s: median %v, longest %v", len(took), build, took[len(took)/2], took[len(took)-1])
	}
	equal(t, c.Nodes...)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// P9: a mount whose state is not there any more waits, is told of, and can be
// taken away; the daemon starts all the same.
func TestP9StateIsGone(t *testing.T) {
	c := keptCluster(t, 1)
	nd := c.Nodes[0]
	write(t, nd, "f", "x")
	if err := nd.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(nd.State, nd.State+".away"); err != nil {
		t.Fatal(err)
	}
	if err := nd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status := synapsefs(t, nd, "status"); !strings.Contains(status, "take over the mount on "+nd.Mount) {
		t.Errorf("status does not tell of the mount:\n%s", status)
	}
	umount(t, nd, 0, "removed the dead mount of an earlier run and its guard at "+nd.Mount)
	wantPlain(t, nd.Mount)
	mount(t, nd, true)
	write(t, nd, "f", "anew")
}

// P9: who waits in a mount whose daemon does not come is freed by umount.
func TestP9UmountFreesWhoWaits(t *testing.T) {
	c := keptCluster(t, 1)
	nd := c.Nodes[0]
	write(t, nd, "f", strings.Repeat("x", 1<<20))
	if err := nd.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := command(nd, "status"); err == nil || !strings.Contains(err.Error(), "programs wait for it at: "+nd.Mount) {
		t.Errorf("status: %v", err)
	}
	waits := exec.Command("mkdir", filepath.Join(nd.Mount, "d")) // asks the daemon
	failed := make(chan error, 1)
	if err := waits.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { failed <- waits.Wait() }()
	umount(t, nd, 0, "removed the dead mount of an earlier run and its guard at "+nd.Mount)
	if err := <-failed; err == nil {
		t.Error("mkdir succeeded, without a daemon")
	}
	wantPlain(t, nd.Mount)
}

// P9: a program that cannot go on with the mounts does not get them.
func TestP9UpgradeIsRefused(t *testing.T) {
	c := keptCluster(t, 1)
	nd := c.Nodes[0]
	for _, other := range []string{"/bin/false", "/nonexistent"} {
		if out, err := command(nd, "upgrade", "--binary", other); err == nil || !strings.Contains(err.Error(), "this daemon goes on") {
			t.Errorf("upgrade to %s: %q, %v", other, out, err)
		}
	}
	write(t, nd, "f", "served")
	if m, err := mountOf(t, nd); err != nil || m.Generation != 1 {
		t.Errorf("generation %d, %v", m.GetGeneration(), err)
	}
}
