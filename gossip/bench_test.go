package gossip

import (
	"fmt"
	"syscall"
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

// BenchmarkMergeVerified is what a peer does with a batch from its bytes on:
// decode, hash, verify the signature, merge. Batches as a writer in a hurry
// seals them; cpu-ops/s counts this process' time, not the clock's.
func BenchmarkMergeVerified(b *testing.B) {
	c := newTestCluster(b)
	x, y := c.node("x", true), c.node("y", true)
	ids := newIdentities(x.keys)
	if err := ids.own(x.v, x.v.Replica()); err != nil {
		b.Fatal(err)
	}
	record, err := x.v.Identity(x.v.Replica())
	if err == nil {
		err = ids.learn(y.v, record)
	}
	if err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		x.write(b, fmt.Sprintf("f%07d", i), []byte("<api name='x'/>"))
	}
	if err := x.v.Sync(); err != nil {
		b.Fatal(err)
	}
	var encoded [][]byte
	ops := 0
	bodies, _, err := x.v.Batches(nil, 1<<40)
	if err != nil {
		b.Fatal(err)
	}
	for _, body := range bodies {
		ops += len(body.Ops)
		encoded = append(encoded, body.Encode())
	}
	before := cpuTime(b)
	b.ReportAllocs()
	b.ResetTimer()
	for _, raw := range encoded {
		body, err := store.DecodeBatch(raw)
		if err == nil {
			err = ids.check(y.v, body)
		}
		if err == nil {
			err = y.v.Merge(body)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(ops)/(cpuTime(b)-before).Seconds(), "cpu-ops/s")
	b.ReportMetric(float64(ops)/float64(len(encoded)), "ops/batch")
}

// cpuTime is what this process has used of the processors.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
