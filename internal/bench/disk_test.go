package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/playground"
	"github.com/synapsefs/synapsefs/internal/wire"
)

// Medians are of so many rounds, and of more if they take less than atLeast.
const (
	rounds    = 5
	maxRounds = 101
	atLeast   = time.Second
)

var diskLarge = flag.Int64("disk.large", 1<<30, "size of the large file in `bytes`")

// BenchmarkDiskRatio does the same work on a mount and on the disk below it, in
// turns, and reports the median time on the mount as a multiple of that on the
// disk ("ratio"; "ro-ratio" on a read-only mount). A row's ratio should be at
// most its target. -benchtime 21x takes medians of 21 rounds.
func BenchmarkDiskRatio(b *testing.B) {
	p := newPlaces(b)
	for _, r := range diskRows {
		b.Run(r.name, func(b *testing.B) { p.measure(b, r) })
	}
}

// A diskRow is one kind of work.
type diskRow struct {
	name   string
	target float64 // 0: reported for comparison only
	// prepare makes what the work needs, before the first round. Its
	// directory is new and the row's own.
	prepare func(dir string) error
	// before is done before each round and not measured.
	before func(p *places, dir string, round int) error
	run    func(dir string, round int) error
	// reads: the work changes nothing, and is done on the read-only mount too.
	reads bool
}

var diskRows = []diskRow{
	{name: "stat", target: 1.3, reads: true, prepare: makeSmall, run: statAll},
	{name: "missing", target: 1.1, reads: true, prepare: makeSmall, run: statMissing},
	{name: "list", target: 1.3, reads: true, prepare: makeSmall, run: listNames},
	{name: "list+stat", reads: true, prepare: makeSmall, run: listStat},
	{name: "open+read+close", target: 10, reads: true, prepare: makeSmall, run: readSmall},
	{name: "create", target: 15, run: createSmall},
	{name: "append-new", target: 3, run: appendNew},
	{name: "append-old", target: 40, before: appendBase, run: appendOld},
	{name: "append-each", prepare: makeMiddle, run: appendEach},
	{name: "append-held", prepare: makeMiddle, run: appendHeld},
	{name: "write-1GiB", target: 1.2, before: withoutLast, run: writeLarge},
	{name: "read-warm-1GiB", target: 1.2, reads: true, prepare: makeLarge, run: readLarge},
	{name: "read-cold-1GiB", target: 1.5, reads: true, prepare: makeLarge, before: cold, run: readLarge},
}

// places are where the work is done.
type places struct {
	node     *playground.Node
	disk, ro string
}

func newPlaces(b *testing.B) *places {
	c := newCluster(b, 1)
	p := &places{node: c.Nodes[0], disk: filepath.Join(c.Dir, "disk", "mnt"), ro: filepath.Join(c.Dir, "ro", "mnt")}
	for _, dir := range []string{p.disk, p.ro} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	err := p.node.Call(func(c *admin.Client) error {
		_, err := c.Mount(b.Context(), &wire.MountVolumeRequest{Volume: "bench", Dir: []byte(p.ro), ReadOnly: true})
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		err := p.node.Call(func(c *admin.Client) error {
			_, err := c.Unmount(context.Background(), &wire.UnmountRequest{Dir: []byte(p.ro), Force: true})
			return err
		})
		if err != nil {
			b.Error(err)
		}
	})
	return p
}

