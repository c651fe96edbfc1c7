package fusefs_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

// An eventCase is calls in a directory that makeEventStart has filled.
type eventCase struct {
	name string
	do   func(dir string) error
	// differs is what those hear on another node who hear something else there,
	// by reason: see docs/departures.md.
	differs []eventDifference
}

type eventDifference struct {
	why  string
	who  string
	hear []string
}

const (
	whyNewNode  = "a version from elsewhere is another node: who watches the file itself hears that it is gone, and watches anew, as after a replacement"
	whyNoHandle = "a version does not say whether it was written through a descriptor"
	whyProgram  = "what may be executed is not opened for writing: starting it would fail meanwhile"
	whyTimes    = "a version does not say whether its bytes were written again, or its times set"
	whyAllLinks = "a change is of the file, and is told at each of its names"

	inDirs, ofFiles = "directories", "files"
)

func rewriteFile(path, text string, flags int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|flags, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// inTurn makes calls one after the other.
func inTurn(calls ...func() error) error {
	for _, call := range calls {
		if err := call(); err != nil {
			return err
		}
	}
	return nil
}

var eventCases = []eventCase{
	{"create", func(d string) error { return rewriteFile(d+"/n", "new", os.O_CREATE|os.O_EXCL) }, nil},
	{"create empty", func(d string) error { return os.WriteFile(d+"/n", nil, 0o644) }, nil},
	{"append", func(d string) error { return rewriteFile(d+"/f", "more", os.O_APPEND) }, []eventDifference{
		{whyNewNode, ofFiles, []string{"MODIFY f", "CLOSE_WRITE f", "DELETE_SELF f", "IGNORED f"}},
	}},
	{"write over", func(d string) error { return rewriteFile(d+"/f", "ONE", 0) }, []eventDifference{
		{whyNewNode, ofFiles, []string{"MODIFY f", "CLOSE_WRITE f", "DELETE_SELF f", "IGNORED f"}},
	}},
	{"truncate", func(d string) error { return os.Truncate(d+"/f", 1) }, []eventDifference{
		{whyNoHandle, inDirs, []string{"MODIFY f", "CLOSE_WRITE f"}},
		{whyNewNode, ofFiles, []string{"MODIFY f", "CLOSE_WRITE f", "DELETE_SELF f", "IGNORED f"}},
	}},
	{"rewrite", func(d string) error { return rewriteFile(d+"/f", "other", os.O_TRUNC) }, []eventDifference{
		{whyNewNode, ofFiles, []string{"MODIFY f", "CLOSE_WRITE f", "DELETE_SELF f", "IGNORED f"}},
	}},
	{"rewrite of a program", func(d string) error { return rewriteFile(d+"/p", "other", os.O_TRUNC) }, []eventDifference{
		{whyProgram, inDirs, []string{"MODIFY p"}},
		{whyProgram, ofFiles, []string{"DELETE_SELF p", "IGNORED p"}},
	}},
	{"rename", func(d string) error { return os.Rename(d+"/f", d+"/n") }, nil},
	{"rename to another directory", func(d string) error { return os.Rename(d+"/f", d+"/s/n") }, nil},
	{"rename over", func(d string) error { return os.Rename(d+"/f", d+"/g") }, nil},
	{"rename over, in another directory", func(d string) error { return os.Rename(d+"/f", d+"/s/x") }, nil},
	{"rename of a directory", func(d string) error { return os.Rename(d+"/s", d+"/n") }, nil},
	{"rename of a directory over an empty one", func(d string) error { return unix.Rename(d+"/s", d+"/e") }, nil},
	{"rename of a directory to another", func(d string) error { return os.Rename(d+"/s", d+"/e/s") }, nil},
	{"exchange", func(d string) error {
		return unix.Renameat2(unix.AT_FDCWD, d+"/f", unix.AT_FDCWD, d+"/g", unix.RENAME_EXCHANGE)
	}, nil},
	{"exchange with a directory", func(d string) error {
		return unix.Renameat2(unix.AT_FDCWD, d+"/f", unix.AT_FDCWD, d+"/s", unix.RENAME_EXCHANGE)
	}, nil},
	{"mkdir with files", func(d string) error {
		return inTurn(
			func() error { return os.Mkdir(d+"/n", 0o755) },
			func() error { return os.WriteFile(d+"/n/1", []byte("1"), 0o644) },
			func() error { return os.WriteFile(d+"/n/2", []byte("2"), 0o644) },
		)
	}, nil},
	{"rmdir", func(d string) error { return os.Remove(d + "/e") }, nil},
	{"rm -r", func(d string) error {
		return inTurn(
			func() error { return os.Remove(d + "/t/u/b") },
			func() error { return os.Remove(d + "/t/u") },
			func() error { return os.Remove(d + "/t/a") },
			func() error { return os.Remove(d + "/t") },
		)
	}, nil},
	{"symlink", func(d string) error { return os.Symlink("f", d+"/n") }, nil},
	{"symlink swap", func(d string) error {
		return inTurn(
			func() error { return os.Symlink("..2", d+"/..data_tmp") },
			func() error { return os.Rename(d+"/..data_tmp", d+"/..data") },
		)
	}, nil},
	{"replacement", func(d string) error {
		return inTurn(
			func() error { return os.WriteFile(d+"/.f.tmp", []byte("new"), 0o644) },
			func() error { return os.Rename(d+"/.f.tmp", d+"/f") },
		)
	}, nil},
	{"chmod", func(d string) error { return os.Chmod(d+"/f", 0o600) }, nil},
	{"chmod of a directory", func(d string) error { return os.Chmod(d+"/s", 0o700) }, nil},
	{"chown", func(d string) error { return os.Chown(d+"/f", 7, 8) }, nil},
	{"chown of a directory", func(d string) error { return os.Chown(d+"/s", 7, 8) }, nil},
	{"chown of a symlink", func(d string) error { return os.Lchown(d+"/..data", 7, 8) }, nil},
	{"utimensat", func(d string) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, d+"/f", []unix.Timespec{{Sec: 1}, {Sec: 2, Nsec: 3}}, 0)
	}, []eventDifference{
		{whyTimes, inDirs, []string{"MODIFY f", "CLOSE_WRITE f"}},
		{whyNewNode, ofFiles, []string{"MODIFY f", "CLOSE_WRITE f", "DELETE_SELF f", "IGNORED f"}},
	}},
	{"utimensat of the mtime", func(d string) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, d+"/f", []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: 2, Nsec: 3}}, 0)
	}, []eventDifference{
		{whyTimes, inDirs, []string{"MODIFY f", "CLOSE_WRITE f"}},
		{whyNewNode, ofFiles, []string{"MODIFY f", "CLOSE_WRITE f", "DELETE_SELF f", "IGNORED f"}},
	}},
	{"utimensat of a directory", func(d string) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, d+"/s", []unix.Timespec{{Sec: 1}, {Sec: 2, Nsec: 3}}, 0)
	}, nil},
	{"link", func(d string) error { return os.Link(d+"/f", d+"/n") }, nil},
	{"unlink", func(d string) error { return os.Remove(d + "/f") }, nil},
	{"unlink of one of two links", func(d string) error { return os.Remove(d + "/h1") }, nil},
	{"chmod of one of two links", func(d string) error { return os.Chmod(d+"/h1", 0o600) }, []eventDifference{
		{whyAllLinks, inDirs, []string{"ATTRIB h1", "ATTRIB h2"}},
	}},
	{"append to one of two links", func(d string) error { return rewriteFile(d+"/h1", "more", os.O_APPEND) }, []eventDifference{
		{whyAllLinks, inDirs, []string{"MODIFY h1", "CLOSE_WRITE h1", "MODIFY h2", "CLOSE_WRITE h2"}},
		{whyNewNode, ofFiles, []string{"MODIFY h1", "CLOSE_WRITE h1", "DELETE_SELF h1", "IGNORED h1"}},
	}},
	{"setxattr", func(d string) error { return unix.Setxattr(d+"/f", "user.k", []byte("v"), 0) }, nil},
	{"removexattr", func(d string) error { return unix.Removexattr(d+"/g", "user.g") }, nil},
	{"setxattr of a directory", func(d string) error { return unix.Setxattr(d+"/s", "user.k", []byte("v"), 0) }, nil},
	{"fifo", func(d string) error { return unix.Mkfifo(d+"/n", 0o600) }, nil},
}

