package kernel

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// fileidIno64Gen is FILEID_INO64_GEN, the kind of handle FUSE decodes.
const fileidIno64Gen = 0x81

const rootNode = 1

// An executor makes the calls. It lives in the helper's one thread.
type executor struct {
	root *helperRoot
	held map[uint64]int
}

func (e *executor) execute(r *Request) error {
	if r.Op == OpFinish {
		return e.finish(r.Hold)
	}
	dir, err := e.openDir(r.Dir)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	switch r.Op {
	case OpLink, OpRename:
		return e.executeTwo(r, dir)
	case OpHold:
		return e.hold(r, dir)
	}
	return executeOne(r, dir)
}

// executeOne makes the calls that need one directory.
func executeOne(r *Request, dir int) error {
	switch r.Op {
	case OpHandshake:
		return readAttr(dir, r.Name)
	case OpCreate, OpCreateEmpty:
		return create(dir, r)
	case OpMkdir:
		return unix.Mkdirat(dir, r.Name, r.Mode)
	case OpMknod:
		return unix.Mknodat(dir, r.Name, r.Mode, int(r.Rdev))
	case OpSymlink:
		return unix.Symlinkat(r.Target, dir, r.Name)
	case OpUnlink:
		return unix.Unlinkat(dir, r.Name, 0)
	case OpRmdir:
		return unix.Unlinkat(dir, r.Name, unix.AT_REMOVEDIR)
	case OpModify:
		return modify(dir, r.Name)
	case OpModifyPath:
		return modifyPath(dir, r.Name)
	case OpChmod:
		return unix.Fchmodat(dir, r.Name, r.Mode, unix.AT_SYMLINK_NOFOLLOW)
	case OpTouch:
		now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
		return unix.UtimesNanoAt(dir, r.Name, now, unix.AT_SYMLINK_NOFOLLOW)
	}
	return unix.ENOSYS
}

func (e *executor) executeTwo(r *Request, dir int) error {
	dir2, err := e.openDir(r.Dir2)
	if err != nil {
		return err
	}
	defer unix.Close(dir2)
	if r.Op == OpLink {
		return unix.Linkat(dir2, r.Name2, dir, r.Name, 0)
	}
	return unix.Renameat2(dir, r.Name, dir2, r.Name2, uint(r.Flags))
}

// readAttr reads an attribute of dir, which is open by O_PATH only.
func readAttr(dir int, name string) error {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Fgetxattr(fd, name, nil)
	return err
}

func create(dir int, r *Request) error {
	fd, err := unix.Openat(dir, r.Name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, r.Mode)
	if err != nil {
		return err
	}
	if r.Op == OpCreate {
		err = touchMtime(fd)
	}
	unix.Close(fd)
	return err
}

// openToModify opens for writing. O_NONBLOCK keeps a FIFO, put there
// meanwhile, from blocking the helper.
func openToModify(dir int, name string) (int, error) {
	return unix.Openat(dir, name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
}

func modify(dir int, name string) error {
	fd, err := openToModify(dir, name)
	if err == unix.ETXTBSY { // it runs; its watchers get MODIFY at least
		return modifyPath(dir, name)
	}
	if err != nil {
		return err
	}
	err = touchMtime(fd)
	unix.Close(fd)
	return err
}

func modifyPath(dir int, name string) error {
	return unix.UtimesNanoAt(dir, name, mtimeOnly[:], unix.AT_SYMLINK_NOFOLLOW)
}

func (e *executor) hold(r *Request, dir int) error {
	if _, taken := e.held[r.Hold]; taken {
		return unix.EEXIST
	}
	fd, err := openToModify(dir, r.Name)
	if err == nil {
		e.held[r.Hold] = fd
	}
	return err
}

func (e *executor) finish(hold uint64) error {
	fd, ok := e.held[hold]
	if !ok {
		return unix.EBADF
	}
	delete(e.held, hold)
	err := touchMtime(fd)
	unix.Close(fd)
	return err
}

// mtimeOnly gives MODIFY; with both times it would be ATTRIB.
var mtimeOnly = [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}

// touchMtime is futimens(3), which golang.org/x/sys does not have.
func touchMtime(fd int) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0,
		uintptr(unsafe.Pointer(&mtimeOnly)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// openDir opens d. It is not kept: an open directory pins its inode, and
// the daemon takes an inode that nobody pins as one that nobody watches.
func (e *executor) openDir(d Dir) (int, error) {
	if !e.root.cloned {
		place, err := e.root.mount.open()
		if err != nil {
			return -1, err
		}
		defer unix.Close(place)
		return walk(place, d.Path)
	}
	if d.Node == rootNode {
		return unix.Openat(e.root.fd, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	fd, err := openNode(e.root.fd, d)
	if err == unix.EPERM && d.Path != "" {
		return walk(e.root.fd, d.Path)
	}
	return fd, err
}

// openNode opens a directory by its node id.
func openNode(root int, d Dir) (int, error) {
	id := [3]uint32{uint32(d.Node >> 32), uint32(d.Node), d.Generation}
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&id)), unsafe.Sizeof(id))
	return unix.OpenByHandleAt(root, unix.NewFileHandle(fileidIno64Gen, raw), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
}

// walk opens a directory by its path below root and never leaves the mount.
func walk(root int, path string) (int, error) {
	if path == "" {
		path = "."
	}
	return unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
}
