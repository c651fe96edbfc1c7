package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// IdleTime is how long a keeper that is of no use stays.
	IdleTime = 10 * time.Second
	// MaxMessage bounds a packet.
	MaxMessage = 64 << 10
	// MaxNote bounds a mount's note.
	MaxNote = 16 << 10
)

// What the keeper may refuse with.
var (
	ErrNotOwner = errors.New("another process serves the mounts")
	ErrOwned    = errors.New("a daemon serves the mounts; stop it first")
	ErrUnknown  = errors.New("the keeper does not have this mount")
	ErrAlive    = errors.New("the mount's connection has not ended")
	ErrTooLarge = errors.New("too large for the keeper")
	ErrDenied   = errors.New("the keeper talks only to the user that it runs as")
)

// codes are the errors that both sides know. The list may only grow.
var codes = map[string]error{
	"not-owner": ErrNotOwner, "owned": ErrOwned, "unknown": ErrUnknown,
	"alive": ErrAlive, "too-large": ErrTooLarge, "denied": ErrDenied,
}

// A Mount is what is kept of a mount. Its fields are those of kernel.Kept, so
// that one converts to the other; what they mean is said there.
type Mount struct {
	FD         int `json:"-"` // owned by whoever was given the Mount; -1: none
	Dir        string
	MountID    int
	Dev        string
	Epoch      uint64
	Generation uint64
	Note       []byte

	InitIn, InitOut []byte
	InitDone        bool
}

type request struct {
	Op    string
	Epoch uint64 `json:",omitempty"`
	Mount *Mount `json:",omitempty"`
	Data  []byte `json:",omitempty"`
	Dir   string `json:",omitempty"`
}

type reply struct {
	Code   string   `json:",omitempty"`
	Error  string   `json:",omitempty"`
	Epochs []uint64 `json:",omitempty"`
	Mount  *Mount   `json:",omitempty"`
	Count  int      `json:",omitempty"`
}

// refusal is the reply that err makes.
func refusal(err error) *reply {
	for code, known := range codes {
		if errors.Is(err, known) {
			return &reply{Code: code, Error: err.Error()}
		}
	}
	return &reply{Error: err.Error()}
}

// err is the error that a refusal was made from.
func (r *reply) err() error {
	switch known := codes[r.Code]; {
	case known != nil:
		return known
	case r.Error != "":
		return errors.New(r.Error)
	}
	return nil
}

// encode returns message as a packet, and the control message for fd if there
// is one.
func encode(message any, fd int) (packet, control []byte, err error) {
	packet, err = json.Marshal(message)
	if err == nil && len(packet) > MaxMessage {
		err = fmt.Errorf("message of %d bytes: %w", len(packet), ErrTooLarge)
	}
	if err == nil && fd >= 0 {
		control = unix.UnixRights(fd)
	}
	return packet, control, err
}

// decode undoes encode; fd is -1 if there was none. It closes descriptors that
// nobody asked for.
func decode(packet, control []byte, message any) (fd int, err error) {
	fds, err := rights(control)
	if err == nil {
		err = json.Unmarshal(packet, message)
	}
	if err == nil && len(fds) > 1 {
		err = fmt.Errorf("%d descriptors in one message", len(fds))
	}
	if err != nil || len(fds) == 0 {
		closeAll(fds)
		return -1, err
	}
	return fds[0], nil
}

func rights(control []byte) (fds []int, err error) {
	if len(control) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(control)
	for i := range messages {
		var some []int
		if some, err = unix.ParseUnixRights(&messages[i]); err != nil {
			break
		}
		fds = append(fds, some...)
	}
	return fds, err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// controlSize is enough for the descriptors that any message of ours has; more
// are cut off and closed by the kernel.
var controlSize = unix.CmsgSpace(4 * 4)
