package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func TestConnNegotiates(t *testing.T) {
	_, c := serve(t, Options{})
	const want = fuse.CAP_EXPORT_SUPPORT | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_HAS_RESEND | fuse.CAP_AUTO_INVAL_DATA
	if got := c.Negotiated(); got&want != want || got&fuse.CAP_WRITEBACK_CACHE != 0 {
		t.Errorf("negotiated %#x, want %#x and no writeback", got, want)
	}
	in, out := c.initIn, c.initOut
	if opcode(in) != opInit || len(out) <= outHeaderSize || c.Epoch() == 0 {
		t.Errorf("INIT of %d bytes, reply of %d, epoch %d", len(in), len(out), c.Epoch())
	}
}

// Writes and reads of the largest size, from many at once.
func TestConnMovesData(t *testing.T) {
	_, c := serve(t, Options{})
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() { moveData(t, c.Dir()+"/"+string(rune('a'+i)), byte(i)) })
	}
	all.Wait()
	if n := c.idle.Load(); n < 0 || n > idleReaders {
		t.Errorf("%d idle readers", n)
	}
}

func moveData(t *testing.T, name string, fill byte) {
	data := bytes.Repeat([]byte{fill, 1, 2}, maxWrite)
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Error(err)
		return
	}
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Close(fd)
	got := make([]byte, len(data))
	for n := 0; n < len(got); {
		m, err := unix.Pread(fd, got[n:], int64(n))
		if err != nil || m == 0 {
			t.Errorf("read at %d: %d, %v", n, m, err)
			return
		}
		n += m
	}
	if !bytes.Equal(got, data) {
		t.Errorf("%s came back different", name)
	}
}

// A signal does not end a call that the filesystem is at, and the kernel does
// not even ask. A second signal would find it waiting for the answer, not for us.
func TestConnSignals(t *testing.T) {
	fs, c := serve(t, Options{})
	for n := range 20 {
		fs.mu.Lock() // stops the handler
		release := sync.OnceFunc(fs.mu.Unlock)
		defer release()
		thread, done := make(chan int, 1), make(chan error, 1)
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			thread <- unix.Gettid()
			done <- unix.Stat(fmt.Sprint(c.Dir(), "/", n), new(unix.Stat_t))
		}()
		caller := <-thread
		await(t, "the request", func() bool { return c.alive.Load() > c.idle.Load() }) // a reader is at it
		for range 5 {
			if err := unix.Tgkill(unix.Getpid(), caller, unix.SIGURG); err != nil { // which Go takes for nothing
				t.Fatal(err)
			}
			runtime.Gosched()
		}
		release()
		if err := <-done; err != unix.ENOENT {
			t.Errorf("stat %d: %v", n, err)
		}
	}
	if n := c.interrupts.Load(); n > 0 {
		t.Errorf("asked %d times", n)
	}
}

func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) { // polling
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come", what)
		}
	}
}

func TestNotifications(t *testing.T) {
	fs, c := serve(t, Options{})
	name := c.Dir() + "/f"
	if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	asked := func(op string) bool { // whether a stat sends it
		fs.took()
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			t.Fatal(err)
		}
		for _, call := range fs.took() {
			if call.op == op {
				return true
			}
		}
		return false
	}
	asked("GETATTR")
	if asked("GETATTR") || asked("LOOKUP") {
		t.Fatal("stat is not cached")
	}
	const node = 2
	if err := c.InvalInode(node, -1, 0); err != nil || !asked("GETATTR") {
		t.Errorf("InvalInode had no effect (%v)", err)
	}
	if err := c.InvalEntry(rootNode, "f"); err != nil || !asked("LOOKUP") {
		t.Errorf("InvalEntry had no effect (%v)", err)
	}
	if err := c.Delete(rootNode, node, "f"); err != nil || !asked("LOOKUP") {
		t.Errorf("Delete had no effect (%v)", err)
	}
	if known, err := c.KernelKnows(node); !known || err != nil {
		t.Errorf("KernelKnows of a cached node: %v, %v", known, err)
	}
	if known, err := c.KernelKnows(4711); known || err != nil {
		t.Errorf("KernelKnows of an unknown node: %v, %v", known, err)
	}
	if err := c.InvalEntry(rootNode, "unknown"); err != nil {
		t.Errorf("InvalEntry of an unknown name: %v", err)
	}
	if err := c.Resend(); err != nil {
		t.Error(err)
	}
}

func TestPruneBringsForget(t *testing.T) {
	fs, c := serve(t, Options{})
	if err := unix.Mkdir(c.Dir()+"/d", 0o755); err != nil {
		t.Fatal(err)
	}
	forgot := fs.forgets(2)
	if err := c.Prune(2, 4711); err != nil {
		t.Fatal(err)
	}
	select {
	case <-forgot:
	case <-time.After(10 * time.Second):
		t.Error("no FORGET after Prune")
	}
}

func TestPassthrough(t *testing.T) {
	fs, c := serve(t, Options{})
	backing := t.TempDir()
	if err := unix.Mknod(c.Dir()+"/f", unix.S_IFREG|0o600, 0); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(backing + "/b")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	id, err := c.RegisterBacking(int(f.Fd()))
	if (errors.Is(err, ErrNoPassthrough) || errors.Is(err, unix.ELOOP)) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	fs.mu.Lock()
	fs.backing = id
	fs.mu.Unlock()
	if err := os.WriteFile(c.Dir()+"/f", []byte("straight"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(f.Name()); string(got) != "straight" || err != nil {
		t.Errorf("backing file: %q, %v", got, err)
	}
	if err := c.UnregisterBacking(id); err != nil {
		t.Error(err)
	}
}
