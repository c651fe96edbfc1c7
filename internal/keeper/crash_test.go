package keeper_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
)

var (
	kills    = flag.Int("kills", 30, "how often TestP9Crash kills the daemon")
	upgrades = flag.Int("upgrades", 10, "how often TestP9Upgrade replaces the daemon")
)

// A load is programs at work in a mount. Each knows what the result of each of
// its calls must be. They are another process than the test, which starts
// daemons: a child of a process that has a file of the mount open closes it
// before it is the daemon, and to close asks the daemon.
type load struct {
	testing.TB
	cmd  *exec.Cmd
	stop *os.File
	said bytes.Buffer
	board
	exited chan struct{} // closed when the process has ended, with err
	err    error
}

// A board is memory that both processes see.
type board struct {
	done, worst *atomic.Int64 // rounds; duration of the slowest, ns
}

func newBoard(f *os.File) (board, error) {
	m, err := unix.Mmap(int(f.Fd()), 0, 16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return board{}, err
	}
	return board{(*atomic.Int64)(unsafe.Pointer(&m[0])), (*atomic.Int64)(unsafe.Pointer(&m[8]))}, nil
}

// startLoad starts it, and frees it in the end should it be stuck.
func (h *host) startLoad() *load {
	h.Helper()
	l := &load{TB: h.TB, cmd: exec.Command("/proc/self/exe"), exited: make(chan struct{})}
	memory, err := os.CreateTemp(h.TempDir(), "board")
	if err == nil {
		err = memory.Truncate(16)
	}
	if err == nil {
		l.board, err = newBoard(memory)
	}
	theirs, stop, pipeErr := os.Pipe()
	if err := errors.Join(err, pipeErr); err != nil {
		h.Fatal(err)
	}
	defer memory.Close()
	defer theirs.Close()
	l.stop = stop
	l.cmd.Env = append(os.Environ(), loadEnv+"="+h.Point)
	l.cmd.Stdin, l.cmd.Stderr, l.cmd.ExtraFiles = theirs, &l.said, []*os.File{memory}
	if err := l.cmd.Start(); err != nil {
		h.Fatal(err)
	}
	go func() { l.err = l.cmd.Wait(); close(l.exited) }()
	h.Cleanup(func() {
		l.stop.Close()
		select {
		case <-l.exited:
		case <-time.After(20 * time.Second):
			h.Error("the programs in the mount hang")
			h.free(h.client())
			<-l.exited
		}
	})
	return l
}

// end stops the load and says whether all went well.
func (l *load) end() {
	l.Helper()
	l.stop.Close()
	select {
	case <-l.exited:
	case <-time.After(20 * time.Second):
		l.Fatal("the programs in the mount hang")
	}
	if l.err != nil {
		l.Errorf("%v: %s", l.err, &l.said)
	}
}

// advance returns when n more rounds are done; false: the load has failed.
func (l *load) advance(n int64) bool {
	l.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for want := l.done.Load() + n; l.done.Load() < want; time.Sleep(100 * time.Microsecond) { // polling
		select {
		case <-l.exited:
			return false
		default:
		}
		if time.Now().After(deadline) {
			l.Fatal("the programs in the mount do not get on")
		}
	}
	return true
}

// loadMain is that process. It ends with its standard input.
func loadMain(dir string) error {
	b, err := newBoard(os.NewFile(3, "board"))
	if err != nil {
		return err
	}
	w := &work{dir: dir, board: b}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		w.stop.Store(true)
	}()
	w.run(func(r *rand.Rand) (func() error, error) { return w.file(r, "buffered", 0) })
	w.run(func(r *rand.Rand) (func() error, error) { return w.file(r, "direct", unix.O_DIRECT) })
	w.run(w.mapped)
	for i := range 3 {
		w.run(func(*rand.Rand) (func() error, error) {
			return func() error { return w.creates(fmt.Sprint("c", i)) }, nil
		})
	}
	return w.all.Wait()
}

type work struct {
	board
	dir  string
	stop atomic.Bool
	all  errgroup.Group
}

// run repeats a round until the load is stopped or one fails.
func (w *work) run(begin func(r *rand.Rand) (func() error, error)) {
	w.all.Go(func() error {
		round, err := begin(rand.New(rand.NewPCG(rand.Uint64(), 1)))
		for err == nil && !w.stop.Load() {
			start := time.Now()
			err = round()
			took := time.Since(start).Nanoseconds()
			for worst := w.worst.Load(); took > worst && !w.worst.CompareAndSwap(worst, took); worst = w.worst.Load() {
			}
			w.done.Add(1)
		}
		if err != nil {
			w.stop.Store(true)
		}
		return err
	})
}

const (
	block  = 4096
	blocks = 64
)

// file reads and writes one file through one descriptor.
func (w *work) file(r *rand.Rand, name string, flags int) (func() error, error) {
	fd, err := unix.Open(filepath.Join(w.dir, name), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC|flags, 0o600)
	if err != nil {
		return nil, err
	}
	shadow := make([]byte, block*blocks)
	if n, err := unix.Pwrite(fd, aligned(shadow), 0); err != nil || n != len(shadow) {
		return nil, fmt.Errorf("first write: %d, %w", n, err)
	}
	return func() error {
		at := r.IntN(blocks) * block
		size := block * (1 + r.IntN(blocks-at/block))
		if r.IntN(2) == 0 {
			fill(r, shadow[at:at+size])
			if n, err := unix.Pwrite(fd, aligned(shadow[at:at+size]), int64(at)); err != nil || n != size {
				return fmt.Errorf("write of %d at %d: %d, %w", size, at, n, err)
			}
		}
		if r.IntN(8) == 0 {
			if err := unix.Fsync(fd); err != nil {
				return fmt.Errorf("fsync: %w", err)
			}
			unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
		}
		got := aligned(make([]byte, size))
		if n, err := unix.Pread(fd, got, int64(at)); err != nil || n != size {
			return fmt.Errorf("read of %d at %d: %d, %w", size, at, n, err)
		}
		if !bytes.Equal(got, shadow[at:at+size]) {
			return fmt.Errorf("read at %d: other bytes than were written", at)
		}
		return nil
	}, nil
}

