package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/playground"
	"github.com/synapsefs/synapsefs/internal/wire"
)

// importSource makes a tree with one of each kind, beside a real one.
func importSource(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "source")
	source, err := playground.OpenSource("")
	if err == nil {
		err = source.Unpack(t.Context(), filepath.Join(dir, "tree"))
	}
	if err != nil {
		t.Fatal(err)
	}
	script := `set -e
		head -c 3000000 /dev/urandom > large; truncate -s 64M large; echo end >> large
		echo a > a; ln a hard; ln -s a soft; ln -s nowhere dangling; mkfifo fifo; mknod null c 1 3
		mkdir -m 2750 d; chown 1234:5678 d; touch -d 2001-02-03T04:05:06.123456789 d/old
		setfattr -n user.k -v v a; setfacl -m u:1234:r a; chmod 4755 d/old`
	if out, err := inDir(dir, "sh", "-c", script); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

func inDir(dir, name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	return cmd.CombinedOutput()
}

// made is how many changes the node has made.
func made(t *testing.T, nd *playground.Node) (n uint64) {
	t.Helper()
	barrier(t, nd)
	if err := nd.Call(func(c *admin.Client) error {
		reply, err := c.ListVolumes(t.Context(), &wire.ListVolumesRequest{})
		for _, v := range reply.GetVolumes() {
			n += v.GetOps()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// startImport starts an import as the leader of a process group.
func startImport(t *testing.T, nd *playground.Node, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(binary, append([]string{"--socket", nd.Socket, "import"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// What was imported is the same on all nodes, and is not written again.
func TestImport(t *testing.T) {
	c := start(t, 2)
	nd := c.Nodes[0]
	source := importSource(t)
	target := filepath.Join(nd.Mount, "configs")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := command(nd, "import", source, target); err != nil || !strings.Contains(out, "the same") {
		t.Fatalf("%v %s", err, out)
	}
	equal(t, c.Nodes...)
	if d := difference(t, source, filepath.Join(c.Nodes[1].Mount, "configs")); d != "" {
		t.Errorf("the other node shows something else:\n%s", d)
	}
	if left, err := os.ReadDir(target); err != nil || len(left) != 9 {
		t.Errorf("%v, %v", left, err)
	}

	was := made(t, nd)
	if out, err := command(nd, "import", "--delete", source, target); err != nil {
		t.Fatalf("again: %v %s", err, out)
	}
	if now := made(t, nd); now != was {
		t.Errorf("to import it again took %d changes", now-was)
	}

	// What differs is listed, and copied.
	for name, text := range map[string]string{"source/d/old": "new", "target/tree/more": "x"} {
		name = strings.Replace(strings.Replace(name, "source", source, 1), "target", target, 1)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := command(nd, "import", "--delete", "--verify", source, target); err == nil ||
		!strings.Contains(out, "d/old") || !strings.Contains(out, "tree/more") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := command(nd, "import", "--delete", source, target); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if d := difference(t, source, target); d != "" {
		t.Error(d)
	}
}

// An import that is killed or interrupted goes on, and leaves nothing behind.
func TestImportGoesOn(t *testing.T) {
	c := start(t, 1)
	nd := c.Nodes[0]
	source := importSource(t)
	for n := range 300 {
		if err := os.WriteFile(filepath.Join(source, "d", fmt.Sprint(n)), []byte(strings.Repeat("x", 1000*n)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, signal := range []syscall.Signal{unix.SIGKILL, unix.SIGINT} {
		target := filepath.Join(nd.Mount, signal.String())
		if err := os.Mkdir(target, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := startImport(t, nd, source, target)
		until(t, "the first files", func() bool {
			some, err := os.ReadDir(filepath.Join(target, "d"))
			return err == nil && len(some) > 20
		})
		if err := unix.Kill(-cmd.Process.Pid, signal); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Log("it was done already")
		}
		if out, err := command(nd, "import", "--delete", source, target); err != nil {
			t.Fatalf("again: %v %s", err, out)
		}
		if d := difference(t, source, target); d != "" {
			t.Error(d)
		}
	}
}

// What an import that was interrupted has of a large file is in one place, used by the
// next, and gone when that ends: also if the source has the file no more.
func TestImportLeavesNothing(t *testing.T) {
	c := start(t, 1)
	nd := c.Nodes[0]
	source := filepath.Join(t.TempDir(), "source")
	if err := os.MkdirAll(filepath.Join(source, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(source, "d", "large")
	for _, gone := range []bool{false, true} {
		if err := os.WriteFile(large, bytes.Repeat([]byte("0123456789"), 3_000_000), 0o644); err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(nd.Mount, fmt.Sprint(gone))
		if err := os.Mkdir(target, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := startImport(t, nd, source, target, "--", "--bwlimit=1000")
		half := func(pattern string) bool {
			found, err := filepath.Glob(filepath.Join(target, ".synapsefs-import", pattern))
			return err == nil && len(found) > 0
		}
		until(t, "a part of the file", func() bool { return half("large.*") })
		if err := unix.Kill(cmd.Process.Pid, unix.SIGINT); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || !half("large") {
			t.Fatalf("interrupted: %v, a part was kept: %v", err, half("large"))
		}
		if _, err := os.Stat(filepath.Join(target, "d", "large")); !os.IsNotExist(err) {
			t.Errorf("half of a file is shown: %v", err)
		}
		if gone {
			if err := os.Remove(large); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := command(nd, "import", source, target); err != nil {
			t.Fatalf("again: %v %s", err, out)
		}
		if d := difference(t, source, target); d != "" {
			t.Error(d)
		}
	}
}

// A source that changes while it is copied is copied again, until both are the same.
func TestImportSourceChanges(t *testing.T) {
	c := start(t, 1)
	nd := c.Nodes[0]
	source := filepath.Join(t.TempDir(), "source")
	if err := os.MkdirAll(source, 0o755); err != nil {
		t.Fatal(err)
	}
	name := func(n int) string { return filepath.Join(source, fmt.Sprintf("%03d", n)) }
	for n := range 100 {
		if err := os.WriteFile(name(n), bytes.Repeat([]byte{byte(n)}, 20_000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	imported := make(chan error, 1)
	go func() {
		_, err := command(nd, "import", "--delete", source, nd.Mount, "--", "--bwlimit=1000")
		imported <- err
	}()
	until(t, "the first files", func() bool {
		_, err := os.Stat(filepath.Join(nd.Mount, "010"))
		return err == nil
	})
	// Behind and before what is being copied; of the same size, so that the bytes tell.
	for _, n := range []int{2, 90} {
		st, err := os.Stat(name(n))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name(n), bytes.Repeat([]byte("x"), 20_000), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name(n), st.ModTime(), st.ModTime()); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(name(95)); err != nil {
		t.Fatal(err)
	}
	if err := <-imported; err != nil {
		t.Fatal(err)
	}
	if d := difference(t, source, nd.Mount); d != "" {
		t.Error(d)
	}
}

// A module of an rsync daemon is a source, and so is what no import may take said.
func TestImportModule(t *testing.T) {
	c := start(t, 1)
	nd := c.Nodes[0]
	source := importSource(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().(*net.TCPAddr)
	l.Close()
	config := filepath.Join(t.TempDir(), "rsyncd.conf")
	text := fmt.Sprintf("use chroot = no\nuid = 0\ngid = 0\nmax connections = 0\n[configs]\npath = %s\n", source)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	server := exec.Command("rsync", "--daemon", "--no-detach", "--address=127.0.0.1", fmt.Sprint("--port=", address.Port), "--config="+config)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Process.Kill(); server.Wait() }) //nolint:errcheck // it is killed
	until(t, "the rsync daemon", func() bool {
		conn, err := net.Dial("tcp", address.String())
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	module := fmt.Sprintf("rsync://%s/configs", address)
	if out, err := command(nd, "import", module, nd.Mount, "--", "--exclude=/large"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(nd.Mount, "large")); err == nil {
		t.Error("what is excluded was copied")
	}
	if out, err := command(nd, "import", module, nd.Mount); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if d := difference(t, source, nd.Mount); d != "" {
		t.Error(d)
	}
	for _, wrong := range []struct{ source, dir, says string }{
		{source, t.TempDir(), "in no mount"},
		{filepath.Join(source, "none"), nd.Mount, "no such file"},
		{filepath.Join(source, "a"), nd.Mount, "no directory"},
		{strings.Replace(module, "configs", "others", 1), nd.Mount, "others"},
	} {
		if out, err := command(nd, "import", wrong.source, wrong.dir); err == nil || !strings.Contains(err.Error(), wrong.says) {
			t.Errorf("import %s %s: %v %s", wrong.source, wrong.dir, err, out)
		}
	}
}
