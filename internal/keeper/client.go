package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What Dial and all requests may answer, beside what the keeper refuses with.
var (
	// ErrNoKeeper: none listens there.
	ErrNoKeeper = errors.New("no keeper is running")
	// ErrGone: the keeper is not there any more. Start another and Put to it.
	ErrGone = errors.New("the keeper is gone")
)

// A Client is a connection to the keeper. Its methods may be called by many at
// once; each returns when the keeper has answered.
type Client struct {
	conn *net.UnixConn

	mu      sync.Mutex // one request at a time
	replies chan received
	gone    chan struct{} // closed when the connection has ended
}

type received struct {
	reply *reply
	fd    int
}

// Dial connects to the keeper on socket.
func Dial(ctx context.Context, socket string) (*Client, error) {
	c, err := dial(ctx, socket)
	if err != nil {
		return nil, fmt.Errorf("keeper on %s: %w", socket, err)
	}
	return c, nil
}

func dial(ctx context.Context, socket string) (*Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unixpacket", socket)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, fmt.Errorf("%w: %w", ErrNoKeeper, err)
	}
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn.(*net.UnixConn), replies: make(chan received, 1), gone: make(chan struct{})}
	if err := c.checkKeeper(); err != nil {
		conn.Close()
		return nil, err
	}
	go c.receive()
	// One that is about to end accepts no more, and what waited is lost.
	if _, err := c.Epochs(); err != nil {
		c.Close()
		if errors.Is(err, ErrGone) {
			err = ErrNoKeeper
		}
		return nil, err
	}
	return c, nil
}

// checkKeeper makes sure that no other user gets our descriptors.
func (c *Client) checkKeeper() error {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return err
	}
	if controlErr := raw.Control(func(fd uintptr) { err = checkPeer(int(fd)) }); controlErr != nil {
		return controlErr
	}
	return err
}

// startInterval is between two looks for a keeper that somebody else starts, or
// that is just ending.
const startInterval = 20 * time.Millisecond

// startedEnv is set for a program that is started to be the keeper.
const startedEnv = "SYNAPSEFS_KEEPER"

// errNotMain: going on would start the same program for ever.
var errNotMain = errors.New("this program was started to be a keeper and does not call keeper.Main")

