package kernel

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// ErrHelperGone says that the helper is not running; Start it again. What
// was asked last may have been done or not.
var ErrHelperGone = errors.New("the reveal helper is gone")

// startTimeout bounds how long a helper may take to come up on a busy machine.
const startTimeout = 30 * time.Second

// helperNice is the helper's nice value.
const helperNice = -15

// A Helper is the daemon's side of a reveal helper: a process whose system
// calls inside the mount give watchers the events of a change that came from
// another node. Make it with NewHelper before the filesystem, which asks it
// about its callers, and Start it after Conn.Serve.
type Helper struct {
	tid   atomic.Int32           // of the helper's thread, 0 while there is none
	was   []uint32               // those of a dead daemon's helpers; fixed by Follow
	tell  func(thread uint32)    // fixed by Follow
	token atomic.Pointer[string] // awaited by Handshake

	mu    sync.Mutex
	run   *helperRun // nil before Start
	ready bool       // run is recognised: before, its calls would be taken for a user's
}

// A helperRun is one process.
type helperRun struct {
	// Fixed by Start.
	socket *os.File
	paths  bool
	cmd    *exec.Cmd
	gone   chan struct{} // closed when the process is reaped
	closed atomic.Bool

	sendMu sync.Mutex // serialises writes to socket

	mu      sync.Mutex // guards what follows
	nextID  uint32
	pending map[uint32]chan syscall.Errno // nil once the socket has ended
}

// NewHelper returns a Helper that is not running and recognises nobody.
func NewHelper() *Helper { return &Helper{} }

// Handshake is to be called by GetXAttr on the root with what it got. If it
// returns true, the caller was the helper saying who it is: answer ENODATA.
func (h *Helper) Handshake(header *fuse.InHeader, attr string) bool {
	token := h.token.Load()
	if token == nil || header.NodeId != rootNode || header.Pid == 0 {
		return false
	}
	if attr != attrTrusted+*token && attr != attrUser+*token {
		return false
	}
	h.mu.Lock() // against forget, or a dead helper's id could be stored after it
	defer h.mu.Unlock()
	if !h.token.CompareAndSwap(token, nil) { // it is good once
		return false
	}
	if h.tell != nil {
		h.tell(header.Pid) // before it makes a call
	}
	h.tid.Store(int32(header.Pid))
	return true
}

// Follow says that the mount was taken over: was are the threads of the last
// daemon's helpers. tell is called with that of each process to come, for the
// next Follow. To be called before Conn.Serve, or before Start.
func (h *Helper) Follow(was []uint32, tell func(thread uint32)) { h.was, h.tell = was, tell }

// Is reports whether the request was made by the helper, or is one that a dead
// daemon's helper was waiting for and the kernel sends again: no later process
// with the same number can have such a one.
func (h *Helper) Is(header *fuse.InHeader) bool {
	tid := h.tid.Load()
	return tid != 0 && header.Pid == uint32(tid) ||
		header.Unique&resentBit != 0 && slices.Contains(h.was, header.Pid)
}

// Start runs execPath with args as the helper of c's mount; that program
// has to call RunHelper. It replaces a helper that runs. c must be served.
// One Start at a time, never from a handler.
func (h *Helper) Start(c *Conn, execPath string, args ...string) error {
	h.Close()
	run, err := h.spawn(execPath, args)
	if err != nil {
		return fmt.Errorf("start reveal helper %s: %w", execPath, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := h.introduce(ctx, c, run); err != nil {
		h.Close()
		return fmt.Errorf("start reveal helper %s: %w", execPath, err)
	}
	h.mu.Lock()
	h.ready = h.run == run
	h.mu.Unlock()
	return nil
}

// spawn starts the process and makes it h.run.
func (h *Helper) spawn(execPath string, args []string) (*helperRun, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "reveal-helper")
	defer theirs.Close()
	unix.SetNonblock(pair[0], true) //nolint:errcheck // ours goes through Go's poller
	run := &helperRun{
		socket:  os.NewFile(uintptr(pair[0]), "reveal"),
		gone:    make(chan struct{}),
		pending: make(map[uint32]chan syscall.Errno),
		cmd:     exec.Command(execPath, args...),
	}
	run.cmd.Env = append(os.Environ(), helperEnv+"=1", "GOMAXPROCS=2",
		"GODEBUG=asyncpreemptoff=1") // its signals would interrupt calls: EINTR
	run.cmd.ExtraFiles = []*os.File{theirs}
	run.cmd.Stderr = os.Stderr
	// Setpgid keeps a Ctrl-C for the daemon from taking the helper first.
	run.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go h.superviseRun(run, started)
	if err := <-started; err != nil {
		run.socket.Close()
		return nil, err
	}
	// Its calls wait for many a turn at a core; it needs little of each. Without
	// the privilege it has its turn like all others.
	unix.Setpriority(unix.PRIO_PROCESS, run.cmd.Process.Pid, helperNice) //nolint:errcheck // as said
	h.mu.Lock()
	h.run = run
	h.mu.Unlock()
	return run, nil
}

// superviseRun starts the process and reaps it. It keeps its thread, as the
// death signal is sent when the thread that started the process ends.
func (h *Helper) superviseRun(run *helperRun, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := run.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	waitDead(run.cmd.Process.Pid)
	h.forget()     // reaping frees the id for others
	run.cmd.Wait() //nolint:errcheck // how it ended does not matter
	close(run.gone)
}

// forget makes the helper's id mean nothing.
func (h *Helper) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.token.Store(nil)
	h.tid.Store(0)
}

