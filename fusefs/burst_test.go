package fusefs_test

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

// TestP10NeverSilence: of more changes at once than a watcher's queue takes, who
// reads his queue hears all, and who sleeps hears that it overflowed.
func TestP10NeverSilence(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	p := fstest.MountPair(t, fstest.Options{})
	tree(t, p.B.Dir)
	awake, asleep := fstest.NewWatch(t, p.B.Dir), fstest.NewWatch(t, p.B.Dir)
	heard := map[string]bool{}
	stop := awake.Record(func(e fstest.Event) { heard[e.Kind+" "+e.Name] = true })
	const files = 6_000 // three events each; max_queued_events is 16,384
	heal := p.Cut()
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for n := w; n < files; n += 4 {
				if err := os.WriteFile(fmt.Sprintf("%s/f%d", p.A.Dir, n), nil, 0o644); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	begin := time.Now()
	heal()
	for end := begin.Add(time.Minute); p.B.Mount.Stats().Reveals < files && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	p.Sync()
	stop()
	if !heard["Q_OVERFLOW "] {
		for n := range files {
			if name := fmt.Sprintf("CREATE f%d", n); !heard[name] {
				t.Fatalf("not heard: %s", name)
			}
		}
	}
	events := asleep.Read()
	if last := events[len(events)-1]; last.Kind != "Q_OVERFLOW" {
		t.Errorf("%d events, the last is %v", len(events), last)
	}
	t.Logf("%d files shown in %v, who read overflowed: %v, %+v", files, time.Since(begin), heard["Q_OVERFLOW "], p.B.Mount.Stats())
}
