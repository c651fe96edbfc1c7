package store

import (
	"fmt"
	"testing"
)

// BenchmarkCommit is a small new file: create, write, flush, release.
func BenchmarkCommit(b *testing.B) {
	v := testVolume(b, NewVolumeID())
	for i := range b.N {
		write(b, v, root, fmt.Sprintf("f%07d", i), "<api name='x'/>")
	}
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
