package kernel

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// ErrNotLikeThat says that a mount is there already, and is read-only or is not,
// or is of another volume.
var ErrNotLikeThat = errors.New("it is mounted there already, in another way")

// Bind shows the mount at the empty directory dir as well, which must exist. A
// copy that is there already is left as it is; a dead mount of ours is replaced.
// At no moment is a read-only copy writable. None of it asks the mount's daemon.
// Needs CAP_SYS_ADMIN and Linux 5.12.
func (c *Conn) Bind(dir string, readOnly bool, flags Flags) error {
	point, err := Canonical(dir)
	if err == nil {
		err = c.bind(point, readOnly, flags)
	}
	if err != nil {
		return fmt.Errorf("bind %s on %s: %w", c.mount.point, dir, err)
	}
	return nil
}

func (c *Conn) bind(point string, readOnly bool, flags Flags) error {
	done, err := c.clearForBind(point, readOnly)
	if done || err != nil {
		return err
	}
	if err := checkEmpty(point); err != nil {
		return err
	}
	here, err := c.mount.open()
	if err != nil {
		return err
	}
	defer unix.Close(here)
	fd, err := unix.OpenTree(here, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("copy the mount: %w", err)
	}
	defer unix.Close(fd)
	attr := flags.forSetattr(readOnly)
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("set flags: %w", err)
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, point, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// clearForBind removes dead mounts of ours from point. done says that a copy is
// there.
func (c *Conn) clearForBind(point string, readOnly bool) (done bool, err error) {
	for {
		top, ok, err := lookupTop(point)
		if err != nil || !ok {
			return false, err
		}
		switch {
		case top.fstype != FSType:
			return false, fmt.Errorf("%w (type %s)", ErrMounted, top.fstype)
		case top.dev == c.mount.dev && top.readOnly == readOnly:
			return true, nil
		case top.dev == c.mount.dev:
			return false, ErrNotLikeThat
		}
		if life := probe(point); life != "" {
			return false, fmt.Errorf("%w (%s)", ErrNotLikeThat, life)
		}
		if err := detach(point, UnmountOptions{Lazy: true}); err != nil {
			return false, err
		}
	}
}

// Unbind removes all mounts of ours from dir, copies of a mount elsewhere and
// guards included. It is no error if there is none, or no such directory. What
// is in use is taken out of the tree at once, and its users keep it. None of it
// asks a daemon.
func Unbind(dir string) error {
	point, err := Canonical(dir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	for err == nil {
		var top mountEntry
		var ok bool
		top, ok, err = lookupTop(point)
		switch {
		case err != nil:
		case !ok:
			return nil
		case top.fstype != FSType:
			err = fmt.Errorf("%w (type %s)", ErrMounted, top.fstype)
		default:
			if err = detach(point, UnmountOptions{}); errors.Is(err, ErrBusy) {
				err = detach(point, UnmountOptions{Lazy: true})
			}
		}
	}
	return fmt.Errorf("unbind %s: %w", dir, err)
}

// Leftover reports whether some mount of ours is at dir, dead or alive, or a guard.
func Leftover(dir string) (bool, error) {
	point, err := Canonical(dir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	top, ok, err := lookupTop(point)
	return ok && top.fstype == FSType, err
}

// Places lists where the mount and its copies are, in this mount namespace.
func (c *Conn) Places() ([]string, error) {
	entries, err := readMountinfo()
	var places []string
	for _, e := range entries {
		if e.dev == c.mount.dev {
			places = append(places, e.point)
		}
	}
	slices.Sort(places)
	return places, err
}