// eventDirs are watched, and eventFiles by themselves, too.
var (
	eventDirs  = []string{"", "s/", "e/", "t/", "t/u/"}
	eventFiles = []string{"f", "g", "h1", "s/x", "p"}
)

func makeEventStart(dir string) error {
	write := func(name, text string) func() error {
		return func() error { return os.WriteFile(dir+"/"+name, []byte(text), 0o644) }
	}
	calls := []func() error{}
	for _, d := range []string{"", "s", "e", "t", "t/u", "..1", "..2"} {
		calls = append(calls, func() error { return os.Mkdir(dir+"/"+d, 0o755) })
	}
	calls = append(calls, write("f", "one"), write("g", "two"), write("h1", "h"), write("s/x", "x"), write("t/a", "a"),
		write("t/u/b", "b"), write("..1/c", "1"), write("..2/c", "2"), write("p", "program"),
		func() error { return os.Chmod(dir+"/p", 0o755) },
		func() error { return os.Link(dir+"/h1", dir+"/h2") },
		func() error { return unix.Setxattr(dir+"/g", "user.g", []byte("g"), 0) },
		func() error { return os.Symlink("..1", dir+"/..data") },
		func() error { return os.Symlink("..data/c", dir+"/c") })
	return inTurn(calls...)
}

