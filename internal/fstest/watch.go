package fstest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A Watch is an inotify instance.
type Watch struct {
	t     testing.TB
	fd    int
	names map[int32]string // of watches, before the event's name
}

// NewWatch watches a directory or file.
func NewWatch(t testing.TB, path string) *Watch {
	t.Helper()
	w := EmptyWatch(t)
	w.Add(path, "")
	return w
}

// EmptyWatch watches nothing yet.
func EmptyWatch(t testing.TB) *Watch {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	w := &Watch{t: t, fd: fd, names: make(map[int32]string)}
	t.Cleanup(func() { unix.Close(fd) })
	return w
}

// Add watches another path; its events are told apart by prefix.
func (w *Watch) Add(path, prefix string) {
	w.t.Helper()
	const mask = unix.IN_ALL_EVENTS &^ (unix.IN_ACCESS | unix.IN_CLOSE_NOWRITE)
	wd, err := unix.InotifyAddWatch(w.fd, path, mask)
	if err != nil {
		w.t.Fatalf("watch %s: %v", path, err)
	}
	w.names[int32(wd)] = prefix
}

// Bound is a directory's path as a pod has it: in a mount namespace of its own,
// through a bind mount, which lasts as long as the test.
func Bound(t testing.TB, dir string) string {
	t.Helper()
	place := t.TempDir()
	pod := exec.Command("unshare", "--mount", "--propagation", "private", "--",
		"sh", "-c", `mount --bind "$0" "$1" && echo ready; exec cat`, dir, place)
	in, err := pod.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := pod.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := pod.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		pod.Wait() //nolint:errcheck // cat has read to the end
	})
	if n, err := out.Read(make([]byte, 6)); n == 0 || err != nil {
		t.Fatalf("bind %s: %v", dir, err)
	}
	return fmt.Sprintf("/proc/%d/root%s", pod.Process.Pid, place)
}

var events = []struct {
	bit  uint32
	name string
}{
	{unix.IN_CREATE, "CREATE"}, {unix.IN_OPEN, "OPEN"}, {unix.IN_MODIFY, "MODIFY"},
	{unix.IN_CLOSE_WRITE, "CLOSE_WRITE"}, {unix.IN_ATTRIB, "ATTRIB"}, {unix.IN_DELETE, "DELETE"},
	{unix.IN_MOVED_FROM, "MOVED_FROM"}, {unix.IN_MOVED_TO, "MOVED_TO"},
	{unix.IN_DELETE_SELF, "DELETE_SELF"}, {unix.IN_MOVE_SELF, "MOVE_SELF"}, {unix.IN_UNMOUNT, "UNMOUNT"},
	{unix.IN_IGNORED, "IGNORED"}, {unix.IN_Q_OVERFLOW, "Q_OVERFLOW"},
}

// An Event is one that inotify told of.
type Event struct {
	Kind   string // as in IN_CREATE, without IN_
	Name   string // the watch's prefix, and the name in it
	Dir    bool   // it is about a directory
	Cookie uint32 // the same in the two halves of a rename, else 0
}

// Read returns what has happened since. Events are queued within the system
// calls that cause them: there is nothing to wait for.
func (w *Watch) Read() (list []Event) {
	w.t.Helper()
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(w.fd, buf)
		if err == unix.EAGAIN {
			return list
		}
		if err != nil {
			w.t.Fatal(err)
		}
		list = append(list, w.parse(buf[:n])...)
	}
}

func (w *Watch) parse(b []byte) (list []Event) {
	for len(b) > 0 {
		wd := int32(binary.NativeEndian.Uint32(b))
		mask, cookie := binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[8:])
		size := binary.NativeEndian.Uint32(b[12:])
		name := w.names[wd] + string(bytes.TrimRight(b[16:16+size], "\x00"))
		b = b[16+size:]
		for _, e := range events {
			if mask&e.bit != 0 {
				list = append(list, Event{e.name, name, mask&unix.IN_ISDIR != 0, cookie})
			}
		}
	}
	return list
}

// Record calls seen for each event as it happens, until the returned function
// is called, which returns all that came.
func (w *Watch) Record(seen func(Event)) (stop func() []Event) {
	w.t.Helper()
	end, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		w.t.Fatal(err)
	}
	var list []Event
	var task sync.WaitGroup
	task.Go(func() {
		fds := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}, {Fd: int32(end), Events: unix.POLLIN}}
		for fds[1].Revents == 0 {
			if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
				w.t.Error(err)
				return
			}
			for _, e := range w.Read() {
				list = append(list, e)
				seen(e)
			}
		}
	})
	stop = sync.OnceValue(func() []Event {
		unix.Write(end, []byte{1, 1, 1, 1, 1, 1, 1, 1}) //nolint:errcheck // it is a counter
		task.Wait()
		unix.Close(end)
		return list
	})
	w.t.Cleanup(func() { stop() })
	return stop
}

// Events is Read with each event as "CREATE name", but for those of the watch's
// own end.
func (w *Watch) Events() []string {
	w.t.Helper()
	var list []string
	for _, e := range w.Read() {
		// A directory is also opened when the kernel has dropped its name
		// and the helper finds it by number.
		if e.Kind != "IGNORED" && (e.Kind != "OPEN" || !e.Dir) {
			list = append(list, e.Kind+" "+e.Name)
		}
	}
	return list
}

// Expect fails the test if the events are not those.
func (w *Watch) Expect(want ...string) {
	w.t.Helper()
	if got := w.Events(); !slices.Equal(got, want) {
		w.t.Errorf("events %s\n  want %s", fmt.Sprint(got), fmt.Sprint(want))
	}
}
