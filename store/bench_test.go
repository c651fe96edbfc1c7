package store

import (
	"fmt"
	"testing"

	"github.com/synapsefs/synapsefs/store/crdt"
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
