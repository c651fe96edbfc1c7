package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// setReserve pretends that the disk is full, or is not.
func setReserve(t testing.TB, db *DB, full bool) {
	t.Helper()
	var st unix.Statfs_t
	check(t, unix.Statfs(db.Dir(), &st), nil)
	db.reserve.Store(1 << 20)
	if full {
		db.reserve.Store(st.Bavail*uint64(st.Bsize) + 1<<40)
	}
	check(t, db.checkSpace(), nil)
}

// TestP13FullDisk: what needs room fails with ErrNoSpace and changes nothing;
// what frees room works; all works again when there is room.
func TestP13FullDisk(t *testing.T) {
	a, b := pair(t, Options{})
	db := a.db
	node := write(t, a, root, "f", "text")
	d := mkdir(t, a, root, "d")
	write(t, a, root, "gone", "x")
	opened := create(t, a, root, "open").write("begun", 0)
	give(t, a, b)
	write(t, b, root, "from b", "x")
	setReserve(t, db, true)
	was := dump(t, a)
	size, grown := int64(1), int64(1<<20)
	for what, call := range map[string]func() error{
		"create": func() error { _, _, err := a.Create(Request{}, root, "new", NewNode{}); return err },
		"mkdir":  func() error { return second(a.Mknod(Request{}, root, "new", NewNode{Kind: crdt.KindDir})) },
		"link":   func() error { return second(a.Link(Request{}, node, root, "new")) },
		"O_TRUNC": func() error {
			return second(a.OpenWrite(Request{}, node, true))
		},
		"write":    func() error { return second(a.WriteAt(opened.node, opened.h, []byte("more"), 5, false)) },
		"allocate": func() error { return a.Allocate(opened.node, opened.h, 0, 0, 100) },
		"grow":     func() error { return second(a.SetAttr(Request{}, node, SetAttr{Size: &grown})) },
		"shrink":   func() error { return second(a.SetAttr(Request{}, node, SetAttr{Size: &size})) },
		"setxattr": func() error { return a.SetXattr(Request{}, node, "user.x", []byte("1"), XattrSet) },
		"merge":    func() error { return a.Merge(batches(t, b, a.Vector())[0]) },
	} {
		if err := call(); !errors.Is(err, ErrNoSpace) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if now := dump(t, a); fmt.Sprint(now) != fmt.Sprint(was) {
		t.Errorf("the tree changed from %v\nto %v", was, now)
	}
	if !a.Stats().Full {
		t.Error("not reported")
	}
	opened.close() // its bytes are here: it is published
	check(t, a.Unlink(Request{}, root, "gone"), nil)
	check(t, a.Rmdir(Request{}, root, "d"), nil)
	_ = d
	setReserve(t, db, false)
	write(t, a, root, "new", "x")
	exchange(t, a, b)
	same(t, a, b)
	if got := read(t, b, root, "open"); got != "begun" {
		t.Errorf("%q", got)
	}
}

// TestP8PublicationThatFails: a close whose publication finds no room is made
// good later, whatever is tried meanwhile.
func TestP8PublicationThatFails(t *testing.T) {
	for _, size := range []int{100, 200_000} {
		db := openWith(t, Options{})
		var shut atomic.Bool // nothing can be recorded
		db.kv.(*guardedKV).closed = &shut
		a := must(db.CreateReplica(NewVolumeID(), "test", true))
		b := volumeWith(t, a.ID(), Options{})
		write(t, a, root, "old", noise(1, size))
		give(t, a, b)
		text := noise(2, size)
		created := create(t, a, root, "new").write(text, 0).flush()
		over := open(t, a, root, "old", true).write(text, 0).flush()
		shut.Store(true)
		for _, w := range []writing{created, over} {
			check(t, a.Release(Request{}, w.node, w.h), ErrNoSpace)
			if _, err := a.OpenWrite(Request{}, w.node, true); !errors.Is(err, ErrNoSpace) {
				t.Errorf("open: %v", err)
			}
			if got := w.read(); got != text {
				t.Fatalf("reads %d bytes", len(got))
			}
		}
		shut.Store(false)
		// The retry comes by itself; here it is not waited for.
		for _, w := range []writing{created, over} {
			d := a.draftOf(w.node)
			d.mu.Lock()
			a.stopTimer(d)
			check(t, a.finish(d, w.h), nil)
			d.mu.Unlock()
		}
		if n := a.Stats().OpenDrafts; n != 0 {
			t.Errorf("%d drafts open", n)
		}
		give(t, a, b)
		same(t, a, b)
		if read(t, b, root, "new") != text || read(t, b, root, "old") != text {
			t.Error("not what was closed")
		}
	}
}

func init() { children["fill"] = fillChild }

// fillChild fills its file system from inside and from outside, and goes on.
func fillChild(dir string) error {
	state := filepath.Join(dir, "state")
	db, err := Open(Options{Dir: state, ReserveBytes: 64 << 20})
	if err != nil {
		return err
	}
	v, err := db.CreateReplica(NewVolumeID(), "test", true)
	if err != nil {
		return err
	}
	for round := range 2 {
		if err := fillUp(v, round); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		// Others take the rest, down to where nothing is written any more.
		hog := filepath.Join(dir, "hog")
		if err := fillFile(hog, db.critical.Load); err != nil {
			return err
		}
		if _, err := v.Mknod(Request{}, root, "no room", NewNode{Kind: crdt.KindDir}); !errors.Is(err, ErrNoSpace) {
			return fmt.Errorf("mkdir on a full disk: %w", err)
		}
		if err := os.Remove(hog); err != nil {
			return err
		}
		db.checkSpace()
		var names []string
		v.ReadDir(root, 0, func(e DirEntry) bool { names = append(names, e.Name); return true })
		for _, name := range names {
			err := v.Unlink(Request{}, root, name)
			if errors.Is(err, ErrNoSpace) && db.critical.Load() {
				break // what the database wrote meanwhile has used the room for it
			}
			if err != nil {
				return fmt.Errorf("unlink %s: %w", name, err)
			}
		}
		// Somebody makes room.
		size := fmt.Sprintf("size=%dm", 300*(round+2))
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, size); err != nil {
			return err
		}
		db.checkSpace()
		if err := writeWhole(v, fmt.Sprint("after", round), "there is room"); err != nil {
			return fmt.Errorf("write after round %d: %w", round, err)
		}
	}
	return db.Close()
}

