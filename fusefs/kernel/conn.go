package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// ErrUnmounted says that the connection has ended or was never served.
var ErrUnmounted = errors.New("the mount is gone")

const (
	// One idle reader costs half the throughput; with two, the RELEASE that comes
	// along with a call made a third for each file written, on a stack that has
	// to grow first.
	idleReaders = 3

	// resentBit of a request's Unique says that it was read before.
	resentBit = 1 << 63

	inHeaderSize  = 40
	outHeaderSize = 16

	opForget      = 2
	opInit        = 26
	opInterrupt   = 36
	opNotifyReply = 41
	opBatchForget = 42
)

// A Conn is one connection to the kernel's FUSE: a mount and its descriptor.
type Conn struct {
	// Fixed by Mount or Attach, but for opts.Keeper, which mu guards.
	mount      mountEntry
	epoch      uint64
	generation uint64
	attached   bool // an earlier process made the mount
	opts       Options

	// Fixed by Attach as far as it was kept, then by Serve before the first
	// reader starts.
	server   *fuse.ProtocolServer
	initIn   []byte
	initOut  []byte
	initDone bool // the kernel has initOut

	alive      atomic.Int32 // readers
	idle       atomic.Int32 // readers in or about to enter read(2)
	interrupts atomic.Int64 // INTERRUPTs that came
	resent     atomic.Int64 // requests that came again
	readers    sync.WaitGroup
	draining   atomic.Bool
	unmounted  atomic.Bool   // the kernel said so
	done       chan struct{} // closed when the last reader has left

	fdMu sync.RWMutex // read: somebody uses fd; write: it is being closed
	fd   int          // -1 once closed

	mu     sync.Mutex // guards what follows
	served bool
	ended  bool
	failed error
	spare  []*buffers
	// trimBuffers will come.
	trimming bool
}

func newConn(fd int, mount mountEntry, opts Options) *Conn {
	epoch := rand.Uint64() // seeded by the system
	return &Conn{fd: fd, mount: mount, opts: opts, epoch: epoch | 1, generation: 1, done: make(chan struct{})}
}

// Dir returns the mountpoint as the kernel spells it.
func (c *Conn) Dir() string { return c.mount.point }

// Mounted reports whether the mount is at its place, perhaps covered by another.
// One that was unmounted may still be used by who has something open in it.
func (c *Conn) Mounted() (bool, error) { return mounted(c.mount) }

// Epoch names this connection, at random and never 0. The kernel counts
// requests from 1 again on each mount; (Epoch, unique) names one for ever.
func (c *Conn) Epoch() uint64 { return c.epoch }

// Resent counts the requests that an earlier process had read and not answered,
// and that came again.
func (c *Conn) Resent() uint64 { return uint64(c.resent.Load()) }

// Serve answers the kernel's INIT and starts the readers; it returns when
// the mount answers. Methods of fs run in the readers' goroutines, many at
// once. fs.Init and fs.OnUnmount are not called.
func (c *Conn) Serve(fs fuse.RawFileSystem) error {
	c.mu.Lock()
	again := c.served || c.ended
	c.served = true
	c.mu.Unlock()
	if again {
		return fmt.Errorf("serve %s: called twice or after Close", c.mount.point)
	}
	c.server = newServer(fs, c.protocolOptions())
	err := c.negotiate()
	if err == nil && c.attached {
		err = c.recall()
	}
	if err != nil {
		c.unmounted.Store(errors.Is(err, ErrUnmounted))
		c.finish(err)
		return fmt.Errorf("serve %s: %w", c.mount.point, err)
	}
	c.idle.Store(idleReaders)
	c.alive.Store(idleReaders)
	c.readers.Add(idleReaders)
	for range idleReaders {
		go c.read()
	}
	go func() {
		c.readers.Wait()
		c.finish(nil)
	}()
	if !c.Kept() {
		c.stopPolling()
	}
	return nil
}

// recall has the kernel send again what an earlier process read and did not
// answer. The readers' memory is there before, so that they read at once.
func (c *Conn) recall() error {
	if negotiated(c.initOut)&capResend == 0 {
		return ErrNoResend
	}
	var ready []*buffers
	defer func() {
		for _, b := range ready {
			c.giveBuffers(b)
		}
	}()
	for range idleReaders {
		b, err := c.takeBuffers()
		if err != nil {
			return err
		}
		ready = append(ready, b)
	}
	if err := c.Resend(); err != nil {
		return err
	}
	return alive(c.fd) // of one that has ended the kernel takes a resend, too
}

// receive reads one request. ErrUnmounted is the end of the connection.
func (c *Conn) receive(in []byte) (int, error) {
	for {
		n, err := unix.Read(c.fd, in)
		switch err {
		case nil:
			if n < inHeaderSize {
				return 0, fmt.Errorf("request of %d bytes", n)
			}
			return n, nil
		case unix.ENOENT, unix.EINTR, unix.EAGAIN: // interrupted before we got it
			if c.draining.Load() {
				return 0, ErrHandedOver
			}
		case unix.ENODEV, unix.ECONNABORTED: // ECONNABORTED: it ended while a request was being read
			c.unmounted.Store(true)
			return 0, ErrUnmounted
		default:
			return 0, fmt.Errorf("read request: %w", err)
		}
	}
}

