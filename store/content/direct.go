package content

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// A DirectDraft is a draft without a base that others write too: kernels that
// pass reads and writes of a mounted file through to it. All that is known of
// it is therefore what its file says at the moment; unless it is an adopted one
// that nobody but us writes, see [DirectDraft.Writer]. It keeps the promises of
// [Draft].
type DirectDraft struct {
	// Fixed when it is made.
	store *Store
	name  string
	f     *os.File // for reading: who has the file open for writing is not us

	mu    sync.Mutex    // guards what follows
	rw    *os.File      // nil until we write
	link  *FileID       // the immutable file that shares its inode
	below int64         // the bytes below are link's too
	seen  tracked       // what is known of the file's blocks
	clean signature     // of what is published
	taken signature     // of what Publish returned last
	floor crdt.Time     // its mtime is at least that
	set   crdt.Time     // explicitly
	setAs unix.Timespec // what the file says since; zero: it was not set
	wrote bool          // there was a Writer
	grows bool          // and each wrote at the end alone
	done  bool
}

// A signature changes whenever a file's bytes do.
type signature struct {
	size         int64
	mtime, ctime unix.Timespec
}

// CreateDirectDraft makes an empty one that has been changed at a time.
func (s *Store) CreateDirectDraft(name string, at crdt.Time) (*DirectDraft, error) {
	if err := checkDraftName(name); err != nil {
		return nil, fmt.Errorf("create draft %q: %w", name, err)
	}
	const flags = os.O_RDONLY | os.O_CREATE | os.O_EXCL
	f, err := os.OpenFile(s.draftPath(name), flags, 0o600)
	if errors.Is(err, os.ErrExist) { // left over: it may be an immutable one by now
		if err = os.Remove(s.draftPath(name)); err == nil {
			f, err = os.OpenFile(s.draftPath(name), flags, 0o600)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("create draft %q: %w", name, err)
	}
	return &DirectDraft{store: s, name: name, f: f, floor: at}, nil
}

// Direct makes an empty draft a direct one, and ends this one.
func (d *Draft) Direct(at crdt.Time) (*DirectDraft, error) {
	if err := d.Close(); err != nil {
		return nil, err
	}
	dd, err := d.store.openDirect(d.name)
	if err == nil {
		dd.floor = at
	}
	return dd, err
}

func (s *Store) openDirect(name string) (*DirectDraft, error) {
	f, err := os.Open(s.draftPath(name))
	if err != nil {
		return nil, fmt.Errorf("open draft %q: %w", name, err)
	}
	return &DirectDraft{store: s, name: name, f: f}, nil
}

// Open returns another descriptor of the draft's file, for reading.
func (d *DirectDraft) Open() (*os.File, error) {
	fd, err := unix.FcntlInt(d.f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open draft %q: %w", d.name, err)
	}
	return os.NewFile(uintptr(fd), d.f.Name()), nil
}

// Link names the immutable file that the draft's file has become.
func (d *DirectDraft) Link() *FileID {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.link
}

func (d *DirectDraft) sign() (s signature, err error) {
	var st unix.Stat_t
	err = unix.Fstat(int(d.f.Fd()), &st)
	return signature{st.Size, st.Mtim, st.Ctim}, err
}

// MarkClean says that what the file holds is published, with an mtime.
func (d *DirectDraft) MarkClean(mtime crdt.Time) error {
	if err := d.SetMtime(mtime); err != nil {
		return err
	}
	s, err := d.sign()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clean = s
	return err
}

// Recorded says that what Publish returned last is published.
func (d *DirectDraft) Recorded() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clean = d.taken
}

// Stat returns the size in bytes, the mtime, and whether something has changed
// since MarkClean. It fails with os.ErrClosed after the end.
func (d *DirectDraft) Stat() (size int64, mtime crdt.Time, changed bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done {
		return 0, crdt.Time{}, false, os.ErrClosed
	}
	s, err := d.sign()
	switch mtime = timeOf(s.mtime); {
	case s.mtime == d.setAs:
		mtime = d.set // which may be beyond what the disk can tell
	case mtime.Before(d.floor):
		mtime = d.floor // a file's clock is coarser than ours
	}
	return s.size, mtime, s != d.clean, err
}

// FileMtime is what the file itself says, to tell after a restart whether it was
// written since.
func (d *DirectDraft) FileMtime() (crdt.Time, error) {
	s, err := d.sign()
	return timeOf(s.mtime), err
}

