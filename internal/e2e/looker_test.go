package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/playground"
)

// A looker uses a mount as readers do who stay: it looks at every name that a
// changer may make, present or not, lists, reads, and keeps old versions,
// mappings and working directories. So the kernel has all cached, and what a
// restart of the daemon would leave wrong shows. It is a process of its own,
// as a workload is.
type looker struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
}

const lookerEnv = "SYNAPSEFS_E2E_LOOKER"

func startLooker(t *testing.T, nd *playground.Node) *looker {
	t.Helper()
	l := &looker{cmd: exec.Command("/proc/self/exe")}
	l.cmd.Env = append(os.Environ(), lookerEnv+"="+nd.Mount)
	l.cmd.Stderr = os.Stderr
	out, err := l.cmd.StdoutPipe()
	if err == nil {
		l.stdin, err = l.cmd.StdinPipe()
	}
	if err == nil {
		err = l.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	l.out = bufio.NewReader(out)
	t.Cleanup(func() { l.stdin.Close(); l.cmd.Wait() }) //nolint:errcheck // ask has told
	return l
}

// A lookerView is what a looker sees, and what was wrong so far.
type lookerView struct {
	Names  map[string]string
	Events map[string]string // of the names in the directory "events"
	Errors []string
	Looks  int64
}

// view asks for what it sees now, with what its kernel has cached.
func (l *looker) view(t *testing.T) (v lookerView) {
	t.Helper()
	if _, err := l.stdin.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	line, err := l.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &v)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// The names that a changer plays with: few, so that each is used in all ways.
var (
	playDirs  = []string{"", "d0", "d1", "d0/e", "d1/e", "d0/e/f"}
	playNames = []string{"a", "b", "c"}
	spareDirs = []string{"d0", "d1", "d0/e", "d1/e", "d0/e/f"} // made, removed, replaced
)

// playPaths are all names, of which some are directories now and then.
func playPaths() (all []string) {
	for _, d := range playDirs {
		for _, n := range playNames {
			all = append(all, filepath.Join(d, n))
			for _, deep := range playNames {
				all = append(all, filepath.Join(d, n, deep))
			}
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(append(all, spareDirs...))))
}

// selfDescribed is content by which a torn or mixed version is found out.
func selfDescribed(n, size int) []byte {
	body := bytes.Repeat(fmt.Appendf(nil, "%08d,", n), size/9+1)
	sum := fnv.New64a()
	sum.Write(body)
	return append(fmt.Appendf(nil, "%016x%08d\n", sum.Sum64(), len(body)), body...)
}

func checkDescribed(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	var want uint64
	var size int
	if _, err := fmt.Sscanf(string(b[:min(len(b), 25)]), "%16x%8d\n", &want, &size); err != nil {
		return fmt.Errorf("no header in %q: %w", b[:min(len(b), 40)], err)
	}
	sum := fnv.New64a()
	sum.Write(b[25:])
	if size != len(b)-25 || sum.Sum64() != want {
		return fmt.Errorf("%d bytes, %d said, whose sum does not fit: %.40q", len(b)-25, size, b)
	}
	return nil
}

// runLooker is the process.
func runLooker(root string) error {
	l := &looking{root: root, r: rand.New(rand.NewPCG(1, 2)), errors: map[string]bool{}}
	if err := l.watch(); err != nil {
		return err
	}
	asked := make(chan bool)
	go func() {
		in := bufio.NewReader(os.Stdin)
		for {
			if _, err := in.ReadByte(); err != nil {
				close(asked)
				return
			}
			asked <- true
		}
	}()
	for {
		select {
		case _, ok := <-asked:
			if !ok {
				return nil
			}
			v := lookerView{Names: l.all(), Errors: slices.Sorted(maps.Keys(l.errors)), Looks: l.looks.Load(), Events: l.heard()}
			if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
				return err
			}
		default:
			l.round()
		}
	}
}

type looking struct {
	root   string
	r      *rand.Rand
	errors map[string]bool
	looks  atomic.Int64
	held   []heldVersion
	dirs   []*os.File

	mu     sync.Mutex // guards what follows
	events map[string]string
}

type heldVersion struct {
	path string
	f    *os.File
	want []byte
}

