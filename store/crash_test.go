package store

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"github.com/synapsefs/synapsefs/store/crdt"
)

func init() { children["crash"] = crashChild }

// crashEvent is one line that the child writes.
type crashEvent struct {
	What     string // begin, done: a call; flushed: a file closed as P8 counts it; sealed: a batch
	Op       string
	From, To string
	Seed     uint64 // of the bytes
	Size     int
	Dots     map[crdt.Seq]string // what a sealed batch holds
	Batch    []byte
}

// crashChild works at random, and says what it does, until it is killed.
func crashChild(dir string) error {
	db, err := Open(Options{Dir: dir, PublishInterval: time.Hour})
	if err != nil {
		return err
	}
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	say := func(e crashEvent) {
		mu.Lock()
		defer mu.Unlock()
		if out.Encode(e) != nil {
			os.Exit(0)
		}
	}
	v := db.Volumes()[0]
	v.OnSeal(func(b *Batch) { say(crashEvent{What: "sealed", Dots: dotsOf(b)}) })
	for {
		e := randomEvent()
		e.What = "begin"
		say(e)
		if err := e.do(v, say); err != nil {
			return fmt.Errorf("%+v: %w", e, err)
		}
		e.What = "done"
		say(e)
	}
}

func dotsOf(b *Batch) map[crdt.Seq]string {
	dots := map[crdt.Seq]string{}
	for n, op := range b.Ops {
		dots[b.First+crdt.Seq(n)] = fmt.Sprintf("%x", blake3.Sum256(op))[:16]
	}
	return dots
}

func randomEvent() crashEvent {
	ops := []string{"write", "write", "write", "write", "unlink", "rename", "rename", "mkdir", "leave", "patch", "flush"}
	path := func() string {
		return []string{"", "d1/", "d2/"}[rand.IntN(3)] + fmt.Sprintf("f%d", rand.IntN(8))
	}
	e := crashEvent{Op: ops[rand.IntN(len(ops))], From: path(), To: path(), Seed: rand.Uint64(), Size: rand.IntN(3000)}
	switch {
	case rand.IntN(6) == 0:
		e.Size = 70_000 + rand.IntN(2<<20) // beyond what is inline
	case rand.IntN(6) == 0:
		e.Size = 0
	}
	if e.Op == "patch" && e.Size == 0 {
		e.Size = 1 // no bytes are no write
	}
	if e.Op == "mkdir" {
		e.From = fmt.Sprintf("d%d", 1+rand.IntN(2))
	}
	return e
}

// do makes the calls. Those that make no sense are refused, and change nothing.
func (e crashEvent) do(v *Volume, say func(crashEvent)) error {
	dir, name, err := splitPath(v, e.From)
	if err != nil {
		return nil
	}
	switch e.Op {
	case "mkdir":
		v.Mknod(Request{}, dir, name, NewNode{Kind: crdt.KindDir, Mode: 0o755})
	case "unlink":
		v.Unlink(Request{}, dir, name)
	case "rename":
		if to, tname, err := splitPath(v, e.To); err == nil {
			v.Rename(Request{}, dir, name, to, tname, crdt.RenameReplace)
		}
	default:
		return e.write(v, dir, name, say)
	}
	return nil
}

func splitPath(v *Volume, path string) (NodeID, string, error) {
	d, name, ok := strings.Cut(path, "/")
	if !ok {
		return root, path, nil
	}
	a, _, err := v.Lookup(root, d)
	return a.Node, name, err
}

// syncs reports whether a write that closes the file syncs it before.
func (e crashEvent) syncs() bool { return e.Seed%7 == 0 }

// write makes a file: whole ("write"), closed without a release ("flush"), or
// left open without a flush ("leave", "patch").
func (e crashEvent) write(v *Volume, dir NodeID, name string, say func(crashEvent)) error {
	a, _, err := v.Lookup(dir, name)
	var h Handle
	switch {
	case err == nil:
		h, err = v.OpenWrite(Request{}, a.Node, e.Op != "patch")
	case e.Op == "patch":
		return nil
	default:
		a, h, err = v.Create(Request{}, dir, name, NewNode{Mode: 0o644})
	}
	if err != nil {
		return err
	}
	text := noise(e.Seed, e.Size)
	for off := 0; off < len(text) || off == 0; off += 128 << 10 {
		if _, err := v.WriteAt(a.Node, h, []byte(text[off:min(off+128<<10, len(text))]), int64(off), false); err != nil {
			return err
		}
	}
	if e.Op == "leave" || e.Op == "patch" {
		// A handle that stays: but for it the file would be closed later.
		return nil
	}
	if e.syncs() {
		if err := v.Fsync(a.Node); err != nil {
			return err
		}
	}
	if err := v.Flush(a.Node, h); err != nil {
		return err
	}
	e.What = "flushed"
	say(e)
	if e.Op == "flush" {
		return nil
	}
	return v.Release(Request{}, a.Node, h)
}

// TestP8KilledProcess kills a working process at random moments.
func TestP8KilledProcess(t *testing.T) {
	dir := t.TempDir()
	v := must(openWith(t, Options{Dir: dir}).CreateReplica(NewVolumeID(), "test", true))
	id := v.ID()
	check(t, v.db.Close(), nil)
	m := crashModel{}
	dots := map[crdt.Seq]string{}
	runs := 20
	if testing.Short() {
		runs = 3
	}
	completed := 0
	for range runs {
		events := runCrashChild(t, "crash", dir, 1+rand.IntN(1500), func(int) {})
		completed += len(events)
		v := openWith(t, Options{Dir: dir}).Volume(id)
		checkDots(t, v, events, dots)
		m = m.follow(t, v, events)
		check(t, v.db.Close(), nil)
	}
	t.Logf("%d kills, %d events, %d ops", runs, completed, len(dots))
}

// runCrashChild runs a child until it has written so many lines, kills it, and
// returns all that it had written by then. before is called before each is read.
func runCrashChild(t *testing.T, kind, dir string, lines int, before func(n int)) (events []crashEvent) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+kind+":"+dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	check(t, err, nil)
	check(t, cmd.Start(), nil)
	in := bufio.NewReader(out)
	for n := 0; ; n++ {
		before(n)
		if n == lines {
			cmd.Process.Kill()
		}
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			break // a line cut short says nothing
		}
		check(t, err, nil)
		var e crashEvent
		check(t, json.Unmarshal(line, &e), nil)
		events = append(events, e)
	}
	cmd.Wait()
	if stderr.Len() > 0 {
		t.Fatal(stderr.String())
	}
	return events
}

// checkDots compares what every dot names: in the batches that left, in the
// journal, and in earlier runs.
func checkDots(t *testing.T, v *Volume, events []crashEvent, dots map[crdt.Seq]string) {
	t.Helper()
	note := func(where string, of map[crdt.Seq]string) {
		for seq, hash := range of {
			if was, ok := dots[seq]; ok && was != hash {
				t.Fatalf("dot %d names two ops (%s)", seq, where)
			}
			dots[seq] = hash
		}
	}
	for _, e := range events {
		note("sealed", e.Dots)
	}
	in := map[crdt.Seq]string{}
	for _, b := range batches(t, v, nil) {
		for seq, hash := range dotsOf(b) {
			in[seq] = hash
		}
	}
	note("journal", in)
	if len(in) != len(dots) || v.seq != crdt.Seq(len(in)) {
		t.Fatalf("%d ops in the journal, %d left or were there before, the last is %d", len(in), len(dots), v.seq)
	}
}