var gone = unix.ENOENT.Error()

// state is what a program can see of a name. Directories are seen by their
// entries' events.
func state(path string) string {
	var s unix.Stat_t
	if err := unix.Lstat(path, &s); err != nil {
		return err.Error()
	}
	text := fmt.Sprintf("mode %o owner %d:%d", s.Mode, s.Uid, s.Gid)
	switch s.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		b, err := os.ReadFile(path)
		text += fmt.Sprintf(" %d bytes of %d.%d: %q %v", s.Size, s.Mtim.Sec, s.Mtim.Nsec, b, err)
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		text += fmt.Sprintf(" to %q %v", target, err)
	}
	if s.Mode&unix.S_IFMT != unix.S_IFLNK {
		b := make([]byte, 100)
		n, err := unix.Getxattr(path, "user.k", b)
		text += fmt.Sprintf(" %q %v", b[:max(0, n)], err)
	}
	return text
}

// An eventRun is what is watched in one directory, and what was heard.
type eventRun struct {
	t     *testing.T
	stops []func() []fstest.Event

	mu    sync.Mutex // guards what follows
	heard map[string][]fstest.Event
	seen  []seenState
}

// seenState is what was to be seen when an event was read.
type seenState struct {
	event fstest.Event
	state string
}

// watchEvents watches a directory that is also bound elsewhere.
func watchEvents(t *testing.T, dir, bound string) *eventRun {
	t.Helper()
	r := &eventRun{t: t, heard: map[string][]fstest.Event{}}
	dirs, pod, files := fstest.EmptyWatch(t), fstest.EmptyWatch(t), fstest.EmptyWatch(t)
	for _, d := range eventDirs {
		dirs.Add(filepath.Join(dir, d), d)
		pod.Add(filepath.Join(bound, d), d)
	}
	for _, f := range eventFiles {
		files.Add(filepath.Join(dir, f), f)
	}
	r.record(dirs, inDirs, dir)
	r.record(pod, inDirs+", bound", bound)
	r.record(files, ofFiles, "")
	return r
}