// DraftMtime is FileMtime of a draft that is not open.
func (s *Store) DraftMtime(name string) (crdt.Time, error) {
	var st unix.Stat_t
	if err := unix.Stat(s.draftPath(name), &st); err != nil {
		return crdt.Time{}, fmt.Errorf("stat draft %q: %w", name, err)
	}
	return timeOf(st.Mtim), nil
}

func timeOf(t unix.Timespec) crdt.Time { return crdt.TimeOf(time.Unix(t.Unix()).UnixNano()) }

func setMtime(f *os.File, t unix.Timespec) error {
	return unix.UtimesNanoAt(int(f.Fd()), "", []unix.Timespec{t, t}, unix.AT_EMPTY_PATH)
}

// SetMtime sets the mtime.
func (d *DirectDraft) SetMtime(t crdt.Time) error {
	ts := unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.trackLocked(0, 0, func() error {
		return setMtime(d.f, ts)
	}); err != nil {
		return fmt.Errorf("set mtime of draft %q: %w", d.name, err)
	}
	s, err := d.sign()
	d.set, d.setAs, d.floor = t, s.mtime, crdt.Time{}
	return err
}

// Quiet reports whether nobody can write to the file any more: no kernel has it
// open for writing, nor mapped.
func (d *DirectDraft) Quiet() (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rw != nil {
		d.rw.Close()
		d.rw = nil
	}
	_, err := unix.FcntlInt(d.f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	if err == unix.EAGAIN {
		return false, nil
	}
	if err == nil {
		_, err = unix.FcntlInt(d.f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	}
	if err != nil {
		return false, fmt.Errorf("lease of draft %q: %w", d.name, err)
	}
	return true, nil
}

// ReadAt reads from the draft, as io.ReaderAt does.
func (d *DirectDraft) ReadAt(p []byte, off int64) (int, error) { return d.f.ReadAt(p, off) }

// write runs fn, which changes bytes from off to end or the size to more than
// off, with a descriptor for writing.
func (d *DirectDraft) write(op string, off, end int64, fn func(f *os.File) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := os.ErrClosed
	if !d.done {
		if err = d.store.failing(op); err == nil && d.rw == nil {
			d.rw, err = os.OpenFile(d.store.draftPath(d.name), os.O_RDWR, 0)
		}
	}
	if err == nil && off < d.below {
		err = d.ownLocked()
	}
	if err == nil {
		err = d.trackLocked(off, end, func() error { return fn(d.rw) })
	}
	if err != nil {
		return fmt.Errorf("%s draft %q: %w", op, d.name, err)
	}
	return nil
}

// WriteAt writes to the draft, as io.WriterAt does.
func (d *DirectDraft) WriteAt(p []byte, off int64) (n int, err error) {
	err = d.write("write", off, off+int64(len(p)), func(f *os.File) (err error) {
		n, err = f.WriteAt(p, off)
		return err
	})
	return n, err
}

// Truncate sets the size in bytes.
func (d *DirectDraft) Truncate(size int64) error {
	return d.write("truncate", size, size, func(f *os.File) error {
		d.grows, d.wrote = false, true
		return f.Truncate(size)
	})
}

// Allocate reserves disk for length bytes from off. The draft grows to hold them
// unless keepSize.
func (d *DirectDraft) Allocate(off, length int64, keepSize bool) error {
	return d.fallocate("allocate", 0, off, length, keepSize)
}

// ZeroRange makes a range read as zeros, with disk reserved for it, as Allocate.
func (d *DirectDraft) ZeroRange(off, length int64, keepSize bool) error {
	return d.fallocate("zero range", unix.FALLOC_FL_ZERO_RANGE, off, length, keepSize)
}

// PunchHole makes a range read as zeros and gives its disk back.
func (d *DirectDraft) PunchHole(off, length int64) error {
	return d.fallocate("punch hole", unix.FALLOC_FL_PUNCH_HOLE, off, length, true)
}

func (d *DirectDraft) fallocate(op string, mode uint32, off, length int64, keepSize bool) error {
	if keepSize {
		mode |= unix.FALLOC_FL_KEEP_SIZE
	}
	return d.write(op, off, off+length, func(f *os.File) error {
		return unix.Fallocate(int(f.Fd()), mode, off, length)
	})
}

// Taken is Allocated.
func (d *DirectDraft) Taken() (int64, error) { return d.Allocated() }

// GiveBack frees the disk that is allocated and was not written, which no version
// has. Nobody may have the file open for writing. The mtime stays.
func (d *DirectDraft) GiveBack() error {
	size := d.Size()
	return d.write("give back disk of", size, size, func(f *os.File) error {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return err
		}
		return errors.Join(freeUnwritten(f), setMtime(f, st.Mtim))
	})
}

// Allocated returns how many bytes of disk the file takes.
func (d *DirectDraft) Allocated() (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("blocks of draft %q: %w", d.name, err)
	}
	return st.Blocks * 512, nil
}

