package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/internal/playground"
	"github.com/synapsefs/synapsefs/internal/wire"
)

// A shell is one that stays, in its own process: this one starts daemons and may
// have nothing open in their mounts.
type shell struct {
	t     *testing.T
	stdin io.WriteCloser
	out   *bufio.Reader
}

func startShell(t *testing.T) *shell {
	t.Helper()
	cmd := exec.Command("sh")
	in, err := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	cmd.Stderr = cmd.Stdout
	if err := errors.Join(err, outErr); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill() //nolint:errcheck // should it wait for a daemon that does not come
		cmd.Wait()         //nolint:errcheck // it has said what it had to
	})
	return &shell{t, in, bufio.NewReader(out)}
}

// says runs a line and returns what it prints.
func (s *shell) says(line string) string {
	s.t.Helper()
	fmt.Fprintf(s.stdin, "%s\necho; echo END\n", line)
	var said strings.Builder
	for {
		line, err := s.out.ReadString('\n')
		if err != nil {
			s.t.Fatal(err)
		}
		if line == "END\n" {
			return strings.TrimSpace(said.String())
		}
		said.WriteString(line)
	}
}

func (s *shell) want(line, want string) {
	s.t.Helper()
	if got := s.says(line); got != want {
		s.t.Errorf("%s: %q, not %q", line, got, want)
	}
}

