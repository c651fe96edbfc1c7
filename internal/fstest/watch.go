package fstest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
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
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	w := &Watch{t: t, fd: fd, names: make(map[int32]string)}
	t.Cleanup(func() { unix.Close(fd) })
	w.Add(path, "")
	return w
}

// Add watches another path; its events are told apart by prefix.
func (w *Watch) Add(path, prefix string) {
	w.t.Helper()
	const mask = unix.IN_ALL_EVENTS &^ (unix.IN_ACCESS | unix.IN_CLOSE_NOWRITE)
	wd, err := unix.InotifyAddWatch(w.fd, path, mask)
	if err != nil {
		w.t.Fatal(err)
	}
	w.names[int32(wd)] = prefix
}

var events = []struct {
	bit  uint32
	name string
}{
	{unix.IN_CREATE, "CREATE"}, {unix.IN_OPEN, "OPEN"}, {unix.IN_MODIFY, "MODIFY"},
	{unix.IN_CLOSE_WRITE, "CLOSE_WRITE"}, {unix.IN_ATTRIB, "ATTRIB"}, {unix.IN_DELETE, "DELETE"},
	{unix.IN_MOVED_FROM, "MOVED_FROM"}, {unix.IN_MOVED_TO, "MOVED_TO"},
	{unix.IN_DELETE_SELF, "DELETE_SELF"}, {unix.IN_MOVE_SELF, "MOVE_SELF"}, {unix.IN_UNMOUNT, "UNMOUNT"},
}

// Events returns what has happened since, each as "CREATE name". They are
// queued within the system calls that cause them: there is nothing to wait for.
func (w *Watch) Events() []string {
	w.t.Helper()
	var list []string
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(w.fd, buf)
		if err == unix.EAGAIN {
			return list
		}
		if err != nil {
			w.t.Fatal(err)
		}
		for b := buf[:n]; len(b) > 0; {
			wd := int32(binary.NativeEndian.Uint32(b))
			mask, size := binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[12:])
			name := w.names[wd] + string(bytes.TrimRight(b[16:16+size], "\x00"))
			b = b[16+size:]
			for _, e := range events {
				// A directory is also opened when the kernel has dropped
				// its name and the helper finds it by number.
				if e.bit == unix.IN_OPEN && mask&unix.IN_ISDIR != 0 {
					continue
				}
				if mask&e.bit != 0 {
					list = append(list, e.name+" "+name)
				}
			}
		}
	}
}

// Expect fails the test if the events are not those.
func (w *Watch) Expect(want ...string) {
	w.t.Helper()
	if got := w.Events(); !slices.Equal(got, want) {
		w.t.Errorf("events %s\n  want %s", fmt.Sprint(got), fmt.Sprint(want))
	}
}
