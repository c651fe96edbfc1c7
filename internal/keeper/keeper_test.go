package keeper_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/keeper"
)

// startKeeper starts one that nobody uses, and connects.
func startKeeper(t *testing.T, argv ...string) (*keeper.Client, string) {
	t.Helper()
	if len(argv) == 0 {
		argv = []string{"/proc/self/exe", keeper.Command}
	}
	socket := socketPath(t)
	c, err := keeper.Start(t.Context(), socket, argv...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, socket
}

// put has something kept that a keeper takes for a mount that lives.
func put(t *testing.T, c *keeper.Client, m keeper.Mount) {
	t.Helper()
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	m.FD = fd
	if err := c.Put(m); err != nil {
		t.Fatal(err)
	}
}

func attach(t *testing.T, c *keeper.Client) []keeper.Mount {
	t.Helper()
	mounts, err := c.Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		t.Cleanup(func() { unix.Close(m.FD) })
	}
	return mounts
}

func dial(t *testing.T, socket string) *keeper.Client {
	t.Helper()
	c, err := keeper.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// await waits for what another process does.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) { // polling
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come", what)
		}
	}
}

// give ends what a test has put: it is on /dev/null and would be kept for ever.
func give(t *testing.T, c *keeper.Client, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		if n, err := c.Release(dir); n != 1 || err != nil {
			t.Errorf("released %d mounts on %s: %v", n, dir, err)
		}
	}
}

// All that is told comes back, and is counted as another process's turn.
func TestKeeperKeeps(t *testing.T) {
	c, socket := startKeeper(t)
	if mounts := attach(t, c); len(mounts) > 0 {
		t.Fatalf("a new keeper has %v", mounts)
	}
	put(t, c, keeper.Mount{Dir: "/a", MountID: 5, Dev: "0:7", Epoch: 1<<63 | 1, Generation: 1, Note: []byte("note")})
	put(t, c, keeper.Mount{Dir: "/b", Epoch: 2})
	err := errors.Join(c.Init(2, []byte("in")), c.Reply(2, []byte("out")), c.Done(2))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Done(3); !errors.Is(err, keeper.ErrUnknown) {
		t.Errorf("INIT of an unknown mount: %v", err)
	}
	mounts := attach(t, dial(t, socket))
	if len(mounts) != 2 {
		t.Fatalf("%d mounts", len(mounts))
	}
	for i := range mounts {
		if mounts[i].FD < 0 {
			t.Error("a mount came without descriptor")
		}
		mounts[i].FD = 0
	}
	want := "[{0 /b 0  2 1 [] [105 110] [111 117 116] true} {0 /a 5 0:7 9223372036854775809 2 [110 111 116 101] [] [] false}]"
	if got := fmt.Sprint(mounts); got != want {
		t.Errorf("got %s", got)
	}
	if err := c.Done(2); !errors.Is(err, keeper.ErrNotOwner) {
		t.Errorf("INIT from who is not the one any more: %v", err)
	}
	attach(t, c) // the same process may
	give(t, c, "/a", "/b")
}

// What is not there any more is dropped; what is there is not.
func TestKeeperDrops(t *testing.T) {
	h := newHost(t)
	h.start(nil).mustServe()
	c := h.client()
	list := func() []keeper.Mount {
		mounts, err := c.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return mounts
	}
	if mounts := list(); len(mounts) != 1 || mounts[0].FD >= 0 || mounts[0].Dir != h.Point || !mounts[0].InitDone {
		t.Fatalf("listed are %+v", mounts)
	}
	if n, err := c.Release(h.Point); n != 0 || !errors.Is(err, keeper.ErrOwned) {
		t.Errorf("released %d mounts that are served: %v", n, err)
	}
	if err := c.Drop(list()[0].Epoch); !errors.Is(err, keeper.ErrNotOwner) {
		t.Errorf("dropped by somebody: %v", err)
	}
	if err := kernel.Unmount(h.Point, kernel.UnmountOptions{}); err != nil {
		t.Fatal(err)
	}
	if mounts := list(); len(mounts) > 0 {
		t.Errorf("after the unmount %+v are kept", mounts)
	}
	attached, _ := startKeeper(t)
	attach(t, attached)
	put(t, attached, keeper.Mount{Dir: "/a", Epoch: 1})
	if err := attached.Drop(1); !errors.Is(err, keeper.ErrAlive) {
		t.Errorf("drop of what lives: %v", err)
	}
	if err := attached.Drop(7); err != nil {
		t.Errorf("drop of what is gone: %v", err)
	}
	give(t, attached, "/a")
}

