package node

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// clockReport is how often one replica's clock is reported, and how long it
// stays a problem after its last change from the future.
const clockReport = 5 * time.Minute

// clocks notices replicas whose changes come from the future. They are accepted
// all the same; but stamps follow the fastest clock, so somebody should mend it.
type clocks struct {
	limit time.Duration
	log   *slog.Logger

	mu    sync.Mutex // guards what follows; a leaf
	ahead map[crdt.ReplicaID]skew
}

type skew struct {
	by     time.Duration
	volume string
	at     time.Time
}

// check looks at a vector after a merge. It does not block.
func (c *clocks) check(volume string, vector crdt.Vector, now time.Time) {
	for r, e := range vector {
		by := time.Duration(int64(e.Stamp) - now.UnixNano())
		if by > c.limit {
			c.report(r, skew{by, volume, now})
		}
	}
}

func (c *clocks) report(r crdt.ReplicaID, s skew) {
	c.mu.Lock()
	last, known := c.ahead[r]
	if known && s.at.Sub(last.at) < clockReport {
		c.mu.Unlock()
		return
	}
	if c.ahead == nil {
		c.ahead = map[crdt.ReplicaID]skew{}
	}
	c.ahead[r] = s
	c.mu.Unlock()
	c.log.Error("a peer's clock runs ahead", "volume", s.volume, "replica", r, "by", s.by)
}

// problems says which clocks ran ahead lately.
func (c *clocks) problems() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []string
	for _, r := range slices.Sorted(maps.Keys(c.ahead)) {
		if s := c.ahead[r]; time.Since(s.at) < 2*clockReport {
			all = append(all, fmt.Sprintf("the clock of replica %v of volume %s runs %v ahead", r, s.volume, s.by.Round(time.Millisecond)))
		}
	}
	return all
}
