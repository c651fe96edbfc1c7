package gossip

import (
	"fmt"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// BenchmarkPush is the time from a batch that was sealed here to its merge at
// a peer, and (ack) until this node knows of that.
func BenchmarkPush(b *testing.B) {
	for _, part := range []string{"merge", "ack"} {
		b.Run(part, func(b *testing.B) {
			_, x, y, _ := trio(b)
			sealed := make(chan time.Time, 64)
			defer x.v.OnSeal(func(*store.Batch) { sealed <- time.Now() })()
			merged := make(chan time.Time, 64)
			defer y.v.OnMerge(func(crdt.Vector) { merged <- time.Now() })()
			x.write(b, "f", []byte("warm"))
			<-sealed
			<-merged
			var sum time.Duration
			b.ResetTimer()
			for i := range b.N {
				x.write(b, fmt.Sprintf("f%d", i%10), []byte("hello"))
				from := <-sealed
				to := <-merged
				if part == "ack" {
					if err := x.cluster.WaitPeers(timeout(b), testVolume, x.v.Vector(), []string{"y"}); err != nil {
						b.Fatal(err)
					}
					to = time.Now()
				}
				sum += to.Sub(from)
			}
			b.ReportMetric(float64(sum.Microseconds())/float64(b.N), "µs/"+part)
		})
	}
}
