package sim

import (
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A world is one run.
type world struct {
	timeline
	seed   uint64
	rand   *rand.Rand // of the network and of what befalls nodes
	dir    string
	volume store.VolumeID
	nodes  []*node
	wires  map[[2]int]*wire
	loss   int // of a hundred pushes, how many are disturbed
	calm   bool
	real   bool // on a real database

	retention    time.Duration // of replicas that are away; 0: as long as ever
	journalLimit int64
	anews        map[crdt.ReplicaID]*anew // by the id under which a replica began anew
	collected    int                      // replicas that forgot something
	doubted      map[crdt.ReplicaID]bool  // ids that a restored replica worked under

	ops     ledger
	failed  error
	trace   uint64
	lossy   bool                         // some machine lost power
	states  map[crdt.Hash]bool           // contents that were written
	whole   map[crdt.Hash]bool           // those of them that others may see
	plain   map[crdt.VersionID]crdt.Hash // of the bytes of versions
	verbose io.Writer
}

// fail ends the run; the first reason counts.
func (w *world) fail(format string, args ...any) {
	if w.failed == nil {
		w.failed = fmt.Errorf("at %v: %w", w.now, fmt.Errorf(format, args...))
	}
}

func (w *world) ended() bool { return w.failed != nil }

// note makes something part of the trace: two runs of one seed have the same.
func (w *world) note(format string, args ...any) {
	line := fmt.Sprintf("%12v ", w.now) + fmt.Sprintf(format, args...)
	h := fnv.New64a()
	fmt.Fprintf(h, "%x", w.trace)
	io.WriteString(h, line)
	w.trace = h.Sum64()
	if w.verbose != nil {
		fmt.Fprintln(w.verbose, line)
	}
}

// between draws a time.
func (w *world) between(least, most time.Duration) time.Duration {
	return least + time.Duration(w.rand.Int64N(int64(most-least)+1))
}

// chance is true n times of a hundred.
func (w *world) chance(n int) bool { return w.rand.IntN(100) < n }

// A Result is what came of a run.
type Result struct {
	Trace  uint64
	Events int
	Ops    int
	// Of the replicas, how many forgot what was removed, and began anew.
	Collected, Anew int
	Err             error
}

// scratch is where nodes keep their large contents: in memory, if the machine
// has a place for it.
func scratch() string {
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		return "/dev/shm"
	}
	return os.TempDir()
}

// Run plays a program and checks what came of it.
func Run(p Program, verbose io.Writer) (r Result) {
	dir, err := os.MkdirTemp(scratch(), "synapsefs-sim-")
	if err != nil {
		return Result{Err: err}
	}
	defer os.RemoveAll(dir)
	w := newWorld(p, dir, verbose)
	defer func() {
		for _, n := range w.nodes {
			n.stop()
		}
		if e := recover(); e != nil {
			panic(fmt.Sprintf("seed %d: %v", p.Seed, e))
		}
	}()
	f := profileOf(p.Seed)
	w.begin(f)
	for i, word := range p.Words {
		if f.apart && i == len(p.Words)/4 {
			w.run(time.Second, w.ended)
			w.eachWire(func(l *wire) { l.setCut(true) })
		}
		if p.keeps(i) && !w.ended() {
			w.play(i, f.decode(word))
		}
	}
	w.settle()
	if w.retention > 0 && !w.ended() {
		w.age()
	}
	return Result{Trace: w.trace, Events: w.events, Ops: len(w.ops.ops), Collected: w.collected, Anew: len(w.anews), Err: w.failed}
}

func newWorld(p Program, dir string, verbose io.Writer) *world {
	w := &world{
		seed: p.Seed, rand: rand.New(rand.NewPCG(p.Seed, 1)), dir: dir, wires: map[[2]int]*wire{},
		volume: store.VolumeID{0: 7}, ops: newLedger(), verbose: verbose,
		anews: map[crdt.ReplicaID]*anew{}, doubted: map[crdt.ReplicaID]bool{},
		states: map[crdt.Hash]bool{}, whole: map[crdt.Hash]bool{}, plain: map[crdt.VersionID]crdt.Hash{},
	}
	w.states[hashOf(nil)], w.whole[hashOf(nil)] = true, true
	return w
}

// begin makes the first nodes: one that is ready, and others that join it.
func (w *world) begin(f profile) {
	w.loss = []int{0, 0, 5, 30}[w.rand.IntN(4)]
	n := 2 + w.rand.IntN(2)
	switch w.rand.IntN(20) {
	case 0:
		n = 5 + w.rand.IntN(8)
	case 1, 2:
		n = 4
	}
	if f.short {
		w.retention = time.Duration(max(6, 2*n)) * time.Second
		w.journalLimit = []int64{0, 2000}[w.rand.IntN(2)]
	}
	for range n {
		w.addNode()
	}
	w.run(w.between(0, time.Second), w.ended)
	if w.chance(70) { // mostly, work begins on nodes that can be written to
		w.run(10*time.Second, func() bool { return w.ended() || w.allReady() })
	}
}

func (w *world) allReady() bool {
	for _, n := range w.nodes {
		if !n.up || !n.vol.Ready() {
			return false
		}
	}
	return true
}

func (w *world) addNode() *node { return w.addNodeAs(user{}) }

// addNodeAs adds a node whose user remembers earlier lives.
func (w *world) addNodeAs(u user) *node {
	n := &node{
		user: u, ids: map[crdt.ReplicaID]bool{},
		w: w, index: len(w.nodes), name: fmt.Sprintf("n%02d", len(w.nodes)), mem: store.NewMemory(),
		random: rand.NewChaCha8([32]byte{0: byte(len(w.nodes)), 1: byte(w.seed), 2: byte(w.seed >> 8), 3: byte(w.seed >> 16), 4: byte(w.seed >> 24), 5: byte(w.seed >> 32)}),
	}
	n.dir = filepath.Join(w.dir, n.name)
	n.mem.BootID = "boot"
	n.mounted = w.chance(40)
	if w.chance(30) {
		n.skew = w.between(-3*365*24*time.Hour, 3*365*24*time.Hour)
	}
	w.nodes = append(w.nodes, n)
	n.start()
	for _, m := range w.nodes[:n.index] {
		w.wires[[2]int{n.index, m.index}] = &wire{w: w, from: n, to: m}
		w.wires[[2]int{m.index, n.index}] = &wire{w: w, from: m, to: n}
	}
	w.relink()
	return n
}
