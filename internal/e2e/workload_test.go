package e2e

import (
	"bytes"
	"context"
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
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A workload uses a mount in the ways that programs do, and checks every
// result: whatever becomes of the daemon meanwhile, each call does what it does
// on a local disk (P9). It is a process of its own: one that starts daemons may
// have nothing open in their mounts, or its forks wait for themselves.
type workload struct {
	cmd   *exec.Cmd
	stdin io.Closer
	out   bytes.Buffer
}

// A workloadResult is what it prints in the end.
type workloadResult struct {
	Calls   int64
	Longest time.Duration // that a call took
	Stalls  []stall
	Errors  []string
}

// A stall is a call that took long.
type stall struct {
	Ended time.Time
	Took  time.Duration
}

// stallTime is what makes a call one.
const stallTime = 50 * time.Millisecond

// longestBetween is the longest call that ended in a time.
func (r *workloadResult) longestBetween(from, to time.Time) (longest time.Duration) {
	for _, s := range r.Stalls {
		if s.Ended.After(from) && !s.Ended.After(to) {
			longest = max(longest, s.Took)
		}
	}
	return longest
}

const workloadEnv = "SYNAPSEFS_E2E_WORKLOAD"

func startWorkload(t *testing.T, dir string, seed uint64) *workload {
	t.Helper()
	w := &workload{cmd: exec.Command("/proc/self/exe")}
	w.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d:%s", workloadEnv, seed, dir))
	w.cmd.Stdout, w.cmd.Stderr = &w.out, os.Stderr
	var err error
	if w.stdin, err = w.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return w
}

// finish ends the programs and says what they saw.
func (w *workload) finish(t *testing.T) (r workloadResult) {
	t.Helper()
	w.stdin.Close()
	if err := w.cmd.Wait(); err != nil {
		t.Fatalf("workload: %v\n%s", err, w.out.Bytes())
	}
	if err := json.Unmarshal(w.out.Bytes(), &r); err != nil {
		t.Fatalf("workload: %v\n%s", err, w.out.Bytes())
	}
	for _, e := range r.Errors {
		t.Error(e)
	}
	return r
}

// runWorkload is the process.
func runWorkload(spec string) error {
	number, dir, _ := strings.Cut(spec, ":")
	seed, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return err
	}
	end, stop := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin) //nolint:errcheck // its end is what counts
		stop()
	}()
	p := &programs{end: end}
	if err := p.run(dir, seed); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(workloadResult{p.calls.Load(), time.Duration(p.longest.Load()), p.stalls, p.errors})
}

// programs are what runs in a workload.
type programs struct {
	end  context.Context
	jobs sync.WaitGroup

	calls   atomic.Int64
	longest atomic.Int64 // nanoseconds that a call took

	mu     sync.Mutex // guards what follows
	stalls []stall
	errors []string
}

func (p *programs) run(dir string, seed uint64) error {
	for i, name := range slices.Sorted(maps.Keys(workers)) {
		w := &worker{p, name, filepath.Join(dir, name), rand.New(rand.NewPCG(seed, uint64(i)))}
		if err := os.Mkdir(w.dir, 0o755); err != nil {
			return err
		}
		p.jobs.Go(func() {
			round, err := workers[name](w)
			for err == nil && p.end.Err() == nil {
				err = round()
			}
			if err != nil {
				p.mu.Lock()
				p.errors = append(p.errors, name+": "+err.Error())
				p.mu.Unlock()
			}
		})
	}
	p.jobs.Wait()
	return nil
}

// A worker is one program. It returns what was not as it must be.
type worker struct {
	*programs
	name string
	dir  string
	r    *rand.Rand
}

// workers are the programs, each with a directory of its own. Each makes one
// round, and is called again until the workload ends.
var workers = map[string]func(w *worker) (round func() error, err error){
	"shell":    (*worker).shell,
	"buffered": func(w *worker) (func() error, error) { return w.descriptor(0) },
	"direct":   func(w *worker) (func() error, error) { return w.descriptor(unix.O_DIRECT) },
	"mapping":  (*worker).mapping,
	// Many, so that a kill meets one that is done and not answered.
	"names": (*worker).names, "names2": (*worker).names, "names3": (*worker).names, "names4": (*worker).names,
	"names5": (*worker).names, "names6": (*worker).names, "names7": (*worker).names, "names8": (*worker).names,
	"listing":  (*worker).listing,
	"unlinked": (*worker).unlinked,
	"appender": (*worker).appender,
	"large":    (*worker).large, "large2": (*worker).large,
}

