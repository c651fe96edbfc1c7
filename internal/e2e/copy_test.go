package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/synapsefs/synapsefs/internal/playground"
)

// mountAs mounts a volume beside the node's own mount.
func mountAs(t *testing.T, nd *playground.Node, volume string, more ...string) string {
	t.Helper()
	dir := nd.Mount + "-" + volume
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	synapsefs(t, nd, append([]string{"mount", volume, dir}, more...)...)
	t.Cleanup(func() {
		command(nd, "umount", "--force", dir) //nolint:errcheck // it may be gone with its volume
		os.Remove(dir)
	})
	return dir
}

// A copy shows what the volume showed, on all nodes, and goes its own way.
func TestCopyVolume(t *testing.T) {
	c := start(t, 2)
	one, two := c.Nodes[0], c.Nodes[1]
	source := importSource(t)
	synapsefs(t, one, "import", source, one.Mount)
	open, err := os.Create(filepath.Join(one.Mount, "open"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := os.Remove(filepath.Join(one.Mount, "large")); err != nil {
		t.Fatal(err)
	}
	replaced, err := os.Create(filepath.Join(one.Mount, "tree", "replaced"))
	if err != nil {
		t.Fatal(err)
	}
	defer replaced.Close()
	if _, err := replaced.WriteString("not closed"); err != nil {
		t.Fatal(err)
	}
	barrier(t, one) // the other node shows what is closed
	synapsefs(t, one, "volumes", "create", "copy", "--from", volume)
	synapsefs(t, one, "volumes", "create", "snap", "--from", volume, "--snapshot")
	if out, err := command(one, "volumes", "create", "copy", "--from", volume); err == nil {
		t.Errorf("made twice: %s", out)
	}

	copied := mountAs(t, two, "copy")
	if d := difference(t, two.Mount, copied); d != "" {
		t.Errorf("the copy is not what the other node shows:\n%s", d)
	}
	var links [2]string
	for n, name := range []string{"a", "hard"} {
		out, err := inDir(copied, "stat", "-c", "%i %h", name)
		if err != nil {
			t.Fatal(err)
		}
		links[n] = string(out)
	}
	if links[0] != links[1] || !strings.HasSuffix(links[0], " 2\n") {
		t.Errorf("hard links: %q", links)
	}
	if err := os.WriteFile(filepath.Join(copied, "a"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(two.Mount, "a")); err != nil || string(b) != "a\n" {
		t.Errorf("the source is %q, %v", b, err)
	}

	if out, err := command(two, "mount", "snap", t.TempDir()); err == nil || !strings.Contains(err.Error(), "snapshot") {
		t.Errorf("a snapshot is mounted to be written: %v %s", err, out)
	}
	snap := mountAs(t, two, "snap", "--read-only")
	before := difference(t, two.Mount, snap)
	if before != "" {
		t.Errorf("the snapshot differs:\n%s", before)
	}
	if out, err := command(two, "mount", "-o", "remount,rw", "snap", snap); err == nil {
		t.Errorf("a snapshot is remounted: %s", out)
	}

	versions := listed(t, two, "history", filepath.Join(snap, "a"))
	if out, err := command(two, "history", "restore", filepath.Join(snap, "a"), fmt.Sprint(versions[0]["version"]), "--to", filepath.Join(snap, "b")); err == nil || !strings.Contains(err.Error(), "snapshot") {
		t.Errorf("restored into a snapshot: %v %s", err, out)
	}

	// Neither needs the source.
	large := filepath.Join(copied, "large2")
	if err := os.WriteFile(large, []byte(strings.Repeat("large", 200_000)), 0o644); err != nil {
		t.Fatal(err)
	}
	synapsefs(t, two, "volumes", "create", "third", "--from", "copy")
	synapsefs(t, one, "volumes", "delete", "--force", "copy")
	third := mountAs(t, one, "third")
	if b, err := os.ReadFile(filepath.Join(third, "large2")); err != nil || len(b) != 1_000_000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// P2: a copy under writers has whole files, and is one moment: of two files that
// are written one after the other it never has the second's version without the
// first's.
func TestP2CopyUnderWriters(t *testing.T) {
	c := start(t, 1)
	nd := c.Nodes[0]
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	for _, name := range []string{"first", "second"} {
		write(t, nd, name, "0")
	}
	go func() {
		for n := 1; ctx.Err() == nil; n++ {
			for _, name := range []string{"first", "second"} {
				if err := os.WriteFile(filepath.Join(nd.Mount, name), []byte(strings.Repeat(fmt.Sprint(n%10), 100_000)), 0o644); err != nil {
					done <- err
					return
				}
			}
		}
		done <- nil
	}()
	for n := range 10 {
		name := fmt.Sprint("copy", n)
		synapsefs(t, nd, "volumes", "create", name, "--from", volume)
		dir := mountAs(t, nd, name)
		var found [2]string
		for n, name := range []string{"first", "second"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Trim(string(b), string(b[:1])) != "" || len(b) != 100_000 && string(b) != "0" {
				t.Errorf("%s is torn: %d bytes", name, len(b))
			}
			found[n] = string(b[:1])
		}
		if first, second := found[0], found[1]; first != second && fmt.Sprint((int(second[0]-'0')+1)%10) != first {
			t.Errorf("first is of round %s, second of %s", first, second)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