// Start connects to the keeper on socket and starts it first if there is none.
// argv is a program with arguments that calls Main with Command and its
// arguments put behind; with none, somebody else's keeper is waited for. Many may
// call it at once; they get the same keeper.
func Start(ctx context.Context, socket string, argv ...string) (*Client, error) {
	if os.Getenv(startedEnv) != "" {
		return nil, errNotMain
	}
	for {
		c, err := Dial(ctx, socket)
		if !errors.Is(err, ErrNoKeeper) {
			return c, err
		}
		if len(argv) > 0 {
			cmd := exec.CommandContext(ctx, argv[0], append(argv[1:len(argv):len(argv)], "--socket", socket, "--start")...)
			cmd.Env = append(os.Environ(), startedEnv+"=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is not for it
			if said, err := cmd.CombinedOutput(); err != nil {
				return nil, fmt.Errorf("start the keeper on %s: %w: %s", socket, err, said)
			}
			if c, err := Dial(ctx, socket); !errors.Is(err, ErrNoKeeper) {
				return c, err
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", err, ctx.Err())
		case <-time.After(startInterval):
		}
	}
}

// receive takes what the keeper sends until the connection ends.
func (c *Client) receive() {
	defer close(c.gone)
	packet, control := make([]byte, MaxMessage), make([]byte, controlSize)
	for {
		n, nc, _, _, err := c.conn.ReadMsgUnix(packet, control)
		if err != nil || n == 0 {
			return
		}
		r := &reply{}
		fd, err := decode(packet[:n], control[:nc], r)
		if err != nil {
			r = refusal(fmt.Errorf("what the keeper said: %w", err))
		}
		c.replies <- received{r, fd} // there is room: it answers what was asked
	}
}

// ask sends a request, with fd if that is not negative, and waits for the reply.
func (c *Client) ask(ctx context.Context, r *request, fd int) (*reply, int, error) {
	got, err := c.exchange(ctx, r, fd)
	if err == nil {
		err = got.reply.err()
	}
	if err != nil {
		if got.reply != nil && got.fd >= 0 {
			unix.Close(got.fd)
		}
		return nil, -1, fmt.Errorf("keeper: %s: %w", r.Op, err)
	}
	return got.reply, got.fd, nil
}

func (c *Client) exchange(ctx context.Context, r *request, fd int) (received, error) {
	packet, control, err := encode(r, fd)
	if err != nil {
		return received{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, _, err := c.conn.WriteMsgUnix(packet, control, nil); err != nil {
		return received{}, fmt.Errorf("%w: %w", ErrGone, err)
	}
	select {
	case got := <-c.replies:
		return got, nil
	case <-c.gone:
		select {
		case got := <-c.replies: // its last word
			return got, nil
		default:
		}
		return received{}, fmt.Errorf("%w: %w", ErrGone, io.ErrUnexpectedEOF)
	case <-ctx.Done():
		c.conn.Close() //nolint:errcheck // or the reply would be taken for the next one's
		return received{}, ctx.Err()
	}
}

func (c *Client) tell(r *request) error {
	_, _, err := c.ask(context.Background(), r, -1)
	return err
}

// Attach makes this process the one that serves the mounts, and returns them
// with their descriptors. It waits until the process before is gone. If ctx ends
// first the client is of no use any more.
func (c *Client) Attach(ctx context.Context) ([]Mount, error) {
	r, _, err := c.ask(ctx, &request{Op: "attach"}, -1)
	if err != nil {
		return nil, err
	}
	return c.get(ctx, r.Epochs)
}

// List returns the mounts, without descriptors.
func (c *Client) List(ctx context.Context) ([]Mount, error) {
	epochs, err := c.Epochs()
	if err != nil {
		return nil, err
	}
	all, err := c.get(ctx, epochs)
	for i := range all {
		if all[i].FD >= 0 { // an owner's client gets them
			unix.Close(all[i].FD)
			all[i].FD = -1
		}
	}
	return all, err
}

// Epochs returns those of all mounts.
func (c *Client) Epochs() ([]uint64, error) {
	r, _, err := c.ask(context.Background(), &request{Op: "list"}, -1)
	if err != nil {
		return nil, err
	}
	return r.Epochs, nil
}

func (c *Client) get(ctx context.Context, epochs []uint64) ([]Mount, error) {
	var all []Mount
	for _, epoch := range epochs {
		r, fd, err := c.ask(ctx, &request{Op: "get", Epoch: epoch}, -1)
		if errors.Is(err, ErrUnknown) {
			continue // it has ended meanwhile
		}
		if err == nil && r.Mount == nil {
			err = fmt.Errorf("keeper: get: %w", io.ErrUnexpectedEOF)
		}
		if err != nil {
			for _, m := range all {
				unix.Close(m.FD)
			}
			return nil, err
		}
		r.Mount.FD = fd
		all = append(all, *r.Mount)
	}
	return all, nil
}

// Put has a mount kept, by a copy of its descriptor.
func (c *Client) Put(m Mount) error {
	_, _, err := c.ask(context.Background(), &request{Op: "put", Mount: &m}, m.FD)
	return err
}

// Init says that INIT was read.
func (c *Client) Init(epoch uint64, in []byte) error {
	return c.tell(&request{Op: "init", Epoch: epoch, Data: in})
}

// Reply says what INIT will be answered.
func (c *Client) Reply(epoch uint64, out []byte) error {
	return c.tell(&request{Op: "reply", Epoch: epoch, Data: out})
}

// Done says that INIT is answered.
func (c *Client) Done(epoch uint64) error { return c.tell(&request{Op: "done", Epoch: epoch}) }

// Drop says that a mount's connection has ended. ErrAlive: it has not.
func (c *Client) Drop(epoch uint64) error {
	err := c.tell(&request{Op: "drop", Epoch: epoch})
	if errors.Is(err, ErrUnknown) {
		return nil // the keeper was faster
	}
	return err
}

// Release ends the connections of the mounts on dir, as the kernel spells it,
// which nobody serves: blocked callers get ENOTCONN or ECONNABORTED, and umount
// works. ErrOwned: another process is the one that serves. It returns how many they were.
func (c *Client) Release(dir string) (int, error) {
	r, _, err := c.ask(context.Background(), &request{Op: "release", Dir: dir}, -1)
	if err != nil {
		return 0, err
	}
	return r.Count, nil
}

// Gone is closed when the keeper has ended, or Close was called.
func (c *Client) Gone() <-chan struct{} { return c.gone }

// Close ends the connection. This process goes on to count as the one that
// serves, until it ends.
func (c *Client) Close() {
	c.conn.Close() //nolint:errcheck // it is of no use any more
	<-c.gone
	select {
	case late := <-c.replies: // to an Attach that was given up
		if late.fd >= 0 {
			unix.Close(late.fd)
		}
	default:
	}
}

// ReleaseAt is Release by the keeper on socket, for who need not know whether
// there is one: it reports whether anything was released. ErrOwned: a daemon is
// there.
func ReleaseAt(ctx context.Context, socket, dir string) (bool, error) {
	c, err := Dial(ctx, socket)
	if errors.Is(err, ErrNoKeeper) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer c.Close()
	n, err := c.Release(dir)
	if errors.Is(err, ErrUnknown) {
		err = nil
	}
	return n > 0, err
}
