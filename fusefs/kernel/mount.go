package kernel

import (
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// FSType is the type that mountinfo shows for a mount of ours.
const FSType = "fuse.synapsefs"

// What Mount may answer, beside the kernel's own errors.
var (
	ErrMountpointMissing = errors.New("mountpoint does not exist; create the directory first")
	ErrNotDirectory      = errors.New("mountpoint is not a directory")
	ErrNotEmpty          = errors.New("mountpoint is not empty; a mount would hide what is in it, move it away first")
	ErrMounted           = errors.New("something is mounted here already; unmount it or choose another directory")
	ErrNoDevice          = errors.New("/dev/fuse is not available; load the module (modprobe fuse), in a container pass the device in")
	ErrDeviceDenied      = errors.New("/dev/fuse may not be opened; for users it needs mode 0666, a container needs to be privileged or allowed the device 10:229")
	ErrNoFusermount      = errors.New("fusermount3 is not installed, and mounting without it needs root; install the package fuse3")
	ErrAllowOther        = errors.New("allow_other is not permitted to users; add the line user_allow_other to /etc/fuse.conf, or mount without it")
	ErrGuardNeedsRoot    = errors.New("a guard below the mount needs root; mount as root or without a guard")
	ErrPrivilege         = errors.New("mounting needs CAP_SYS_ADMIN; in a container run it privileged")
)

// How long an existing mount of ours may take to prove that it is alive.
const probeTimeout = 2 * time.Second

// Options says how to mount. The zero value suits tests; FSName should be set.
type Options struct {
	// FSName is what the first column of df and mount shows: the volume.
	FSName string
	// AllowOther lets users other than the mounter in. Root always mounts
	// so; a user needs user_allow_other in /etc/fuse.conf.
	AllowOther bool
	// Guard lays a dead FUSE mount below the real one, so that the bare
	// mountpoint answers ENOTCONN to everybody instead of being an empty
	// directory. Needs root.
	Guard bool
	// Flags are mount(2)'s; those of a user's mount are fusermount3's.
	Flags Flags
	// ACL makes the kernel enforce POSIX ACLs; the filesystem then stores
	// system.posix_acl_* attributes and applies the umask where no default ACL
	// takes its place.
	ACL bool
	// MaxBackground bounds the readahead and asynchronous requests in
	// flight: more helps a slow backend, less saves memory (up to 2 MiB
	// each). 0 means 64, at most 65535.
	MaxBackground int
	// Keeper makes the mount outlive this process. nil: nobody keeps it.
	Keeper Keeper
	// Note is kept with the mount, for who takes it over; it means nothing here.
	Note []byte
	// Logger takes what go-fuse has to say; nil means the standard logger.
	Logger *log.Logger
	// Debug logs each request. Slow.
	Debug bool
}

// maxWrite is the largest READ and WRITE, fixed because a successor that
// takes the connection over must negotiate the same.
const maxWrite = 1 << 20

// Mount mounts on dir, with mount(2) as root and by fusermount3 as a user.
// What an earlier, dead run of ours left on dir is cleared away first.
// The mount does not answer before Conn.Serve; until then whoever looks
// into it waits.
func Mount(dir string, opts Options) (*Conn, error) {
	point, err := prepare(dir, opts)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	fd, err := mountOn(point, opts.FSName, opts)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	entry, ok, err := lookupTop(point)
	if err == nil && (!ok || entry.fstype != FSType) {
		err = errors.New("the new mount is not visible; was it unmounted at once?")
	}
	c := newConn(fd, entry, opts)
	if err == nil {
		err = c.keeper().Put(c.state(fd))
	}
	if err != nil {
		unix.Close(fd)
		return nil, errors.Join(fmt.Errorf("mount %s: %w", dir, err), detach(point, UnmountOptions{}))
	}
	return c, nil
}

// prepare checks dir, clears leftovers, and lays the guard if asked.
func prepare(dir string, opts Options) (string, error) {
	if opts.Guard && os.Geteuid() != 0 {
		return "", ErrGuardNeedsRoot
	}
	point, err := Canonical(dir)
	switch {
	case errors.Is(err, unix.ENOENT):
		return "", ErrMountpointMissing
	case errors.Is(err, unix.ENOTDIR):
		return "", ErrNotDirectory
	case err != nil:
		return "", err
	}
	guarded, err := clearLeftovers(point, opts)
	if err != nil || guarded {
		return point, err
	}
	if err := checkEmpty(point); err != nil {
		return "", err
	}
	if opts.Guard {
		return point, layGuard(point, opts)
	}
	return point, nil
}

// clearLeftovers removes dead mounts of ours from point and reports whether
// a guard is left to be reused.
func clearLeftovers(point string, opts Options) (guarded bool, err error) {
	for {
		top, ok, err := lookupTop(point)
		if err != nil || !ok {
			return false, err
		}
		if top.fstype != FSType {
			return false, fmt.Errorf("%w (type %s)", ErrMounted, top.fstype)
		}
		// Whatever volume it was laid for: to replace it would bare the directory.
		if opts.Guard && isGuard(top) {
			return true, nil
		}
		if life := probe(point); life != "" {
			return false, fmt.Errorf("%w (%s)", ErrMounted, life)
		}
		if err := detach(point, UnmountOptions{Lazy: true}); err != nil {
			return false, fmt.Errorf("remove the dead mount of an earlier run: %w", err)
		}
	}
}

// probe says what lives in the FUSE mount at point, or nothing if it has lost
// its server for good. One whose server is only gone for a while (a keeper
// holds the descriptor) does not answer at all, so the question is asked aside.
func probe(point string) string {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statx_t
		answer <- unix.Statx(unix.AT_FDCWD, point, unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
	}()
	select {
	case err := <-answer:
		if errors.Is(err, unix.ENOTCONN) {
			return ""
		}
		return "a live " + FSType
	case <-time.After(probeTimeout):
		return "a " + FSType + " that does not answer"
	}
}

func checkEmpty(point string) error {
	f, err := os.Open(point)
	if err != nil {
		return err
	}
	defer f.Close()
	if names, _ := f.Readdirnames(1); len(names) > 0 {
		return ErrNotEmpty
	}
	return nil
}

// mountOn mounts over whatever is at point and returns the descriptor.
func mountOn(point, source string, opts Options) (int, error) {
	if source == "" {
		source = "synapsefs"
	}
	if os.Geteuid() != 0 {
		return fusermount(point, source, opts)
	}
	fd, err := openDevice()
	if err != nil {
		return -1, err
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,max_read=%d,default_permissions,allow_other", fd, maxWrite)
	if err := unix.Mount(source, point, FSType, opts.Flags.forMount(), data); err != nil {
		unix.Close(fd)
		return -1, explainMount(err)
	}
	return fd, nil
}

func openDevice() (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
		return fd, nil
	case unix.ENOENT, unix.ENODEV, unix.ENXIO:
		return -1, fmt.Errorf("%w: %w", ErrNoDevice, err)
	case unix.EPERM, unix.EACCES:
		return -1, fmt.Errorf("%w: %w", ErrDeviceDenied, err)
	}
	return -1, fmt.Errorf("open /dev/fuse: %w", err)
}

func explainMount(err error) error {
	switch err {
	case unix.EPERM:
		return fmt.Errorf("%w: %w", ErrPrivilege, err)
	case unix.ENODEV:
		return fmt.Errorf("%w: %w", ErrNoDevice, err)
	}
	return err
}

// escapeOption keeps a comma in a name from starting a mount option.
func escapeOption(s string) string {
	return strings.NewReplacer(`\`, `\\`, `,`, `\,`).Replace(s)
}
