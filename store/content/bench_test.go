package content

import (
	"fmt"
	"os"
	"testing"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// largeBase makes a version of size bytes with one real block at its end and
// made-up others.
func largeBase(b *testing.B, s *Store, size int64) *Manifest {
	real := publishBytes(b, s, noise(1, BlockSize/2))
	m := largeManifest(size)
	last := len(m.runs[0].hashes) - 1
	m.runs[0].hashes[last] = real.Block(0)
	return m
}

// BenchmarkAppendToLarge opens a 10 GiB file, appends a byte and publishes.
func BenchmarkAppendToLarge(b *testing.B) {
	s, _ := openStore(b)
	m := largeBase(b, s, 10<<30-BlockSize/2)
	for i := 0; b.Loop(); i++ {
		d := must(s.CreateDraft(fmt.Sprint(i), Base{Manifest: m}, m.Size(), m.Size()))(b)
		must(d.WriteAt([]byte{byte(i), byte(i >> 8), byte(i >> 16)}, m.Size()))(b)
		must(d.Publish(true, 0))(b)
		check(b, d.Remove())
	}
}

func BenchmarkPublish256MiB(b *testing.B) {
	s, index := openStore(b)
	const blocks = 256
	chunk := noise(1, BlockSize)
	b.SetBytes(blocks * BlockSize)
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		d := must(s.CreateDraft("d", Base{}, 0, 0))(b)
		for block := range blocks {
			chunk[0], chunk[1], chunk[2] = byte(block), byte(i), byte(i>>8)
			must(d.WriteAt(chunk, int64(block)*BlockSize))(b)
		}
		b.StartTimer()
		must(d.Publish(true, 0))(b)
		b.StopTimer()
		check(b, d.Remove())
		for _, l := range index.blocks {
			check(b, os.RemoveAll(s.filePath(l.File)))
		}
		index.blocks = make(map[crdt.Hash]Location)
		b.StartTimer()
	}
}

func BenchmarkWrite128KiB(b *testing.B) {
	s, _ := openStore(b)
	d := must(s.CreateDraft("d", Base{}, 0, 0))(b)
	defer d.Remove()
	chunk := noise(1, 128<<10)
	b.SetBytes(int64(len(chunk)))
	for i := int64(0); b.Loop(); i++ {
		must(d.WriteAt(chunk, i%1024*int64(len(chunk))))(b)
	}
}

// BenchmarkAppendToRead publishes a line at the end of a 64 MiB file that a
// kernel reads, by a writer who can map the file and by one who cannot.
func BenchmarkAppendToRead(b *testing.B) {
	for what, w := range map[string]Writing{"maps": WritesAnywhere, "appends": WritesAtEnd} {
		b.Run(what, func(b *testing.B) {
			s, _ := openStore(b)
			a := newAdopted(b, s, noise(1, 64*BlockSize))
			defer a.file.Close()
			line := noise(2, 100)
			size := len(a.want)
			for b.Loop() {
				a.open(b, w)
				must(a.draft.WriteAt(line, int64(size)))(b)
				size += len(line)
				a.publish(b, true)
			}
		})
	}
}

// BenchmarkHold is what the record of a file that a kernel has open costs.
func BenchmarkHold(b *testing.B) {
	s, _ := openStore(b)
	f := must(os.CreateTemp(b.TempDir(), ""))(b)
	defer f.Close()
	for b.Loop() {
		slot := must(s.Hold(f, Held{Mount: 1, Node: 2, ID: 3}))(b)
		check(b, s.LetGo(slot))
	}
}