// waitDead returns when the process is dead, and leaves it to be reaped.
func waitDead(pid int) {
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
}

// introduce tells the helper its mount and learns its thread's id.
func (h *Helper) introduce(ctx context.Context, c *Conn, run *helperRun) error {
	deadline, _ := ctx.Deadline()
	run.socket.SetDeadline(deadline) //nolint:errcheck // the call itself says what is wrong
	f := frame{b: binary.NativeEndian.AppendUint32(nil, uint32(c.mount.id))}
	f.putString(c.mount.dev)
	f.putString(c.mount.point)
	if _, err := run.socket.Write(f.b); err != nil {
		return err
	}
	hello := make([]byte, helloSize)
	n, err := run.socket.Read(hello)
	if err != nil || n != helloSize {
		return fmt.Errorf("%w before it said hello (does it call RunHelper?): %v", ErrHelperGone, err)
	}
	if errno := binary.NativeEndian.Uint32(hello); errno != 0 {
		return fmt.Errorf("it cannot use the mount: %w", syscall.Errno(errno))
	}
	run.paths = binary.NativeEndian.Uint32(hello[4:])&helloPaths != 0
	run.socket.SetDeadline(time.Time{}) //nolint:errcheck // as above
	go run.receiveReplies()
	return h.handshake(ctx, run)
}

func (h *Helper) handshake(ctx context.Context, run *helperRun) error {
	token := rand.Text()
	for _, prefix := range []string{attrTrusted, attrUser} { // trusted.* needs privilege
		h.token.Store(&token)
		r := &Request{Op: OpHandshake, Dir: Dir{Node: rootNode}, Name: prefix + token}
		err := run.do(ctx, r)
		h.token.Store(nil)
		if h.tid.Load() != 0 {
			return nil
		}
		if errors.Is(err, ErrHelperGone) || ctx.Err() != nil {
			return err
		}
	}
	return errors.New("the handshake did not arrive; does GetXAttr of the root call Helper.Handshake, and never answer ENOSYS?")
}

// NeedsPaths reports whether the helper lacks the privilege to open
// directories by node id, so that requests must carry Dir.Path. Such a helper
// also gets EACCES where its user may not write; then there are no events.
func (h *Helper) NeedsPaths() bool {
	run := h.current()
	return run != nil && run.paths
}

// current is the helper that may be asked, nil if there is none.
func (h *Helper) current() *helperRun {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ready {
		return nil
	}
	return h.run
}

// Do has the helper make a call and returns its errno as a syscall.Errno, or
// ErrHelperGone, or the context's error, in which case the call is still
// made some time. Calls are made one after the other in the order of Do; more
// than one may be asked for at once. Never call it from a handler.
func (h *Helper) Do(ctx context.Context, r *Request) error {
	run := h.current()
	if run == nil {
		return ErrHelperGone
	}
	return run.do(ctx, r)
}

// Close kills the helper and waits for its end, hence also for the handler
// of a call it is in. It may be started again. Never call it from a handler.
func (h *Helper) Close() {
	h.mu.Lock()
	run := h.run
	h.run, h.ready = nil, false
	h.mu.Unlock()
	if run == nil {
		return
	}
	run.cmd.Process.Kill() //nolint:errcheck // fails only if it is dead already
	<-run.gone
	run.end()
}

// Gone is closed when the helper that runs now has ended; nil if none runs.
func (h *Helper) Gone() <-chan struct{} {
	if run := h.current(); run != nil {
		return run.gone
	}
	return nil
}

func (run *helperRun) do(ctx context.Context, r *Request) error {
	if err := r.check(); err != nil {
		return err
	}
	answer := make(chan syscall.Errno, 1)
	id, err := run.send(r, answer)
	if err != nil {
		return err
	}
	select {
	case errno, ok := <-answer:
		if !ok {
			return ErrHelperGone
		}
		if errno != 0 {
			return errno
		}
		return nil
	case <-ctx.Done():
		run.mu.Lock()
		delete(run.pending, id)
		run.mu.Unlock()
		return ctx.Err()
	}
}

// send registers the request and sends it, in one order for both.
func (run *helperRun) send(r *Request, answer chan syscall.Errno) (uint32, error) {
	run.sendMu.Lock()
	defer run.sendMu.Unlock()
	run.mu.Lock()
	if run.pending == nil {
		run.mu.Unlock()
		return 0, ErrHelperGone
	}
	run.nextID++
	id := run.nextID
	run.pending[id] = answer
	run.mu.Unlock()
	if _, err := run.socket.Write(encodeRequest(id, r)); err != nil {
		run.end()
		return 0, fmt.Errorf("%w: %w", ErrHelperGone, err)
	}
	return id, nil
}

// receiveReplies hands replies to whom they belong until the socket ends.
func (run *helperRun) receiveReplies() {
	defer run.end()
	reply := make([]byte, replySize)
	for {
		n, err := run.socket.Read(reply)
		if err != nil || n != replySize {
			return
		}
		id, errno := binary.NativeEndian.Uint32(reply), binary.NativeEndian.Uint32(reply[4:])
		run.mu.Lock()
		answer := run.pending[id] // nil if its caller has given up
		delete(run.pending, id)
		run.mu.Unlock()
		if answer != nil {
			answer <- syscall.Errno(errno)
		}
	}
}

// end closes the socket, at which the process exits, and fails the rest.
func (run *helperRun) end() {
	if run.closed.Swap(true) {
		return
	}
	run.socket.Close()
	run.mu.Lock()
	rest := run.pending
	run.pending = nil
	run.mu.Unlock()
	for _, answer := range rest {
		close(answer)
	}
}
