package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// filled makes a store with data in tables and in a log, and closes it.
func filled(t testing.TB) (dir string, id VolumeID) {
	t.Helper()
	dir = t.TempDir()
	v := volumeWith(t, NewVolumeID(), Options{Dir: dir})
	for n := range 300 {
		write(t, v, root, fmt.Sprint("f", n), noise(uint64(n), 40_000))
	}
	check(t, v.db.Close(), nil)
	return dir, v.id
}

// killed leaves a store as a kill does: a copy of its files while it is open.
func killed(t testing.TB) (dir string) {
	t.Helper()
	v := volumeWith(t, NewVolumeID(), Options{})
	for n := range 20 {
		write(t, v, root, fmt.Sprint("f", n), noise(uint64(n), 4000))
	}
	dir = t.TempDir()
	check(t, os.CopyFS(dir, os.DirFS(v.db.Dir())), nil)
	return dir
}

func one(t testing.TB, pattern ...string) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(pattern...))
	check(t, err, nil)
	if len(all) == 0 {
		t.Fatalf("no file %s", filepath.Join(pattern...))
	}
	return all[0]
}

func flip(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err, nil)
	defer f.Close()
	if at < 0 {
		st, err := f.Stat()
		check(t, err, nil)
		at += st.Size()
	}
	b := make([]byte, 1)
	check(t, second(f.ReadAt(b, at)), nil)
	b[0] ^= 0x55
	check(t, second(f.WriteAt(b, at)), nil)
}

// TestP8DamageIsNamed: a damaged store refuses to open, says what is damaged,
// and loses nothing more by the attempt.
func TestP8DamageIsNamed(t *testing.T) {
	whole, _ := filled(t)
	table := func(dir string) string { return one(t, dir, "db", "*.sst") }
	manifest := func(dir string) string { return filepath.Join(dir, "db", "MANIFEST") }
	middle := func(path string) int64 {
		st, err := os.Stat(path)
		check(t, err, nil)
		return st.Size() / 2
	}
	cut := func(path string, by int64) {
		st, err := os.Stat(path)
		check(t, err, nil)
		check(t, os.Truncate(path, st.Size()-by), nil)
	}
	for name, c := range map[string]struct {
		make   func(testing.TB) string
		damage func(dir string)
		names  string
	}{
		"a table's data":     {damage: func(dir string) { flip(t, table(dir), 1000) }, names: ".sst"},
		"a table's middle":   {damage: func(dir string) { flip(t, table(dir), middle(table(dir))) }, names: ".sst"},
		"a table's index":    {damage: func(dir string) { flip(t, table(dir), -200) }, names: ".sst"},
		"a table's end":      {damage: func(dir string) { flip(t, table(dir), -1) }, names: ".sst"},
		"a table cut off":    {damage: func(dir string) { cut(table(dir), 5000) }, names: ".sst"},
		"no table":           {damage: func(dir string) { check(t, os.Remove(table(dir)), nil) }, names: ".sst"},
		"manifest flipped":   {damage: func(dir string) { flip(t, manifest(dir), 20) }, names: "MANIFEST"},
		"manifest's magic":   {damage: func(dir string) { flip(t, manifest(dir), 0) }, names: "MANIFEST"},
		"manifest cut off":   {damage: func(dir string) { cut(manifest(dir), 3) }, names: "MANIFEST"},
		"manifest's records": {damage: func(dir string) { check(t, os.Truncate(manifest(dir), 8), nil) }, names: "MANIFEST"},
		"manifest empty":     {damage: func(dir string) { check(t, os.Truncate(manifest(dir), 0), nil) }, names: "MANIFEST"},
		"no manifest":        {damage: func(dir string) { check(t, os.Remove(manifest(dir)), nil) }, names: "MANIFEST"},
		"format":             {damage: func(dir string) { flip(t, filepath.Join(dir, "format"), 0) }, names: "format"},
		"no format":          {damage: func(dir string) { check(t, os.Remove(filepath.Join(dir, "format")), nil) }, names: "format"},
		"a log":              {make: killed, damage: func(dir string) { flip(t, one(t, dir, "db", "*.mem"), 30_000) }, names: ".mem"},
		"a log's lengths": {make: killed, damage: func(dir string) {
			flip(t, one(t, dir, "db", "*.mem"), 22)
		}, names: ".mem"},
		"a log emptied": {make: killed, damage: func(dir string) {
			check(t, os.WriteFile(filepath.Join(dir, "db", "00000.mem"), nil, 0o600), nil)
		}, names: "00000.mem"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.make == nil {
				c.make = func(t testing.TB) string {
					dir := t.TempDir()
					check(t, os.CopyFS(dir, os.DirFS(whole)), nil)
					return dir
				}
			}
			dir := c.make(t)
			c.damage(dir)
			before := sizes(t, dir)
			for range 2 {
				db, err := Open(Options{Dir: dir})
				if err == nil {
					db.Close()
					t.Fatal("it opens")
				}
				if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.names) {
					t.Fatalf("%v: want ErrDamaged, naming %s", err, c.names)
				}
				t.Log(err)
			}
			if after := sizes(t, dir); after != before {
				t.Errorf("the attempt changed\n%s to\n%s", before, after)
			}
		})
	}
}

func sizes(t testing.TB, dir string) (out string) {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "db", "*"))
	check(t, err, nil)
	for _, p := range all {
		st, err := os.Stat(p)
		check(t, err, nil)
		out += fmt.Sprintln(filepath.Base(p), st.Size())
	}
	return out
}

