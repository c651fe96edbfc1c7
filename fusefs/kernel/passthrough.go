package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	iocBackingOpen  = 0x4010e501
	iocBackingClose = 0x4004e502
)

// ErrNoPassthrough says that the kernel offered no passthrough.
var ErrNoPassthrough = errors.New("passthrough was not negotiated; it needs Linux 6.9 with CONFIG_FUSE_PASSTHROUGH")

// backingMap is struct fuse_backing_map.
type backingMap struct {
	fd      int32
	flags   uint32
	padding uint64
}

// RegisterBacking hands an open file to the kernel, for OpenOut.BackingID.
// A node has one id for as long as it is open anywhere. fd may be closed
// afterwards. Needs CAP_SYS_ADMIN (EPERM); a file on a stacked filesystem
// such as overlay gives ELOOP, a kernel without passthrough ErrNoPassthrough. May be called from a handler.
func (c *Conn) RegisterBacking(fd int) (int32, error) {
	if c.Negotiated()&fuse.CAP_PASSTHROUGH == 0 {
		return 0, ErrNoPassthrough
	}
	m := backingMap{fd: int32(fd)}
	var id uintptr
	err := c.withFD(func(dev int) (err error) {
		id, err = ioctl(dev, iocBackingOpen, unsafe.Pointer(&m))
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("register backing file: %w", err)
	}
	return int32(id), nil
}

// UnregisterBacking gives an id back, at the node's last RELEASE.
func (c *Conn) UnregisterBacking(id int32) error {
	err := c.withFD(func(dev int) error {
		_, err := ioctl(dev, iocBackingClose, unsafe.Pointer(&id))
		return err
	})
	if err != nil {
		return fmt.Errorf("unregister backing file %d: %w", id, err)
	}
	return nil
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) (uintptr, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	if errno != 0 {
		return 0, errno
	}
	return r, nil
}

// Negotiated returns the capabilities (fuse.CAP_*) that both sides agreed
// on, 0 before Serve.
func (c *Conn) Negotiated() uint64 { return negotiated(c.initOut) }

func negotiated(initOut []byte) uint64 {
	if len(initOut) < initOutSize {
		return 0
	}
	return uint64(binary.NativeEndian.Uint32(initOut[initOutFlags:])) |
		uint64(binary.NativeEndian.Uint32(initOut[initOutFlags2:]))<<32
}
