package playground

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed all:testdata/synapse-small
var shipped embed.FS

// A Source is a tree that can be put into a directory.
type Source struct {
	Name string
	open func() (io.ReadCloser, error) // as a tar stream
	mode fs.FileMode                   // given to every entry besides its own
	at   time.Time                     // if not zero, the mtime of all entries: they have none
}

// OpenSource names a tree: a .tar.gz file, a directory, or, for "", the small
// one that the project ships.
func OpenSource(path string) (Source, error) {
	if path == "" {
		tree, err := fs.Sub(shipped, "testdata/synapse-small")
		return Source{Name: "the small tree that comes with synapsefs", open: packed(tree), mode: 0o200, at: time.Now()}, err // embedding loses the bit, and all times
	}
	fi, err := os.Stat(path)
	if err != nil {
		return Source{}, fmt.Errorf("tree: %w", err)
	}
	if fi.IsDir() {
		return Source{Name: path, open: packed(os.DirFS(path))}, nil
	}
	return Source{Name: path, open: func() (io.ReadCloser, error) { return gunzip(path) }}, nil
}

// gzipFile closes both.
type gzipFile struct {
	*gzip.Reader
	file *os.File
}

func (g gzipFile) Close() error { return errors.Join(g.Reader.Close(), g.file.Close()) }

func gunzip(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return gzipFile{z, f}, nil
}

// packed returns a function that streams a tree as a tar archive.
func packed(tree fs.FS) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		r, w := io.Pipe()
		go func() {
			out := tar.NewWriter(w)
			err := out.AddFS(tree)
			w.CloseWithError(errors.Join(err, out.Close()))
		}()
		return r, nil
	}
}

// Unpack puts the tree into dir, as tar does: modes, mtimes, links, extended
// attributes, and owners if it may.
func (s Source) Unpack(ctx context.Context, dir string) error {
	stream, err := s.open()
	if err != nil {
		return fmt.Errorf("unpack %s: %w", s.Name, err)
	}
	defer stream.Close()
	u := &unpacker{dir: dir, mode: s.mode, at: s.at}
	if err := u.all(ctx, tar.NewReader(stream)); err != nil {
		return fmt.Errorf("unpack %s: %w", s.Name, err)
	}
	return nil
}

type unpacker struct {
	dir  string
	mode fs.FileMode
	at   time.Time
	dirs []*tar.Header // whose times are set last
}

func (u *unpacker) all(ctx context.Context, in *tar.Reader) error {
	for ctx.Err() == nil {
		h, err := in.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		if err := u.one(h, in); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, h := range u.dirs {
		if err := u.finish(h); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	return nil
}

// path is where an entry goes; never outside of dir.
func (u *unpacker) path(name string) string {
	return filepath.Join(u.dir, filepath.Join("/", name))
}

func (u *unpacker) one(h *tar.Header, in io.Reader) error {
	path := u.path(h.Name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if path != u.dir {
			u.dirs = append(u.dirs, h)
		}
		return nil
	case tar.TypeReg:
		if err := writeFile(path, in); err != nil {
			return err
		}
	case tar.TypeLink:
		return os.Link(u.path(h.Linkname), path)
	case tar.TypeSymlink:
		if err := os.Symlink(h.Linkname, path); err != nil {
			return err
		}
	default:
		return fmt.Errorf("entry of type %q is not for a demo", h.Typeflag)
	}
	return u.finish(h)
}

func writeFile(path string, in io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, in)
	return errors.Join(err, f.Close())
}

// finish sets what an entry has besides its content.
func (u *unpacker) finish(h *tar.Header) error {
	path := u.path(h.Name)
	if os.Geteuid() == 0 {
		if err := os.Lchown(path, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := os.Chmod(path, h.FileInfo().Mode()|u.mode); err != nil {
			return err
		}
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			if err := unix.Lsetxattr(path, name, []byte(value), 0); err != nil {
				return err
			}
		}
	}
	if !u.at.IsZero() {
		return setMtime(path, u.at)
	}
	return setMtime(path, h.ModTime)
}

func setMtime(path string, t time.Time) error {
	now := unix.NsecToTimespec(t.UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{now, now}, unix.AT_SYMLINK_NOFOLLOW)
}
