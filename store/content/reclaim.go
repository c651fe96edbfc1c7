package content

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// placed is what keeps files from being reclaimed whose blocks have come into
// the index lately, or are about to: what a [Store.Reclaim] is told of the index
// may be older.
type placed struct {
	mu      sync.Mutex
	pending map[FileID]struct{} // in place, and their blocks not in the index yet
	lately  map[FileID]struct{} // got blocks since the last Reclaim began
	before  map[FileID]struct{} // the same, of the one before
}

// putBlocks puts blocks of files that are in place into the index. pending said
// so of new files before they were in place.
func (s *Store) putBlocks(entries []IndexEntry) error {
	s.placed.mu.Lock()
	for _, e := range entries {
		s.placed.lately[e.Location.File] = struct{}{}
	}
	s.placed.mu.Unlock()
	err := s.index.PutBlocks(entries)
	if err == nil {
		s.placed.mu.Lock()
		defer s.placed.mu.Unlock()
		for _, e := range entries {
			delete(s.placed.pending, e.Location.File)
		}
	}
	return err
}

// BeginReclaim must be called before the index is read for a [Store.Reclaim].
func (s *Store) BeginReclaim() {
	s.placed.mu.Lock()
	defer s.placed.mu.Unlock()
	s.placed.before, s.placed.lately = s.placed.lately, map[FileID]struct{}{}
}

// Reclaim gives the disk back of what no block of the index is in: whole
// immutable files, and holes of others. live are the blocks of the index, read
// after [Store.BeginReclaim]; it is changed. busy reports whether a kernel may
// have the file with an inode number. Files that got blocks since the call before
// the last are left for the next time, as are those that are a draft, too. It
// returns how many bytes of disk it gave back.
func (s *Store) Reclaim(ctx context.Context, live map[FileID][]Location, busy func(inode uint64) bool) (freed int64, err error) {
	err = filepath.WalkDir(filepath.Join(s.dir, "files"), func(path string, e fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil || e.IsDir() {
			return err
		}
		var id FileID
		if len(e.Name()) != 2*len(id) {
			return nil
		}
		if _, err := hex.Decode(id[:], []byte(e.Name())); err != nil {
			return nil // none of ours
		}
		n, err := s.reclaimFile(id, live[id], busy)
		freed += n
		return err
	})
	if err != nil {
		err = fmt.Errorf("reclaim content: %w", err)
	}
	return freed, err
}

// reclaimFile frees what is not live of a file.
func (s *Store) reclaimFile(id FileID, live []Location, busy func(inode uint64) bool) (freed int64, err error) {
	s.placed.mu.Lock()
	defer s.placed.mu.Unlock() // nothing of the file comes into the index meanwhile
	for _, set := range []map[FileID]struct{}{s.placed.pending, s.placed.lately, s.placed.before} {
		if _, ok := set[id]; ok {
			return 0, nil
		}
	}
	f, err := os.OpenFile(s.filePath(id), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	dead, err := between(f, live, st.Size)
	if err != nil || len(live) > 0 && len(dead) == 0 {
		return 0, err
	}
	if st.Nlink > 1 || busy(st.Ino) { // in this order: what is no draft any more was one when a kernel got it
		return 0, nil
	}
	if len(live) == 0 {
		if err := os.Remove(f.Name()); err != nil {
			return 0, err
		}
		s.files.forget(id)
		return st.Blocks * 512, nil
	}
	for _, e := range dead {
		if err := punch(f, e.Offset, int64(e.Length)); err != nil {
			return 0, err
		}
	}
	var now unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &now); err != nil {
		return 0, err
	}
	return (st.Blocks - now.Blocks) * 512, nil
}

// between returns the pages with data that are between blocks of a file, and
// behind the last, in steps of at most a block.
func between(f *os.File, blocks []Location, size int64) (out []Location, err error) {
	slices.SortFunc(blocks, func(a, b Location) int { return cmp.Compare(a.Offset, b.Offset) })
	page, end := int64(os.Getpagesize()), int64(0)
	for _, b := range append(blocks, Location{Offset: size}) {
		for at := (end + page - 1) / page * page; at < b.Offset; {
			from, to, err := nextData(f, at, min(b.Offset, at+BlockSize))
			if err != nil {
				return nil, err
			}
			if from < to {
				out = append(out, Location{Offset: from, Length: int32(to - from)})
			}
			at = to
		}
		end = max(end, b.Offset+int64(b.Length))
	}
	return out, nil
}