// aligned returns a copy for O_DIRECT.
func aligned(b []byte) []byte {
	room := make([]byte, len(b)+block)
	skip := block - int(uintptr(unsafe.Pointer(&room[0]))%block)
	return append(room[skip:skip:skip+len(b)], b...)
}

func fill(r *rand.Rand, b []byte) {
	for i := 0; i < len(b); i += 256 {
		b[i] = byte(r.Uint32())
	}
}

// mapped writes through a shared mapping and has the pages dropped.
func (w *work) mapped(r *rand.Rand) (func() error, error) {
	fd, err := unix.Open(filepath.Join(w.dir, "mapped"), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Ftruncate(fd, block*blocks); err != nil {
		return nil, err
	}
	m, err := unix.Mmap(fd, 0, block*blocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	shadow := make([]byte, block*blocks)
	return func() error {
		at := r.IntN(blocks) * block
		fill(r, shadow[at:at+block])
		copy(m[at:], shadow[at:at+block])
		if err := unix.Msync(m, unix.MS_SYNC); err != nil {
			return fmt.Errorf("msync: %w", err)
		}
		if err := unix.Madvise(m, unix.MADV_DONTNEED); err != nil {
			return err
		}
		unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
		if !bytes.Equal(m, shadow) {
			return errors.New("other bytes than were written")
		}
		return nil
	}, nil
}

// creates makes, renames and removes a file, each with its one right result.
func (w *work) creates(name string) error {
	first, second := filepath.Join(w.dir, name), filepath.Join(w.dir, name+"'")
	fd, err := unix.Open(first, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	n, err := unix.Write(fd, []byte(name))
	if closeErr := unix.Close(fd); err != nil || closeErr != nil || n != len(name) {
		return fmt.Errorf("write: %d, %w, close: %w", n, err, closeErr)
	}
	var st unix.Stat_t
	if err := unix.Rename(first, second); err != nil {
		return fmt.Errorf("rename: %w", err)
	}
	if err := unix.Stat(first, &st); err != unix.ENOENT {
		return fmt.Errorf("stat of the old name: %w", err)
	}
	if err := unix.Stat(second, &st); err != nil || st.Size != int64(len(name)) {
		return fmt.Errorf("stat: size %d, %w", st.Size, err)
	}
	if err := unix.Unlink(second); err != nil {
		return fmt.Errorf("unlink: %w", err)
	}
	return nil
}

// report logs how it went.
func (h *host) report(l *load, what string, n int) {
	again, _ := os.Stat(filepath.Join(filepath.Dir(h.Socket), "again"))
	h.Logf("%d %s: %d rounds, %d requests sent again, longest round %v",
		n, what, l.done.Load(), again.Size(), time.Duration(l.worst.Load()))
}

// The daemon is killed again and again, as it serves and as it starts, and no
// program sees more than a pause.
func TestP9Crash(t *testing.T) {
	h := newHost(t)
	d := h.start(nil).mustServe()
	l := h.startLoad()
	r := rand.New(rand.NewPCG(2, 3))
	for n := range *kills {
		if !l.advance(r.Int64N(60)) {
			break
		}
		d.kill()
		d = h.start(nil)
		if n%5 == 4 && d.await("owner") { // it is at INIT, or at RESEND
			d.kill()
			d = h.start(nil)
		}
		d.mustServe()
	}
	l.advance(100)
	l.end()
	h.report(l, "kills", *kills)
}

// A daemon that is asked to makes room for the next one.
func TestP9Upgrade(t *testing.T) {
	h := newHost(t)
	d := h.start(nil).mustServe()
	l := h.startLoad()
	for range *upgrades {
		if !l.advance(50) {
			break
		}
		next := h.start(nil) // waits for the other's end
		d.cmd.Process.Signal(unix.SIGTERM)
		if err := d.cmd.Wait(); err != nil {
			t.Fatalf("drain: %v: %s", err, d.stderr())
		}
		d = next.mustServe()
	}
	l.advance(100)
	l.end()
	h.report(l, "upgrades", *upgrades)
}

// A daemon that would negotiate differently leaves the mount to the old one.
func TestP9Refusal(t *testing.T) {
	h := newHost(t)
	old := func(r *role) { r.ACL = true }
	d := h.start(old).mustServe()
	l := h.startLoad()
	for range 3 {
		l.advance(20)
		d.kill()
		other := h.start(nil)
		if other.await("serves") {
			t.Fatal("it took a mount that it negotiates differently")
		}
		other.cmd.Wait()
		if said := other.stderr(); !strings.Contains(said, kernel.ErrNegotiates.Error()) {
			t.Errorf("it said %q", said)
		}
		d = h.start(old).mustServe()
	}
	l.advance(50)
	l.end()
}

// A daemon may be killed at each step of INIT, and the next one at it, too.
func TestP9Init(t *testing.T) {
	for _, step := range []string{"init", "reply", "done"} {
		for _, when := range []string{"before", "after"} {
			t.Run(step+" "+when, func(t *testing.T) {
				h := newHost(t)
				dies := func(r *role) { r.Die = step + " " + when }
				for range 2 {
					d := h.start(dies)
					d.await("serves") // not before it dies, or past the step if that was taken
					d.kill()
				}
				h.start(nil).mustServe()
				l := h.startLoad()
				l.advance(20)
				l.end()
			})
		}
	}
}
