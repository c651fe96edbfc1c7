package content

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// A Held says that a kernel has a file of this store open for a node of a mount,
// and by which number: it goes on when the daemon does not, as long as somebody
// keeps the connection.
type Held struct {
	Volume      [16]byte
	Mount, Node uint64
	ID          int32  // of the backing file, to the connection
	Inode       uint64 // of the file
	Link        FileID // the immutable file that it was then; zero: none
}

const heldSize = 64

// helds are the records of what is held, each in a slot of one file. They are to
// outlive the daemon, and not the machine, as mounts do: so a write is enough,
// and costs a hundredth of a transaction.
type helds struct {
	f *os.File

	mu   sync.Mutex // guards what follows
	free []int
	n    int // slots in the file
	left map[int]Held
}

func openHelds(path string) (*helds, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	h := &helds{f: f, left: map[int]Held{}}
	b, err := io.ReadAll(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read what kernels have open: %w", err)
	}
	h.n = len(b) / heldSize
	for n := range h.n {
		if r, ok := decodeHeld(b[n*heldSize:][:heldSize]); ok {
			h.left[n] = r
		} else {
			h.free = append(h.free, n)
		}
	}
	return h, nil
}

func (r *Held) encode() []byte {
	b := append(make([]byte, 0, heldSize), r.Volume[:]...)
	for _, n := range []uint64{r.Mount, r.Node, r.Inode} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(r.ID))
	b = append(b, r.Link[:]...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

func decodeHeld(b []byte) (r Held, ok bool) {
	end := heldSize - 4
	if binary.BigEndian.Uint32(b[end:]) != crc32.ChecksumIEEE(b[:end]) {
		return r, false
	}
	copy(r.Volume[:], b)
	r.Mount, r.Node, r.Inode = binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[24:]), binary.BigEndian.Uint64(b[32:])
	r.ID = int32(binary.BigEndian.Uint32(b[40:]))
	copy(r.Link[:], b[44:])
	return r, true
}

// Hold records what a kernel has open; the slot is for LetGo. Inode is filled in.
func (s *Store) Hold(f *os.File, r Held) (slot int, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("record open file: %w", err)
	}
	r.Inode = st.Ino
	h := s.helds
	h.mu.Lock()
	defer h.mu.Unlock()
	if last := len(h.free) - 1; last >= 0 {
		slot, h.free = h.free[last], h.free[:last]
	} else {
		slot = h.n
		h.n++
	}
	if _, err := h.f.WriteAt(r.encode(), int64(slot)*heldSize); err != nil {
		h.free = append(h.free, slot)
		return 0, fmt.Errorf("record open file: %w", err)
	}
	return slot, nil
}

// LetGo removes a record.
func (s *Store) LetGo(slot int) error {
	h := s.helds
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := h.f.WriteAt(make([]byte, heldSize), int64(slot)*heldSize); err != nil {
		return fmt.Errorf("remove record of open file: %w", err)
	}
	h.free = append(h.free, slot)
	delete(h.left, slot)
	return nil
}

// LeftHeld returns the records of a volume that were there when the store was
// opened and were not let go since, by slot.
func (s *Store) LeftHeld(volume [16]byte) map[int]Held {
	h := s.helds
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[int]Held{}
	for slot, r := range h.left {
		if r.Volume == volume {
			out[slot] = r
		}
	}
	return out
}

// OpenHeld opens the file of a record: the draft of that name, or the immutable
// file that the record names. link is the immutable file that it is now, nil if
// it is none. It fails with fs.ErrNotExist if the file has no name any more.
func (s *Store) OpenHeld(r Held, draft string) (f *os.File, isDraft bool, link *FileID, err error) {
	for _, path := range []string{s.draftPath(draft), s.filePath(r.Link)} {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, false, nil, fmt.Errorf("open held file: %w", err)
		}
		isDraft = path == s.draftPath(draft)
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Ino != r.Inode {
			f.Close()
			continue
		}
		if !isDraft || st.Nlink > 1 {
			if link, err = s.linkOf(st.Ino, r.Link); err != nil {
				f.Close()
				return nil, false, nil, fmt.Errorf("open held file: %w", err)
			}
		}
		return f, isDraft, link, nil
	}
	return nil, false, nil, fmt.Errorf("open held file of draft %q: %w", draft, fs.ErrNotExist)
}

// linkOf finds the immutable file that an inode is; guess is looked at first.
func (s *Store) linkOf(inode uint64, guess FileID) (*FileID, error) {
	var st unix.Stat_t
	if err := unix.Stat(s.filePath(guess), &st); err == nil && st.Ino == inode {
		return &guess, nil
	}
	var found *FileID
	err := filepath.WalkDir(filepath.Join(s.dir, "files"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if err := unix.Stat(path, &st); err != nil || st.Ino != inode {
			return err
		}
		found = new(FileID)
		if _, err := hex.Decode(found[:], []byte(e.Name())); err != nil {
			return err
		}
		return fs.SkipAll
	})
	return found, err
}

// ResumeDraft opens a direct draft after a restart. Kernels may have its file,
// and write it: f is open on it then, else nil, and link names the immutable file
// that it is, which is looked for if f is nil.
func (s *Store) ResumeDraft(name string, f *os.File, link *FileID) (d *DirectDraft, err error) {
	if f != nil {
		d, err = s.openSame(name, f)
	} else if d, err = s.openDirect(name); err == nil {
		link, err = d.linkNow()
	}
	if err != nil {
		if d != nil {
			d.f.Close()
		}
		return nil, fmt.Errorf("resume draft %q: %w", name, err)
	}
	if d.link = link; link != nil {
		d.below = fileSize(d.f)
	}
	return d, nil
}

// linkNow finds the immutable file that the draft's file is, nil if it is none.
func (d *DirectDraft) linkNow() (*FileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.f.Fd()), &st); err != nil || st.Nlink == 1 {
		return nil, err
	}
	return d.store.linkOf(st.Ino, FileID{})
}