// absent says that a call found what a changer may have made of a name. ESTALE is
// a directory whose removal was shown without a call, as P10 allows.
func absent(err error) bool {
	for _, e := range []error{unix.ENOENT, unix.ESTALE, unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.EINVAL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (l *looking) wrong(what, path string, err error) {
	if err != nil && !absent(err) && len(l.errors) < 20 {
		l.errors[fmt.Sprintf("%s %s: %v", what, path, err)] = true
	}
}

// round looks at some names at random and at what it holds.
func (l *looking) round() {
	for range 20 {
		paths := playPaths()
		path := paths[l.r.IntN(len(paths))]
		l.see(path)
		l.looks.Add(1)
		if l.r.IntN(10) == 0 {
			l.hold(path)
		}
	}
	if len(l.held) > 0 {
		i := l.r.IntN(len(l.held))
		h := l.held[i]
		got := make([]byte, len(h.want)+1)
		n, err := h.f.ReadAt(got, 0)
		if err != nil && err != io.EOF {
			l.wrong("read a held version of", h.path, err)
		} else if !bytes.Equal(got[:n], h.want) {
			l.wrong("read", h.path, fmt.Errorf("a held version of %d bytes became %.30q, %d bytes", len(h.want), got[:n], n))
		}
		if len(l.held) > 12 {
			h.f.Close()
			l.held = slices.Delete(l.held, i, i+1)
		}
	}
	if len(l.dirs) > 0 {
		i := l.r.IntN(len(l.dirs))
		d := l.dirs[i]
		if _, err := d.Seek(0, io.SeekStart); err != nil {
			l.wrong("rewind", d.Name(), err)
		}
		_, err := d.Readdirnames(-1)
		var st unix.Stat_t
		err = errors.Join(err, unix.Fstatat(int(d.Fd()), "a", &st, unix.AT_SYMLINK_NOFOLLOW))
		l.wrong("use a held", d.Name(), err)
		if len(l.dirs) > 6 {
			d.Close()
			l.dirs = slices.Delete(l.dirs, i, i+1)
		}
	}
}

// hold keeps what a name leads to.
func (l *looking) hold(path string) {
	fd, err := unix.Open(filepath.Join(l.root, path), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		l.wrong("open", path, err)
		return
	}
	f := os.NewFile(uintptr(fd), path)
	if fi, err := f.Stat(); err == nil && fi.IsDir() {
		l.dirs = append(l.dirs, f)
		return
	}
	want, err := io.ReadAll(f)
	if err == nil {
		err = checkDescribed(want)
	}
	if err != nil {
		l.wrong("read", path, err)
		f.Close()
		return
	}
	l.held = append(l.held, heldVersion{path, f, want})
}

// see is all there is to say of a name.
func (l *looking) see(path string) string {
	full := filepath.Join(l.root, path)
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		l.wrong("stat", path, err)
		return "-"
	}
	said := fmt.Sprintf("%o %d links %d", st.Mode, st.Nlink, st.Ino)
	value := make([]byte, 64)
	if n, err := unix.Lgetxattr(full, "user.k", value); err == nil {
		said += fmt.Sprintf(" k=%s", value[:n])
	} else if err != unix.ENODATA {
		l.wrong("getxattr", path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		entries, err := os.ReadDir(full)
		l.wrong("list", path, err)
		for _, e := range entries {
			said += " " + e.Name()
		}
	case unix.S_IFLNK:
		target, err := os.Readlink(full)
		l.wrong("readlink", path, err)
		said += " -> " + target
	default:
		b, err := os.ReadFile(full)
		if err == nil {
			err = checkDescribed(b)
		}
		l.wrong("read", path, err)
		sum := fnv.New64a()
		sum.Write(b)
		said += fmt.Sprintf(" %d.%09d size %d read %d %x", st.Mtim.Sec, st.Mtim.Nsec, st.Size, len(b), sum.Sum64())
	}
	return said
}

func (l *looking) all() map[string]string {
	names := map[string]string{}
	for _, path := range playPaths() {
		names[path] = l.see(path)
	}
	return names
}

// watch records the events of the directory "events".
func (l *looking) watch() error {
	l.events = map[string]string{}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(l.root, "events"),
		unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE|unix.IN_ATTRIB); err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, err := unix.Read(fd, buf)
			if err != nil {
				continue // EINTR
			}
			l.mu.Lock()
			for at := 0; at < n; {
				mask := uint32(buf[at+4]) | uint32(buf[at+5])<<8 | uint32(buf[at+6])<<16 | uint32(buf[at+7])<<24
				size := int(buf[at+12]) | int(buf[at+13])<<8
				name := strings.TrimRight(string(buf[at+16:at+16+size]), "\x00")
				for bit, short := range map[uint32]string{unix.IN_CREATE: "C", unix.IN_DELETE: "D", unix.IN_MOVED_FROM: "F", unix.IN_MOVED_TO: "T", unix.IN_CLOSE_WRITE: "W", unix.IN_ATTRIB: "A", unix.IN_Q_OVERFLOW: "overflow", unix.IN_IGNORED: "ignored"} {
					if mask&bit != 0 {
						l.events[name] += short
					}
				}
				at += 16 + size
			}
			l.mu.Unlock()
		}
	}()
	return nil
}

func (l *looking) heard() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.events)
}

// A changer makes what lookers on another node look at.
type changer struct {
	dir    string
	r      *rand.Rand
	n      int
	shows  int
	events map[string]string // what watchers of the directory "events" are to hear
}

