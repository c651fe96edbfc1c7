package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/playground"
	"github.com/synapsefs/synapsefs/internal/wire"
)

// binary is built once, by TestMain.
var binary string

func TestMain(m *testing.M) {
	if spec := os.Getenv(workloadEnv); spec != "" {
		if err := runWorkload(spec); err != nil {
			fmt.Fprintln(os.Stderr, "workload:", err)
			os.Exit(1)
		}
		return
	}
	if root := os.Getenv(lookerEnv); root != "" {
		if err := runLooker(root); err != nil {
			fmt.Fprintln(os.Stderr, "looker:", err)
			os.Exit(1)
		}
		return
	}
	if err := playground.Mountable(); err != nil {
		if os.Getenv("CI") != "" {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("skipped:", err)
		return
	}
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	dir, err := os.MkdirTemp("", "synapsefs-e2e-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "synapsefs")
	build := exec.Command("go", "build", "-o", binary, "../../cmd/synapsefs")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Printf("%v\n%s", err, out)
		return 1
	}
	return m.Run()
}

const volume = "v"

// patience is how long anything may take that takes milliseconds.
const patience = 60 * time.Second

// start starts n nodes, all with the volume mounted.
func start(t *testing.T, n int) *playground.Cluster {
	t.Helper()
	c := prepare(t, n)
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, nd := range c.Nodes {
		mount(t, nd, i == 0)
	}
	return c
}

var passthrough = flag.Bool("passthrough", false, "run the daemons with the option of that name")

// prepare makes n nodes that do not run.
func prepare(t *testing.T, n int) *playground.Cluster {
	t.Helper()
	return prepareWith(t, n, func(c *playground.Cluster) { c.MountsEnd = true })
}

func prepareWith(t *testing.T, n int, set func(*playground.Cluster)) *playground.Cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e") // t.TempDir's paths are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	c, err := playground.New(dir, binary, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.NoPassthrough = !*passthrough
	set(c)
	for range n {
		if _, err := c.Add(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, nd := range c.Nodes {
				t.Logf("log of %s:\n%s", nd.Name, nd.LogTail())
			}
		}
		for _, nd := range c.Nodes {
			if err := os.Remove(nd.Mount); err != nil {
				t.Fatal(err) // still mounted: delete nothing
			}
		}
		os.RemoveAll(dir)
	})
	return c
}

func mount(t *testing.T, nd *playground.Node, create bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := nd.MountVolume(ctx, volume, create); err != nil {
		t.Fatalf("mount on %s: %v", nd.Name, err)
	}
}

