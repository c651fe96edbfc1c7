package sim

import (
	"errors"
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
	flagSeed     = flag.Uint64("sim.seed", 0, "the seed of TestSeed")
	flagKeep     = flag.String("sim.keep", "", "the steps of TestSeed to play, by commas; all if empty")
	flagFirst    = flag.Uint64("sim.first", 1, "the first seed of TestP4Seeds")
	flagMinimise = flag.Duration("sim.minimise", time.Minute, "how long a program that fails is made smaller")
	flagSeeds    = flag.Uint64("sim.seeds", 20_000, "the number of seeds of TestP4Seeds; a fiftieth with -short")
)

// report fails the test with a program made small.
func report(t *testing.T, p Program, err error) {
	t.Helper()
	if *flagMinimise == 0 || err == errStuck {
		t.Fatalf("seed %d: %v", p.Seed, err)
	}
	small := Minimise(p, *flagMinimise)
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

// stuck is how long a seed may take: beyond it, something does not end.
const stuck = 30 * time.Second

var errStuck = errors.New("it does not end")

// TestP4Seeds plays many seeds.
func TestP4Seeds(t *testing.T) {
	type failure struct {
		p   Program
		err error
	}
	if testing.Short() {
		*flagSeeds /= 50
	}
	var next, events, ops, collected, anew atomic.Uint64
	next.Store(*flagFirst)
	failures := make(chan failure, runtime.GOMAXPROCS(0))
	var over atomic.Bool
	var work sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		work.Go(func() {
			for !over.Load() {
				seed := next.Add(1) - 1
				if seed >= *flagFirst+*flagSeeds {
					return
				}
				p := FromSeed(seed)
				watch := time.AfterFunc(stuck, func() {
					failures <- failure{p, errStuck}
				})
				r := Run(p, nil)
				watch.Stop()
				events.Add(uint64(r.Events))
				ops.Add(uint64(r.Ops))
				collected.Add(uint64(r.Collected))
				anew.Add(uint64(r.Anew))
				if r.Err != nil {
					over.Store(true)
					failures <- failure{p, r.Err}
				}
			}
		})
	}
	go func() { work.Wait(); close(failures) }()
	if f, ok := <-failures; ok {
		if f.err != errStuck {
			work.Wait() // they clean up
		}
		report(t, f.p, f.err)
	}
	t.Logf("%d seeds, %d events, %d ops; %d replicas forgot what was removed, %d began anew",
		*flagSeeds, events.Load(), ops.Load(), collected.Load(), anew.Load())
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
