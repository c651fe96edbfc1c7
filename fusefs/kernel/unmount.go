package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrBusy says that somebody uses the mount.
var ErrBusy = errors.New("mount is in use")

// ErrCovered says that something else is mounted over the mount.
var ErrCovered = errors.New("something else is mounted over it; unmount that first")

// What Clear may answer, beside the kernel's own errors.
var (
	ErrNotMounted = errors.New("nothing of synapsefs is mounted there")
	ErrServed     = errors.New("a daemon serves this mount; name its --socket, and the directory as that daemon's mounts command shows it")
)

// UnmountOptions says how hard to unmount.
type UnmountOptions struct {
	// Lazy takes the mount out of the tree at once even if it is in use;
	// the connection ends when its last user lets go.
	Lazy bool
	// Abort ends the connection at once: its users get errors. Needs root.
	Abort bool
	// Guard removes the guard below as well: a deliberate unmount, after
	// which the bare directory shows again.
	Guard bool
}

// Unmount removes our mount from dir, for a caller that has no Conn. It is
// no error if there is none.
func Unmount(dir string, opts UnmountOptions) error {
	point, err := Canonical(dir)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err == nil {
		err = unmountPoint(point, opts)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// Cleared counts what Clear removed.
type Cleared struct {
	Dead   int // mounts that had lost their daemon
	Guards int
}

// Clear removes from dir what a daemon that is gone left there, guards
// included. It touches neither a mount that is served nor one of somebody else.
func Clear(dir string) (Cleared, error) {
	var done Cleared
	point, err := Canonical(dir)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrNotMounted, err)
	} else {
		done, err = clearPoint(point)
	}
	if err != nil {
		return done, fmt.Errorf("unmount %s: %w", dir, err)
	}
	return done, nil
}

func clearPoint(point string) (done Cleared, err error) {
	for {
		top, ok, err := lookupTop(point)
		switch {
		case err != nil:
			return done, err
		case ok && top.fstype == FSType:
		case done != Cleared{}:
			return done, nil
		case ok:
			return done, fmt.Errorf("%w, but something of type %s", ErrNotMounted, top.fstype)
		default:
			return done, ErrNotMounted
		}
		if life := probe(point); life != "" {
			return done, fmt.Errorf("%w (%s)", ErrServed, life)
		}
		if err := detach(point, UnmountOptions{Lazy: true}); err != nil {
			return done, err
		}
		if isGuard(top) {
			done.Guards++
		} else {
			done.Dead++
		}
	}
}

// Unmount removes the mount, and with opts.Guard what guards the place.
// Repeating it is no error. Bind mounts of it keep the connection alive;
// Wait tells when it has ended.
func (c *Conn) Unmount(opts UnmountOptions) error {
	err := c.unmount(opts)
	if err != nil {
		return fmt.Errorf("unmount %s: %w", c.mount.point, err)
	}
	return nil
}

func (c *Conn) unmount(opts UnmountOptions) error {
	here, err := mounted(c.mount)
	if err != nil {
		return err
	}
	top, ok, err := lookupTop(c.mount.point)
	if err != nil {
		return err
	}
	if here && ok && !top.same(c.mount) {
		return fmt.Errorf("%w (type %s)", ErrCovered, top.fstype)
	}
	if !here && !(ok && opts.Guard && isGuard(top)) {
		return nil // gone already, and what is there now is not ours
	}
	return unmountPoint(c.mount.point, opts)
}

// unmountPoint removes at most one real mount of ours and, if asked, the
// guards below it.
func unmountPoint(point string, opts UnmountOptions) error {
	for real := true; ; real = false {
		top, ok, err := lookupTop(point)
		if err != nil || !ok || top.fstype != FSType {
			return err
		}
		if isGuard(top) && !opts.Guard || !isGuard(top) && !real {
			return nil
		}
		// A guard cannot be in use by anybody that we would have to spare.
		opts.Lazy = opts.Lazy || isGuard(top)
		if err := detach(point, opts); err != nil {
			return err
		}
	}
}

func isGuard(e mountEntry) bool {
	return e.fstype == FSType && strings.HasPrefix(e.source, guardSource(""))
}

// detach unmounts the top mount at point.
func detach(point string, opts UnmountOptions) error {
	var err error
	if os.Geteuid() != 0 {
		err = fusermountUnmount(point, opts.Lazy)
	} else {
		flags := unix.UMOUNT_NOFOLLOW
		if opts.Lazy {
			flags |= unix.MNT_DETACH
		}
		if opts.Abort {
			flags |= unix.MNT_FORCE
		}
		err = unix.Unmount(point, flags)
	}
	if errors.Is(err, unix.EINVAL) {
		return nil // somebody else was faster
	}
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w%s: %w", ErrBusy, describeHolders(point), err)
	}
	return err
}

// describeHolders names up to three processes that use the mount at point.
// It reads links in /proc only, which never asks the filesystem.
func describeHolders(point string) string {
	var found []string
	links, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range links {
		what := heldBy(proc, point)
		if what == "" {
			continue
		}
		name, _ := os.ReadFile(proc + "/comm")
		found = append(found, fmt.Sprintf("process %s (%s) by its %s",
			filepath.Base(proc), strings.TrimSpace(string(name)), what))
		if len(found) == 3 {
			break
		}
	}
	if len(found) == 0 {
		return " by a process of another namespace, a mapping, or a mount below it"
	}
	return " by " + strings.Join(found, ", ")
}

// heldBy returns by what the process holds something at or below point.
func heldBy(proc, point string) string {
	for _, link := range []string{"cwd", "root", "exe"} {
		if under(proc+"/"+link, point) {
			return link
		}
	}
	fds, _ := os.ReadDir(proc + "/fd")
	for _, fd := range fds {
		if under(proc+"/fd/"+fd.Name(), point) {
			return "file descriptor " + fd.Name()
		}
	}
	return ""
}

func under(link, point string) bool {
	target, err := os.Readlink(link)
	return err == nil && (target == point || strings.HasPrefix(target, point+"/"))
}
