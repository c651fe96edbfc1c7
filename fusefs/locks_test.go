package fusefs_test

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

// bind makes a bind mount of a directory, as a container gets it.
func bind(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	must(t, unix.Mount(dir, to, "", unix.MS_BIND, ""))
	t.Cleanup(func() {
		if err := unix.Unmount(to, 0); err != nil {
			t.Error(err)
		}
	})
	return to
}

func openFile(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// Locks of open files exclude each other, also through a bind mount, and end
// with the last descriptor, at once.
func TestFlock(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	a, b := openFile(t, n.Dir+"/f"), openFile(t, bind(t, n.Dir)+"/f")
	flock := func(f *os.File, how int) error { return unix.Flock(int(f.Fd()), how|unix.LOCK_NB) }
	must(t, flock(a, unix.LOCK_EX))
	if err := flock(b, unix.LOCK_SH); err != unix.EWOULDBLOCK {
		t.Error(err)
	}
	must(t, flock(a, unix.LOCK_SH))
	must(t, flock(b, unix.LOCK_SH))
	if err := flock(a, unix.LOCK_EX); err != unix.EWOULDBLOCK {
		t.Error(err)
	}
	must(t, flock(b, unix.LOCK_UN))
	must(t, flock(a, unix.LOCK_EX))
	must(t, a.Close())
	must(t, flock(b, unix.LOCK_EX))
	must(t, flock(b, unix.LOCK_UN))
	for range 50 { // a lock that outlived its process would show
		if out, err := exec.Command("flock", "-n", n.Dir+"/f", "true").CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
}

// Byte ranges, of processes and of open files (OFD).
func TestRangeLocks(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	a, b := openFile(t, n.Dir+"/f"), openFile(t, bind(t, n.Dir)+"/f")
	lock := func(f *os.File, kind int16, start, length int64) error {
		l := unix.Flock_t{Type: kind, Start: start, Len: length}
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l)
	}
	must(t, lock(a, unix.F_WRLCK, 0, 100))
	must(t, lock(b, unix.F_WRLCK, 100, 100))
	if err := lock(b, unix.F_RDLCK, 99, 1); err != unix.EAGAIN {
		t.Error(err)
	}
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 0}
	must(t, unix.FcntlFlock(b.Fd(), unix.F_OFD_GETLK, &l))
	if l.Type != unix.F_WRLCK || l.Start != 0 || l.Len != 100 || l.Pid != -1 {
		t.Errorf("%+v", l)
	}
	must(t, lock(a, unix.F_UNLCK, 50, 50))
	must(t, lock(b, unix.F_RDLCK, 50, 50))
	must(t, lock(a, unix.F_RDLCK, 50, 50))
	if err := lock(a, unix.F_WRLCK, 50, 50); err != unix.EAGAIN {
		t.Error(err)
	}
	// A lock of this process's, as another process meets it.
	p := unix.Flock_t{Type: unix.F_WRLCK, Start: 1000, Len: 10}
	must(t, unix.FcntlFlock(a.Fd(), unix.F_SETLK, &p))
	if err := lock(b, unix.F_RDLCK, 1005, 1); err != unix.EAGAIN {
		t.Error(err)
	}
	again, err := os.Open(n.Dir + "/f")
	must(t, err)
	must(t, again.Close()) // any close of the file gives the process's locks up
	must(t, lock(b, unix.F_RDLCK, 1005, 1))
	must(t, a.Close())
	must(t, lock(b, unix.F_WRLCK, 0, 0))
}

// Who waits for a lock gets it, and can be killed meanwhile.
func TestWaitForLock(t *testing.T) {
	n := fstest.Mount(t, fstest.Options{})
	f := openFile(t, n.Dir+"/f")
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	waiting := exec.Command("flock", n.Dir+"/f", "true")
	must(t, waiting.Start())
	killed := exec.Command("flock", n.Dir+"/f", "true")
	must(t, killed.Start())
	must(t, killed.Process.Kill())
	killed.Wait() //nolint:errcheck // it was killed
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_UN))
	must(t, waiting.Wait())
}