// Size returns the size in bytes.
func (d *DirectDraft) Size() int64 { return fileSize(d.f) }

// BaseLimit is 0: there is no base.
func (d *DirectDraft) BaseLimit() int64 { return 0 }

// Extent tells data from holes.
func (d *DirectDraft) Extent(off int64) (ExtentKind, int64, error) {
	start, end, err := nextData(d.f, off, d.Size())
	switch {
	case err != nil:
		return Hole, off, fmt.Errorf("find data in draft %q: %w", d.name, err)
	case start > off:
		return Hole, start, nil
	}
	return Data, end, nil
}

// Sync makes the draft's bytes and its name durable.
func (d *DirectDraft) Sync() error {
	err := d.store.failing("sync")
	if err == nil {
		err = d.f.Sync()
	}
	if err == nil {
		err = d.store.syncPath("sync directory", d.store.draftPath(""))
	}
	if err != nil {
		return fmt.Errorf("sync draft %q: %w", d.name, err)
	}
	return nil
}

// Close ends the use of the draft and leaves its file.
func (d *DirectDraft) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done {
		return nil
	}
	d.done = true
	if d.rw != nil {
		d.rw.Close()
	}
	return d.f.Close()
}

// Remove closes the draft and removes its name.
func (d *DirectDraft) Remove() error { return errors.Join(d.Close(), d.store.RemoveDraft(d.name)) }

// Publish stores what the file holds; see [Draft.Publish]. The draft goes on,
// final or not. If it is final, the file may have become an immutable one; the
// caller has made sure that it is quiet. If it is not, and somebody has written
// meanwhile other than at the end, Publish fails with ErrBusy.
func (d *DirectDraft) Publish(final bool, inlineLimit int) (Published, error) {
	p, err := d.publishAsIs(final, inlineLimit)
	if err != nil {
		return Published{}, fmt.Errorf("publish draft %q: %w", d.name, err)
	}
	return p, nil
}

func (d *DirectDraft) publishAsIs(final bool, inlineLimit int) (Published, error) {
	if !final {
		if err := d.faultAgain(); err != nil {
			return Published{}, err
		}
	}
	before, blocks, err := d.take()
	if err != nil {
		return Published{}, err
	}
	var p Published
	if before.size <= int64(inlineLimit) {
		p, err = d.inline(before.size)
	} else {
		p, err = d.publish(before, blocks, final, inlineLimit)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil && !final {
		var after signature
		after, err = d.sign()
		if err == nil && after != before && !(d.grows && after.size >= before.size) {
			err = ErrBusy
		}
	}
	if err != nil {
		d.seen.giveBack(blocks)
		return Published{}, err
	}
	d.taken = before
	if d.seen.base != nil {
		d.seen.base = p.Manifest
	}
	return p, nil
}

func (d *DirectDraft) inline(size int64) (Published, error) {
	b := make([]byte, size)
	if _, err := d.f.ReadAt(b, 0); err != nil && err != io.EOF {
		return Published{}, err
	}
	return Published{Size: size, Hash: blake3.Sum256(b), Inline: b}, nil
}

// publish has a Draft of the same file do it.
func (d *DirectDraft) publish(as signature, blocks tracked, final bool, inlineLimit int) (Published, error) {
	f, err := os.OpenFile(d.store.draftPath(d.name), os.O_RDWR, 0)
	if err != nil {
		return Published{}, err
	}
	plain := d.store.newDraft(d.name, Base{}, f, 0, as.size)
	plain.link = d.Link()
	if err := plain.findDirty(); err != nil {
		return Published{}, errors.Join(err, f.Close())
	}
	blocks.applyTo(plain)
	p, err := plain.Publish(final, inlineLimit)
	d.mu.Lock()
	if d.link = plain.link; d.link != nil && final {
		d.below = as.size
	}
	d.mu.Unlock()
	return p, errors.Join(err, plain.Close())
}

// ErrBusy says that a file was written while it was read.
var ErrBusy = errors.New("the draft is being written")