func (p *places) measure(b *testing.B, r diskRow) {
	at := []string{p.disk, p.node.Mount}
	if r.reads {
		at = append(at, p.ro)
	}
	name := fmt.Sprintf("%s-%d", filepath.Base(b.Name()), time.Now().UnixNano())
	for _, top := range at[:2] {
		dir := filepath.Join(top, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		if r.prepare != nil {
			if err := r.prepare(dir); err != nil {
				b.Fatal(err)
			}
		}
		b.Cleanup(func() { os.RemoveAll(dir) })
	}
	if err := p.settle(); err != nil {
		b.Fatal(err)
	}
	for _, top := range at[1:] { // the read-only mount is told later
		if err := awaitNames(filepath.Join(top, name), filepath.Join(p.disk, name)); err != nil {
			b.Fatal(err)
		}
	}
	took := make([][]time.Duration, len(at))
	var all time.Duration
	for round := 0; round <= max(rounds, b.N) || all < atLeast && round <= maxRounds; round++ {
		for n, top := range at {
			dir := filepath.Join(top, name)
			if r.before != nil {
				if err := r.before(p, dir, round); err != nil {
					b.Fatal(err)
				}
			}
			begun := time.Now()
			if err := r.run(dir, round); err != nil {
				b.Fatal(err)
			}
			d := time.Since(begun)
			if all += d; round > 0 { // the first warms up
				took[n] = append(took[n], d)
			}
		}
	}
	disk := median(took[0])
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(disk.Microseconds())/1000, "disk-ms")
	b.ReportMetric(float64(median(took[1]))/float64(disk), "ratio")
	if r.target > 0 {
		b.ReportMetric(r.target, "target")
	}
	if r.reads {
		b.ReportMetric(float64(median(took[2]))/float64(disk), "ro-ratio")
	}
}

// awaitNames returns when a directory has as many names as another.
func awaitNames(dir, as string) error {
	want, err := os.ReadDir(as)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) { // the interval of polling
		got, err := os.ReadDir(dir)
		if err == nil && len(got) == len(want) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s has %d names, want %d: %w", dir, len(got), len(want), err)
		}
	}
}

func median(ds []time.Duration) time.Duration {
	slices.Sort(ds)
	return ds[len(ds)/2]
}

// settle returns when what was closed is published and on the disk.
func (p *places) settle() error {
	for {
		drafts := uint64(0)
		err := p.node.Call(func(c *admin.Client) error {
			reply, err := c.ListVolumes(context.Background(), &wire.ListVolumesRequest{})
			for _, v := range reply.GetVolumes() {
				drafts += v.OpenDrafts
			}
			return err
		})
		if err != nil {
			return err
		}
		if drafts == 0 {
			unix.Sync()
			return nil
		}
		time.Sleep(5 * time.Millisecond) // the interval of polling
	}
}

// withoutLast removes what the last round wrote: one file is enough for the disk.
// The node keeps its content, hence its pages are dropped: else the mount alone
// would be measured on memory that nobody has used before, which in a virtual
// machine is ten times slower.
func withoutLast(p *places, dir string, round int) error {
	if round > 0 {
		if err := os.Remove(filepath.Join(dir, fmt.Sprint("large", round-1))); err != nil {
			return err
		}
	}
	if err := p.settle(); err != nil {
		return err
	}
	return dropPages(p.node.State)
}

const smallFiles = 10_000

// numbered are names, made beforehand: the work is the system calls.
func numbered(prefix string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s%05d", prefix, i)
	}
	return names
}

var (
	small   = numbered("f", smallFiles)
	missing = numbered("x", smallFiles)
	page    = make([]byte, 4<<10)
	chunk   = make([]byte, 1<<20)
)