func write(t *testing.T, nd *playground.Node, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(nd.Mount, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// equal waits until all nodes show one tree, and returns it.
func equal(t *testing.T, nodes ...*playground.Node) playground.Tree {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		first, same := sums(t, nodes)
		if same {
			return first
		}
		if time.Now().After(deadline) {
			for _, nd := range nodes[1:] {
				t.Logf("%s against %s:\n%s", nd.Name, nodes[0].Name, difference(t, nodes[0].Mount, nd.Mount))
			}
			t.Fatal("the trees differ")
		}
		for _, nd := range nodes {
			barrier(t, nd)
		}
	}
}

func sums(t *testing.T, nodes []*playground.Node) (first playground.Tree, same bool) {
	t.Helper()
	for i, nd := range nodes {
		tree, err := playground.Sum(nd.Mount)
		switch {
		case err != nil: // something went while it was looked at
			return first, false
		case i == 0:
			first = tree
		case tree != first:
			return first, false
		}
	}
	return first, true
}

func barrier(t *testing.T, nd *playground.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := nd.Wait(ctx, volume); err != nil {
		t.Fatalf("wait on %s: %v", nd.Name, err)
	}
}

// difference is what rsync would do to make b like a.
func difference(t *testing.T, a, b string) string {
	t.Helper()
	out, err := exec.Command("rsync", "-aHAXnc", "--delete", "--itemize-changes", a+"/", b+"/").CombinedOutput()
	if err != nil {
		t.Fatalf("rsync: %v\n%s", err, out)
	}
	// The mountpoint itself is not part of the tree.
	var lines []string
	for line := range strings.Lines(string(out)) {
		if !strings.HasSuffix(line, " ./\n") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// Three nodes write distinct files at once: each ends up with all of them.
func TestP4ThreeNodesWriteAtOnce(t *testing.T) {
	c := start(t, 3)
	const each = 1000
	var group errgroup.Group
	for _, nd := range c.Nodes {
		group.Go(func() error {
			dir := filepath.Join(nd.Mount, "shared") // all make the same one
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			for i := range each {
				name := filepath.Join(dir, fmt.Sprintf("%s-%d", nd.Name, i))
				if err := os.WriteFile(name, []byte(name), 0o644); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if tree := equal(t, c.Nodes...); tree.Files != 3*each {
		t.Errorf("%d files, want %d", tree.Files, 3*each)
	}
}

// Every tree of the corpus, where there is one, and the one that is shipped.
func TestCorpus(t *testing.T) {
	archives, err := filepath.Glob("../../../shared/corpus/*.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	if testing.Short() {
		archives = nil
	}
	c := start(t, 3)
	for _, path := range append(archives, "") {
		source, err := playground.OpenSource(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(path), ".tar.gz"), func(t *testing.T) {
			plain := t.TempDir()
			for _, dir := range []string{plain, c.Nodes[0].Mount} {
				if err := source.Unpack(t.Context(), dir); err != nil {
					t.Fatal(err)
				}
			}
			equal(t, c.Nodes...)
			for _, nd := range c.Nodes {
				if d := difference(t, plain, nd.Mount); d != "" {
					t.Errorf("%s:\n%s", nd.Name, d)
				}
			}
			empty(t, c.Nodes[1]) // by another node than the writer
			equal(t, c.Nodes...)
		})
	}
}

// What tar does: a directory's time is set right after its last file is closed,
// before the kernel's RELEASE of that file.
func TestDirectoryTimeSetAfterClose(t *testing.T) {
	c := start(t, 2)
	const dirs = 200
	when := time.Unix(1_700_000_000, 5)
	for i := range dirs {
		dir := filepath.Join(c.Nodes[0].Mount, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, c.Nodes[0], fmt.Sprintf("%d/f", i), "x")
		if err := os.Chtimes(dir, when, when); err != nil {
			t.Fatal(err)
		}
	}
	equal(t, c.Nodes...)
	for _, nd := range c.Nodes {
		wrong := 0
		for i := range dirs {
			fi, err := os.Stat(filepath.Join(nd.Mount, fmt.Sprint(i)))
			if err != nil {
				t.Fatal(err)
			}
			if !fi.ModTime().Equal(when) {
				wrong++
			}
		}
		if wrong > 0 {
			t.Errorf("%s: %d of %d directories show another mtime than was set", nd.Name, wrong, dirs)
		}
	}
}

// empty removes all that is in a mount.
func empty(t *testing.T, nd *playground.Node) {
	t.Helper()
	entries, err := os.ReadDir(nd.Mount)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(nd.Mount, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
}

// P6: a volume that was deleted and made again while a node was off is the new
// one on that node, too.
func TestP6RecreatedWhileAway(t *testing.T) {
	c := start(t, 2)
	write(t, c.Nodes[0], "old", "old")
	barrier(t, c.Nodes[0])
	if err := c.Nodes[1].Stop(); err != nil {
		t.Fatal(err)
	}
	err := c.Nodes[0].Call(func(a *admin.Client) error {
		_, err := a.DeleteVolume(t.Context(), &wire.DeleteVolumeRequest{Name: volume, Force: true})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	mount(t, c.Nodes[0], true)
	write(t, c.Nodes[0], "new", "new")
	if err := c.Nodes[1].Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	mount(t, c.Nodes[1], false)
	equal(t, c.Nodes...)
	for _, nd := range c.Nodes {
		entries, err := os.ReadDir(nd.Mount)
		if err != nil || len(entries) != 1 || entries[0].Name() != "new" {
			t.Errorf("%s shows %v, %v", nd.Name, entries, err)
		}
	}
}

// P8: what was closed before a kill -9 is there afterwards, and arrives.
func TestP8Kill(t *testing.T) {
	c := start(t, 3)
	for round := range 20 {
		victim := c.Nodes[round%len(c.Nodes)]
		closed := importUntilKilled(t, victim, round)
		if err := victim.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		mount(t, victim, false)
		for _, name := range closed {
			if data, err := os.ReadFile(filepath.Join(victim.Mount, name)); err != nil || string(data) != name {
				t.Errorf("round %d: %s is lost: %q, %v", round, name, data, err)
			}
		}
		equal(t, c.Nodes...)
	}
}

// importUntilKilled writes files, kills the daemon in the middle, and returns
// the names of those whose close returned.
func importUntilKilled(t *testing.T, nd *playground.Node, round int) (closed []string) {
	t.Helper()
	half, killed := make(chan struct{}), make(chan error, 1)
	go func() {
		<-half
		killed <- nd.Kill()
	}()
	for i := range 1000 {
		name := fmt.Sprintf("r%d-%d", round, i)
		if os.WriteFile(filepath.Join(nd.Mount, name), []byte(name), 0o644) != nil {
			break // the daemon is gone
		}
		closed = append(closed, name)
		if i == 200 {
			close(half)
		}
	}
	if err := <-killed; err != nil {
		t.Fatal(err)
	}
	return closed
}

// A node that joins later gets all that was before.
func TestLateJoiner(t *testing.T) {
	const files = 10_000
	c := start(t, 3)
	for i := range files {
		write(t, c.Nodes[0], fmt.Sprintf("f%d", i), strings.Repeat("x", i%2000))
	}
	nd, err := c.Add()
	if err != nil {
		t.Fatal(err)
	}
	if err := nd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	mount(t, nd, false)
	// P11: the mount returned, so all is there, without any waiting.
	if tree, err := playground.Sum(nd.Mount); err != nil || tree.Files != files {
		t.Errorf("after the mount: %+v, %v", tree, err)
	}
	equal(t, c.Nodes...)
}

// P11: all nodes off and on again, the founder last.
func TestP11AllOffAndOn(t *testing.T) {
	c := start(t, 3)
	write(t, c.Nodes[2], "f", "x")
	equal(t, c.Nodes...)
	for _, nd := range c.Nodes {
		if err := nd.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range c.Nodes {
		if err := c.Nodes[len(c.Nodes)-1-i].Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, nd := range c.Nodes {
		mount(t, nd, false)
		if data, err := os.ReadFile(filepath.Join(nd.Mount, "f")); err != nil || string(data) != "x" {
			t.Errorf("%s: %q, %v", nd.Name, data, err)
		}
	}
	equal(t, c.Nodes...)
}

// The demo itself, as a user runs it.
func TestDemo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "demo")
	out, err := exec.Command(binary, "demo", "--dir", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"NODE", "node3", "all 3 trees are equal", "node2 shows it", "cleaned up"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory is left: %v", err)
	}
}
