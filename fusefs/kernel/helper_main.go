package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// The daemon recognises the helper by the id of one thread. Locking here
// makes that the main one, whose id stays taken until the process is reaped;
// any other's is free for others the moment the thread is killed.
func init() {
	if IsHelper() {
		runtime.LockOSThread()
	}
}

// IsHelper reports whether this process was started by Helper.Start. Then
// main should call RunHelper first thing and exit.
func IsHelper() bool { return os.Getenv(helperEnv) != "" }

// RunHelper is the helper's life: it makes the calls the daemon asks for on
// the socket until that is closed. Call it from the main goroutine.
func RunHelper() error {
	runtime.LockOSThread()
	if !IsHelper() {
		return errors.New("reveal helper: it is started by the daemon, not by hand")
	}
	os.Unsetenv(helperEnv) //nolint:errcheck // fails only for a bad name
	unix.CloseOnExec(helperFD)
	unix.Umask(0)
	if err := serveHelper(helperFD); err != nil {
		return fmt.Errorf("reveal helper: %w", err)
	}
	return nil
}

func serveHelper(socket int) error {
	buf := make([]byte, maxFrame)
	n, err := receivePacket(socket, buf)
	if err != nil || n == 0 {
		return err
	}
	root, err := openRoot(buf[:n])
	if helloErr := sayHello(socket, root, err); err != nil || helloErr != nil {
		return errors.Join(err, helloErr)
	}
	if err := exitWhenUnmounted(root.mount); err != nil {
		return err
	}
	return executeAll(socket, buf, &executor{root: root, held: make(map[uint64]int)})
}

func sayHello(socket int, root *helperRoot, err error) error {
	hello := make([]byte, helloSize)
	binary.NativeEndian.PutUint32(hello, errnoOf(err))
	if err == nil && !root.cloned {
		binary.NativeEndian.PutUint32(hello[4:], helloPaths)
	}
	return sendPacket(socket, hello)
}

func executeAll(socket int, buf []byte, e *executor) error {
	reply := make([]byte, replySize)
	for {
		n, err := receivePacket(socket, buf)
		if err != nil || n == 0 { // 0: the daemon closed it
			return err
		}
		id, r, err := decodeRequest(buf[:n])
		if err != nil {
			return err
		}
		binary.NativeEndian.PutUint32(reply, id)
		binary.NativeEndian.PutUint32(reply[4:], errnoOf(e.execute(&r)))
		if err := sendPacket(socket, reply); err != nil {
			return err
		}
	}
}

func receivePacket(socket int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(socket, buf)
		if err != unix.EINTR {
			return n, err
		}
	}
}

func sendPacket(socket int, b []byte) error {
	for {
		_, err := unix.Write(socket, b)
		switch err {
		case unix.EINTR:
		case unix.EPIPE, unix.ECONNRESET:
			return nil // the next read sees the end
		default:
			return err
		}
	}
}

func errnoOf(err error) uint32 {
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno):
		return uint32(errno)
	}
	return uint32(unix.EIO)
}

// A helperRoot is the helper's own view of the mount.
type helperRoot struct {
	mount  mountEntry
	cloned bool
	fd     int // a private clone's root if cloned, else -1
}

// openRoot takes a private clone of the mount, which a read-only remount or
// a mount over the place does not affect, and which does not keep the mount
// from being unmounted. Without the privilege the root is opened anew for
// each call, as a descriptor kept would make the mount busy.
func openRoot(setup []byte) (*helperRoot, error) {
	f := frame{b: setup}
	root := &helperRoot{fd: -1}
	root.mount.id, root.mount.dev, root.mount.point = int(f.u32()), f.string(), f.string()
	if f.bad {
		return nil, errFrame
	}
	place, err := root.mount.open()
	if err != nil {
		return nil, err
	}
	defer unix.Close(place)
	tree, err := unix.OpenTree(place, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err == unix.EPERM {
		return root, nil
	}
	if err != nil {
		return nil, fmt.Errorf("clone the mount %s: %w", root.mount.point, err)
	}
	defer unix.Close(tree)
	// The place may be read-only for users.
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return nil, fmt.Errorf("make the clone of %s writable: %w", root.mount.point, err)
	}
	// open_by_handle_at wants a descriptor without O_PATH.
	root.fd, err = unix.Openat(tree, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the clone of %s: %w", root.mount.point, err)
	}
	root.cloned = true
	return root, nil
}

// exitWhenUnmounted ends the process when the mount is gone from its place:
// our clone alone would keep the connection alive for ever.
func exitWhenUnmounted(m mountEntry) error {
	watch, err := unix.Open(mountinfoPath, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("watch mounts: %w", err)
	}
	go func() {
		for {
			if here, err := mounted(m); err == nil && !here {
				os.Exit(0)
			}
			// Polling the mount table sends nothing to any filesystem.
			unix.Poll([]unix.PollFd{{Fd: int32(watch), Events: unix.POLLPRI}}, -1)
		}
	}()
	return nil
}
