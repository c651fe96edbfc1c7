package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The kernel's codes (linux/fuse.h, enum fuse_notify_code).
const (
	notifyInvalInode = 2
	notifyInvalEntry = 3
	notifyDelete     = 6
	notifyResend     = 7
	notifyPrune      = 9 // since Linux 6.18
)

// Every notification blocks on locks that a request in progress may hold:
// none may be sent from a handler or under a lock that a handler takes. The
// state must have changed before, or the kernel may cache the old one for
// ever. That the kernel does not know the node or name is no error.

// InvalInode drops cached attributes of node, and its cached pages in the
// range: length 0 means to the end, offset -1 means no pages. For a
// directory offset 0 drops the cached listing.
func (c *Conn) InvalInode(node uint64, offset, length int64) error {
	_, err := c.invalInode(node, offset, length)
	return err
}

// KernelKnows reports whether the kernel still has an inode for node, that
// is whether somebody may have it open. It drops node's cached attributes.
func (c *Conn) KernelKnows(node uint64) (bool, error) {
	return c.invalInode(node, -1, 0)
}

func (c *Conn) invalInode(node uint64, offset, length int64) (known bool, err error) {
	m := message(notifyInvalInode, 24)
	m = binary.NativeEndian.AppendUint64(m, node)
	m = binary.NativeEndian.AppendUint64(m, uint64(offset))
	m = binary.NativeEndian.AppendUint64(m, uint64(length))
	known, err = c.notify(m)
	if err != nil {
		err = fmt.Errorf("invalidate node %d: %w", node, err)
	}
	return known, err
}

// InvalEntry makes the kernel forget what name in parent is. Never for the
// name of a directory: it silently unmounts what is mounted below it.
func (c *Conn) InvalEntry(parent uint64, name string) error {
	m := message(notifyInvalEntry, 17+len(name))
	m = binary.NativeEndian.AppendUint64(m, parent)
	m = binary.NativeEndian.AppendUint32(m, uint32(len(name)))
	m = binary.NativeEndian.AppendUint32(m, 0)
	m = append(append(m, name...), 0)
	if _, err := c.notify(m); err != nil {
		return fmt.Errorf("invalidate entry %q in node %d: %w", name, parent, err)
	}
	return nil
}

// Delete tells the kernel that name in parent, which was child, is deleted.
// Watches of the file itself see DELETE_SELF. Never for a directory, as
// InvalEntry. A child that is a mountpoint gives EBUSY.
func (c *Conn) Delete(parent, child uint64, name string) error {
	m := message(notifyDelete, 25+len(name))
	m = binary.NativeEndian.AppendUint64(m, parent)
	m = binary.NativeEndian.AppendUint64(m, child)
	m = binary.NativeEndian.AppendUint32(m, uint32(len(name)))
	m = binary.NativeEndian.AppendUint32(m, 0)
	m = append(append(m, name...), 0)
	if _, err := c.notify(m); err != nil {
		return fmt.Errorf("delete entry %q in node %d: %w", name, parent, err)
	}
	return nil
}

// Prune asks the kernel to drop the cached names of nodes that nobody uses,
// whereupon FORGETs arrive. Older kernels than 6.18 answer EINVAL.
func (c *Conn) Prune(nodes ...uint64) error {
	if len(nodes) == 0 {
		return nil
	}
	m := message(notifyPrune, 16+8*len(nodes))
	m = binary.NativeEndian.AppendUint32(m, uint32(len(nodes)))
	m = binary.NativeEndian.AppendUint32(m, 0)
	m = binary.NativeEndian.AppendUint64(m, 0)
	for _, node := range nodes {
		m = binary.NativeEndian.AppendUint64(m, node)
	}
	if _, err := c.notify(m); err != nil {
		return fmt.Errorf("prune %d nodes: %w", len(nodes), err)
	}
	return nil
}

// Resend asks for all requests again that were read and not answered, with
// bit 63 set in their Unique. Only for who took the connection over from a
// dead process: with that one alive each would be done twice.
func (c *Conn) Resend() error {
	if _, err := c.notify(message(notifyResend, 0)); err != nil {
		return fmt.Errorf("resend: %w", err)
	}
	return nil
}

// message starts a notification: an output header whose unique is 0 and
// whose error is the code.
func message(code uint32, payload int) []byte {
	m := make([]byte, 0, outHeaderSize+payload)
	m = binary.NativeEndian.AppendUint32(m, uint32(outHeaderSize+payload))
	m = binary.NativeEndian.AppendUint32(m, code)
	return binary.NativeEndian.AppendUint64(m, 0)
}

// notify writes m and reports whether the kernel knew what it is about.
func (c *Conn) notify(m []byte) (known bool, err error) {
	err = c.withFD(func(fd int) error {
		_, err := unix.Write(fd, m)
		return err
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOTCONN):
		return false, fmt.Errorf("%w: %w", ErrUnmounted, err)
	}
	return err == nil, err
}

// withFD runs f with the descriptor, which stays open meanwhile.
func (c *Conn) withFD(f func(fd int) error) error {
	c.fdMu.RLock()
	defer c.fdMu.RUnlock()
	if c.fd < 0 {
		return ErrUnmounted
	}
	return f(c.fd)
}
