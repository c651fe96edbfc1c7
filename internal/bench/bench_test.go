package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func BenchmarkLatencyNewFile(b *testing.B)   { latency(b, direct, true) }
func BenchmarkLatencyRename(b *testing.B)    { latency(b, viaRename, false) }
func BenchmarkLatencyOverwrite(b *testing.B) { latency(b, direct, false) }

// BenchmarkImport writes 5,000 files of 1 KiB in 100 directories on one node,
// and measures until all three nodes hold them whole.
func BenchmarkImport(b *testing.B) {
	c := newCluster(b, 3)
	for n := range b.N {
		before := costs(b, c.Nodes)
		start := time.Now()
		top := fmt.Sprintf("import%d", n)
		for d := range 100 {
			dir := filepath.Join(c.Nodes[0].Mount, top, fmt.Sprintf("d%02d", d))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				b.Fatal(err)
			}
			for f := range 50 {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%02d.xml", f)), make([]byte, 1024), 0o644); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(time.Since(start).Seconds(), "local-s")
		written := costs(b, c.Nodes)
		for _, nd := range c.Nodes[1:] {
			if err := awaitTree(filepath.Join(nd.Mount, top), 5000); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(time.Since(start).Seconds(), "everywhere-s")
		reportCosts(b, 5000, before, written, costs(b, c.Nodes))
	}
}

// awaitTree returns when a tree has n regular files of 1 KiB.
func awaitTree(dir string, n int) error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		got := 0
		_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error { // not there yet is no error
			if err == nil && e.Type().IsRegular() {
				if info, err := e.Info(); err == nil && info.Size() == 1024 {
					got++
				}
			}
			return nil
		})
		if got == n {
			return nil
		}
		time.Sleep(20 * time.Millisecond) // the reader's polling interval
	}
	return fmt.Errorf("%s is not complete", dir)
}
