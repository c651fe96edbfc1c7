package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/internal/playground"
)

// BenchmarkHeal is how fast two nodes that were cut from each other, and on
// each of which b.N files were written meanwhile, become equal again: changes a
// second over both, from the moment at which they see each other, and the most
// memory that a daemon took for it. The full figure: -benchtime 100000x.
func BenchmarkHeal(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("network namespaces need root")
	}
	network, err := playground.NewNetwork(2)
	b.Cleanup(func() {
		if err := network.Close(); err != nil {
			b.Error(err)
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	c := newClusterOn(b, 2, network.Hosts)
	ctx := b.Context()
	for _, nd := range c.Nodes {
		if err := os.Mkdir(filepath.Join(nd.Mount, nd.Name), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := nd.Wait(ctx, "bench"); err != nil {
			b.Fatal(err)
		}
	}
	if err := network.Cut(1); err != nil {
		b.Fatal(err)
	}
	writeApart(b, c.Nodes)
	before := [2]int{peak(b, c.Nodes[0]), peak(b, c.Nodes[1])}
	if err := network.Heal(1); err != nil {
		b.Fatal(err)
	}
	last := [2]string{}
	for n, nd := range c.Nodes {
		last[n] = filepath.Join(c.Nodes[1-n].Mount, nd.Name, "d0", "f0")
	}
	b.ResetTimer()
	healed := time.Now()
	first := awaitAny(b, last[:])
	var all sync.WaitGroup
	for _, nd := range c.Nodes {
		all.Go(func() {
			if err := nd.Wait(ctx, "bench"); err != nil {
				b.Error(err)
			}
		})
	}
	all.Wait()
	b.StopTimer()
	took := time.Since(first)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(2*float64(b.N)/took.Seconds(), "changes/s")
	b.ReportMetric(took.Seconds(), "s")
	b.ReportMetric(first.Sub(healed).Seconds(), "s-to-first")
	for n, nd := range c.Nodes {
		b.ReportMetric(float64(peak(b, nd)), fmt.Sprintf("MiB-node%d", n+1))
		b.ReportMetric(float64(before[n]), fmt.Sprintf("MiB-node%d-cut", n+1))
	}
}

// writeApart writes b.N small files on each node.
func writeApart(b *testing.B, nodes []*playground.Node) {
	var writers sync.WaitGroup
	for _, nd := range nodes {
		writers.Go(func() {
			for n := range b.N {
				dir := filepath.Join(nd.Mount, nd.Name, fmt.Sprintf("d%d", n/1000))
				if n%1000 == 0 {
					if err := os.Mkdir(dir, 0o755); err != nil {
						b.Error(err)
						return
					}
				}
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", n)), fmt.Appendf(nil, "<api name='%d'/>", n), 0o644); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	if b.Failed() {
		b.FailNow()
	}
}

// awaitAny returns when the first of the paths is there.
func awaitAny(b *testing.B, paths []string) time.Time {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		for _, p := range paths {
			if _, err := os.Stat(p); err == nil {
				return time.Now()
			}
		}
		time.Sleep(time.Millisecond) // the reader's polling interval, not synchronisation
	}
	b.Fatal("nothing arrived")
	return time.Time{}
}

// peak is the most memory that a node's daemon has taken, in MiB.
func peak(b *testing.B, nd *playground.Node) (mib int) {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", nd.PID()))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &mib); err == nil {
			return mib >> 10
		}
	}
	b.Fatal("no VmHWM")
	return 0
}