func writeWhole(v *Volume, name, text string) error {
	a, h, err := v.Create(Request{}, root, name, NewNode{Mode: 0o644})
	if err != nil {
		return err
	}
	_, err = v.WriteAt(a.Node, h, []byte(text), 0, false)
	return errors.Join(err, v.Flush(a.Node, h), v.Release(Request{}, a.Node, h))
}

// fillUp writes small and large files until there is no room.
func fillUp(v *Volume, round int) error {
	for n := 0; n < 100_000; n++ {
		size := 40_000
		if n%10 == 0 {
			size = 3 << 20
		}
		err := writeWhole(v, fmt.Sprintf("f%d.%d", round, n), noise(uint64(n), size))
		if errors.Is(err, ErrNoSpace) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return errors.New("it is never full")
}

// fillFile writes a file until the store has seen that the disk is full.
func fillFile(path string, full func() bool) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	tick := time.NewTicker(spaceNear)
	defer tick.Stop()
	for block := make([]byte, 1<<20); !full(); <-tick.C {
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	return nil
}

func TestOpenOnAFullDisk(t *testing.T) {
	dir := mountTmpfs(t, "20m")
	_, err := Open(Options{Dir: filepath.Join(dir, "state")})
	check(t, err, ErrNoSpace)
	check(t, unix.Mount("", dir, "", unix.MS_REMOUNT, "size=200m"), nil)
	openWith(t, Options{Dir: filepath.Join(dir, "state")})
}

// TestP13FullFileSystem fills a small file system under a working store.
func TestP13FullFileSystem(t *testing.T) {
	for _, way := range []string{"fill", "allocate"} {
		t.Run(way, func(t *testing.T) { testFullFileSystem(t, way) })
	}
}

func testFullFileSystem(t *testing.T, way string) {
	dir := mountTmpfs(t, "300m")
	start := time.Now()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+way+":"+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v after %v: %s", err, time.Since(start), strings.TrimSpace(string(out)))
	}
	db := openWith(t, Options{Dir: filepath.Join(dir, "state")})
	if got := read(t, db.Volumes()[0], root, "after1"); got != "there is room" {
		t.Errorf("%q", got)
	}
}

func init() { children["allocate"] = allocateChild }

