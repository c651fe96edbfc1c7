package keeper_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/keeper"
)

// What the test binary plays: a daemon (a JSON role), programs in a mount (its
// directory), another user (a socket).
const (
	roleEnv  = "SYNAPSEFS_TEST_DAEMON"
	loadEnv  = "SYNAPSEFS_TEST_LOAD"
	otherEnv = "SYNAPSEFS_TEST_OTHER_USER"
)

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == keeper.Command:
		exitWith(keeper.Main(os.Args[2:]))
	case os.Getenv(roleEnv) != "":
		exitWith(daemonMain(os.Getenv(roleEnv)))
	case os.Getenv(loadEnv) != "":
		exitWith(loadMain(os.Getenv(loadEnv)))
	case os.Getenv(otherEnv) != "":
		exitWith(otherUser(os.Getenv(otherEnv)))
	}
	os.Exit(m.Run())
}

func exitWith(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A role is what a daemon of the tests has to do: mount Dir on Point, or go on
// with what is mounted.
type role struct {
	Socket, Dir, Point string
	ACL                bool
	Die                string // the step of INIT, and "before" or "after"
	Hangup             bool   // lose the connection to the keeper
}

func daemonMain(text string) error {
	var r role
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return err
	}
	client, err := keeper.Start(context.Background(), r.Socket, "/proc/self/exe", keeper.Command)
	if err != nil {
		return err
	}
	mounts, err := client.Attach(context.Background())
	if err != nil {
		return err
	}
	fmt.Println("owner")
	opts := kernel.Options{Keeper: keep{client, r.Die}, ACL: r.ACL, Note: []byte(r.Dir)}
	var conn *kernel.Conn
	if len(mounts) == 0 {
		conn, err = kernel.Mount(r.Point, opts)
	} else {
		conn, err = kernel.Attach(kernel.Kept(mounts[0]), opts)
	}
	if err != nil {
		return err
	}
	fs, err := newDirFS(string(conn.Note()), filepath.Join(filepath.Dir(r.Socket), "again"))
	if err == nil {
		err = conn.Serve(fs)
	}
	if err != nil {
		return err
	}
	if r.Hangup {
		client.Close()
		fmt.Println("hung up")
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	fmt.Println("serves")
	select {
	case <-term:
		return conn.Drain(context.Background())
	case <-conn.Done():
		return conn.Wait()
	}
}

// keep is the client as kernel wants it, and dies where a test wants it.
type keep struct {
	*keeper.Client
	die string
}

func (k keep) Put(m kernel.Kept) error { return k.Client.Put(keeper.Mount(m)) }

func (k keep) Init(epoch uint64, in []byte) error {
	return k.dying("init", func() error { return k.Client.Init(epoch, in) })
}

func (k keep) Reply(epoch uint64, out []byte) error {
	return k.dying("reply", func() error { return k.Client.Reply(epoch, out) })
}

func (k keep) Done(epoch uint64) error {
	return k.dying("done", func() error { return k.Client.Done(epoch) })
}

func (k keep) dying(step string, do func() error) error {
	if k.die == step+" before" {
		unix.Kill(unix.Getpid(), unix.SIGKILL)
	}
	err := do()
	if k.die == step+" after" {
		unix.Kill(unix.Getpid(), unix.SIGKILL)
	}
	return err
}

// A host is where daemons run one after another: a keeper's socket, a directory
// and its mountpoint.
type host struct {
	testing.TB
	role
}

// newHost takes away in the end what is left, and frees who is stuck.
func newHost(t testing.TB) *host {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatalf("needs root and /dev/fuse (%v)", err)
		}
		t.Skipf("needs root and /dev/fuse (%v)", err)
	}
	place := t.TempDir()
	h := &host{t, role{Socket: socketPath(t), Dir: filepath.Join(place, "files"), Point: filepath.Join(place, "mount")}}
	if err := errors.Join(os.Mkdir(h.Dir, 0o700), os.Mkdir(h.Point, 0o700)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if client, err := keeper.Dial(context.Background(), h.Socket); err == nil {
			h.free(client)
			client.Close()
		}
		if err := kernel.Unmount(h.Point, kernel.UnmountOptions{Lazy: true}); err != nil {
			t.Error(err)
		}
	})
	return h
}

// free ends what is kept, when the daemon that was killed before has ended.
func (h *host) free(client *keeper.Client) {
	h.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	mounts, err := client.Attach(ctx)
	for _, m := range mounts {
		unix.Close(m.FD)
	}
	if err == nil {
		_, err = client.Release(h.Point)
	}
	if err != nil && !errors.Is(err, keeper.ErrUnknown) {
		h.Errorf("free the mount: %v", err)
	}
}

// socketPath is short: the name of a socket has at most 107 bytes.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "keeper")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// A daemon is a process that serves.
type daemon struct {
	*host
	cmd   *exec.Cmd
	lines *bufio.Scanner
	said  *os.File
}

// start starts a daemon and returns at once.
func (h *host) start(change func(*role)) *daemon {
	h.Helper()
	r := h.role
	if change != nil {
		change(&r)
	}
	text, err := json.Marshal(r)
	if err != nil {
		h.Fatal(err)
	}
	out, theirs, err := os.Pipe()
	if err != nil {
		h.Fatal(err)
	}
	defer theirs.Close()
	d := &daemon{host: h, cmd: exec.Command("/proc/self/exe"), lines: bufio.NewScanner(out)}
	d.cmd.Env = append(os.Environ(), roleEnv+"="+string(text))
	d.cmd.Stdout = theirs
	if d.said, err = os.CreateTemp(h.TempDir(), "stderr"); err != nil {
		h.Fatal(err)
	}
	d.cmd.Stderr = d.said
	if err := d.cmd.Start(); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { d.kill(); out.Close(); d.said.Close() })
	return d
}

// await returns when the daemon has said what; false: it ended first.
func (d *daemon) await(what string) bool {
	for d.lines.Scan() {
		if d.lines.Text() == what {
			return true
		}
	}
	return false
}

func (d *daemon) mustServe() *daemon {
	d.Helper()
	if !d.await("serves") {
		d.Fatalf("the daemon ended: %v: %s", d.cmd.Wait(), d.stderr())
	}
	return d
}

func (d *daemon) stderr() string {
	b, err := os.ReadFile(d.said.Name())
	if err != nil {
		d.Fatal(err)
	}
	return string(b)
}

func (d *daemon) kill() {
	if d.cmd.ProcessState == nil {
		d.cmd.Process.Kill()
		d.cmd.Wait()
	}
}

// client is a connection of the test's own.
func (h *host) client() *keeper.Client {
	h.Helper()
	c, err := keeper.Dial(h.Context(), h.Socket)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(c.Close)
	return c
}

// keeperOf returns the process that listens on socket.
func keeperOf(t testing.TB, socket string) int {
	t.Helper()
	c, err := net.Dial("unixpacket", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var cred *unix.Ucred
	raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil {
		t.Fatal(err)
	}
	return int(cred.Pid)
}

// otherUser tells how a connection as another user goes.
func otherUser(socket string) error {
	c, err := keeper.Dial(context.Background(), socket)
	if err == nil {
		c.Close()
	}
	return err
}

func asOtherUser(t testing.TB, socket string) string {
	t.Helper()
	const nobody = 65534
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), otherEnv+"="+socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	said, err := cmd.CombinedOutput()
	if err == nil {
		t.Error("another user was let in")
	}
	return string(said) + strconv.Quote(fmt.Sprint(err))
}
