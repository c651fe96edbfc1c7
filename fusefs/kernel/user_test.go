package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

const nobody = 65534

// userMain is a daemon of an ordinary user on dir. Called by root, in a mount
// namespace of its own, it sees to it that users may open /dev/fuse there,
// and becomes a user.
func userMain(dir string) error {
	if os.Geteuid() != 0 {
		return userDaemon(dir)
	}
	if err := openDeviceToAll(); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = os.Environ()
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd.Run()
}

func openDeviceToAll() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat("/dev/fuse", &st); err != nil {
		return err
	}
	if err := unix.Mount("dev", "/mnt", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount a place for the device: %w", err)
	}
	if err := unix.Mknod("/mnt/fuse", unix.S_IFCHR|0o666, int(st.Rdev)); err != nil {
		return fmt.Errorf("mknod: %w", err)
	}
	if err := unix.Chmod("/mnt/fuse", 0o666); err != nil { // whatever the umask
		return err
	}
	return unix.Mount("/mnt/fuse", "/dev/fuse", "", unix.MS_BIND, "")
}

func userDaemon(dir string) (err error) {
	if _, err := Mount(dir, Options{AllowOther: true}); !errors.Is(err, ErrAllowOther) {
		return fmt.Errorf("allow_other: %v", err)
	}
	if _, err := Mount(dir, Options{Guard: true}); !errors.Is(err, ErrGuardNeedsRoot) {
		return fmt.Errorf("guard: %v", err)
	}
	c, err := Mount(dir, Options{FSName: "a,vol"})
	if err != nil {
		return err
	}
	fs := newMemFS()
	defer func() {
		err = errors.Join(err, c.Unmount(UnmountOptions{}))
		fs.helper.Close()
		c.Close()
		if err == nil {
			err = c.Wait()
		}
	}()
	if err := c.Serve(fs); err != nil {
		return err
	}
	if c.mount.source != "a,vol" {
		return fmt.Errorf("source %q", c.mount.source)
	}
	return userReveal(fs, c)
}

func userReveal(fs *memFS, c *Conn) error {
	if err := fs.helper.Start(c, "/proc/self/exe"); err != nil {
		return err
	}
	if !fs.helper.NeedsPaths() {
		return errors.New("the helper claims privilege")
	}
	if err := unix.Mkdir(c.Dir()+"/d", 0o755); err != nil {
		return err
	}
	fs.took()
	r := &Request{Op: OpCreate, Dir: Dir{Path: "d"}, Name: "f", Mode: 0o644}
	if err := fs.helper.Do(context.Background(), r); err != nil {
		return err
	}
	if calls := fs.took(); !slices.Contains(calls, memCall{"CREATE", "f", true}) {
		return fmt.Errorf("calls: %v", calls)
	}
	return nil
}
