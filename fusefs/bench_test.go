package fusefs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/synapsefs/synapsefs/internal/fstest"
)

// BenchmarkCreate makes small files through a real mount.
func BenchmarkCreate(b *testing.B) {
	m := fstest.Mount(b, fstest.Options{})
	content := make([]byte, 1024)
	b.ResetTimer()
	for i := range b.N {
		if err := os.WriteFile(filepath.Join(m.Dir, fmt.Sprintf("f%07d", i)), content, 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen opens, reads and closes a small file that the kernel has.
func BenchmarkOpen(b *testing.B) {
	m := fstest.Mount(b, fstest.Options{})
	path := filepath.Join(m.Dir, "f")
	if err := os.WriteFile(path, make([]byte, 4096), 0o644); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 8192)
	b.ResetTimer()
	for range b.N {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		if n, err := f.Read(buf); n != 4096 || err != nil {
			b.Fatal(n, err)
		}
		f.Close()
	}
}
