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
