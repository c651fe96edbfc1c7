package e2e

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

var programSeed = flag.Uint64("program.seed", 0, "seed of the random programs; 0: a new one")

// runPrograms has some random programs work in one tree at a time.
func runPrograms(t *testing.T, dir string) {
	seed := *programSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-program.seed=%d", seed)
	var programs sync.WaitGroup
	for i := range uint64(4) {
		p := &program{t: t, r: rand.New(rand.NewPCG(seed, i)), root: dir}
		programs.Go(func() { p.run(ci(3000, 50_000)) })
	}
	programs.Wait()
}

// A program makes random calls, as fsstress does, most of which succeed. What
// each may answer is known: anything else is a fault.
type program struct {
	t    *testing.T
	r    *rand.Rand
	root string
}

// calls are made in proportion to their weight.
var calls = []struct {
	weight int
	name   string
	do     func(*program) error
}{
	{8, "create", (*program).create},
	{6, "rewrite", (*program).rewrite},
	{6, "write", (*program).write},
	{3, "append", (*program).append},
	{3, "truncate", (*program).truncate},
	{2, "fallocate", (*program).fallocate},
	{2, "mmap", (*program).mmap},
	{2, "copy", (*program).copyRange},
	{2, "unlinked", (*program).unlinked},
	{6, "mkdir", func(p *program) error { return unix.Mkdir(p.path(), 0o700|p.bits(0o77)) }},
	{3, "rmdir", func(p *program) error { return unix.Rmdir(p.path()) }},
	{3, "unlink", func(p *program) error { return unix.Unlink(p.path()) }},
	{3, "rename", func(p *program) error { return unix.Rename(p.path(), p.path()) }},
	{2, "exchange", func(p *program) error {
		return unix.Renameat2(unix.AT_FDCWD, p.path(), unix.AT_FDCWD, p.path(), unix.RENAME_EXCHANGE)
	}},
	{2, "move", func(p *program) error {
		return unix.Renameat2(unix.AT_FDCWD, p.path(), unix.AT_FDCWD, p.path(), unix.RENAME_NOREPLACE)
	}},
	{3, "link", func(p *program) error { return unix.Link(p.path(), p.path()) }},
	{2, "symlink", func(p *program) error { return unix.Symlink(p.name()+"/"+p.name(), p.path()) }},
	{1, "mkfifo", func(p *program) error { return unix.Mknod(p.path(), unix.S_IFIFO|0o600, 0) }},
	{2, "chmod", func(p *program) error { return unix.Chmod(p.path(), 0o700|p.bits(0o7077)) }},
	{1, "chown", func(p *program) error { return unix.Lchown(p.path(), p.r.IntN(3), p.r.IntN(3)) }},
	{2, "utimes", func(p *program) error {
		at := unix.NsecToTimespec(p.r.Int64N(2e18))
		return unix.UtimesNanoAt(unix.AT_FDCWD, p.path(), []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
	}},
	{2, "setxattr", func(p *program) error {
		return unix.Setxattr(p.path(), "user."+p.name(), p.bytes(200), 0)
	}},
	{1, "removexattr", func(p *program) error { return unix.Removexattr(p.path(), "user."+p.name()) }},
	{2, "list", func(p *program) error { _, err := os.ReadDir(p.path()); return err }},
	{2, "read", func(p *program) error { return p.open(unix.O_RDONLY, readAll) }},
}

// expected are what calls on random paths may answer.
var expected = []error{
	unix.ENOENT, unix.EEXIST, unix.ENOTDIR, unix.EISDIR, unix.ENOTEMPTY, unix.EINVAL, unix.ELOOP, unix.EPERM,
	unix.ENODATA, unix.ENXIO, unix.EBUSY, unix.EOPNOTSUPP,
}

func (p *program) run(n int) {
	total := 0
	for _, c := range calls {
		total += c.weight
	}
	for range n {
		at := p.r.IntN(total)
		for _, c := range calls {
			if at -= c.weight; at < 0 {
				p.judge(c.name, c.do(p))
				break
			}
		}
	}
}

func (p *program) judge(what string, err error) {
	for _, e := range expected {
		if errors.Is(err, e) {
			return
		}
	}
	if err != nil {
		p.t.Errorf("%s: %v", what, err)
	}
}

func (p *program) name() string { return string(rune('a' + p.r.IntN(6))) }

func (p *program) path() string {
	path := p.root
	for range 1 + p.r.IntN(4) {
		path = filepath.Join(path, p.name())
	}
	return path
}

func (p *program) bits(mask uint32) uint32 { return p.r.Uint32() & mask }

// bytes are recognisable: what is mixed of two writes is seen when two trees
// are compared.
func (p *program) bytes(most int) []byte {
	word := fmt.Appendf(nil, "%016x", p.r.Uint64())
	return bytes.Repeat(word, 1+p.r.IntN(most)/len(word))
}

// size is mostly small, and now and then beyond what travels inside an op.
func (p *program) size() int {
	if p.r.IntN(20) == 0 {
		return 300_000
	}
	return 5000
}

// open opens a random file. It does not wait for FIFOs.
func (p *program) open(flags int, do func(*program, *os.File) error) error {
	f, err := os.OpenFile(p.path(), flags|unix.O_NONBLOCK, 0o600|os.FileMode(p.bits(0o77)))
	if err != nil {
		return err
	}
	if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() {
		err = do(p, f)
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

func readAll(_ *program, f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	n, err := f.Read(make([]byte, fi.Size()+1))
	if n == 0 {
		return nil // others truncate
	}
	return err
}

func (p *program) create() error {
	return p.open(unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, func(p *program, f *os.File) error {
		_, err := f.Write(p.bytes(p.size()))
		return err
	})
}

func (p *program) rewrite() error {
	return p.open(unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, func(p *program, f *os.File) error {
		_, err := f.Write(p.bytes(p.size()))
		if p.r.IntN(10) == 0 {
			err = errors.Join(err, f.Sync())
		}
		return err
	})
}

func (p *program) write() error {
	return p.open(unix.O_RDWR, func(p *program, f *os.File) error {
		_, err := f.WriteAt(p.bytes(p.size()), p.r.Int64N(int64(p.size())))
		return err
	})
}

func (p *program) append() error {
	return p.open(unix.O_WRONLY|unix.O_APPEND, func(p *program, f *os.File) error {
		_, err := f.Write(p.bytes(500))
		return err
	})
}

func (p *program) truncate() error {
	return p.open(unix.O_WRONLY, func(p *program, f *os.File) error { return f.Truncate(p.r.Int64N(int64(p.size()))) })
}

func (p *program) fallocate() error {
	modes := []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE}
	return p.open(unix.O_RDWR, func(p *program, f *os.File) error {
		return unix.Fallocate(int(f.Fd()), modes[p.r.IntN(len(modes))], p.r.Int64N(10_000), 1+p.r.Int64N(10_000))
	})
}

// mmap writes a page of a file that nobody else can shorten meanwhile, as that
// would be a SIGBUS.
func (p *program) mmap() error {
	path := p.path()
	draft := fmt.Sprintf("%s.%d", path, p.r.Uint64())
	f, err := os.OpenFile(draft, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	page := os.Getpagesize()
	if err := f.Truncate(int64(page)); err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m[p.r.IntN(page):], p.bytes(page))
	return errors.Join(unix.Munmap(m), p.instead(draft, path))
}

// instead moves a file to a place where there may be something that it cannot
// replace.
func (p *program) instead(draft, path string) error {
	err := unix.Rename(draft, path)
	if err != nil && unix.Unlink(draft) == nil {
		p.judge("rename", err)
		return nil
	}
	return err
}

func (p *program) copyRange() error {
	return p.open(unix.O_RDONLY, func(p *program, from *os.File) error {
		return p.open(unix.O_WRONLY, func(p *program, to *os.File) error {
			offset := p.r.Int64N(2000)
			_, err := unix.CopyFileRange(int(from.Fd()), &offset, int(to.Fd()), nil, p.r.IntN(10_000), 0)
			return err
		})
	})
}

// unlinked writes a file that has no name any more: it leaves nothing.
func (p *program) unlinked() error {
	path := fmt.Sprintf("%s.%d", p.path(), p.r.Uint64())
	f, err := os.OpenFile(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(path); err != nil {
		return err
	}
	want := p.bytes(2000)
	if _, err := f.WriteAt(want, 100); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 100); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("other bytes than were written")
	}
	return nil
}
