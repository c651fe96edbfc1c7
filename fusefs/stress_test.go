package fusefs_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/fstest"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

var (
	stressSeed = flag.Uint64("stress.seed", 0, "seed of the random programs; 0: a new one")
	stressTime = flag.Duration("stress.time", 3*time.Second, "how long they run")
)

// Random programs on both mounts at once, with everything cached: in the end
// each mount shows exactly what its store holds, and both the same.
func TestP4RandomPrograms(t *testing.T) {
	seed := *stressSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-stress.seed=%d", seed)
	p := fstest.MountPair(t, fstest.Options{})
	end := time.Now().Add(*stressTime)
	for round := uint64(0); time.Now().Before(end) && !t.Failed(); round++ {
		var tasks sync.WaitGroup
		for k, n := range []*fstest.Node{p.A, p.B, p.A, p.B} {
			r := rand.New(rand.NewPCG(seed, round*4+uint64(k)))
			tasks.Go(func() {
				for range 40 {
					randomCall(r, n.Dir)
				}
			})
		}
		tasks.Wait()
		p.Sync()
		want := storeTree(t, p.A.Volume, store.NodeID(crdt.RootIno), "")
		for name, got := range map[string][]string{
			"B's store": storeTree(t, p.B.Volume, store.NodeID(crdt.RootIno), ""),
			"A's mount": tree(t, p.A.Dir), "B's mount": tree(t, p.B.Dir),
		} {
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("round %d: %s has more %q, lacks %q", round, name, without(got, want), without(want, got))
			}
		}
		for _, n := range []*fstest.Node{p.A, p.B} {
			expectConsistent(t, n.Dir)
			expectAttrs(t, n.Volume, store.NodeID(crdt.RootIno), n.Dir)
			if s := n.Mount.Stats(); s.Pending > 0 {
				t.Errorf("round %d: %+v", round, s)
			}
		}
	}
	t.Logf("A %+v", p.A.Mount.Stats())
	t.Logf("B %+v", p.B.Mount.Stats())
}

// without is what is in a and not in b.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

var stressNames = []string{"a", "b", "c"}

func randomPath(r *rand.Rand, root string) string {
	path := root
	for range 1 + r.IntN(3) {
		path += "/" + stressNames[r.IntN(len(stressNames))]
	}
	return path
}

// randomCall makes one call, which may well fail.
func randomCall(r *rand.Rand, root string) {
	path, other := randomPath(r, root), randomPath(r, root)
	switch r.IntN(14) {
	case 0, 1, 2:
		os.WriteFile(path, fmt.Appendf(nil, "%x", r.Uint64()), 0o644)
	case 3:
		if f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0); err == nil {
			f.WriteString("+")
			f.Close()
		}
	case 4, 5:
		os.Mkdir(path, 0o755)
	case 6:
		os.Remove(path)
	case 7:
		os.Rename(path, other)
	case 8:
		unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE)
	case 9:
		os.Link(path, other)
	case 10:
		os.Symlink("a", path)
	case 11:
		os.Chmod(path, 0o700|os.FileMode(r.IntN(64)))
	case 12:
		os.ReadDir(path)
	case 13:
		os.ReadFile(path)
	}
}

// storeTree is what tree would list, read from the store.
func storeTree(t *testing.T, v *store.Volume, dir store.NodeID, prefix string) []string {
	t.Helper()
	var entries []store.DirEntry
	must(t, v.ReadDir(dir, 0, func(e store.DirEntry) bool {
		entries = append(entries, e)
		return true
	}))
	var out []string
	for _, e := range entries {
		a, err := v.AttrOf(e.Entry)
		must(t, err)
		name := prefix + e.Name
		switch e.Entry.Kind {
		case crdt.KindDir:
			out = append(append(out, name+"/"), storeTree(t, v, a.Node, name+"/")...)
		case crdt.KindSymlink:
			target, err := v.Readlink(a.Node)
			must(t, err)
			out = append(out, name+"->"+target)
		default:
			b := make([]byte, a.Size)
			n, err := v.ReadAt(a.Node, b, 0)
			must(t, err)
			out = append(out, name+"="+string(b[:n]))
		}
	}
	slices.Sort(out)
	return out
}

// expectConsistent checks that listings and lookups agree on each name.
func expectConsistent(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, name := range stressNames {
		at := slices.IndexFunc(entries, func(e os.DirEntry) bool { return e.Name() == name })
		info, err := os.Lstat(dir + "/" + name)
		if (at >= 0) != (err == nil) {
			t.Errorf("%s/%s: listed %v, stat %v", dir, name, at >= 0, err)
			continue
		}
		if at >= 0 && info.Mode().Type() != entries[at].Type() {
			t.Errorf("%s/%s: listed as %v, stat %v", dir, name, entries[at].Type(), info.Mode().Type())
		}
		if err == nil && info.IsDir() {
			expectConsistent(t, dir+"/"+name)
		}
	}
}

// expectAttrs checks that the kernel has no old attributes of anything.
func expectAttrs(t *testing.T, v *store.Volume, node store.NodeID, path string) {
	t.Helper()
	a, err := v.Attr(node)
	must(t, err)
	st := stat(t, path)
	got := fmt.Sprint(st.Ino, st.Mode&0o7777, st.Nlink, st.Size, st.Uid, st.Gid, st.Mtim, st.Ctim)
	want := fmt.Sprint(a.Ino, a.Mode, a.Nlink, a.Size, a.UID, a.GID,
		unix.Timespec{Sec: a.Mtime.Sec, Nsec: int64(a.Mtime.Nsec)}, unix.Timespec{Sec: a.Ctime.Sec, Nsec: int64(a.Ctime.Nsec)})
	if got != want {
		t.Errorf("%s: stat %s\nwant %s", path, got, want)
	}
	if a.Kind != crdt.KindDir {
		return
	}
	var entries []store.DirEntry
	must(t, v.ReadDir(node, 0, func(e store.DirEntry) bool {
		entries = append(entries, e)
		return true
	}))
	for _, e := range entries {
		expectAttrs(t, v, v.Node(e.Entry.Ino), path+"/"+e.Name)
	}
}
