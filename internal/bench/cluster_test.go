package bench

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/internal/playground"
)

var passthrough = flag.Bool("passthrough", false, "measure with the option of that name")

var given = flag.String("binary", "", "a synapsefs `FILE` to measure, instead of a fresh build")

// newCluster starts n daemons with one volume mounted on each.
func newCluster(b *testing.B, n int) *playground.Cluster { return newClusterOn(b, n, nil) }

// newClusterOn does so on given hosts; nil is this one.
func newClusterOn(b *testing.B, n int, hosts []playground.Host) *playground.Cluster {
	b.Helper()
	dir := b.TempDir()
	binary := *given
	if binary == "" {
		binary = filepath.Join(dir, "synapsefs")
		if out, err := exec.Command("go", "build", "-o", binary, "../../cmd/synapsefs").CombinedOutput(); err != nil {
			b.Fatalf("build: %v\n%s", err, out)
		}
	}
	c, err := playground.New(dir, binary, 0)
	if err != nil {
		b.Fatal(err)
	}
	c.Hosts, c.NoPassthrough = hosts, !*passthrough
	for range n {
		if _, err := c.Add(); err != nil {
			b.Fatal(err)
		}
	}
	b.Cleanup(func() {
		if err := c.Close(); err != nil {
			b.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		b.Fatal(err)
	}
	for i, nd := range c.Nodes {
		if err := nd.MountVolume(ctx, "bench", i == 0); err != nil {
			b.Fatal(err)
		}
	}
	return c
}

// poll is how often a reader looks.
const poll = 200 * time.Microsecond

// awaitWhole returns when a path was first read as want, and an error if it
// is ever read as something else than want or before (nil: not there).
func awaitWhole(path string, before, want []byte) (time.Time, error) {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		got, err := os.ReadFile(path)
		switch {
		case err == nil && bytes.Equal(got, want):
			return time.Now(), nil
		case os.IsNotExist(err) && before == nil:
		case err == nil && before != nil && bytes.Equal(got, before):
		default:
			return time.Time{}, fmt.Errorf("torn read of %s: %d bytes, %v", path, len(got), err)
		}
		time.Sleep(poll) // the reader's polling interval, not synchronisation
	}
	return time.Time{}, fmt.Errorf("%s did not arrive", path)
}

// A write brings a file into being or changes it, and returns when its last
// call began to return: from then on the readers' clocks run.
type write func(path string, content []byte) error

func direct(path string, content []byte) error { return os.WriteFile(path, content, 0o644) }

func viaRename(path string, content []byte) error {
	tmp := filepath.Join(filepath.Dir(path), ".tmp")
	if err := os.WriteFile(tmp, content, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// latency measures one way of writing: how long the write took, and how long
// from its last close or rename until each other node reads it whole.
func latency(b *testing.B, w write, fresh bool) {
	c := newCluster(b, 3)
	var local, remote []time.Duration
	var before []byte
	name := "file.xml"
	type seen struct {
		at  time.Time
		err error
	}
	b.ResetTimer()
	for i := range b.N {
		if fresh {
			name = fmt.Sprintf("file%06d.xml", i)
		}
		content := bytes.Repeat([]byte(fmt.Sprintf("<api n='%07d'/>", i)), 512)
		results := make(chan seen, 2)
		for _, nd := range c.Nodes[1:] {
			go func() {
				at, err := awaitWhole(filepath.Join(nd.Mount, name), before, content)
				results <- seen{at, err}
			}()
		}
		begun := time.Now()
		if err := w(filepath.Join(c.Nodes[0].Mount, name), content); err != nil {
			b.Fatal(err)
		}
		closed := time.Now()
		local = append(local, closed.Sub(begun))
		for range c.Nodes[1:] {
			r := <-results
			if r.err != nil {
				b.Fatal(r.err)
			}
			remote = append(remote, max(0, r.at.Sub(closed)))
		}
		if !fresh {
			before = content
		}
	}
	report(b, "write", local)
	report(b, "arrive", remote)
}

func report(b *testing.B, what string, ds []time.Duration) {
	slices.Sort(ds)
	at := func(p float64) float64 {
		return float64(ds[min(len(ds)-1, int(p*float64(len(ds))))].Microseconds()) / 1000
	}
	b.ReportMetric(at(0.5), what+"-p50-ms")
	b.ReportMetric(at(0.99), what+"-p99-ms")
}
