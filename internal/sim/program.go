package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// A Program is what happens in a run, besides what the network does: each word
// is a step. Kept, if it is not nil, has the indices of the steps to play.
type Program struct {
	Seed  uint64
	Words []uint64
	Kept  []int
}

// FromSeed is the program of a seed.
func FromSeed(seed uint64) Program {
	r := rand.New(rand.NewPCG(seed, 2))
	p := Program{Seed: seed, Words: make([]uint64, 8+r.IntN(33))}
	for i := range p.Words {
		p.Words[i] = r.Uint64()
	}
	return p
}

func (p Program) keeps(i int) bool { return p.Kept == nil || slices.Contains(p.Kept, i) }

func (p Program) indices() []int {
	if p.Kept != nil {
		return p.Kept
	}
	all := make([]int, len(p.Words))
	for i := range all {
		all[i] = i
	}
	return all
}

// String lists the steps.
func (p Program) String() string {
	var b strings.Builder
	f := profileOf(p.Seed)
	for _, i := range p.indices() {
		fmt.Fprintf(&b, "%3d %v\n", i, f.decode(p.Words[i]))
	}
	return b.String()
}

// A step is one thing that befalls one node, or the network.
type step struct {
	verb     string
	who      int // a node, modulo their number
	other    int // another
	path, to string
	size     int
	word     uint64 // makes contents differ
	n        int
	wait     time.Duration // then
}

func (s step) String() string {
	return fmt.Sprintf("%-9s node %d %-8s %-8s size %d n %d (other %d), then %v", s.verb, s.who, s.path, s.to, s.size, s.n, s.other, s.wait)
}

// calls, those of them that move directories, and faults, with their weights.
var (
	calls = []weighted{
		{9, "write"}, {6, "open"}, {3, "overwrite"}, {6, "append"}, {6, "close"}, {4, "truncate"}, {5, "replace"},
		{8, "rename"}, {3, "exchange"}, {4, "link"}, {8, "unlink"}, {6, "rmdir"}, {8, "mkdir"}, {2, "symlink"},
		{2, "xattr"}, {1, "unxattr"}, {2, "chmod"}, {1, "chown"}, {3, "utimens"}, {2, "fsync"}, {2, "read"}, {3, "flush"},
		{3, "sync"}, {2, "removeall"},
	}
	moves  = []weighted{{6, "mkdir"}, {12, "rename"}, {16, "exchange"}, {1, "rmdir"}, {1, "write"}}
	faults = []weighted{
		{6, "cut"}, {4, "heal"}, {4, "meet"}, {4, "kill"}, {2, "power"}, {1, "restart"}, {2, "clock"}, {1, "join"}, {3, "writeback"},
	}
)

// lore is what is done with what lost and what was; ages, what befalls nodes
// where the retention is short.
var (
	lore = []weighted{{3, "dismiss"}, {3, "recover"}, {3, "undelete"}, {2, "limits"}}
	ages = []weighted{{5, "away"}, {3, "pass"}, {2, "forget"}, {3, "backup"}, {4, "restore"}}
)

type weighted struct {
	weight int
	verb   string
}

// names are few, so that steps meet.
var names = []string{"a", "b", "c"}

// A profile is what the steps of one seed are drawn from. It has some of the
// verbs only: a run that does few things does them to each other (Groce et al.,
// "Swarm testing", 2012).
type profile struct {
	verbs []weighted
	total int
	names int
	depth int // of paths, at most
	hasty bool
	apart bool // soon all nodes are cut off from each other
	short bool // so is the retention
}

func profileOf(seed uint64) (f profile) {
	r := rand.New(rand.NewPCG(seed, 4))
	f.names, f.depth, f.hasty, f.apart = 1+r.IntN(len(names)), 1+r.IntN(3), r.IntN(2) == 0, r.IntN(3) == 0
	some := func(all []weighted, percent int) {
		for _, v := range all {
			if r.IntN(100) < percent {
				f.verbs = append(f.verbs, v)
				f.total += v.weight
			}
		}
	}
	if r.IntN(4) == 0 { // directories, moved about
		f.names, f.depth, f.apart = 2, 2+r.IntN(2), true
		some(moves, 100)
	} else {
		some(calls[:3], 80)
		some(calls[3:], 40+r.IntN(60))
	}
	some(faults, r.IntN(80))
	some(lore, 40)
	if f.short = r.IntN(3) == 0; f.short {
		some(ages, 60)
	}
	if f.total == 0 {
		f.verbs, f.total = calls[:1], calls[0].weight
	}
	return f
}

// decode makes a step of a word.
func (f profile) decode(word uint64) step {
	r := rand.New(rand.NewPCG(word, 3))
	s := step{word: word, who: r.IntN(12), other: r.IntN(12), n: r.IntN(4)}
	at := r.IntN(f.total)
	for _, v := range f.verbs {
		if at -= v.weight; at < 0 {
			s.verb = v.verb
			break
		}
	}
	s.path, s.to = f.path(r), f.path(r)
	switch r.IntN(6) {
	case 0:
		s.size = 0
	case 1:
		s.size = inlineLimit + r.IntN(2*inlineLimit)
	default:
		s.size = r.IntN(40)
	}
	switch r.IntN(12) {
	case 0:
		s.wait = time.Duration(r.IntN(20)) * time.Second
	case 1, 2:
		s.wait = time.Duration(r.IntN(1500)) * time.Millisecond
	case 3, 4, 5:
		s.wait = time.Duration(r.IntN(60)) * time.Millisecond
	}
	if f.hasty {
		s.wait /= 20
	}
	return s
}

func (f profile) path(r *rand.Rand) string {
	parts := make([]string, min(f.depth, 1+[]int{0, 0, 0, 1, 1, 2}[r.IntN(6)]))
	for i := range parts {
		parts[i] = names[r.IntN(f.names)]
	}
	return strings.Join(parts, "/")
}

// Minimise leaves out steps as long as the program still fails: delta
// debugging (Zeller, Hildebrandt, 2002), on the list of steps.
func Minimise(p Program, limit time.Duration) Program {
	end := time.Now().Add(limit)
	kept := p.indices()
	fails := func(kept []int) bool {
		q := p
		q.Kept = append([]int{}, kept...)
		return Run(q, nil).Err != nil
	}
	for size := max(len(kept)/2, 1); ; {
		smaller := false
		for at := 0; at < len(kept) && time.Now().Before(end); {
			rest := slices.Concat(kept[:at], kept[min(at+size, len(kept)):])
			if fails(rest) {
				kept, smaller = rest, true
			} else {
				at += size
			}
		}
		if size == 1 && !smaller || time.Now().After(end) {
			break
		}
		size = max(size/2, 1)
	}
	p.Kept = append([]int{}, kept...)
	return p
}
