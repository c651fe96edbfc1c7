package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/wire"
)

// aDirectory is how many files BenchmarkTree has in each directory.
const aDirectory = 100_000

// BenchmarkTree makes b.N files, and then lists and stats all of them through a
// mount whose kernel knows none: what each costs, and the daemon's memory before
// and after. The full figures: -benchtime 100000x and 1000000x.
func BenchmarkTree(b *testing.B) {
	c := newCluster(b, 1)
	nd := c.Nodes[0]
	begun := time.Now()
	for n := range b.N {
		dir := filepath.Join(nd.Mount, fmt.Sprintf("d%02d", n/aDirectory))
		if n%aDirectory == 0 {
			if err := os.Mkdir(dir, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%07d", n)), page[:100], 0o644); err != nil {
			b.Fatal(err)
		}
	}
	report := func(what string, since time.Time) {
		b.ReportMetric(float64(time.Since(since).Microseconds())/float64(b.N), "us/"+what)
	}
	report("create", begun)
	b.ReportMetric(float64(peak(b, nd)), "MiB-created")
	top := filepath.Join(c.Dir, "again")
	if err := os.Mkdir(top, 0o755); err != nil {
		b.Fatal(err)
	}
	err := nd.Call(func(c *admin.Client) error {
		_, err := c.Mount(b.Context(), &wire.MountVolumeRequest{Volume: "bench", Dir: []byte(top)})
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	for _, what := range []string{"cold", "warm"} {
		for _, do := range []struct {
			name string
			dir  func(dir string, at int) error
		}{{"list", func(dir string, _ int) error { return listNames(dir, 0) }}, {"stat", func(dir string, at int) error {
			var st unix.Stat_t
			for n := at * aDirectory; n < min(b.N, (at+1)*aDirectory); n++ {
				if err := unix.Lstat(filepath.Join(dir, fmt.Sprintf("f%07d", n)), &st); err != nil {
					return err
				}
			}
			return nil
		}}} {
			begun := time.Now()
			for at := 0; at*aDirectory < b.N; at++ {
				if err := do.dir(filepath.Join(top, fmt.Sprintf("d%02d", at)), at); err != nil {
					b.Fatal(err)
				}
			}
			report(do.name+"-"+what, begun)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(peak(b, nd)), "MiB-known-twice")
	err = nd.Call(func(c *admin.Client) error {
		_, err := c.Unmount(b.Context(), &wire.UnmountRequest{Dir: []byte(top)})
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
}
