package fusefs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/synapsefs/synapsefs/internal/fstest"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
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

// BenchmarkReveal shows changes of another node to a kernel that knows all names,
// with somebody watching: each with its call and its events.
func BenchmarkReveal(b *testing.B) {
	const files = 500
	for _, kind := range []struct {
		name   string
		change func(v *store.Volume, dir store.NodeID, n int) error
	}{
		{"create", func(v *store.Volume, dir store.NodeID, n int) error {
			return makeFile(v, dir, fmt.Sprintf("new%d", n), "text")
		}},
		{"rewrite", func(v *store.Volume, dir store.NodeID, n int) error {
			a, _, err := v.Lookup(dir, fmt.Sprint(n%files))
			if err != nil {
				return err
			}
			h, err := v.OpenWrite(store.Request{}, a.Node, true)
			if err != nil {
				return err
			}
			_, err = v.WriteAt(a.Node, h, fmt.Append(nil, n), 0, false)
			return errors.Join(err, v.Release(store.Request{}, a.Node, h))
		}},
		{"replace", func(v *store.Volume, dir store.NodeID, n int) error {
			tmp := fmt.Sprintf("%d.tmp", n)
			return errors.Join(makeFile(v, dir, tmp, "text"), v.Rename(store.Request{}, dir, tmp, dir, fmt.Sprint(n%files), crdt.RenameReplace))
		}},
		{"chmod", func(v *store.Volume, dir store.NodeID, n int) error {
			a, _, err := v.Lookup(dir, fmt.Sprint(n%files))
			if err == nil {
				mode := uint32(0o600 + n/files%8)
				_, err = v.SetAttr(store.Request{}, a.Node, store.SetAttr{Mode: &mode})
			}
			return err
		}},
	} {
		b.Run(kind.name, func(b *testing.B) {
			p := fstest.MountPair(b, fstest.Options{})
			must(b, os.Mkdir(p.A.Dir+"/d", 0o755))
			for n := range files {
				writeFile(b, fmt.Sprintf("%s/d/%d", p.A.Dir, n), "text")
			}
			p.Sync()
			tree(b, p.B.Dir)
			stop := fstest.NewWatch(b, p.B.Dir+"/d").Record(func(fstest.Event) {})
			defer stop()
			dir, _, err := p.A.Volume.Lookup(store.NodeID(crdt.RootIno), "d")
			must(b, err)
			before := p.B.Mount.Stats().Reveals
			b.ResetTimer()
			for n := range b.N {
				must(b, kind.change(p.A.Volume, dir.Node, n))
				if n%files == files-1 {
					p.Sync()
				}
			}
			p.Sync()
			b.ReportMetric(float64(p.B.Mount.Stats().Reveals-before)/float64(b.N), "calls/op")
		})
	}
}

func makeFile(v *store.Volume, dir store.NodeID, name, text string) error {
	a, h, err := v.Create(store.Request{}, dir, name, store.NewNode{Kind: crdt.KindFile, Mode: 0o644})
	if err != nil {
		return err
	}
	_, err = v.WriteAt(a.Node, h, []byte(text), 0, false)
	return errors.Join(err, v.Release(store.Request{}, a.Node, h))
}
