package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	capResend = fuse.CAP_HAS_RESEND

	// A reply that carries this bit is to the INTERRUPT of the request.
	interruptBit = 1

	// Offsets in the INIT message and in its reply, headers included.
	initInFlags        = inHeaderSize + 12
	initInFlags2       = inHeaderSize + 16
	initOutFlags       = outHeaderSize + 12
	initOutBackground  = outHeaderSize + 16
	initOutMaxWrite    = outHeaderSize + 20
	initOutFlags2      = outHeaderSize + 32
	initInSize         = initInFlags2 + 4
	initOutSize        = initOutFlags2 + 4
	defaultBackground  = 64
	greatestBackground = 65535
)

// newServer wraps fs; nil will do for INIT, which asks it nothing.
func newServer(fs fuse.RawFileSystem, opts *fuse.MountOptions) *fuse.ProtocolServer {
	if fs == nil {
		fs = fuse.NewDefaultRawFileSystem()
	}
	return fuse.NewProtocolServer(fs, opts)
}

// protocolOptions are what INIT's reply is made from. Sizes cannot change under
// a mount: on one that was taken over they are those of its first process.
func (c *Conn) protocolOptions() *fuse.MountOptions {
	background := c.opts.MaxBackground
	if background <= 0 {
		background = defaultBackground
	}
	if len(c.initOut) >= initOutSize {
		background = int(binary.NativeEndian.Uint16(c.initOut[initOutBackground:]))
	}
	// Without KILLPRIV_V2 each write asks for security.capability.
	capabilities := uint64(fuse.CAP_EXPORT_SUPPORT | fuse.CAP_HANDLE_KILLPRIV_V2 | capResend | fuse.CAP_ATOMIC_O_TRUNC)
	if c.opts.ACL {
		// A default ACL takes the place of the umask; who sets an ACL may lose setgid.
		capabilities |= fuse.CAP_DONT_MASK | fuse.CAP_SETXATTR_EXT
	}
	return &fuse.MountOptions{
		Name:              "synapsefs",
		MaxWrite:          c.maxWrite(),
		MaxBackground:     min(background, greatestBackground),
		ExtraCapabilities: capabilities,
		EnableAcl:         c.opts.ACL,
		IDMappedMount:     true, // the kernel maps owners; only creations tell us the caller's
		MaxStackDepth:     1,
		Logger:            c.opts.Logger,
		Debug:             c.opts.Debug,
	}
}

// maxWrite is the size of the largest READ and WRITE: into smaller buffers the
// kernel refuses to write what was agreed on.
func (c *Conn) maxWrite() int {
	if len(c.initOut) >= initOutSize {
		return int(binary.NativeEndian.Uint32(c.initOut[initOutMaxWrite:]))
	}
	return maxWrite
}

// negotiate answers INIT, which comes before all else, or goes on from where
// an earlier process was with it. The keeper knows of each step before the
// next is taken.
func (c *Conn) negotiate() error {
	b, err := c.takeBuffers()
	if err != nil {
		return err
	}
	defer c.giveBuffers(b)
	keeper := c.keeper()
	if c.initIn == nil {
		in, err := c.receiveInit(b.in)
		if err != nil {
			return err
		}
		if err := keeper.Init(c.epoch, in); err != nil {
			return fmt.Errorf("have INIT kept: %w", err)
		}
		c.initIn = in
	}
	n, err := c.replyToInit(b.out)
	if err != nil {
		return err
	}
	if c.initOut == nil {
		out := bytes.Clone(b.out[:n])
		if err := keeper.Reply(c.epoch, out); err != nil {
			return fmt.Errorf("have the reply to INIT kept: %w", err)
		}
		c.initOut = out
	}
	if c.initDone {
		return nil
	}
	if err := c.writeInit(b.out, n); err != nil {
		return err
	}
	if err := keeper.Done(c.epoch); err != nil {
		return fmt.Errorf("have the end of INIT kept: %w", err)
	}
	c.initDone = true
	return nil
}

// receiveInit reads INIT into in and returns a copy.
func (c *Conn) receiveInit(in []byte) ([]byte, error) {
	if c.attached {
		if err := c.recallInit(); err != nil {
			return nil, err
		}
	}
	n, err := c.receive(in)
	if err != nil {
		return nil, fmt.Errorf("read INIT: %w", err)
	}
	if opcode(in[:n]) != opInit || n < initInSize {
		return nil, fmt.Errorf("the first request has opcode %d and %d bytes, it is no INIT", opcode(in[:n]), n)
	}
	return bytes.Clone(in[:n]), nil
}

// recallInit makes INIT readable if who read it died with it. A kernel that
// takes no notification before INIT is answered leaves nothing to do.
func (c *Conn) recallInit() error {
	events, err := poll(c.fd)
	if err != nil || events != 0 {
		return err
	}
	if err := c.Resend(); err != nil {
		return fmt.Errorf("%w: %w", ErrInitLost, err)
	}
	if events, err = poll(c.fd); err == nil && events == 0 {
		err = ErrInitLost
	}
	return err
}

// replyToInit makes the reply in out, for a mount whose reply is known the same
// again, or ErrNegotiates. What the kernel offers and its first process did
// not take is not offered to us.
func (c *Conn) replyToInit(out []byte) (int, error) {
	in := c.initIn
	if len(c.initOut) >= initOutSize && len(in) >= initInSize {
		in = bytes.Clone(in)
		mask(in[initInFlags:], c.initOut[initOutFlags:])
		mask(in[initInFlags2:], c.initOut[initOutFlags2:])
	}
	n, status := c.server.HandleRequest([][]byte{in}, [][]byte{out})
	if n == 0 {
		return 0, fmt.Errorf("answer INIT: %w", unix.Errno(status))
	}
	if c.initOut != nil && (len(c.initOut) < outHeaderSize || !bytes.Equal(out[outHeaderSize:n], c.initOut[outHeaderSize:])) {
		return 0, fmt.Errorf("%w (it was %x, we say %x)", ErrNegotiates, c.initOut, out[:n])
	}
	return n, nil
}

func mask(flags, by []byte) {
	binary.NativeEndian.PutUint32(flags, binary.NativeEndian.Uint32(flags)&binary.NativeEndian.Uint32(by))
}

// writeInit writes the reply, the first n bytes of out.
func (c *Conn) writeInit(out []byte, n int) error {
	c.refuseInterrupts()
	switch _, err := unix.Write(c.fd, out[:n]); {
	case err == unix.ENOENT && c.attached: // our predecessor did, and died before it could say so
	case err != nil:
		return fmt.Errorf("write the reply to INIT: %w", err)
	}
	return nil
}

// refuseInterrupts answers an INTERRUPT of INIT, which nobody has sent, with
// ENOSYS: the kernel never sends one. No method of ours ends early, and an
// INTERRUPT of a request that a dead process had read outlives the request in
// some kernels if its caller is killed before it is read again. Should the
// kernel not take it, handle refuses the first that comes.
func (c *Conn) refuseInterrupts() {
	var reply [outHeaderSize]byte
	errorReply(reply[:], c.initIn, int32(unix.ENOSYS))
	reply[8] |= interruptBit   // the lowest byte, as no big-endian machine is served
	unix.Write(c.fd, reply[:]) //nolint:errcheck // as said above
}
