package store

import (
	"fmt"
	"sync/atomic"
	"testing"
)

// BenchmarkCommit is a small new file: create, write, flush, release.
func BenchmarkCommit(b *testing.B) {
	v := testVolume(b, NewVolumeID())
	counted := &countingKV{kv: v.db.kv}
	v.db.kv = counted
	b.ResetTimer()
	for i := range b.N {
		write(b, v, root, fmt.Sprintf("f%07d", i), "<api name='x'/>")
	}
	b.StopTimer()
	if err := v.sealNow(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(counted.n.Load())/float64(b.N), "commits/op")
}

// countingKV counts the transactions that write.
type countingKV struct {
	kv
	n atomic.Int64
}

func (k *countingKV) update(fn func(txn) error) error {
	k.n.Add(1)
	return k.kv.update(fn)
}

// BenchmarkMerge is a remote new file, in batches as they were sealed.
func BenchmarkMerge(b *testing.B) {
	id := NewVolumeID()
	v, w := testVolume(b, id), testVolume(b, id)
	for i := range b.N {
		write(b, v, root, fmt.Sprintf("f%07d", i), "<api name='x'/>")
	}
	if err := v.sealNow(); err != nil {
		b.Fatal(err)
	}
	bs, _, err := v.Batches(w.Vector(), 1<<40)
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for _, x := range bs {
		if err := w.Merge(x); err != nil {
			b.Fatal(err)
		}
	}
}