// allocateChild reserves by fallocate what its file system has, by one call
// that asks for too much and by many at once.
func allocateChild(dir string) error {
	db, err := Open(Options{Dir: filepath.Join(dir, "state"), ReserveBytes: 64 << 20})
	if err != nil {
		return err
	}
	v, err := db.CreateReplica(NewVolumeID(), "test", true)
	if err != nil {
		return err
	}
	a, h, err := v.Create(Request{}, root, "greedy", NewNode{Mode: 0o644})
	if err != nil {
		return err
	}
	for _, mode := range []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE} {
		if err := v.Allocate(a.Node, h, mode, 0, 1<<40); !errors.Is(err, ErrNoSpace) {
			return fmt.Errorf("allocate 1 TiB with mode %d: %w", mode, err)
		}
	}
	if err := v.Allocate(a.Node, h, 0, 0, 1<<20); err != nil {
		return fmt.Errorf("allocate after what failed: %w", err)
	}
	if err := errors.Join(v.Flush(a.Node, h), v.Release(Request{}, a.Node, h)); err != nil {
		return err
	}
	var group errgroup.Group
	for n := range 4 {
		group.Go(func() error { return allocateAll(v, fmt.Sprint("f", n)) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	// The database still has room for what takes none.
	for n := range 4 {
		if err := v.Unlink(Request{}, root, fmt.Sprint("f", n)); err != nil {
			return err
		}
	}
	if err := db.checkSpace(); err != nil {
		return err
	}
	return errors.Join(writeWhole(v, "after1", "there is room"), db.Close())
}

func allocateAll(v *Volume, name string) error {
	a, h, err := v.Create(Request{}, root, name, NewNode{Mode: 0o644})
	if err != nil {
		return err
	}
	for off := int64(0); ; off += 30 << 20 {
		if err := v.Allocate(a.Node, h, 0, off, 30<<20); errors.Is(err, ErrNoSpace) {
			break
		} else if err != nil {
			return err
		}
	}
	return v.Release(Request{}, a.Node, h)
}

// TestP13PreallocatedIsGivenBack: what was allocated and not written keeps no disk
// full on which the close could then not be recorded.
func TestP13PreallocatedIsGivenBack(t *testing.T) {
	const size = 64 << 20
	for _, how := range []string{"by us", "by the kernel"} {
		db := openWith(t, Options{})
		var shut atomic.Bool // nothing can be recorded
		db.kv.(*guardedKV).closed = &shut
		v := must(db.CreateReplica(NewVolumeID(), "test", true))
		w := create(t, v, root, "f")
		if how == "by us" {
			w.write("x", 200_000)
		} else {
			w.past("x", false)
		}
		check(t, v.Allocate(w.node, w.h, 0, 0, size), nil)
		if got := diskOf(t, db); got < size {
			t.Fatalf("%s: %d bytes of disk are allocated", how, got)
		}
		before := must(v.Attr(w.node)).Mtime
		shut.Store(true)
		check(t, v.Release(Request{}, w.node, w.h), ErrNoSpace)
		if got := diskOf(t, db); got > size/4 {
			t.Errorf("%s: %d bytes of disk are kept", how, got)
		}
		shut.Store(false)
		d := v.draftOf(w.node)
		d.mu.Lock()
		v.stopTimer(d)
		check(t, v.finish(d, w.h), nil)
		d.mu.Unlock()
		if a := must(v.Attr(w.node)); a.Size != size || a.Mtime != before {
			t.Errorf("%s: %d bytes, mtime %v, not %v", how, a.Size, a.Mtime, before)
		}
	}
}

// TestP13AllocationLeavesTheReserve: what cannot be had is refused before any is
// taken, whoever writes the file.
func TestP13AllocationLeavesTheReserve(t *testing.T) {
	for _, how := range []string{"by us", "by the kernel"} {
		v := volumeWith(t, NewVolumeID(), longHold)
		db := v.db
		w := create(t, v, root, "f")
		if how == "by us" {
			w.write("x", 200_000)
		} else {
			w.past("x", false)
		}
		var st unix.Statfs_t
		check(t, unix.Statfs(db.Dir(), &st), nil)
		free := st.Bavail * uint64(st.Bsize)
		db.reserve.Store(free - db.headroom() - 256<<20)
		before := diskOf(t, db)
		for _, mode := range []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE} {
			check(t, v.Allocate(w.node, w.h, mode, 0, 1<<30), ErrNoSpace)
		}
		if taken := diskOf(t, db) - before; taken > 1<<20 {
			t.Errorf("%s: %d bytes of disk were taken", how, taken)
		}
		db.reserve.Store(1 << 20)
		check(t, v.Allocate(w.node, w.h, 0, 0, 64<<20), nil)
		if taken := diskOf(t, db) - before; taken < 60<<20 {
			t.Errorf("%s: %d bytes of disk were taken", how, taken)
		}
		check(t, v.Allocate(w.node, w.h, unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, 0, 64<<20), nil)
		if taken := diskOf(t, db) - before; taken > 1<<20 {
			t.Errorf("%s: %d bytes of disk are left", how, taken)
		}
		w.close()
	}
}