func makeSmall(dir string) error {
	for _, name := range small {
		if err := os.WriteFile(filepath.Join(dir, name), page, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// in runs fn with a descriptor of the directory.
func in(dir string, fn func(fd int) error) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return fn(fd)
}

// paths are names in a directory, as programs use them: whole. They are made
// once.
func paths(dir string, names []string) []string {
	key := dir + "/" + names[0]
	if made[key] == nil {
		for _, name := range names {
			made[key] = append(made[key], filepath.Join(dir, name))
		}
	}
	return made[key]
}

var made = map[string][]string{}

func statAll(dir string, _ int) error {
	var st unix.Stat_t
	for _, path := range paths(dir, small) {
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
	}
	return nil
}

func statMissing(dir string, _ int) error {
	var st unix.Stat_t
	for _, path := range paths(dir, missing) {
		if err := unix.Lstat(path, &st); err != unix.ENOENT {
			return fmt.Errorf("missing name %s: %v", path, err)
		}
	}
	return nil
}

func listNames(dir string, _ int) error {
	return in(dir, func(fd int) error {
		buf := make([]byte, 32<<10) // libc's
		for {
			if n, err := unix.Getdents(fd, buf); n == 0 || err != nil {
				return err
			}
		}
	})
}

func listStat(dir string, round int) error {
	if err := listNames(dir, round); err != nil {
		return err
	}
	return statAll(dir, round)
}

func readSmall(dir string, _ int) error {
	buf := make([]byte, 8<<10)
	for _, path := range paths(dir, small) {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		n, err := unix.Read(fd, buf)
		unix.Close(fd)
		if err != nil || n != len(page) {
			return fmt.Errorf("read %s: %d bytes, %v", path, n, err)
		}
	}
	return nil
}

func createSmall(dir string, round int) error {
	top := filepath.Join(dir, fmt.Sprintf("r%d", round))
	if err := os.Mkdir(top, 0o755); err != nil {
		return err
	}
	return in(top, func(at int) error {
		for _, name := range small[:1000] {
			if err := writeAt(at, name, unix.O_CREAT|unix.O_EXCL, page, 1); err != nil {
				return err
			}
		}
		return nil
	})
}

// writeAt opens a file, writes n times, and closes it.
func writeAt(at int, name string, flags int, p []byte, n int) error {
	fd, err := unix.Openat(at, name, flags|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	for range n {
		if wrote, err := unix.Write(fd, p); err != nil || wrote != len(p) {
			unix.Close(fd)
			return fmt.Errorf("write %s: %d bytes, %v", name, wrote, err)
		}
	}
	return unix.Close(fd)
}

const appends = 20_000

func appendNew(dir string, round int) error {
	return in(dir, func(at int) error {
		return writeAt(at, fmt.Sprint("log", round), unix.O_CREAT|unix.O_APPEND, page[:100], appends)
	})
}

func appendBase(p *places, dir string, round int) error {
	if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("log", round)), chunk, 0o644); err != nil {
		return err
	}
	return p.settle()
}

func appendOld(dir string, round int) error {
	return in(dir, func(at int) error {
		return writeAt(at, fmt.Sprint("log", round), unix.O_APPEND, page[:100], appends)
	})
}

// makeMiddle makes a file that is large for one to which lines are appended.
func makeMiddle(dir string) error {
	return in(dir, func(at int) error {
		for n := range 64 {
			chunk[0], chunk[1] = byte(n), 77
			if err := writeAt(at, "log", unix.O_CREAT|unix.O_APPEND, chunk, 1); err != nil {
				return err
			}
		}
		return nil
	})
}

// appendEach opens the file for each line.
func appendEach(dir string, _ int) error {
	return in(dir, func(at int) error {
		for range 1000 {
			if err := writeAt(at, "log", unix.O_APPEND, page[:100], 1); err != nil {
				return err
			}
		}
		return nil
	})
}

// appendHeld does so while somebody reads.
func appendHeld(dir string, round int) error {
	fd, err := unix.Open(filepath.Join(dir, "log"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return appendEach(dir, round)
}

func writeLarge(dir string, round int) error {
	return in(dir, func(at int) error {
		fd, err := unix.Openat(at, fmt.Sprint("large", round), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		for n := range *diskLarge >> 20 {
			chunk[0], chunk[1], chunk[2] = byte(n), byte(n>>8), byte(round) // no two blocks are equal
			if _, err := unix.Write(fd, chunk); err != nil {
				return err
			}
		}
		return unix.Close(fd)
	})
}

func makeLarge(dir string) error { return writeLarge(dir, 0) }

func readLarge(dir string, _ int) error {
	buf := make([]byte, 1<<20)
	return in(dir, func(at int) error {
		fd, err := unix.Openat(at, "large0", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for left := *diskLarge; ; {
			n, err := unix.Read(fd, buf)
			if left -= int64(n); n == 0 || err != nil {
				if left != 0 && err == nil {
					err = fmt.Errorf("read: %d bytes are missing", left)
				}
				return err
			}
		}
	})
}

// cold makes the kernel forget the large file's pages, and those of the files
// that the node keeps it in.
func cold(p *places, dir string, _ int) error {
	return errors.Join(dropPages(filepath.Join(dir, "large0")), dropPages(p.node.State))
}

func dropPages(top string) error {
	return filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil // gone meanwhile
		}
		f, err := os.Open(path)
		if err != nil {
			return nil
		}
		defer f.Close()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}
