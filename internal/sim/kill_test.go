package sim

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

const childEnv = "SYNAPSEFS_SIM_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir, seed, ok := strings.Cut(os.Getenv(childEnv), ":"); ok {
		s, _ := strconv.ParseUint(seed, 10, 64)
		if err := killChild(dir, s); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A said is one line that the child writes.
type said struct {
	Doing    string // a step that begins; else one has ended
	Replica  crdt.ReplicaID
	Acked    crdt.Seq
	Batch    []byte // one that left
	Promises []promise
}

// realWorld is a world of one node, on Badger.
func realWorld(dir string, seed uint64) *world {
	w := newWorld(Program{Seed: seed}, dir, nil)
	w.real = true
	return w
}

// killChild plays a seed's program, again and again, and says what it does.
func killChild(dir string, seed uint64) error {
	w := realWorld(dir, seed)
	out := json.NewEncoder(os.Stdout)
	say := func(s said) {
		if out.Encode(s) != nil {
			os.Exit(0)
		}
	}
	n := w.addNode()
	if w.ended() {
		return w.failed
	}
	n.vol.OnSeal(func(b *store.Batch) { say(said{Batch: b.Encode()}) })
	for ; !w.ended(); seed += 1000 {
		f := profileOf(seed)
		for i, word := range FromSeed(seed).Words {
			s := f.decode(word)
			say(said{Doing: s.verb})
			if !slices.Contains([]string{"kill", "power", "restart", "join", "away", "pass", "forget", "backup", "restore"}, s.verb) {
				w.play(i, s)
			}
			say(said{Replica: n.user.replica, Acked: n.user.acked, Promises: n.user.pledges()})
		}
	}
	return w.failed
}

// TestP8RealKills kills processes that work on a real database, and compares
// what is there afterwards with what they said and with the model.
func TestP8RealKills(t *testing.T) {
	kills, lives := 6, 4
	if testing.Short() {
		kills = 1
	}
	for seed := range uint64(kills) {
		dir := t.TempDir()
		ops := newLedger()
		for life := range lives {
			u := killOne(t, dir, seed+100*uint64(life), &ops)
			w := realWorld(dir, seed)
			w.ops, w.calm = ops, true
			n := w.addNodeAs(u)
			w.settle()
			n.stop()
			if w.failed != nil {
				t.Fatalf("seed %d, life %d: %v", seed, life, w.failed)
			}
		}
	}
}

// killOne lets a child work and kills it, and returns what it had promised.
func killOne(t *testing.T, dir string, seed uint64, ops *ledger) (u user) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s:%d", childEnv, dir, seed))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(out)
	var last said
	doing := ""
	lines := 20 + rand.IntN(400)
	for n := 0; ; n++ {
		if n == lines {
			cmd.Process.Kill()
		}
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			break // a line cut short says nothing
		}
		var s said
		if err == nil {
			err = json.Unmarshal(line, &s)
		}
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case s.Batch != nil:
			b, err := store.DecodeBatch(s.Batch)
			if err != nil {
				t.Fatal(err)
			}
			w := &world{plain: map[crdt.VersionID]crdt.Hash{}}
			if ops.add(w, b); w.failed != nil {
				t.Fatal(w.failed)
			}
		case s.Doing != "":
			doing = s.Doing
		default:
			last, doing = s, ""
		}
	}
	cmd.Wait()
	if stderr.Len() > 0 {
		t.Fatal(stderr.String())
	}
	u = user{replica: last.Replica, acked: last.Acked}
	if harmless(doing) {
		u.promises = last.Promises
	}
	return u
}