// record notes what a watch hears and, given a directory, what is to be seen
// there. What directories hear of themselves is a list of its own: whether the end
// of a watch comes before the DELETE depends on who looks there at that moment.
func (r *eventRun) record(w *fstest.Watch, who, dir string) {
	r.stops = append(r.stops, w.Record(func(e fstest.Event) {
		var now string
		itself := strings.HasSuffix(e.Kind, "_SELF") || e.Kind == "IGNORED"
		look := dir != "" && e.Kind != "OPEN" && !itself
		if look {
			now = state(filepath.Join(dir, e.Name))
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		by := who
		if itself && dir != "" {
			by += ", of themselves"
		}
		r.heard[by] = append(r.heard[by], e)
		if look {
			r.seen = append(r.seen, seenState{e, now})
		}
	}))
}

// lists is what each has heard: opens aside, renames numbered by their cookies,
// what is told twice in a row once.
func (r *eventRun) lists() map[string][]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[string][]string{}
	for who, heard := range r.heard {
		var list []string
		numbers := map[uint32]int{}
		for _, e := range heard {
			if e.Kind == "OPEN" {
				continue
			}
			text := e.Kind
			if e.Cookie != 0 {
				if numbers[e.Cookie] == 0 {
					numbers[e.Cookie] = len(numbers) + 1
				}
				text += fmt.Sprintf("#%d", numbers[e.Cookie])
			}
			if e.Dir {
				text += ",ISDIR"
			}
			list = append(list, text+" "+e.Name)
		}
		if list = slices.Compact(list); len(list) > 0 {
			all[who] = list
		}
	}
	return all
}

// want is what is to be heard on another node.
func (c *eventCase) want(local map[string][]string) map[string][]string {
	want := maps.Clone(local)
	for _, d := range c.differs {
		want[d.who] = d.hear
		if d.who == inDirs {
			want[d.who+", bound"] = d.hear
		}
	}
	return want
}

// TestP10EventsAsLocal: for each kind of change programs hear on another node
// what they would hear of the same calls on a local disk, and what they hear of
// is there.
func TestP10EventsAsLocal(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	local := t.TempDir()
	localBound, bound := fstest.Bound(t, local), fstest.Bound(t, p.B.Dir)
	for i, c := range eventCases {
		t.Run(c.name, func(t *testing.T) {
			dir := "/" + fmt.Sprint(i)
			must(t, makeEventStart(local+dir))
			must(t, makeEventStart(p.A.Dir+dir))
			p.Sync()
			tree(t, p.B.Dir+dir) // the kernel remembers
			here, there := watchEvents(t, local+dir, localBound+dir), watchEvents(t, p.B.Dir+dir, bound+dir)
			must(t, c.do(local+dir))
			must(t, c.do(p.A.Dir+dir))
			p.Sync()
			here.end()
			want := c.want(here.lists())
			// The end of a watch comes when nobody looks at the file any more.
			fstest.Eventually(t, func() error {
				if got := there.lists(); !reflect.DeepEqual(got, want) {
					return fmt.Errorf("heard %q\n want %q\nlocal %q", got, want, here.lists())
				}
				return nil
			})
			there.end()
			if got := there.lists(); !reflect.DeepEqual(got, want) {
				t.Errorf("more was heard: %q", got)
			}
			for _, s := range there.seen {
				end := state(p.A.Dir + dir + "/" + s.event.Name)
				if s.state != end && s.state != gone && end != gone { // it went on
					t.Errorf("at %v: %s\n in the end: %s", s.event, s.state, end)
				}
				if s.state != gone && s.event.Kind == "DELETE" {
					t.Errorf("at %v: %s", s.event, s.state)
				}
			}
		})
	}
}

func (r *eventRun) end() {
	for _, stop := range r.stops {
		stop()
	}
}
