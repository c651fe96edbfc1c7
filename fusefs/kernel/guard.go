package kernel

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// guardSource names the guard in mountinfo, so that a later run tells it
// from a real mount that died.
func guardSource(fsname string) string {
	return "guard:" + fsname
}

// layGuard mounts a FUSE mount on point and closes its descriptor. From
// then on point answers ENOTCONN, and a mount on top of it works as usual.
func layGuard(point string, opts Options) error {
	fd, err := mountOn(point, guardSource(opts.FSName), opts)
	if err != nil {
		return fmt.Errorf("lay the guard: %w", err)
	}
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("lay the guard: close: %w", err)
	}
	return nil
}
