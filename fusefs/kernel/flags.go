package kernel

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// What Remount may answer, beside the kernel's own errors.
var (
	ErrRemountNeedsRoot = errors.New("a remount needs root; unmount it and mount again")
	ErrStaysReadOnly    = errors.New("what was mounted read-only stays so; unmount it and mount again")
)

// Flags are mount(2)'s, which the kernel enforces at the mountpoint. The zero
// value is the default: set-user-id bits and device nodes do not count.
type Flags struct {
	Suid, Dev bool // they count

	NoExec      bool
	NoAtime     bool
	NoDirAtime  bool
	NoSymFollow bool // symlinks are not followed
}

// forMount returns the flags as mount(2) takes them.
func (f Flags) forMount() (ms uintptr) {
	for _, b := range f.bits() {
		if b.on {
			ms |= b.ms
		}
	}
	return ms
}

// forSetattr returns the flags as mount_setattr(2) takes them: all that are not
// to be set are cleared.
func (f Flags) forSetattr(readOnly bool) unix.MountAttr {
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR__ATIME}
	set(&attr, unix.MOUNT_ATTR_RDONLY, readOnly)
	for _, b := range f.bits() {
		set(&attr, b.attr, b.on)
	}
	return attr
}

func set(attr *unix.MountAttr, bit uint64, on bool) {
	if on {
		attr.Attr_set |= bit
	} else {
		attr.Attr_clr |= bit
	}
}

type flagBit struct {
	on   bool
	ms   uintptr
	attr uint64
}

func (f Flags) bits() []flagBit {
	return []flagBit{
		{!f.Suid, unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID},
		{!f.Dev, unix.MS_NODEV, unix.MOUNT_ATTR_NODEV},
		{f.NoExec, unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC},
		{f.NoAtime, unix.MS_NOATIME, unix.MOUNT_ATTR_NOATIME},
		{f.NoDirAtime, unix.MS_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME},
		{f.NoSymFollow, msNoSymFollow, unix.MOUNT_ATTR_NOSYMFOLLOW},
	}
}

// msNoSymFollow is MS_NOSYMFOLLOW, which golang.org/x/sys names for other
// systems only.
const msNoSymFollow = 0x100

// Remount changes the flags of the mount. Read-only, the kernel refuses changes
// with EROFS and asks nobody; the superblock stays writable, and with it the
// clone that the helper works through. It becomes so only while nobody has a
// file open for writing in it, else ErrBusy. Needs CAP_SYS_ADMIN and Linux 5.12.
func (c *Conn) Remount(readOnly bool, flags Flags) error {
	err := ErrRemountNeedsRoot
	if os.Geteuid() == 0 {
		err = setFlags(c.mount, readOnly, flags)
	}
	if err != nil {
		return fmt.Errorf("remount %s: %w", c.mount.point, err)
	}
	return nil
}

// setFlags changes the flags of just that mount, which must be on top.
func setFlags(m mountEntry, readOnly bool, flags Flags) error {
	fd, err := m.open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attr := flags.forSetattr(readOnly)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w, for writing: %w", ErrBusy, err)
	}
	return err
}