// Who is stuck in the mount of a dead daemon can be freed.
func TestP9Release(t *testing.T) {
	h := newHost(t)
	d := h.start(nil).mustServe()
	if err := os.WriteFile(filepath.Join(h.Point, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.kill()
	stuck := make(chan error)
	go func() {
		_, err := os.ReadDir(h.Point)
		stuck <- err
	}()
	h.free(h.client())
	if err := <-stuck; !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("the caller got %v", err)
	}
	if cleared, err := kernel.Clear(h.Point); cleared.Dead != 1 || err != nil {
		t.Errorf("cleared %+v, %v", cleared, err)
	}
}

// A daemon gets the mounts when the one before has ended, and not when that has
// merely lost its connection.
func TestKeeperOneOwner(t *testing.T) {
	h := newHost(t)
	first := h.start(func(r *role) { r.Hangup = true })
	if !first.await("hung up") {
		t.Fatal(first.stderr())
	}
	c := h.client()
	ctx, cancel := context.WithCancel(t.Context())
	attached := make(chan error)
	go func() {
		_, err := c.Attach(ctx)
		attached <- err
	}()
	if _, err := h.client().Release(h.Point); !errors.Is(err, keeper.ErrOwned) {
		t.Errorf("the owner has a connection no more, and lives: %v", err)
	}
	cancel()
	if err := <-attached; !errors.Is(err, context.Canceled) {
		t.Fatalf("attached beside another process: %v", err)
	}
	c = h.client()
	go func() {
		mounts, err := c.Attach(t.Context())
		if len(mounts) != 1 {
			err = errors.Join(err, fmt.Errorf("%d mounts", len(mounts)))
		}
		for _, m := range mounts {
			unix.Close(m.FD)
		}
		attached <- err
	}()
	first.kill()
	if err := <-attached; err != nil {
		t.Error(err)
	}
}

// Any number may start the keeper at once; there is one.
func TestKeeperStartedOnce(t *testing.T) {
	socket := socketPath(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	var clients []*keeper.Client
	for range 8 {
		all.Go(func() {
			c, err := keeper.Start(t.Context(), socket, "/proc/self/exe", keeper.Command)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			clients = append(clients, c)
			mu.Unlock()
		})
	}
	all.Wait()
	if len(clients) != 8 {
		t.Fatalf("%d clients", len(clients))
	}
	defer func() {
		for _, c := range clients {
			c.Close()
		}
	}()
	attach(t, clients[0])
	put(t, clients[0], keeper.Mount{Dir: "/a", Epoch: 1})
	for _, c := range clients {
		if epochs, err := c.Epochs(); len(epochs) != 1 || err != nil {
			t.Errorf("another keeper: it has %d mounts, %v", len(epochs), err)
		}
	}
	give(t, clients[0], "/a")
}

// Without a program to start, somebody else's keeper is waited for, and none is
// started.
func TestKeeperAwaited(t *testing.T) {
	socket := socketPath(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := keeper.Start(ctx, socket); !errors.Is(err, keeper.ErrNoKeeper) {
		t.Fatalf("with no keeper: %v", err)
	}
	awaited := make(chan error, 1)
	go func() {
		c, err := keeper.Start(t.Context(), socket)
		if err == nil {
			c.Close()
		}
		awaited <- err
	}()
	c, err := keeper.Start(t.Context(), socket, "/proc/self/exe", keeper.Command)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := <-awaited; err != nil {
		t.Error(err)
	}
}

// It goes when it is of no use, and leaves room for the next.
func TestKeeperEnds(t *testing.T) {
	c, socket := startKeeper(t, "/proc/self/exe", keeper.Command, "--idle", "1ms")
	pid := keeperOf(t, socket)
	attach(t, c)
	put(t, c, keeper.Mount{Dir: "/a", Epoch: 1})
	if _, err := c.Epochs(); err != nil {
		t.Error("it ends while somebody is connected")
	}
	c.Close()
	c = dial(t, socket)
	attach(t, c)
	give(t, c, "/a")
	c.Close()
	await(t, "the end", func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
	if _, err := keeper.Dial(t.Context(), socket); !errors.Is(err, keeper.ErrNoKeeper) {
		t.Errorf("after the end: %v", err)
	}
	// One that is just ending is waited for.
	for range 20 {
		c, err := keeper.Start(t.Context(), socket, "/proc/self/exe", keeper.Command, "--idle", "1ms")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

// It is in nobody's process group, and what ends programs does not end it while
// it holds something.
func TestKeeperSignals(t *testing.T) {
	c, socket := startKeeper(t)
	pid := keeperOf(t, socket)
	if session, err := unix.Getsid(pid); session != pid || err != nil {
		t.Errorf("it is in session %d (%v), not its own, %d", session, err, pid)
	}
	attach(t, c)
	put(t, c, keeper.Mount{Dir: "/a", Epoch: 1})
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM} {
		if err := unix.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "word of SIGTERM", func() bool {
		log, _ := os.ReadFile(socket + ".log")
		return strings.Contains(string(log), "asked to end, with 1 mounts")
	})
	give(t, c, "/a")
	select {
	case <-c.Gone(): // as it was asked to
	case <-time.After(20 * time.Second):
		t.Error("SIGTERM did not end it when it held nothing any more")
	}
}

// If the keeper is killed the daemon gives its mounts to another.
func TestP9KeeperKilled(t *testing.T) {
	c, socket := startKeeper(t)
	attach(t, c)
	put(t, c, keeper.Mount{Dir: "/a", Epoch: 1})
	if err := unix.Kill(keeperOf(t, socket), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-c.Gone()
	if _, err := c.Epochs(); !errors.Is(err, keeper.ErrGone) {
		t.Errorf("asked a dead keeper: %v", err)
	}
	c, err := keeper.Start(t.Context(), socket, "/proc/self/exe", keeper.Command)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	attach(t, c)
	put(t, c, keeper.Mount{Dir: "/a", Epoch: 1, Generation: 4, InitIn: []byte("in"), InitOut: []byte("out"), InitDone: true})
	if mounts, err := c.List(t.Context()); err != nil || len(mounts) != 1 || !mounts[0].InitDone || mounts[0].Generation != 4 {
		t.Errorf("listed are %+v, %v", mounts, err)
	}
	give(t, c, "/a")
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// Nobody else may talk to it, even if the socket lets him.
func TestKeeperDeniesOthers(t *testing.T) {
	needRoot(t)
	_, socket := startKeeper(t)
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v, %v", st.Mode(), err)
	}
	if err := errors.Join(os.Chmod(socket, 0o666), os.Chmod(filepath.Dir(socket), 0o755)); err != nil {
		t.Fatal(err)
	}
	if said := asOtherUser(t, socket); !strings.Contains(said, keeper.ErrDenied.Error()) {
		t.Errorf("another user got %s", said)
	}
}