// TestP8KilledStoreIsNotDamaged: what a kill leaves opens, even with its last
// record torn.
func TestP8KilledStoreIsNotDamaged(t *testing.T) {
	for _, torn := range []bool{false, true} {
		dir := killed(t)
		if torn {
			path := one(t, dir, "db", "*.mem")
			b, err := os.ReadFile(path)
			check(t, err, nil)
			at := logHeader
			last := at
			for r, ok := parseRecord(b[at:]); ok; r, ok = parseRecord(b[at:]) {
				last, at = at, at+r.size
			}
			flip(t, path, int64(last+7))
		}
		db := openWith(t, Options{Dir: dir})
		n := len(list(t, db.Volumes()[0], root))
		if n != 20 && !torn || n < 19 {
			t.Errorf("torn %v: %d files", torn, n)
		}
	}
}

// TestP8KilledWhileALogBegins: a file of the database is made, then given its size,
// then its header; a kill may come in between.
func TestP8KilledWhileALogBegins(t *testing.T) {
	for _, name := range []string{"00099.mem", "000099.vlog", "000099.sst"} {
		for _, size := range []int64{0, 16 << 20} {
			dir := killed(t)
			path := filepath.Join(dir, "db", name)
			check(t, os.WriteFile(path, nil, 0o600), nil)
			check(t, os.Truncate(path, size), nil)
			db := openWith(t, Options{Dir: dir})
			if n := len(list(t, db.Volumes()[0], root)); n != 20 {
				t.Errorf("%s of %d bytes: %d files", name, size, n)
			}
		}
	}
}

func TestP8DamagedRecordIsNamed(t *testing.T) {
	for what, key := range map[string]func(v *Volume) []byte{
		"boot record":    func(*Volume) []byte { return keyBoot },
		"replica record": func(v *Volume) []byte { return replicaKey(v.id) },
		"directory set":  func(v *Volume) []byte { return v.keys.key('g', 5) },
		"version vector": func(v *Volume) []byte { return v.keys.key('a', 5) },
		"unsealed op":    func(v *Volume) []byte { return v.keys.key('u', 1) },
		"draft record":   func(v *Volume) []byte { return v.keys.key('d', 5) },
	} {
		v := volumeWith(t, NewVolumeID(), Options{})
		dir := v.db.Dir()
		check(t, v.close(), nil)
		check(t, v.db.kv.update(func(tx txn) error { return tx.set(key(v), []byte("nonsense")) }), nil)
		v.db.Close() // may complain too
		db, err := Open(Options{Dir: dir})
		if err == nil {
			db.Close()
		}
		if !errors.Is(err, ErrDamaged) || !strings.Contains(fmt.Sprint(err), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	db := openWith(t, Options{Dir: dir})
	_, err := Open(Options{Dir: dir})
	check(t, err, ErrLocked)
	check(t, db.Close(), nil)
	check(t, db.Close(), nil)
	_, err = db.CreateReplica(NewVolumeID(), "late", true)
	check(t, err, ErrClosed)
	check(t, os.WriteFile(filepath.Join(dir, "format"), []byte("9\n"), 0o600), nil)
	_, err = Open(Options{Dir: dir})
	check(t, err, ErrNewerFormat)
	file := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(file, nil, 0o600), nil)
	_, err = Open(Options{Dir: file})
	check(t, err, unix.ENOTDIR)
	_, err = Open(Options{Dir: filepath.Join(file, "below")})
	check(t, err, unix.ENOTDIR)
}

// mountTmpfs mounts a file system of its own, or skips the test.
func mountTmpfs(t testing.TB, size string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("needs to mount a tmpfs:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestOpenReadOnlyDirectory(t *testing.T) {
	dir := mountTmpfs(t, "200m")
	v := volumeWith(t, NewVolumeID(), Options{Dir: filepath.Join(dir, "state")})
	check(t, v.db.Close(), nil)
	check(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""), nil)
	_, err := Open(Options{Dir: filepath.Join(dir, "state")})
	check(t, err, unix.EROFS)
	_, err = Open(Options{Dir: filepath.Join(dir, "another")})
	check(t, err, unix.EROFS)
	if errors.Is(err, ErrDamaged) {
		t.Error("a read-only directory is not damaged")
	}
}

// TestP6DeletedReplicaLeavesNothing: a volume of the same id made again is empty.
func TestP6DeletedReplicaLeavesNothing(t *testing.T) {
	db := openWith(t, Options{})
	id := NewVolumeID()
	v := must(db.CreateReplica(id, "one", true))
	fill(t, v, "")
	create(t, v, root, "open").write("x", 0)
	create(t, v, root, "open and large").write(noise(1, 100_000), 0)
	write(t, v, root, "f", "x")
	check(t, db.DeleteReplica(id), nil)
	check(t, db.DeleteReplica(id), ErrNoVolume)
	check(t, v.Unlink(Request{}, root, "f"), ErrClosed)
	check(t, db.kv.view(func(tx txn) error {
		return tx.scan(v.keys.prefix[:], nil, func(k, _ []byte) (bool, error) {
			t.Errorf("key %x is left", k)
			return true, nil
		})
	}), nil)
	if left := must(db.content.Drafts()); len(left) > 0 {
		t.Errorf("drafts left: %q", left)
	}
	// As after a deletion that was cut short:
	check(t, db.kv.update(func(tx txn) error { return tx.set(v.keys.key('a', 5), []byte("left over")) }), nil)
	v = must(db.CreateReplica(id, "two", false))
	if n := list(t, v, root); len(n) > 0 || len(v.Vector()) > 0 || v.Ready() {
		t.Errorf("%q, %v", n, v.Vector())
	}
	_, err := db.CreateReplica(id, "two", true)
	if err == nil {
		t.Error("made twice")
	}
	check(t, v.SetReady(), nil)
	if v = reopen(t, v); !v.Ready() || v.Name() != "two" {
		t.Error("not as it was left")
	}
}
