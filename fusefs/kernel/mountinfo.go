package kernel

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const mountinfoPath = "/proc/self/mountinfo"

// A mountEntry is one line of mountinfo.
type mountEntry struct {
	id, parent int
	dev        string // major:minor, which names the FUSE connection
	point      string
	readOnly   bool // the mount, whatever the superblock is
	fstype     string
	source     string
}

// same reports whether e and o are one mount. The id alone does not say so:
// the kernel hands out the lowest free one.
func (e mountEntry) same(o mountEntry) bool {
	return e.id == o.id && e.dev == o.dev
}

func readMountinfo() ([]mountEntry, error) {
	f, err := os.Open(mountinfoPath)
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close()
	return parseMountinfo(f)
}

func parseMountinfo(r io.Reader) ([]mountEntry, error) {
	var entries []mountEntry
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20) // overlay options get long
	for lines.Scan() {
		if e, ok := parseMountLine(lines.Text()); ok {
			entries = append(entries, e)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return entries, nil
}

func parseMountLine(line string) (mountEntry, bool) {
	left, right, ok := strings.Cut(line, " - ")
	head, tail := strings.Fields(left), strings.Fields(right)
	if !ok || len(head) < 6 || len(tail) < 2 {
		return mountEntry{}, false
	}
	id, err1 := strconv.Atoi(head[0])
	parent, err2 := strconv.Atoi(head[1])
	if err1 != nil || err2 != nil {
		return mountEntry{}, false
	}
	return mountEntry{
		id: id, parent: parent, dev: head[2], point: unescape(head[4]), readOnly: slices.Contains(strings.Split(head[5], ","), "ro"),
		fstype: tail[0], source: unescape(tail[1]),
	}, true
}

// unescape undoes mountinfo's octal escapes (\040 for a blank).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// topMount returns the mount that a walk to point ends in. Several may be
// stacked there; the top one is nobody's parent among them.
func topMount(entries []mountEntry, point string) (mountEntry, bool) {
	var stack []mountEntry
	covered := make(map[int]bool)
	for _, e := range entries {
		if e.point == point {
			stack = append(stack, e)
			covered[e.parent] = true
		}
	}
	for i := len(stack) - 1; i >= 0; i-- {
		if !covered[stack[i].id] {
			return stack[i], true
		}
	}
	return mountEntry{}, false
}

// lookupTop reads mountinfo and returns what is mounted on top at point.
func lookupTop(point string) (mountEntry, bool, error) {
	entries, err := readMountinfo()
	if err != nil {
		return mountEntry{}, false, err
	}
	e, ok := topMount(entries, point)
	return e, ok, nil
}

// mounted reports whether m is still mounted somewhere at its place,
// perhaps covered by others.
func mounted(m mountEntry) (bool, error) {
	entries, err := readMountinfo()
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if e.same(m) && e.point == m.point {
			return true, nil
		}
	}
	return false, nil
}

// Canonical returns dir as the kernel spells it in mountinfo. O_PATH sends
// no request, so this does not hang on a mount whose server is dead.
func Canonical(dir string) (string, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// open opens the mountpoint as a place and makes sure that this mount is on top.
func (e mountEntry) open() (int, error) {
	fd, err := unix.Open(e.point, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", e.point, err)
	}
	var st unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st)
	if err == nil && int(st.Mnt_id) != e.id {
		err = fmt.Errorf("another mount lies over it: %w", unix.EXDEV)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("open %s: %w", e.point, err)
	}
	return fd, nil
}

// InMount reports whether a directory is in a mount of ours, a bind mount of one
// too.
func InMount(dir string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return false, fmt.Errorf("%s: %w", dir, err)
	}
	entries, err := readMountinfo()
	return slices.ContainsFunc(entries, func(e mountEntry) bool {
		return e.id == int(st.Mnt_id) && e.fstype == FSType
	}), err
}