// P9: what becomes of the next daemon before it is up is not seen in the mounts
// that it has taken over: whatever keeps it from starting, programs wait for one
// that does.
func TestP9StartFails(t *testing.T) {
	c := keptCluster(t, 1)
	nd := c.Nodes[0]
	seed := seedOf(t)
	r := rand.New(rand.NewPCG(seed, 95))
	w := startWorkload(t, nd.Mount, seed)
	fails := func(why string) {
		t.Helper()
		if err := nd.Start(t.Context()); err == nil {
			t.Errorf("started although %s", why)
		}
	}
	var said bytes.Buffer // by the daemons, which are waited for
	daemon := func() *exec.Cmd {
		t.Helper()
		cmd := exec.Command(binary, "daemon", "--config", nd.Config)
		cmd.Stderr = &said
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	for range 3 {
		if err := nd.Kill(); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", nd.Bind)
		if err != nil {
			t.Fatal(err)
		}
		fails("its address is taken")
		l.Close()
		away := nd.State + ".away"
		if err := os.Rename(nd.State, away); err != nil {
			t.Fatal(err)
		}
		// With a state that is not the mount's it starts, and the mount waits.
		if err := errors.Join(nd.Start(t.Context()), nd.Kill(), os.RemoveAll(nd.State), os.Rename(away, nd.State)); err != nil {
			t.Fatal(err)
		}
		for range 5 { // told to stop while it starts
			cmd := daemon()
			time.Sleep(time.Duration(r.IntN(120)) * time.Millisecond) // any moment is to be hit
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil && !strings.Contains(err.Error(), "signal: terminated") {
				t.Errorf("told to stop: %v: %s", err, said.Bytes())
			}
			said.Reset()
		}
		one, other := daemon(), daemon()
		done := make(chan error, 2)
		go func() { done <- one.Wait() }()
		go func() { done <- other.Wait() }()
		if err := <-done; err == nil {
			t.Error("one of two daemons ended without an error")
		}
		one.Process.Kill()   //nolint:errcheck // one has ended
		other.Process.Kill() //nolint:errcheck // as said
		<-done
		if err := nd.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	used := w.finish(t)
	t.Logf("%d calls, the longest took %v", used.Calls, used.Longest)
}

// kinds of ends of a daemon that leave its mounts to the next.
var handOvers = map[string]func(nd *playground.Node) error{
	"kill":      (*playground.Node).Kill,
	"hand over": (*playground.Node).HandOver,
}

func eachHandOver(t *testing.T, fn func(t *testing.T, next func(*playground.Node))) {
	for name, end := range handOvers {
		t.Run(name, func(t *testing.T) {
			fn(t, func(nd *playground.Node) {
				t.Helper()
				if err := errors.Join(end(nd), nd.Start(t.Context())); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// P9: a mount that was detached and is still used goes on with the next daemon,
// and is not taken for the one that stands in its place since.
func TestP9Detached(t *testing.T) {
	eachHandOver(t, func(t *testing.T, next func(*playground.Node)) {
		c := keptCluster(t, 1)
		nd := c.Nodes[0]
		write(t, nd, "f", "before")
		old := startShell(t)
		old.want("cd "+nd.Mount+" && exec 3<f && echo ok", "ok")
		if out, err := command(nd, "umount", "--force", nd.Mount); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		mount(t, nd, false)
		present := startShell(t)
		present.want("cd "+nd.Mount+" && exec 4>open && echo a >&4 && echo ok", "ok")
		for i := range 3 {
			next(nd)
			old.want("cat f; ls; echo x > g; cat g; rm g", "beforef\nopen\nx")
			present.want("echo b >&4; cat f", "before")
			until(t, "what the other mount removed", func() bool { return present.says("ls") == "f\nopen" })
			if _, err := mountOf(t, nd); err != nil { // one
				t.Error(err)
			}
			if t.Failed() {
				t.Fatalf("round %d", i)
			}
		}
		old.want("head -c 3 <&3; cd /; exec 3<&-", "bef")
		umount(t, nd, 6, "in use")
		present.want("exec 4>&-; cat open; cd /", "a\nb\nb\nb")
		umount(t, nd, 0, "unmounted")
		next(nd)
		mount(t, nd, false)
	})
}

// P9: what is changed in one mount of a volume is seen in its others, whenever
// the daemon that served them was replaced.
func TestP9TwoMounts(t *testing.T) {
	eachHandOver(t, func(t *testing.T, next func(*playground.Node)) {
		c := keptCluster(t, 1)
		nd := c.Nodes[0]
		second := *nd
		second.Mount = nd.Mount + "2"
		if err := os.Mkdir(second.Mount, 0o755); err != nil {
			t.Fatal(err)
		}
		mount(t, &second, false)
		t.Cleanup(func() { umount(t, &second, 0, ""); os.Remove(second.Mount) })
		write(t, nd, "f", "0")
		a, b := startShell(t), startShell(t)
		a.want("cd "+nd.Mount+" && exec 3<>log && echo ok", "ok")
		b.want("cd "+second.Mount+" && echo ok", "ok")
		until(t, "the file in the other mount", func() bool { return b.says("cat f") == "0" })
		for i := range *kills {
			// While nobody or a new daemon answers, the first mount is at work.
			go func() {
				time.Sleep(time.Duration(i%10) * 10 * time.Millisecond)
				fmt.Fprintf(a.stdin, "echo %d > f; echo %d >&3; rm -rf d%d; mkdir d%d; echo %d > d%d/x; echo; echo END\n", i+1, i+1, i, i+1, i+1, i+1)
			}()
			next(nd)
			for {
				line, err := a.out.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				if line == "END\n" {
					break
				}
				if line != "\n" {
					t.Error(line)
				}
			}
			until(t, "the change in the other mount", func() bool {
				return b.says(fmt.Sprintf("cat f d%d/x; tail -n 1 log; ls", i+1)) == fmt.Sprintf("%d\n%d\n%d\nd%d\nf\nlog", i+1, i+1, i+1, i+1)
			})
		}
		a.want("exec 3<&-; cd /", "")
		b.want("cd /", "")
	})
}

// mounts are what the daemon serves.
func mounts(t *testing.T, nd *playground.Node) (all []*wire.MountStatus) {
	t.Helper()
	if err := nd.Call(func(c *admin.Client) error {
		reply, err := c.Mounts(t.Context(), &wire.MountsRequest{})
		all = reply.GetMounts()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// P9: a keeper that dies is replaced, at any moment.
func TestP9KeeperKilled(t *testing.T) {
	c := keptCluster(t, 1)
	nd := c.Nodes[0]
	w := startWorkload(t, nd.Mount, seedOf(t))
	renewed := func() int {
		log, err := os.ReadFile(nd.Log)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(log), "another keeper has the mounts")
	}
	for i := range 4 {
		keeper, before := keeperOf(t, nd), renewed()
		if err := syscall.Kill(keeper, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			until(t, "another keeper", func() bool { return renewed() > before })
			if err := errors.Join(nd.Kill(), nd.Start(t.Context())); err != nil {
				t.Fatal(err)
			}
		} else if err := errors.Join(nd.HandOver(), nd.Start(t.Context())); err != nil { // at once
			t.Fatal(err)
		}
	}
	w.finish(t)
}

// keeperOf is the process that listens on a node's keeper socket, or 0.
func keeperOf(t *testing.T, nd *playground.Node) int {
	t.Helper()
	conn, err := net.Dial("unixpacket", config.KeeperSocket(nd.Socket))
	if err != nil {
		return 0
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var cred *syscall.Ucred
	if controlErr := raw.Control(func(fd uintptr) {
		cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil || controlErr != nil {
		t.Fatal(err, controlErr)
	}
	return int(cred.Pid)
}