func (c *changer) path(s string) string { return filepath.Join(c.dir, s) }

func (c *changer) pick(of []string) string { return of[c.r.IntN(len(of))] }

// change makes one change. What cannot be done is left.
func (c *changer) change() error {
	c.n++
	name := func() string { return c.path(filepath.Join(c.pick(playDirs), c.pick(playNames))) }
	size := 0
	switch c.r.IntN(4) {
	case 0:
		size = 20_000
	case 1:
		size = 200
	case 2:
		size = 150_000
	}
	var err error
	switch c.r.IntN(16) {
	case 0, 1:
		err = os.WriteFile(name(), selfDescribed(c.n, size), 0o644)
	case 2, 3: // as programs replace files
		tmp := name() + ".tmp"
		if err = os.WriteFile(tmp, selfDescribed(c.n, size), 0o644); err == nil {
			if err = os.Rename(tmp, name()); err != nil {
				os.Remove(tmp)
			}
		}
	case 4:
		err = os.Rename(name(), name())
	case 5:
		err = unix.Renameat2(unix.AT_FDCWD, name(), unix.AT_FDCWD, name(), unix.RENAME_EXCHANGE)
	case 6:
		err = unix.Unlink(name())
	case 7:
		err = os.Mkdir(name(), 0o755)
	case 8:
		err = os.Mkdir(c.path(c.pick(spareDirs)), 0o755)
	case 9:
		err = os.RemoveAll(c.path(c.pick(spareDirs)))
	case 10: // a directory removed and made again
		d := c.path(c.pick(spareDirs))
		if err = os.RemoveAll(d); err == nil {
			if err = os.Mkdir(d, 0o700); err == nil {
				err = os.WriteFile(filepath.Join(d, c.pick(playNames)), selfDescribed(c.n, size), 0o644)
			}
		}
	case 11: // a file becomes a directory, or the other way
		p := name()
		fi, statErr := os.Lstat(p)
		if statErr != nil {
			return nil
		}
		if err = os.RemoveAll(p); err == nil && fi.IsDir() {
			err = os.WriteFile(p, selfDescribed(c.n, size), 0o644)
		} else if err == nil {
			if err = os.Mkdir(p, 0o755); err == nil {
				err = os.WriteFile(filepath.Join(p, c.pick(playNames)), selfDescribed(c.n, size), 0o644)
			}
		}
	case 12:
		err = os.Chmod(name(), 0o600|os.FileMode(c.r.IntN(64)))
	case 13:
		err = unix.Link(name(), name())
	case 14:
		err = unix.Setxattr(name(), "user.k", fmt.Append(nil, c.n), 0)
	case 15:
		err = os.Symlink(fmt.Sprint("target", c.n), name())
	}
	for _, usual := range []error{unix.ENOENT, unix.EEXIST, unix.ENOTDIR, unix.EISDIR, unix.ENOTEMPTY, unix.EINVAL, unix.ELOOP, unix.EPERM} {
		if errors.Is(err, usual) {
			err = nil
		}
	}
	return err
}

// shownOnce is how many names there are for show to change.
const shownOnce = 4000

// prepareShow makes them.
func (c *changer) prepareShow() error {
	if err := os.Mkdir(c.path("events"), 0o755); err != nil {
		return err
	}
	for i := range shownOnce {
		if err := os.WriteFile(c.path(fmt.Sprintf("events/o%d", i)), nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// show makes a change that watchers must hear of: no other one concerns its
// names, so there is nothing to join it with.
func (c *changer) show() error {
	c.shows++
	fresh, old := fmt.Sprint("n", c.shows), fmt.Sprint("o", c.shows)
	at := func(name string) string { return c.path(filepath.Join("events", name)) }
	kind := c.r.IntN(7)
	if c.shows >= shownOnce {
		kind %= 2
	}
	switch kind {
	case 0:
		c.events[fresh] = "C"
		return os.Mkdir(at(fresh), 0o755)
	case 1:
		c.events[fresh] = "CW"
		return os.WriteFile(at(fresh), selfDescribed(c.n, 100), 0o644)
	case 2:
		c.events[old] = "D"
		return os.Remove(at(old))
	case 3:
		c.events[old], c.events[fresh] = "F", "T"
		return os.Rename(at(old), at(fresh))
	case 4:
		c.events[old] = "A"
		return os.Chmod(at(old), 0o600)
	case 5:
		c.events[old] = "W"
		return os.WriteFile(at(old), selfDescribed(c.n, 100), 0o644)
	default: // by rename
		tmp := c.path("tmp")
		if err := os.WriteFile(tmp, selfDescribed(c.n, 100), 0o644); err != nil {
			return err
		}
		c.events[old] = "R"
		return os.Rename(tmp, at(old))
	}
}
