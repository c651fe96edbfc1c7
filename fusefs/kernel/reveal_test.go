package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A watcher reads inotify events of one directory.
type watcher struct {
	t  *testing.T
	fd int
}

func watch(t *testing.T, dir string) *watcher {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	const mask = unix.IN_ALL_EVENTS &^ (unix.IN_ACCESS | unix.IN_CLOSE_NOWRITE)
	if _, err := unix.InotifyAddWatch(fd, dir, mask); err != nil {
		t.Fatal(err)
	}
	return &watcher{t: t, fd: fd}
}

var eventNames = []struct {
	bit  uint32
	name string
}{
	{unix.IN_CREATE, "CREATE"}, {unix.IN_OPEN, "OPEN"}, {unix.IN_MODIFY, "MODIFY"},
	{unix.IN_CLOSE_WRITE, "CLOSE_WRITE"}, {unix.IN_ATTRIB, "ATTRIB"}, {unix.IN_DELETE, "DELETE"},
	{unix.IN_MOVED_FROM, "MOVED_FROM"}, {unix.IN_MOVED_TO, "MOVED_TO"},
}

// events returns what has happened, each as "CREATE name". Events are queued
// within the system calls that cause them, so there is nothing to wait for.
func (w *watcher) events() []string {
	w.t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Read(w.fd, buf)
	if err == unix.EAGAIN {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	var list []string
	for b := buf[:n]; len(b) > 0; {
		mask, size := binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[12:])
		name := strings.TrimRight(string(b[16:16+size]), "\x00")
		b = b[16+size:]
		for _, e := range eventNames {
			if mask&e.bit != 0 && name != "" {
				list = append(list, e.name+" "+name)
			}
		}
	}
	return list
}

func do(t *testing.T, fs *memFS, r *Request) {
	t.Helper()
	if err := fs.helper.Do(context.Background(), r); err != nil {
		t.Fatalf("%+v: %v", r, err)
	}
}

// Every row is a call of the helper in directory d, what the filesystem is
// asked for by the helper, and what a watcher of d sees.
func TestRevealEvents(t *testing.T) {
	fs, c := serve(t, Options{})
	if err := unix.Mkdir(c.Dir()+"/d", 0o755); err != nil {
		t.Fatal(err)
	}
	startHelper(t, fs, c)
	if fs.helper.NeedsPaths() {
		t.Fatal("the helper of root needs paths")
	}
	d := Dir{Node: 2, Generation: memGeneration} // no Path: by node id only
	root := Dir{Node: rootNode}
	w := watch(t, c.Dir()+"/d")
	for _, row := range []struct {
		r      Request
		call   memCall
		events string
	}{
		{Request{Op: OpCreate, Name: "f", Mode: 0o644}, memCall{"CREATE", "f", true}, "CREATE f,OPEN f,MODIFY f,CLOSE_WRITE f"},
		{Request{Op: OpCreateEmpty, Name: "e", Mode: 0o644}, memCall{"CREATE", "e", true}, "CREATE e,OPEN e,CLOSE_WRITE e"},
		{Request{Op: OpModify, Name: "f"}, memCall{"SETATTR", "", true}, "OPEN f,MODIFY f,CLOSE_WRITE f"},
		{Request{Op: OpModifyPath, Name: "f"}, memCall{"SETATTR", "", true}, "MODIFY f"},
		{Request{Op: OpHold, Name: "f", Hold: 9}, memCall{"OPEN", "", true}, "OPEN f"},
		{Request{Op: OpFinish, Hold: 9}, memCall{"SETATTR", "", true}, "MODIFY f,CLOSE_WRITE f"},
		{Request{Op: OpChmod, Name: "f", Mode: 0o600}, memCall{"SETATTR", "", true}, "ATTRIB f"},
		{Request{Op: OpTouch, Name: "f"}, memCall{"SETATTR", "", true}, "ATTRIB f"},
		{Request{Op: OpMkdir, Name: "s", Mode: 0o755}, memCall{"MKDIR", "s", true}, "CREATE s"},
		{Request{Op: OpMknod, Name: "p", Mode: unix.S_IFIFO | 0o600}, memCall{"MKNOD", "p", true}, "CREATE p"},
		{Request{Op: OpSymlink, Name: "y", Target: "f"}, memCall{"SYMLINK", "y", true}, "CREATE y"},
		{Request{Op: OpLink, Name: "l", Dir2: d, Name2: "f"}, memCall{"LINK", "l", true}, "CREATE l"},
		{Request{Op: OpRename, Name: "f", Dir2: d, Name2: "g"}, memCall{"RENAME", "f", true}, "MOVED_FROM f,MOVED_TO g"},
		{Request{Op: OpRename, Name: "g", Dir2: root, Name2: "g"}, memCall{"RENAME", "g", true}, "MOVED_FROM g"},
		{Request{Op: OpUnlink, Name: "e"}, memCall{"UNLINK", "e", true}, "DELETE e"},
		{Request{Op: OpRmdir, Name: "s"}, memCall{"RMDIR", "s", true}, "DELETE s"},
	} {
		fs.took()
		row.r.Dir = d
		do(t, fs, &row.r)
		if calls := fs.took(); !slices.Contains(calls, row.call) {
			t.Errorf("%+v: calls %v, want %v", row.r, calls, row.call)
		}
		var got []string
		for _, e := range w.events() {
			if !strings.HasPrefix(e, "ATTRIB f") || row.events == e { // link count of a link's source
				got = append(got, e)
			}
		}
		if strings.Join(got, ",") != row.events {
			t.Errorf("%+v: events %v, want %s", row.r, got, row.events)
		}
	}
}

