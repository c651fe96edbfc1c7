package store

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() { children["power"] = powerChild }

var losses = flag.Int("power.losses", 10, "how often TestP8PowerLoss cuts the power")

// powerChild works at random and says what it does, and what it has synced.
func powerChild(dir string) error {
	db, err := Open(Options{Dir: dir, PublishInterval: time.Hour, ReserveBytes: 1 << 20})
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	v := db.Volumes()[0]
	say := func(e crashEvent) {
		if out.Encode(e) != nil {
			os.Exit(0)
		}
	}
	sealed := make(chan crashEvent, 1<<16)
	v.OnSeal(func(b *Batch) {
		sealed <- crashEvent{What: "sealed", From: b.Origin.String(), Dots: dotsOf(b), Batch: b.Encode()}
	})
	for {
		e := randomEvent()
		switch e.Op {
		case "leave", "patch", "flush":
			e.Op = "write" // what is not closed may be lost
		}
		switch {
		case e.Size > 1<<20:
			e.Size /= 8 // nothing collects what is replaced
		case rand.IntN(3) == 0:
			e.Size += 40_000 // fills memtables
		}
		e.What = "begin"
		say(e)
		if err := e.do(v, say); err != nil {
			return fmt.Errorf("%+v: %w", e, err)
		}
		e.What = "done"
		say(e)
		if rand.IntN(20) == 0 {
			if err := v.Sync(); err != nil {
				return err
			}
			say(crashEvent{What: "synced"})
		}
		for len(sealed) > 0 {
			say(<-sealed)
		}
	}
}

// disk is a file system on a loop device. What has not been synced is not in
// its image, and so a copy of the image is what a power loss leaves.
type disk struct {
	t     *testing.T
	image string
	dir   string
}

func needLoop(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root, for loop devices")
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	base, err := os.MkdirTemp("/dev/shm", "disk") // an image in memory: its own flushes cost nothing
	if err != nil {
		base = t.TempDir()
	}
	d := &disk{t: t, image: filepath.Join(base, "image"), dir: filepath.Join(base, "disk")}
	check(t, os.Mkdir(d.dir, 0o700), nil)
	check(t, os.WriteFile(d.image, nil, 0o600), nil)
	check(t, os.Truncate(d.image, 4<<30), nil)
	d.run("mkfs.ext4", "-q", "-F", d.image)
	d.mount()
	t.Cleanup(func() {
		unix.Unmount(d.dir, unix.MNT_DETACH)
		os.RemoveAll(base)
	})
	return d
}

func (d *disk) run(name string, args ...string) {
	d.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s %s: %v: %s", name, args, err, out)
	}
}

func (d *disk) mount() {
	d.t.Helper()
	d.run("mount", "-o", "loop", d.image, d.dir)
}

// lose turns the power off and on.
func (d *disk) lose() {
	d.t.Helper()
	d.run("cp", "--sparse=always", d.image, d.image+".lost")
	check(d.t, unix.Unmount(d.dir, 0), nil)
	check(d.t, os.Rename(d.image+".lost", d.image), nil)
	d.mount()
}

// writeBack brings some of what is not synced to the disk, in no order, as the
// kernel may at any time.
func (d *disk) writeBack() {
	d.t.Helper()
	check(d.t, filepath.WalkDir(d.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || rand.IntN(3) > 0 {
			return nil //nolint:nilerr // it went while it was looked at
		}
		f, err := os.Open(path)
		if err != nil {
			return nil //nolint:nilerr // as above
		}
		defer f.Close()
		if rand.IntN(2) == 0 {
			return f.Sync()
		}
		return unix.SyncFileRange(int(f.Fd()), rand.Int64N(1<<20)&^4095, rand.Int64N(1<<20)&^4095,
			unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	}), nil)
}

