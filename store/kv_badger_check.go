package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2/z"
	"github.com/zeebo/blake3"
)

// Badger opens a damaged database by guessing: it cuts the manifest and the
// memtables' logs at the first record that it cannot read, deletes tables that
// the manifest does not name, and goes on without tables whose index is bad. So
// the files are checked before it sees them.

// manifestMark remembers how far the manifest reached when the database was
// last opened or closed.
type manifestMark struct {
	BootID string
	Size   int64
	Hash   [32]byte // of the first Size bytes
	First  uint32   // checksum of the first record; another one after a rewrite
}

const markFile = "manifest.mark"

// damaged names the file that is, and what to do.
func damaged(path, what string, err error) error {
	if err != nil {
		what += ": " + err.Error()
	}
	return fmt.Errorf("%w: %s: %s: move the state directory away and let the node join again", ErrDamaged, path, what)
}

// checkBadger returns an ErrDamaged that names the file if a database is not as
// it was left. After the machine went down, ends that were never synced may be
// missing.
func checkBadger(dir, bootID string) error {
	var mark manifestMark
	b, err := os.ReadFile(filepath.Join(dir, markFile))
	switch {
	case err == nil:
		if err := json.Unmarshal(b, &mark); err != nil {
			return damaged(filepath.Join(dir, markFile), "not readable", err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	path := filepath.Join(dir, badger.ManifestFilename)
	manifest, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
		if err == nil && (len(tables) > 0 || mark.Size > 0) {
			err = damaged(path, "missing", nil)
		}
		return err
	}
	if err != nil {
		return err
	}
	sameBoot := mark.BootID == bootID
	named, err := checkManifest(path, manifest, &mark, sameBoot)
	if err != nil {
		return err
	}
	highest := uint64(0)
	for id, t := range named.Tables {
		n, err := checkTable(table.NewFilename(id, dir), t.Compression)
		if err != nil {
			return err
		}
		highest = max(highest, n)
	}
	if err := dropEmptyValueLogs(dir); err != nil {
		return err
	}
	if !sameBoot {
		return dropTornLogs(dir, highest)
	}
	logs, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		return err
	}
	slices.Sort(logs)
	empty := ""
	for _, l := range logs {
		if empty != "" {
			return damaged(empty, "empty", nil)
		}
		n, err := checkLog(l)
		if err != nil {
			return err
		}
		if n == 0 {
			empty = l
		}
	}
	if empty != "" {
		// Made, and killed before it had its size. Badger would not open.
		return os.Remove(empty)
	}
	return nil
}

// dropEmptyValueLogs removes logs of values that were made, and the process killed
// before they had their size: Badger would not open. No value of ours is in such
// a log, they all are in the tables.
func dropEmptyValueLogs(dir string) error {
	logs, err := filepath.Glob(filepath.Join(dir, "*.vlog"))
	if err != nil {
		return err
	}
	for _, l := range logs {
		st, err := os.Stat(l)
		if err == nil && st.Size() == 0 {
			err = os.Remove(l)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func checkManifest(path string, b []byte, mark *manifestMark, sameBoot bool) (*badger.Manifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, end, err := badger.ReplayManifestFile(f, 0, badger.DefaultOptions("").WithLogger(nil))
	switch {
	case err != nil:
		return nil, damaged(path, "not readable", err)
	case end < int64(len(b)) && sameBoot:
		return nil, damaged(path, fmt.Sprintf("cut off after %d bytes", end), nil)
	case mark.Size == 0 || firstRecord(b) != mark.First:
		return &m, nil
	case end < mark.Size:
		return nil, damaged(path, fmt.Sprintf("%d bytes long; it had %d", end, mark.Size), nil)
	case blake3.Sum256(b[:mark.Size]) != mark.Hash:
		return nil, damaged(path, "changed", nil)
	}
	return &m, nil
}

// firstRecord is the checksum of a manifest's first record, which follows the
// file's 8 bytes of magic and the record's length.
func firstRecord(manifest []byte) uint32 {
	if len(manifest) < 16 {
		return 0
	}
	return binary.BigEndian.Uint32(manifest[12:])
}

// checkTable reads one table with all its checksums, and returns the highest
// transaction number in it.
func checkTable(path string, c options.CompressionType) (highest uint64, err error) {
	defer func() {
		if r := recover(); r != nil { // Badger's way of saying that the index is bad
			err = damaged(path, "index not readable", nil)
		}
	}()
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return 0, damaged(path, "missing", nil)
	}
	f, err := z.OpenMmapFile(path, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	t, err := table.OpenTable(f, table.Options{
		ReadOnly: true, ChkMode: options.OnTableRead, Compression: c, BlockSize: 4 << 10,
	})
	if err != nil {
		return 0, damaged(path, "not readable", err)
	}
	return t.MaxVersion(), t.Close(-1)
}

// logHeader is how many bytes a memtable's log has before its records.
const logHeader = 20

// checkLog looks for transactions behind the first record that is not readable.
// The last one may be cut short by a kill. It returns the log's size.
func checkLog(path string) (size int, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	at := logHeader
	for at < len(b) {
		r, ok := parseRecord(b[at:])
		if !ok {
			break
		}
		at += r.size
	}
	// A transaction ends with a record of this key, after a header of 5 bytes.
	mark := []byte(txnEnd)
	for from := at + 1; from < len(b); {
		n := bytes.Index(b[from:], mark)
		if n < 0 {
			break
		}
		from += n
		if _, ok := parseRecord(b[from-5:]); ok {
			return 0, damaged(path, fmt.Sprintf("bad record at byte %d", at), nil)
		}
		from++
	}
	return len(b), nil
}

// markManifest remembers the manifest as it is now.
func markManifest(dir, bootID string) error {
	b, err := os.ReadFile(filepath.Join(dir, badger.ManifestFilename))
	if err != nil {
		return err
	}
	mark, err := json.Marshal(manifestMark{bootID, int64(len(b)), blake3.Sum256(b), firstRecord(b)})
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, markFile), mark)
}

// tableBytes is the size of the tables of a database that is not open.
func tableBytes(dir string) (n int64) {
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil {
		return 0
	}
	for _, path := range tables {
		if st, err := os.Stat(path); err == nil { // else opening it will tell
			n += st.Size()
		}
	}
	return n
}