func TestHelperRecognisedOnlyItself(t *testing.T) {
	fs, c := serve(t, Options{})
	startHelper(t, fs, c)
	fs.took()
	if err := unix.Mkdir(c.Dir()+"/mine", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, call := range fs.took() {
		if call.helper {
			t.Errorf("own call taken for the helper's: %v", call)
		}
	}
}

// The helper reaches a directory that the kernel has forgotten, under a
// mount that hides all, and reports the errno of what fails.
func TestHelperUnderOtherMount(t *testing.T) {
	fs, c := serve(t, Options{})
	if err := unix.Mkdir(c.Dir()+"/d", 0o755); err != nil {
		t.Fatal(err)
	}
	startHelper(t, fs, c)
	if err := c.Prune(2); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("over", c.Dir(), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(c.Dir(), 0)
	d := Dir{Node: 2, Generation: memGeneration}
	do(t, fs, &Request{Op: OpMkdir, Dir: d, Name: "s", Mode: 0o755})
	if calls := fs.took(); !slices.Contains(calls, memCall{"MKDIR", "s", true}) {
		t.Errorf("calls: %v", calls)
	}
	for want, r := range map[error]*Request{
		syscall.EEXIST: {Op: OpMkdir, Dir: d, Name: "s"},
		syscall.ENOENT: {Op: OpUnlink, Dir: d, Name: "none"},
		syscall.ESTALE: {Op: OpMkdir, Dir: Dir{Node: 4711}, Name: "s"},
		syscall.EBADF:  {Op: OpFinish, Hold: 1},
		syscall.EINVAL: {Op: OpMkdir, Dir: d, Name: "a/b"},
	} {
		if err := fs.helper.Do(context.Background(), r); !errors.Is(err, want) {
			t.Errorf("%+v = %v, want %v", r, err, want)
		}
	}
}

func TestHelperPipelines(t *testing.T) {
	fs, c := serve(t, Options{})
	startHelper(t, fs, c)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 50 {
				name := string([]byte{byte('a' + i), byte('0' + j/10), byte('0' + j%10)})
				r := &Request{Op: OpCreate, Dir: Dir{Node: rootNode}, Name: name, Mode: 0o600}
				if err := fs.helper.Do(context.Background(), r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if n := len(fs.nodes[rootNode].children); n != 400 {
		t.Errorf("%d files, want 400", n)
	}
}

func TestHelperDiesAndIsStartedAgain(t *testing.T) {
	fs, c := serve(t, Options{})
	startHelper(t, fs, c)
	gone := fs.helper.Gone()
	if err := fs.helper.current().cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-gone
	if fs.helper.tid.Load() != 0 {
		t.Error("a dead helper is still recognised")
	}
	r := &Request{Op: OpMkdir, Dir: Dir{Node: rootNode}, Name: "d"}
	if err := fs.helper.Do(context.Background(), r); !errors.Is(err, ErrHelperGone) {
		t.Errorf("Do of a dead helper: %v", err)
	}
	startHelper(t, fs, c)
	do(t, fs, r)
}

// The helper's own hold on the filesystem must not outlive the mount.
// What is asked of a helper that is just being started is not done: it would be
// taken for a user's call.
func TestHelperIsAskedNothingBeforeItIsKnown(t *testing.T) {
	fs, c := serve(t, Options{})
	for range 10 {
		fs.took()
		asked, stop := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(asked)
			for {
				select {
				case <-stop:
					return
				default:
					fs.helper.Do(context.Background(), &Request{Op: OpMkdir, Dir: Dir{Node: rootNode}, Name: "d", Mode: 0o755}) //nolint:errcheck // done or refused
				}
			}
		}()
		startHelper(t, fs, c)
		close(stop)
		<-asked
		for _, call := range fs.took() {
			if call.op == "MKDIR" && !call.helper {
				t.Fatalf("%+v before the helper was recognised", call)
			}
		}
		fs.helper.Close()
	}
}

func TestHelperEndsWithForeignUnmount(t *testing.T) {
	fs, c := serve(t, Options{})
	startHelper(t, fs, c)
	if err := unix.Unmount(c.Dir(), 0); err != nil { // as umount(8) does
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	<-fs.helper.Gone()
}

func TestRequestSurvivesFrame(t *testing.T) {
	want := Request{Op: OpRename, Dir: Dir{1 << 40, 3, "a/b"}, Dir2: Dir{5, 6, ""},
		Name: "x", Name2: "y", Target: "t", Mode: 1, Rdev: 2, Flags: 3, Hold: 4}
	frame := encodeRequest(77, &want)
	id, got, err := decodeRequest(frame)
	if id != 77 || err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%d %+v %v", id, got, err)
	}
	for n := range frame {
		if _, _, err := decodeRequest(frame[:n]); err == nil {
			t.Errorf("cut to %d bytes: no error", n)
		}
	}
}