// TestP8PowerLoss cuts the power of a working process at random moments. What
// was synced is there, the rest is there up to some moment, and no dot names
// two ops. A peer hears some of what leaves, and tells nothing before the end:
// then both have all that either has.
func TestP8PowerLoss(t *testing.T) {
	needLoop(t)
	d := newDisk(t)
	boots := 0
	was := readBootID
	t.Cleanup(func() { readBootID = was })
	readBootID = func() (string, error) { boots++; return fmt.Sprint("boot ", boots), nil }
	dir := filepath.Join(d.dir, "state")
	db := must(Open(Options{Dir: dir}))
	id := must(db.CreateReplica(NewVolumeID(), "test", true)).ID()
	check(t, db.Close(), nil)
	peer := volumeWith(t, id, Options{})
	m, dots := crashModel{}, map[string]string{}
	for run := range *losses {
		events := runCrashChild(t, "power", dir, 1+rand.IntN(1500), func(n int) {
			if n%100 == 99 {
				d.writeBack()
			}
		})
		hear(t, peer, events)
		d.lose()
		db, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatalf("run %d: %v", run, err)
		}
		v := db.Volume(id)
		m = m.followLoss(t, v, events)
		noteDots(t, v, events, dots)
		if rand.IntN(2) == 0 {
			give(t, v, peer)
		}
		check(t, db.Close(), nil)
	}
	db = must(Open(Options{Dir: dir}))
	defer db.Close()
	exchange(t, db.Volume(id), peer)
	same(t, db.Volume(id), peer)
	t.Logf("%d losses, %d ops", *losses, len(dots))
}

// hear gives a peer the batches that left, up to one with large content, or
// that does not follow.
func hear(t *testing.T, peer *Volume, events []crashEvent) {
	t.Helper()
	for _, e := range events {
		if e.What != "sealed" {
			continue
		}
		err := peer.Merge(must(DecodeBatch(e.Batch)))
		if errors.Is(err, ErrNoContent) || errors.Is(err, ErrNotNext) {
			return
		}
		check(t, err, nil)
	}
}

// followLoss returns the model after a run whose end may be lost, back to the
// last sync.
func (m crashModel) followLoss(t *testing.T, v *Volume, events []crashEvent) crashModel {
	t.Helper()
	m = m.clone()
	candidates := []crashModel{m.clone()}
	var doing *crashEvent
	for _, e := range events {
		switch e.What {
		case "begin":
			doing = &e
		case "done":
			m.apply(e, flushed)
			candidates, doing = append(candidates, m.clone()), nil
		case "synced":
			candidates = []crashModel{m.clone()}
		}
	}
	if doing != nil {
		m.apply(*doing, flushed)
		candidates = append(candidates, m)
	}
	best := ""
	for n := len(candidates) - 1; n >= 0; n-- {
		diff := candidates[n].compare(t, v)
		if diff == "" {
			return candidates[n].restarted()
		}
		if best == "" || len(diff) < len(best) {
			best = diff
		}
	}
	for n, e := range events[max(0, len(events)-60):] {
		if e.What != "sealed" {
			t.Logf("%d %+v", n, e)
		}
	}
	t.Fatalf("the tree is that of none of %d moments since the sync; nearest:\n%s", len(candidates), best)
	return nil
}

// noteDots compares what every dot names: in the batches that left, in the
// journal, and in earlier runs.
func noteDots(t *testing.T, v *Volume, events []crashEvent, dots map[string]string) {
	t.Helper()
	note := func(replica string, b map[string]string) {
		for seq, hash := range b {
			dot := replica + ":" + seq
			if was, ok := dots[dot]; ok && was != hash {
				t.Fatalf("dot %s names two ops", dot)
			}
			dots[dot] = hash
		}
	}
	bySeq := func(e crashEvent) map[string]string {
		out := map[string]string{}
		for seq, hash := range e.Dots {
			out[fmt.Sprint(seq)] = hash
		}
		return out
	}
	for _, e := range events {
		if e.What == "sealed" {
			note(e.From, bySeq(e))
		}
	}
	check(t, v.sealNow(), nil)
	check(t, v.db.kv.view(func(tx txn) error {
		return tx.scan(v.keys.key('j'), nil, func(_, value []byte) (bool, error) {
			b, err := DecodeBatch(value)
			if err == nil {
				note(b.Origin.String(), bySeq(crashEvent{Dots: dotsOf(b)}))
			}
			return true, err
		})
	}), nil)
}
