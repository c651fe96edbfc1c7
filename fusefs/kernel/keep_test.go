package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A shelf is a Keeper within the test.
type shelf struct {
	mu    sync.Mutex
	kept  map[uint64]*Kept
	fails func(step string) (before, after bool) // how the caller is to die, nil: not
}

var errDies = errors.New("the daemon is killed here")

func newShelf(t *testing.T) *shelf {
	s := &shelf{kept: make(map[uint64]*Kept)}
	t.Cleanup(func() {
		for _, k := range s.kept {
			unix.Close(k.FD)
		}
	})
	return s
}

func (s *shelf) step(name string, do func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var before, after bool
	if s.fails != nil {
		before, after = s.fails(name)
	}
	if before {
		return errDies
	}
	if err := do(); err != nil || !after {
		return err
	}
	return errDies
}

func (s *shelf) Put(k Kept) error {
	return s.step("put", func() (err error) {
		if k.FD, err = unix.FcntlInt(uintptr(k.FD), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			s.kept[k.Epoch] = &k
		}
		return err
	})
}

func (s *shelf) Init(epoch uint64, in []byte) error {
	return s.step("init", func() error { s.kept[epoch].InitIn = in; return nil })
}

func (s *shelf) Reply(epoch uint64, out []byte) error {
	return s.step("reply", func() error { s.kept[epoch].InitOut = out; return nil })
}

func (s *shelf) Done(epoch uint64) error {
	return s.step("done", func() error { s.kept[epoch].InitDone = true; return nil })
}

func (s *shelf) Drop(epoch uint64) error {
	return s.step("drop", func() error {
		unix.Close(s.kept[epoch].FD)
		delete(s.kept, epoch)
		return nil
	})
}

