package kernel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What taking a mount over may answer, beside ErrUnmounted for one that has
// ended and the kernel's own errors.
var (
	// ErrNegotiates: this program would answer INIT differently than the one
	// that made the mount. Nothing was done; that one can go on with it.
	ErrNegotiates = errors.New("this version negotiates differently with the kernel than the one that made the mount; start that one again, or unmount it and mount again")
	// ErrNoResend: what the dead process had read is lost, its callers are
	// stuck. Only the end of the connection frees them.
	ErrNoResend = errors.New("the kernel cannot send requests again (Linux 6.9 can), so the mount does not outlive its daemon; unmount it and mount again")
	// ErrInitLost: the process that read INIT died before the keeper had it,
	// and the kernel does not send it again. The mount has never answered.
	ErrInitLost = errors.New("nobody knows the kernel's INIT any more; the mount never answered, unmount it and mount again")
	// ErrHandedOver is how a connection ends here that goes on elsewhere.
	ErrHandedOver = errors.New("the mount was handed over")
	// ErrNotKept: without a keeper the mount ends with its process.
	ErrNotKept = errors.New("nobody keeps the mount")
)

// Kept is what a Keeper knows of a mount: what it takes to go on with it.
type Kept struct {
	FD         int // of /dev/fuse; whoever gets a Kept owns it
	Dir        string
	MountID    int
	Dev        string // major:minor, which names the connection as long as it lives
	Epoch      uint64 // names the connection for ever
	Generation uint64 // how many processes have had it, the first being 1
	Note       []byte // Options.Note

	// How far INIT came: nil is not yet.
	InitIn, InitOut []byte
	InitDone        bool // the reply was written
}

// A Keeper holds mounts so that they outlive this process. Each method
// returns when the keeper has what it is told, whatever happens to the caller
// afterwards. Methods are called in the order below, from one goroutine.
type Keeper interface {
	// Put hands over a mount before it answers; the keeper takes a
	// descriptor of its own. Also for one that another keeper had.
	Put(k Kept) error
	// Init, Reply and Done tell how far INIT has come: it was read, its
	// reply is made, the reply is written.
	Init(epoch uint64, in []byte) error
	Reply(epoch uint64, out []byte) error
	Done(epoch uint64) error
	// Drop says that the connection has ended, which the kernel said.
	Drop(epoch uint64) error
}

// noKeeper keeps nothing.
type noKeeper struct{}

func (noKeeper) Put(Kept) error             { return nil }
func (noKeeper) Init(uint64, []byte) error  { return nil }
func (noKeeper) Reply(uint64, []byte) error { return nil }
func (noKeeper) Done(uint64) error          { return nil }
func (noKeeper) Drop(uint64) error          { return nil }

// Attach takes over a mount whose process is gone, or has drained it: never
// while that one may still answer, as requests would be done twice. k.FD is
// closed if it fails. Then as after Mount: Serve, with the same filesystem.
// Of opts only Keeper, ACL, Logger and Debug count; all else was said by the
// mount's first process, and what that one did not negotiate stays out.
//
// The mount may be gone from its place, or be seen elsewhere (Dir, Mounted).
// ErrUnmounted says that its connection has ended, for whatever cause.
func Attach(k Kept, opts Options) (*Conn, error) {
	c, err := attach(k, opts)
	if err != nil {
		if errors.Is(err, ErrUnmounted) && opts.Keeper != nil {
			err = errors.Join(err, opts.Keeper.Drop(k.Epoch))
		}
		unix.Close(k.FD)
		return nil, fmt.Errorf("take over the mount on %s: %w", k.Dir, err)
	}
	return c, nil
}

func attach(k Kept, opts Options) (*Conn, error) {
	if err := alive(k.FD); err != nil {
		return nil, err
	}
	if err := k.Agrees(opts); err != nil {
		return nil, err
	}
	entry, err := k.locate()
	if err != nil {
		return nil, err
	}
	opts.Note = k.Note
	c := newConn(k.FD, entry, opts)
	c.epoch, c.generation, c.attached = k.Epoch, k.Generation, true
	c.initIn, c.initOut, c.initDone = k.InitIn, k.InitOut, k.InitDone
	return c, nil
}

// Agrees reports, by ErrNegotiates or ErrNoResend, that this program cannot go
// on with the mount. It asks nobody and needs no descriptor: for a new program
// to find out before the old one stops.
func (k *Kept) Agrees(opts Options) error {
	if k.InitOut == nil {
		return nil // then ours counts
	}
	if k.InitDone && negotiated(k.InitOut)&capResend == 0 {
		return ErrNoResend
	}
	c := &Conn{opts: opts, initIn: k.InitIn, initOut: k.InitOut}
	c.server = newServer(nil, c.protocolOptions())
	_, err := c.replyToInit(make([]byte, pageSize))
	return err
}

// alive returns ErrUnmounted if the connection has ended. That a request or a
// notification fails does not say so.
func alive(fd int) error {
	events, err := poll(fd)
	if err == nil && events&(unix.POLLERR|unix.POLLHUP) != 0 {
		err = ErrUnmounted
	}
	return err
}

// poll returns what is the matter with fd now.
func poll(fd int) (events int16, err error) {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(p, 0)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, fmt.Errorf("poll the connection: %w", err)
		case p[0].Revents&unix.POLLNVAL != 0:
			return 0, fmt.Errorf("descriptor %d of the connection: %w", fd, unix.EBADF)
		default:
			return p[0].Revents, nil
		}
	}
}

// locate finds the mount in this process's mount namespace: by its id wherever
// it was moved to, else, as ids differ in a copy of the namespace, by its
// connection at the same place. A bind mount elsewhere is not it.
func (k *Kept) locate() (mountEntry, error) {
	entries, err := readMountinfo()
	if err != nil {
		return mountEntry{}, err
	}
	was := mountEntry{id: k.MountID, dev: k.Dev, point: k.Dir, fstype: FSType}
	found := was
	for _, e := range entries {
		if e.same(was) {
			return e, nil
		}
		if e.dev == was.dev && e.point == was.point {
			found = e
		}
	}
	return found, nil
}

// Generation counts the processes that have served this connection, this one
// included.
func (c *Conn) Generation() uint64 { return c.generation }

// Note is what Options.Note was when the mount was made.
func (c *Conn) Note() []byte { return c.opts.Note }

// Keep gives the served mount to a keeper, in place of one that is gone.
// Nobody else may call Keep, Drain or Serve meanwhile.
func (c *Conn) Keep(k Keeper) error {
	err := c.withFD(func(fd int) error { return k.Put(c.state(fd)) })
	if err != nil {
		return fmt.Errorf("keep the mount on %s: %w", c.mount.point, err)
	}
	c.mu.Lock()
	c.opts.Keeper = k
	c.mu.Unlock()
	return nil
}

func (c *Conn) state(fd int) Kept {
	return Kept{
		FD: fd, Dir: c.mount.point, MountID: c.mount.id, Dev: c.mount.dev,
		Epoch: c.epoch, Generation: c.generation, Note: c.opts.Note,
		InitIn: c.initIn, InitOut: c.initOut, InitDone: c.initDone,
	}
}

// Kept reports whether the mount outlives this process.
func (c *Conn) Kept() bool {
	_, alone := c.keeper().(noKeeper)
	return !alone
}

func (c *Conn) keeper() Keeper {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opts.Keeper == nil {
		return noKeeper{}
	}
	return c.opts.Keeper
}
