package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// fusermountBinary finds the set-user-id helper of the package fuse3.
func fusermountBinary() (string, error) {
	// PATH may be empty under a service manager.
	for _, name := range []string{"fusermount3", "/bin/fusermount3", "/usr/bin/fusermount3"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNoFusermount
}

// fusermount mounts as a user: fusermount3 opens the device, mounts, and
// passes the descriptor back through a socket.
func fusermount(point, source string, opts Options) (int, error) {
	binary, err := fusermountBinary()
	if err != nil {
		return -1, err
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return -1, fmt.Errorf("%w: %w", ErrNoDevice, err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "fusermount")

	cmd := exec.Command(binary, "-o", fusermountOptions(source, opts), "--", point)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3", "LC_ALL=C")
	cmd.ExtraFiles = []*os.File{theirs}
	var said bytes.Buffer
	cmd.Stderr = &said
	err = cmd.Run()
	theirs.Close()
	if err != nil {
		return -1, explainFusermount(err, said.String())
	}
	return receiveFD(pair[0])
}

func fusermountOptions(source string, opts Options) string {
	list := []string{
		"fsname=" + escapeOption(source), "subtype=" + strings.TrimPrefix(FSType, "fuse."),
		fmt.Sprintf("max_read=%d", maxWrite), "default_permissions",
	}
	if opts.AllowOther {
		list = append(list, "allow_other")
	}
	return strings.Join(list, ",")
}

func explainFusermount(err error, said string) error {
	said = strings.TrimSpace(said)
	switch {
	case strings.Contains(said, "user_allow_other"):
		return ErrAllowOther
	case strings.Contains(said, "/dev/fuse") && strings.Contains(said, "denied"):
		return fmt.Errorf("%w: %s", ErrDeviceDenied, said)
	case strings.Contains(said, "/dev/fuse"), strings.Contains(said, "fuse device not found"):
		return fmt.Errorf("%w: %s", ErrNoDevice, said)
	case said != "":
		return errors.New(said) // it names itself and the cause
	}
	return fmt.Errorf("fusermount3: %w", err)
}

// receiveFD takes the one descriptor that fusermount3 sent.
func receiveFD(socket int) (int, error) {
	data, control := make([]byte, 4), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, data, control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("receive the descriptor from fusermount3: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("fusermount3 sent no descriptor (%d messages, %v)", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("fusermount3 sent %d descriptors (%v)", len(fds), err)
	}
	return fds[0], nil
}

// fusermountUnmount unmounts point as a user.
func fusermountUnmount(point string, lazy bool) error {
	binary, err := fusermountBinary()
	if err != nil {
		return err
	}
	args := []string{"-u", "-q"}
	if lazy {
		args = append(args, "-z")
	}
	cmd := exec.Command(binary, append(args, "--", point)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	said, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return nil
	case bytes.Contains(said, []byte("busy")):
		return unix.EBUSY
	case len(bytes.TrimSpace(said)) > 0:
		return errors.New(string(bytes.TrimSpace(said)))
	}
	return fmt.Errorf("fusermount3 -u: %w", err)
}