// take returns what is kept, as for a new process.
func (s *shelf) take(t *testing.T) Kept {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.kept {
		k.Generation++
		copied := *k
		var err error
		if copied.FD, err = unix.FcntlInt(uintptr(k.FD), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		return copied
	}
	t.Fatal("nothing is kept")
	return Kept{}
}

// mountKept mounts on a new directory with a keeper. At the end whatever is
// there is taken away.
func mountKept(t *testing.T, opts Options) (*shelf, *Conn) {
	t.Helper()
	needMount(t)
	s := newShelf(t)
	opts.Keeper = s
	c, err := Mount(t.TempDir(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(c.Dir(), UnmountOptions{Lazy: true}); err != nil {
			t.Error(err)
		}
	})
	return s, c
}

// attachTo takes over what s holds.
func attachTo(t *testing.T, s *shelf, fs *memFS, opts Options) *Conn {
	t.Helper()
	opts.Keeper = s
	c, err := Attach(s.take(t), opts)
	if err == nil {
		err = c.Serve(fs)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.stopPolling() // this process is its own client
	return c
}

func drain(t *testing.T, c *Conn) {
	t.Helper()
	if err := c.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); !errors.Is(err, ErrHandedOver) {
		t.Fatalf("after Drain: %v", err)
	}
}

// end unmounts and checks that the keeper was told.
func end(t *testing.T, s *shelf, c *Conn) {
	t.Helper()
	if err := c.Unmount(UnmountOptions{Lazy: true}); err != nil {
		t.Error(err)
	}
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	if len(s.kept) > 0 {
		t.Errorf("%d mounts are still kept", len(s.kept))
	}
}

// Under load a mount goes from server to server, and nobody notices.
func TestP9Drain(t *testing.T) {
	s, c := mountKept(t, Options{})
	fs := newMemFS()
	if err := c.Serve(fs); err != nil {
		t.Fatal(err)
	}
	c.stopPolling()
	epoch, dir := c.Epoch(), c.Dir()
	var stop atomic.Bool
	var users sync.WaitGroup
	for i := range 4 {
		users.Go(func() {
			for n := 0; !stop.Load(); n++ {
				moveData(t, fmt.Sprintf("%s/%d.%d", dir, i, n%3), byte(n))
			}
		})
	}
	for n := range 20 {
		drain(t, c)
		c = attachTo(t, s, fs, Options{})
		if c.Epoch() != epoch || c.Generation() != uint64(n+2) || c.Dir() != dir {
			t.Errorf("taken over with epoch %d, generation %d, on %s", c.Epoch(), c.Generation(), c.Dir())
		}
		before, more := fs.count(), 0
		await(t, "a request", func() bool { more = fs.count() - before; return more > 5 })
	}
	stop.Store(true)
	users.Wait()
	end(t, s, c)
}

func (fs *memFS) count() int {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return len(fs.calls)
}

// A handler at work is waited for, no longer than the caller of Drain likes.
func TestDrainWaits(t *testing.T) {
	s, c := mountKept(t, Options{})
	fs := newMemFS()
	if err := c.Serve(fs); err != nil {
		t.Fatal(err)
	}
	fs.mu.Lock()
	asked := make(chan error)
	go func() { asked <- unix.Stat(c.Dir()+"/x", new(unix.Stat_t)) }()
	await(t, "the request", func() bool { return c.alive.Load() > c.idle.Load() })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Drain(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Drain with a handler at work: %v", err)
	}
	fs.mu.Unlock()
	drain(t, c)
	c = attachTo(t, s, fs, Options{})
	if err := <-asked; err != unix.ENOENT {
		t.Errorf("the call under way: %v", err)
	}
	end(t, s, c)
}

func TestDrainNeedsKeeper(t *testing.T) {
	_, c := serve(t, Options{})
	if err := c.Drain(t.Context()); !errors.Is(err, ErrNotKept) {
		t.Error(err)
	}
}

// What a dead process had read comes again, marked.
func TestP9Resend(t *testing.T) {
	s, c := mountKept(t, Options{})
	fs := newMemFS()
	if err := c.Serve(fs); err != nil {
		t.Fatal(err)
	}
	drain(t, c)
	made := make(chan error)
	go func() { made <- unix.Mkdir(c.Dir()+"/d", 0o755) }()
	dead := s.take(t)
	in := make([]byte, 2*pageSize+maxWrite)
	for got := uint32(0); got != 3; { // GETATTR of the root, or what is left of Drain
		if _, err := unix.Read(dead.FD, in); err != nil {
			t.Fatal(err)
		}
		if got = opcode(in); got == 1 {
			break // LOOKUP
		}
	}
	unix.Close(dead.FD)
	c = attachTo(t, s, fs, Options{})
	if err := <-made; err != nil {
		t.Error(err)
	}
	if fs.again == 0 {
		t.Error("no request came marked as sent again")
	}
	end(t, s, c)
}

// A process may die at any step of INIT.
func TestP9InitSteps(t *testing.T) {
	for _, step := range []string{"init", "reply", "done"} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/after=%v", step, after), func(t *testing.T) { initStep(t, step, after) })
		}
	}
}

func initStep(t *testing.T, step string, after bool) {
	s, c := mountKept(t, Options{MaxBackground: 7})
	s.fails = func(name string) (bool, bool) { return name == step && !after, name == step && after }
	fs := newMemFS()
	if err := c.Serve(fs); !errors.Is(err, errDies) {
		t.Fatal(err)
	}
	// So may the next one.
	next, err := Attach(s.take(t), Options{Keeper: s})
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Serve(fs); err != nil && !errors.Is(err, errDies) {
		t.Fatal(err)
	} else if err == nil {
		drain(t, next)
	}
	s.fails = nil
	c = attachTo(t, s, fs, Options{})
	moveData(t, c.Dir()+"/f", 1)
	k := s.take(t)
	unix.Close(k.FD)
	in, out := c.initIn, c.initOut
	if !bytes.Equal(in, k.InitIn) || !bytes.Equal(out, k.InitOut) || !k.InitDone {
		t.Errorf("kept are %d bytes of INIT, %d of the reply, done: %v", len(k.InitIn), len(k.InitOut), k.InitDone)
	}
	end(t, s, c)
}