// call counts one call and how long it took.
func (p *programs) call(what string, fn func() error) error {
	begin := time.Now()
	err := fn()
	took := time.Since(begin).Nanoseconds()
	p.calls.Add(1)
	if took >= stallTime.Nanoseconds() {
		p.mu.Lock()
		p.stalls = append(p.stalls, stall{time.Now(), time.Duration(took)})
		p.mu.Unlock()
	}
	for {
		longest := p.longest.Load()
		if took <= longest || p.longest.CompareAndSwap(longest, took) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (w *worker) bytes(n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 8 {
		v := w.r.Uint64()
		copy(b[i:], unsafe.Slice((*byte)(unsafe.Pointer(&v)), 8))
	}
	return b
}

// shell is a shell script: a file elsewhere, its checksum, copied in, renamed,
// verified, appended to, removed.
func (w *worker) shell() (func() error, error) {
	source := filepath.Join(os.TempDir(), fmt.Sprintf("synapsefs-workload-%d", os.Getpid()))
	script := `set -e
cp "$1" "$2/in.tmp"
mv "$2/in.tmp" "$2/in"
cmp "$1" "$2/in"
echo more >> "$2/in"
test "$(sha256sum < "$2/in")" = "$( (cat "$1"; echo more) | sha256sum)"
rm "$2/in"
test ! -e "$2/in"`
	return func() error {
		if err := os.WriteFile(source, w.bytes(w.r.IntN(200_000)), 0o600); err != nil {
			return err
		}
		defer os.Remove(source)
		return w.call("script", func() error {
			out, err := exec.Command("sh", "-c", script, "sh", source, w.dir).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}, nil
}

// descriptor reads and writes one open file and compares with a copy.
func (w *worker) descriptor(flags int) (func() error, error) {
	const size, block = 1 << 20, 4096
	fd, err := unix.Open(filepath.Join(w.dir, "f"), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|flags, 0o644)
	if err != nil {
		return nil, err
	}
	shadow := make([]byte, size)
	buffer := alignedBytes(16 * block)
	if err := w.call("fill", func() error { return full(unix.Pwrite(fd, alignedBytes(size), 0)) }); err != nil {
		return nil, err
	}
	return func() error {
		n := (1 + w.r.IntN(16)) * block
		off := w.r.IntN((size-n)/block) * block
		b := buffer[:n]
		if w.r.IntN(2) == 0 {
			copy(b, w.bytes(n))
			copy(shadow[off:], b)
			return w.call("pwrite", func() error { return full(unix.Pwrite(fd, b, int64(off))) })
		}
		switch w.r.IntN(8) {
		case 0:
			if err := w.call("fsync", func() error { return unix.Fsync(fd) }); err != nil {
				return err
			}
		case 1:
			if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
				return err
			}
		}
		if err := w.call("pread", func() error { return full(unix.Pread(fd, b, int64(off))) }); err != nil {
			return err
		}
		if !bytes.Equal(b, shadow[off:off+n]) {
			return fmt.Errorf("%d bytes at %d are not what was written", n, off)
		}
		return nil
	}, nil
}

func full(n int, err error) error {
	if err == nil && n == 0 {
		err = errors.New("nothing")
	}
	return err
}

// alignedBytes are fit for O_DIRECT.
func alignedBytes(n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	return b
}

// mapping changes a shared mapping and compares with a copy.
func (w *worker) mapping() (func() error, error) {
	const size = 1 << 18
	f, err := os.OpenFile(filepath.Join(w.dir, "f"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	shadow := make([]byte, size)
	return func() error {
		n := 1 + w.r.IntN(8192)
		off := w.r.IntN(size - n)
		b := w.bytes(n)[:n]
		if err := w.call("store", func() error { copy(m[off:], b); return nil }); err != nil {
			return err
		}
		copy(shadow[off:], b)
		switch w.r.IntN(6) {
		case 0:
			if err := w.call("msync", func() error { return unix.Msync(m, unix.MS_SYNC) }); err != nil {
				return err
			}
		case 1:
			if err := unix.Madvise(m, unix.MADV_DONTNEED); err != nil {
				return err
			}
		case 2:
			return w.call("load", func() error {
				if !bytes.Equal(m, shadow) {
					return errors.New("the mapping is not what was stored")
				}
				return nil
			})
		}
		return nil
	}, nil
}

// names makes, moves and removes names, each with an exact result.
func (w *worker) names() (func() error, error) {
	n := 0
	return func() error {
		n++
		at := func(name string) string { return filepath.Join(w.dir, fmt.Sprintf("%s%d", name, n)) }
		is := func(want error, fn func() error) func() error {
			return func() error {
				if err := fn(); !errors.Is(err, want) || want == nil && err != nil {
					return fmt.Errorf("%v, want %v", err, want)
				}
				return nil
			}
		}
		create := func(name string) func() error {
			return func() error {
				fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
				if err == nil {
					err = unix.Close(fd)
				}
				return err
			}
		}
		for _, step := range []struct {
			what string
			want error
			fn   func() error
		}{
			{"mkdir", nil, func() error { return unix.Mkdir(at("d"), 0o755) }},
			{"mkdir again", unix.EEXIST, func() error { return unix.Mkdir(at("d"), 0o755) }},
			{"create", nil, create(at("a"))},
			{"create again", unix.EEXIST, create(at("a"))},
			{"rename", nil, func() error { return unix.Rename(at("a"), at("d")+"/b") }},
			{"stat the old name", unix.ENOENT, func() error { return stat(at("a")) }},
			{"link", nil, func() error { return unix.Link(at("d")+"/b", at("a")) }},
			{"symlink", nil, func() error { return unix.Symlink("target", at("s")) }},
			{"rename without replacing", unix.EEXIST, func() error {
				return unix.Renameat2(unix.AT_FDCWD, at("s"), unix.AT_FDCWD, at("a"), unix.RENAME_NOREPLACE)
			}},
			{"exchange", nil, func() error {
				return unix.Renameat2(unix.AT_FDCWD, at("s"), unix.AT_FDCWD, at("a"), unix.RENAME_EXCHANGE)
			}},
			{"readlink", nil, func() error {
				if target, err := os.Readlink(at("a")); err != nil || target != "target" {
					return fmt.Errorf("%q %w", target, err)
				}
				return nil
			}},
			{"mknod", nil, func() error { return unix.Mknod(at("p"), unix.S_IFIFO|0o600, 0) }},
			{"setxattr", nil, func() error { return unix.Setxattr(at("d"), "user.k", []byte("v"), unix.XATTR_CREATE) }},
			{"setxattr again", unix.EEXIST, func() error { return unix.Setxattr(at("d"), "user.k", []byte("v"), unix.XATTR_CREATE) }},
			{"removexattr", nil, func() error { return unix.Removexattr(at("d"), "user.k") }},
			{"unlink", nil, func() error { return unix.Unlink(at("p")) }},
			{"unlink again", unix.ENOENT, func() error { return unix.Unlink(at("p")) }},
			{"rmdir", unix.ENOTEMPTY, func() error { return unix.Rmdir(at("d")) }},
			{"unlink the link", nil, func() error { return unix.Unlink(at("d") + "/b") }},
			{"rmdir when empty", nil, func() error { return unix.Rmdir(at("d")) }},
			{"unlink the symlink", nil, func() error { return unix.Unlink(at("a")) }},
			{"unlink the file", nil, func() error { return unix.Unlink(at("s")) }},
		} {
			if err := w.call(step.what, is(step.want, step.fn)); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

func stat(path string) error {
	var st unix.Stat_t
	return unix.Lstat(path, &st)
}

// listing reads a directory in small steps: no name is missing or comes twice.
func (w *worker) listing() (func() error, error) {
	const files = 1500
	for i := range files {
		if err := os.WriteFile(filepath.Join(w.dir, fmt.Sprintf("f%04d", i)), nil, 0o644); err != nil {
			return nil, err
		}
	}
	return func() error {
		d, err := os.Open(w.dir)
		if err != nil {
			return err
		}
		defer d.Close()
		seen := map[string]bool{}
		buffer := make([]byte, 512)
		for {
			var n int
			if err := w.call("getdents", func() (err error) { n, err = unix.Getdents(int(d.Fd()), buffer); return err }); err != nil {
				return err
			}
			if n == 0 {
				break
			}
			_, _, names := unix.ParseDirent(buffer[:n], -1, nil)
			for _, name := range names {
				if seen[name] {
					return fmt.Errorf("%s is listed twice", name)
				}
				seen[name] = true
			}
		}
		if len(seen) != files {
			return fmt.Errorf("%d names are listed, not %d", len(seen), files)
		}
		return nil
	}, nil
}

// unlinked writes and reads a file that has no name any more, and begins anew
// with another one now and then.
func (w *worker) unlinked() (func() error, error) {
	path, n := filepath.Join(w.dir, "f"), 0
	return func() error {
		n++
		var f *os.File
		if err := w.call("create", func() (err error) {
			f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
			return err
		}); err != nil {
			return err
		}
		defer f.Close()
		if n%2 == 0 { // published before it goes
			if _, err := f.WriteString("published"); err != nil {
				return err
			}
			if err := f.Close(); err != nil {
				return err
			}
			var err error
			if f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
				return err
			}
			defer f.Close()
		}
		if err := w.call("unlink", func() error { return unix.Unlink(path) }); err != nil {
			return err
		}
		want := []byte{}
		for range 30 {
			b := w.bytes(1 + w.r.IntN(20_000))
			if err := w.call("write", func() error { _, err := f.WriteAt(b, int64(len(want))); return err }); err != nil {
				return err
			}
			want = append(want, b...)
			got := make([]byte, len(want))
			if err := w.call("read", func() error { _, err := f.ReadAt(got, 0); return err }); err != nil {
				return err
			}
			if !bytes.Equal(got, want) {
				return errors.New("the file without a name is not what was written")
			}
		}
		return nil
	}, nil
}

// appender opens a log for each line, as loggers of scripts do.
func (w *worker) appender() (func() error, error) {
	path := filepath.Join(w.dir, "log")
	sum, size := fnv.New64a(), 0
	n := 0
	return func() error {
		n++
		line := fmt.Appendf(nil, "line %d\n", n)
		if err := w.call("append", func() error {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
			if err != nil {
				return err
			}
			_, err = f.Write(line)
			return errors.Join(err, f.Close())
		}); err != nil {
			return err
		}
		sum.Write(line)
		size += len(line)
		if n%20 != 0 {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		got := fnv.New64a()
		got.Write(b)
		if len(b) != size || got.Sum64() != sum.Sum64() {
			return fmt.Errorf("after %d lines the log has %d bytes, not the %d written", n, len(b), size)
		}
		return nil
	}, nil
}
