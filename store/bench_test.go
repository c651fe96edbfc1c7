package store

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/synapsefs/synapsefs/store/crdt"
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

// BenchmarkMerge is a remote new file, of a slow stream (each in a batch of its
// own), each merged when it comes, or all that have come together.
func BenchmarkMerge(b *testing.B) {
	b.Run("each", func(b *testing.B) {
		benchmarkMerge(b, func(w *Volume, bs []*Batch) error {
			for _, x := range bs {
				if err := w.Merge(x); err != nil {
					return err
				}
			}
			return nil
		})
	})
	b.Run("together", func(b *testing.B) {
		benchmarkMerge(b, func(w *Volume, bs []*Batch) error {
			_, err := w.MergeAll(bs)
			return err
		})
	})
}

func benchmarkMerge(b *testing.B, merge func(*Volume, []*Batch) error) {
	id := NewVolumeID()
	v, w := testVolume(b, id), testVolume(b, id)
	for i := range b.N {
		write(b, v, root, fmt.Sprintf("f%07d", i), "<api name='x'/>")
		if err := v.sealNow(); err != nil {
			b.Fatal(err)
		}
	}
	bs, _, err := v.Batches(w.Vector(), 1<<40)
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	begun := cpuTime()
	if err := merge(w, bs); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64((cpuTime()-begun).Microseconds())/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(b.N)/float64(len(bs)), "ops/batch")
}

// BenchmarkReplace writes one small file anew, in place and by a rename: what
// it replaces becomes history.
func BenchmarkReplace(b *testing.B) {
	for _, how := range []string{"truncate", "rename"} {
		b.Run(how, func(b *testing.B) {
			v := testVolume(b, NewVolumeID())
			write(b, v, root, "f", "0")
			for i := range b.N {
				if how == "truncate" {
					write(b, v, root, "f", fmt.Sprint(i))
					continue
				}
				write(b, v, root, "t", fmt.Sprint(i))
				if err := v.Rename(Request{}, root, "t", root, "f", crdt.RenameReplace); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