// Who would negotiate differently leaves all as it is; what belongs to the
// connection is as its first process said.
func TestP9Negotiates(t *testing.T) {
	s, c := mountKept(t, Options{MaxBackground: 7, Note: []byte("note")})
	fs := newMemFS()
	if err := c.Serve(fs); err != nil {
		t.Fatal(err)
	}
	drain(t, c)
	if next, err := Attach(s.take(t), Options{Keeper: s, ACL: true, MaxBackground: 9}); err != nil {
		t.Errorf("what the first did not take is not to be offered to the second: %v", err)
	} else {
		next.Close()
	}
	var took []byte
	s.change(func(k *Kept) { took = k.InitOut })
	s.change(func(k *Kept) { k.InitOut = withFlag(took, fuse.CAP_WRITEBACK_CACHE) })
	k := s.take(t)
	if err := k.Agrees(Options{}); !errors.Is(err, ErrNegotiates) {
		t.Errorf("Agrees: %v", err)
	}
	if _, err := Attach(k, Options{Keeper: s}); !errors.Is(err, ErrNegotiates) {
		t.Errorf("Attach: %v", err)
	}
	s.change(func(k *Kept) { k.InitOut = took })
	c = attachTo(t, s, fs, Options{MaxBackground: 9})
	if string(c.Note()) != "note" {
		t.Errorf("the note is %q", c.Note())
	}
	moveData(t, c.Dir()+"/f", 1)
	end(t, s, c)
}

// withFlag is the reply of a program that takes what we do not.
func withFlag(initOut []byte, flag uint32) []byte {
	out := bytes.Clone(initOut)
	flags := binary.NativeEndian.Uint32(out[initOutFlags:])
	binary.NativeEndian.PutUint32(out[initOutFlags:], flags|flag)
	return out
}

func (s *shelf) change(f func(*Kept)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.kept {
		f(k)
	}
}

// A mount that ended while nobody served it is told from one that lives.
func TestAttachEnded(t *testing.T) {
	s, c := mountKept(t, Options{})
	fs := newMemFS()
	if err := c.Serve(fs); err != nil {
		t.Fatal(err)
	}
	drain(t, c)
	late, err := Attach(s.take(t), Options{Keeper: s})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Unmount(UnmountOptions{Lazy: true}); err != nil {
		t.Fatal(err)
	}
	k := s.take(t)
	if err := late.Serve(fs); !errors.Is(err, ErrUnmounted) {
		t.Errorf("Serve: %v", err)
	}
	if len(s.kept) > 0 {
		t.Error("it is still kept")
	}
	if _, err := Attach(k, Options{}); !errors.Is(err, ErrUnmounted) {
		t.Errorf("Attach: %v", err)
	}
}

// One that was moved is found; one that was detached serves who is in it.
func TestAttachMoved(t *testing.T) {
	s, c := mountKept(t, Options{})
	fs := newMemFS()
	if err := c.Serve(fs); err != nil {
		t.Fatal(err)
	}
	drain(t, c)
	place := t.TempDir()
	to := filepath.Join(place, "to")
	if err := errors.Join(os.Mkdir(to, 0o700),
		unix.Mount("none", place, "tmpfs", 0, ""), os.Mkdir(to, 0o700), // a shared mount cannot be moved out of
		unix.Mount("", place, "", unix.MS_PRIVATE, ""), unix.Mount(c.Dir(), to, "", unix.MS_MOVE, "")); err != nil {
		unix.Unmount(place, unix.MNT_DETACH)
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	defer unix.Unmount(place, unix.MNT_DETACH)
	c = attachTo(t, s, fs, Options{})
	if here, err := c.Mounted(); c.Dir() != to || !here || err != nil {
		t.Errorf("found on %s, mounted: %v, %v", c.Dir(), here, err)
	}
	inside, err := unix.Open(to, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	drain(t, c)
	if err := unix.Unmount(to, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	c = attachTo(t, s, fs, Options{})
	if here, err := c.Mounted(); here || err != nil {
		t.Errorf("detached, mounted: %v, %v", here, err)
	}
	if err := unix.Mkdirat(inside, "d", 0o700); err != nil {
		t.Error(err)
	}
	unix.Close(inside)
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
}

// A keeper that comes new gets all that it has to know.
func TestKeepAgain(t *testing.T) {
	_, c := mountKept(t, Options{Note: []byte("note")})
	fs := newMemFS()
	if err := c.Serve(fs); err != nil {
		t.Fatal(err)
	}
	other := newShelf(t)
	if err := c.Keep(other); err != nil {
		t.Fatal(err)
	}
	drain(t, c)
	again := attachTo(t, other, fs, Options{})
	if again.Epoch() != c.Epoch() || string(again.Note()) != "note" {
		t.Errorf("epoch %d, note %q", again.Epoch(), again.Note())
	}
	end(t, other, again)
}
