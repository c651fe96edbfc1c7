package fusefs_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

// lockDir keeps a directory locked as a program does that lists it into memory
// which is not there: until unlock is called, nobody can change the directory.
func lockDir(t *testing.T, dir string) (unlock func()) {
	t.Helper()
	const (
		ioctlAPI      = 0xc018aa3f
		ioctlRegister = 0xc020aa00
		ioctlZero     = 0xc020aa04
		missing       = 1
	)
	fault, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal(errno)
		}
		t.Skip("no userfaultfd here: ", errno)
	}
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	must(t, err)
	at := uint64(uintptr(unsafe.Pointer(&page[0])))
	ioctl := func(what uintptr, args ...uint64) {
		t.Helper()
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fault, what, uintptr(unsafe.Pointer(&args[0]))); errno != 0 {
			t.Fatal(errno)
		}
	}
	ioctl(ioctlAPI, 0xaa, 0, 0)
	ioctl(ioctlRegister, at, uint64(len(page)), missing, 0)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	var lister sync.WaitGroup
	lister.Go(func() {
		if _, err := unix.Getdents(fd, page); err != nil {
			t.Errorf("list: %v", err)
		}
		unix.Close(fd)
	})
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fault), Events: unix.POLLIN}}, -1); err != nil && err != unix.EINTR {
		t.Fatal(err)
	}
	unlock = sync.OnceFunc(func() {
		ioctl(ioctlZero, at, uint64(len(page)), 0, 0)
		lister.Wait()
		unix.Close(int(fault))
		must(t, unix.Munmap(page))
	})
	t.Cleanup(unlock)
	return unlock
}

// byName are the events of each name.
func byName(events []string) map[string]string {
	of := map[string]string{}
	for _, e := range events {
		kind, name, _ := strings.Cut(e, " ")
		of[name] += kind + " "
	}
	return of
}

// TestP10BlockedDirectory: what a program keeps locked is shown when it lets go,
// and what is elsewhere meanwhile, all with events.
func TestP10BlockedDirectory(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	p.B.Mount.Hurry(100 * time.Millisecond)
	dirs := []string{"one", "two", "free"}
	change := func(d string) error {
		d = p.A.Dir + "/" + d
		return errors.Join(os.WriteFile(d+"/new", []byte("new"), 0o644), os.Rename(d+"/old", d+"/moved"),
			os.Remove(d+"/gone"), os.Chmod(d+"/mode", 0o600), os.WriteFile(d+"/text", []byte("other"), 0o644), os.Mkdir(d+"/dir", 0o755))
	}
	want := byName([]string{
		"CREATE new", "OPEN new", "MODIFY new", "CLOSE_WRITE new", "MOVED_FROM old", "MOVED_TO moved", "DELETE gone", "ATTRIB mode",
		"OPEN text", "MODIFY text", "CLOSE_WRITE text", "CREATE dir",
	})
	watches := map[string]*fstest.Watch{}
	for _, d := range dirs {
		must(t, os.Mkdir(p.A.Dir+"/"+d, 0o755))
		for _, name := range []string{"old", "gone", "mode", "text"} {
			writeFile(t, fmt.Sprintf("%s/%s/%s", p.A.Dir, d, name), "text")
		}
	}
	p.Sync()
	for _, d := range dirs {
		tree(t, p.B.Dir+"/"+d)
		watches[d] = fstest.NewWatch(t, p.B.Dir+"/"+d)
	}
	unlock := map[string]func(){}
	for _, d := range dirs[:2] {
		unlock[d] = lockDir(t, p.B.Dir+"/"+d)
		must(t, change(d))
	}
	merged(t, p)
	must(t, change("free"))
	hears := func(dir string) {
		t.Helper()
		var heard []string
		fstest.Eventually(t, func() error {
			heard = append(heard, watches[dir].Events()...)
			if got := byName(heard); !maps.Equal(got, want) {
				return fmt.Errorf("in %s was heard %q, not %q", dir, got, want)
			}
			return nil
		})
	}
	hears("free")
	for _, d := range dirs[:2] {
		unlock[d]()
		hears(d)
	}
	p.Sync()
	for _, d := range dirs {
		expectTree(t, p.B.Dir+"/"+d, tree(t, p.A.Dir+"/"+d)...)
	}
	if s := p.B.Mount.Stats(); s.Fallbacks > 0 {
		t.Errorf("%+v", s)
	}
}

// TestP10BlockedReplacement: the kernel lets one rename between directories go at
// a time, so who blocks one that shows a replacement keeps others from being shown
// so. They are shown all the same, and heard as rewritten.
func TestP10BlockedReplacement(t *testing.T) {
	p := fstest.MountPair(t, fstest.Options{})
	p.B.Mount.Hurry(100 * time.Millisecond)
	for _, d := range []string{"locked", "free"} {
		must(t, os.Mkdir(p.A.Dir+"/"+d, 0o755))
		writeFile(t, p.A.Dir+"/"+d+"/x", "old")
	}
	p.Sync()
	expectTree(t, p.B.Dir, "free/", "free/x=old", "locked/", "locked/x=old")
	watch := fstest.NewWatch(t, p.B.Dir+"/free")
	unlock := lockDir(t, p.B.Dir+"/locked")
	resume := p.B.Mount.Pause() // so that the temporary name is not shown
	must(t, overWrite(p.A.Dir+"/locked", "x", 1))
	merged(t, p)
	resume()
	fstest.Eventually(t, func() error {
		if p.B.Mount.Blocked() == 0 {
			return errors.New("nothing is blocked")
		}
		return nil
	})
	must(t, overWrite(p.A.Dir+"/free", "x", 2))
	var heard []string
	fstest.Eventually(t, func() error {
		heard = append(heard, watch.Events()...)
		b, err := os.ReadFile(p.B.Dir + "/free/x")
		if err == nil && string(b) != "\x02" {
			err = fmt.Errorf("free/x is %q", b)
		}
		if got := byName(heard)["x"]; !strings.Contains(got, "CLOSE_WRITE") && !strings.Contains(got, "MOVED_TO") {
			err = fmt.Errorf("heard %q", heard)
		}
		return err
	})
	unlock()
	p.Sync()
	expectTree(t, p.B.Dir, "free/", "free/x=\x02", "locked/", "locked/x=\x01")
	if p.B.Mount.Blocked() > 0 {
		t.Error("something is blocked still")
	}
}
