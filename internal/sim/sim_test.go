package sim

import (
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	flagSeed  = flag.Uint64("sim.seed", 0, "the seed of TestSeed")
	flagKeep  = flag.String("sim.keep", "", "the steps of TestSeed to play, by commas; all if empty")
	flagFirst = flag.Uint64("sim.first", 1, "the first seed of TestP4Seeds")
	flagSeeds = flag.Uint64("sim.seeds", 500, "the number of seeds of TestP4Seeds")
)

// report fails the test with a program made small.
func report(t *testing.T, p Program, err error) {
	t.Helper()
	small := Minimise(p, time.Minute)
	keep := make([]string, len(small.Kept))
	for i, k := range small.Kept {
		keep[i] = strconv.Itoa(k)
	}
	t.Fatalf("seed %d: %v\nmade small: %v\n%v\ngo test ./internal/sim -run 'TestSeed$' -v -sim.seed=%d -sim.keep=%s",
		p.Seed, err, Run(small, nil).Err, small, p.Seed, strings.Join(keep, ","))
}

// TestSeed plays one seed and tells all of it.
func TestSeed(t *testing.T) {
	p := FromSeed(*flagSeed)
	if *flagKeep != "" {
		p.Kept = []int{}
		for k := range strings.SplitSeq(*flagKeep, ",") {
			n, err := strconv.Atoi(k)
			if err != nil {
				t.Fatal(err)
			}
			p.Kept = append(p.Kept, n)
		}
	}
	var out io.Writer
	if testing.Verbose() {
		out = os.Stderr
	}
	if r := Run(p, out); r.Err != nil {
		if p.Kept == nil {
			report(t, p, r.Err)
		}
		t.Fatal(r.Err)
	}
}

// TestP4Seeds plays many seeds.
func TestP4Seeds(t *testing.T) {
	var next, events, ops atomic.Uint64
	var failed atomic.Pointer[Program]
	var why atomic.Pointer[error]
	next.Store(*flagFirst)
	var work sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		work.Go(func() {
			for failed.Load() == nil {
				seed := next.Add(1) - 1
				if seed >= *flagFirst+*flagSeeds {
					return
				}
				p := FromSeed(seed)
				r := Run(p, nil)
				events.Add(uint64(r.Events))
				ops.Add(uint64(r.Ops))
				if r.Err != nil {
					failed.Store(&p)
					why.Store(&r.Err)
				}
			}
		})
	}
	work.Wait()
	if p := failed.Load(); p != nil {
		report(t, *p, *why.Load())
	}
	t.Logf("%d seeds, %d events, %d ops", *flagSeeds, events.Load(), ops.Load())
}

// TestSameSeedSameRun: a seed is a run.
func TestSameSeedSameRun(t *testing.T) {
	for seed := uint64(1); seed <= 40; seed++ {
		a, b := Run(FromSeed(seed), nil), Run(FromSeed(seed), nil)
		if fmt.Sprint(a) != fmt.Sprint(b) {
			t.Errorf("seed %d: %v, then %v", seed, a, b)
		}
	}
}