// read is one reader: it takes requests and answers them until the
// connection ends or enough others are idle. It enters counted as idle.
func (c *Conn) read() {
	defer c.readers.Done()
	defer c.alive.Add(-1)
	b, err := c.takeBuffers()
	if err != nil {
		c.idle.Add(-1)
		c.fail(err)
		return
	}
	defer c.giveBuffers(b)
	in, out := [][]byte{nil}, [][]byte{b.out}
	for {
		if c.draining.Load() {
			c.idle.Add(-1)
			return
		}
		n, err := c.receive(b.in)
		if err != nil {
			c.idle.Add(-1)
			c.fail(err)
			return
		}
		if binary.NativeEndian.Uint64(b.in[8:])&resentBit != 0 {
			c.resent.Add(1)
		}
		if c.leaving(b.in[:n]) {
			c.idle.Add(-1)
			return
		}
		if c.idle.Add(-1) == 0 && c.becomeIdle() {
			c.alive.Add(1)
			c.readers.Add(1) // we are counted, so Wait has not passed
			go c.read()
		}
		in[0] = b.in[:n]
		c.answer(in, out)
		if !c.becomeIdle() {
			return
		}
	}
}

// becomeIdle counts one more idle reader unless there are enough. Comparing
// and counting is one step: with two, all readers could retire together.
func (c *Conn) becomeIdle() bool {
	for {
		n := c.idle.Load()
		if n >= idleReaders {
			return false
		}
		if c.idle.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// handle has the filesystem handle one request. INTERRUPT is not for it: no
// method of ours ends early, and go-fuse would answer EAGAIN as long as the
// other reader has not begun with what it interrupts, at which the kernel sends
// it again and again. ENOSYS makes it never ask.
func (c *Conn) handle(in, out [][]byte) (n int, status fuse.Status) {
	if opcode(in[0]) == opInterrupt {
		c.interrupts.Add(1)
		return 0, fuse.ENOSYS
	}
	return c.server.HandleRequest(in, out)
}

// answer handles one request and writes the reply, always exactly one where
// the kernel waits for it: an unanswered request hangs its caller.
func (c *Conn) answer(in, out [][]byte) {
	n, status := c.handle(in, out)
	if n == 0 {
		if status.Ok() || !wantsReply(in[0]) {
			return
		}
		n = errorReply(out[0], in[0], int32(status))
	}
	beforeReply(in[0])
	_, err := unix.Write(c.fd, out[0][:n])
	switch err {
	case nil, unix.ENOENT, unix.ENODEV: // ENOENT: interrupted or aborted meanwhile
	default:
		unix.Write(c.fd, out[0][:errorReply(out[0], in[0], int32(unix.EIO))]) //nolint:errcheck // the connection has ended, or the kernel refuses even this
	}
}

func (c *Conn) logf(format string, args ...any) {
	if c.opts.Logger != nil {
		c.opts.Logger.Printf(format, args...)
	} else {
		log.Printf(format, args...)
	}
}

func opcode(in []byte) uint32 { return binary.NativeEndian.Uint32(in[4:]) }

func wantsReply(in []byte) bool {
	switch opcode(in) {
	case opForget, opBatchForget, opNotifyReply:
		return false
	}
	return true
}

func errorReply(out, in []byte, errno int32) int {
	binary.NativeEndian.PutUint32(out, outHeaderSize)
	binary.NativeEndian.PutUint32(out[4:], uint32(-errno))
	copy(out[8:16], in[8:16]) // unique, with the resend bit
	return outHeaderSize
}

// fail remembers why a reader left, if not in good order.
func (c *Conn) fail(err error) {
	if errors.Is(err, ErrUnmounted) || errors.Is(err, ErrHandedOver) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == nil {
		c.failed = err
	}
}

// finish closes the descriptor once nobody reads from it any more.
func (c *Conn) finish(err error) {
	if err != nil {
		c.fail(err)
	}
	c.fdMu.Lock()
	unix.Close(c.fd)
	c.fd = -1
	c.fdMu.Unlock()
	if c.unmounted.Load() {
		if err := c.keeper().Drop(c.epoch); err != nil {
			c.logf("%s has ended, and its keeper does not take it: %v", c.mount.point, err)
		}
	}
	c.dropBuffers()
	close(c.done)
}

// Wait returns when the connection has ended: the mount and all bind mounts
// of it are gone, or it was aborted; or, with ErrHandedOver, when Drain is
// through. A reader's failure is returned. After it no method of the
// filesystem runs.
func (c *Conn) Wait() error {
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == nil && c.draining.Load() && !c.unmounted.Load() {
		return ErrHandedOver
	}
	return c.failed
}

// Done is closed when Wait would return.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Close lets go of a connection that was never served, which ends it if nobody
// keeps it. For a served one it does nothing: unmount it.
func (c *Conn) Close() {
	c.mu.Lock()
	again := c.served || c.ended
	c.served = true
	c.mu.Unlock()
	if !again {
		c.finish(nil)
	}
}

// stopPolling makes the kernel ask for POLL once, which go-fuse answers with
// ENOSYS, so that it never asks again. Otherwise a Go program that opens a
// file of a mount it serves itself can wait for itself in epoll_ctl(2).
//
// Not for a mount that is kept: a process that is killed in a call on its own
// mount does not end before the call does, nobody answers it, and the next one
// waits for that end. Nor can the way to the mount be walked while a mount above
// it still waits to be taken over. Who serves kept mounts must not use them.
func (c *Conn) stopPolling() {
	const name = ".go-fuse-epoll-hack" // known to go-fuse
	fd, err := unix.Open(filepath.Join(c.mount.point, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // covered by another mount; it is only a precaution
	}
	defer unix.Close(fd)
	unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
}
