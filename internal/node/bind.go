package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/fusefs"
	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/store"
)

// Who publishes a mount in a further place does so here: nothing of it is kept,
// the kernel's table of mounts is asked each time.

// MountOn returns the mount at a directory; kernel.ErrNotMounted if this node has
// none there.
func (n *Node) MountOn(dir string) (MountInfo, error) {
	m, err := n.mountAt(filepath.Clean(dir))
	if err == nil {
		var gone bool
		if gone, err = m.gone(); gone {
			err = kernel.ErrNotMounted
		}
	}
	if err != nil {
		return MountInfo{}, fmt.Errorf("mount at %s: %w", dir, err)
	}
	return n.infoOf(m), nil
}

// Leftover reports whether a mount is at dir that this or an earlier daemon made,
// dead or alive, or its guard.
func (n *Node) Leftover(dir string) (bool, error) { return kernel.Leftover(dir) }

// Bind shows the mount at from at dir as well, an empty directory that is made if
// need be. A copy that is there already stays as it is; one that is read-only and
// is not to be, or the other way, is kernel.ErrNotLikeThat.
func (n *Node) Bind(from, dir string, readOnly bool, flags MountFlags) error {
	m, err := n.mountAt(filepath.Clean(from))
	if err != nil {
		return fmt.Errorf("bind %s on %s: %w", from, dir, err)
	}
	if err := os.MkdirAll(dir, 0o750); err != nil && !errors.Is(err, os.ErrExist) {
		return err // what is dead there exists, and cannot be asked what it is
	}
	return m.fs.Conn().Bind(dir, readOnly || n.infoOf(m).ReadOnly, flags)
}

// Unbind takes what is mounted at dir away, a copy as well as a mount. What is in use is detached, and its users keep it. It is no error if there is
// nothing, and it needs neither peers nor the mount's daemon.
func (n *Node) Unbind(dir string) error {
	dir = filepath.Clean(dir)
	err := n.unmount(dir, false, (*fusefs.Mounted).Unmount)
	if errors.Is(err, kernel.ErrBusy) {
		err = n.unmount(dir, true, (*fusefs.Mounted).Unmount)
	}
	if errors.Is(err, kernel.ErrNotMounted) { // by this daemon
		err = n.release(dir)
	}
	if err == nil {
		err = kernel.Unbind(dir)
	}
	return err
}

// Copies lists where the mount at dir is shown beside dir.
func (n *Node) Copies(dir string) ([]string, error) {
	m, err := n.mountAt(filepath.Clean(dir))
	if err != nil {
		return nil, fmt.Errorf("copies of the mount at %s: %w", dir, err)
	}
	places, err := m.fs.Conn().Places()
	return without(places, m.fs.Dir()), err
}

// Places lists where a volume is shown on this node, but for some directories.
func (n *Node) Places(id store.VolumeID, except ...string) ([]string, error) {
	var all []string
	for _, m := range n.servedOf(id) {
		places, err := m.fs.Conn().Places()
		if err != nil {
			return nil, err
		}
		all = append(all, places...)
	}
	for _, dir := range except {
		point, err := kernel.Canonical(dir)
		if err == nil {
			all = without(all, point)
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	return all, nil
}

func without(all []string, one string) []string {
	return slices.DeleteFunc(all, func(s string) bool { return s == one })
}

// Shows reports whether a volume is shown at dir.
func (n *Node) Shows(id store.VolumeID, dir string) (bool, error) {
	point, err := kernel.Canonical(dir)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	places, err := n.Places(id)
	return slices.Contains(places, point), err
}

// servedOf are the mounts of a volume, detached ones included.
func (n *Node) servedOf(id store.VolumeID) (mounts []*mount) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.servedLocked() {
		if m.volume == id {
			mounts = append(mounts, m)
		}
	}
	return mounts
}
