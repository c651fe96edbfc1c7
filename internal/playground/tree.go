package playground

import (
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// A Tree is what Sum found below a directory.
type Tree struct {
	Files int   // regular files, each name of a hard link once
	Other int   // directories, symlinks and the rest; the root not counted
	Bytes int64 // of the files, hard links once
	Hash  string
}

// Sum reads a whole tree. Two trees have one hash if and only if they have the
// same names, kinds, modes, owners, mtimes to the nanosecond, link targets,
// hard links, extended attributes and contents. The mtime of the root itself
// does not count: it is the mountpoint's.
func Sum(root string) (Tree, error) {
	s := &summer{root: root, hash: blake3.New(), seen: map[uint64]string{}}
	if err := filepath.WalkDir(root, s.visit); err != nil {
		return Tree{}, fmt.Errorf("sum tree %s: %w", root, err)
	}
	s.tree.Hash = hex.EncodeToString(s.hash.Sum(nil))
	return s.tree, nil
}

type summer struct {
	root string
	hash *blake3.Hasher
	tree Tree
	seen map[uint64]string // inodes with several links, by their first name
}

func (s *summer) visit(path string, _ fs.DirEntry, err error) error {
	if err != nil || path == s.root {
		return err
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	name, err := filepath.Rel(s.root, path)
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	fmt.Fprintf(s.hash, "%q %o %d:%d %d.%09d\n", name, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
	if !fi.IsDir() && st.Nlink > 1 {
		if first, again := s.seen[st.Ino]; again {
			s.tree.Files++
			fmt.Fprintf(s.hash, "link of %q\n", first)
			return nil
		}
		s.seen[st.Ino] = name
	}
	if err := s.attributes(path); err != nil {
		return err
	}
	return s.body(path, fi, st)
}

func (s *summer) body(path string, fi fs.FileInfo, st *syscall.Stat_t) error {
	switch fi.Mode().Type() {
	case 0:
		s.tree.Files++
		s.tree.Bytes += fi.Size()
		return s.content(path)
	case fs.ModeSymlink:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(s.hash, "to %q\n", target)
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		fmt.Fprintf(s.hash, "device %d\n", st.Rdev)
	}
	s.tree.Other++
	return nil
}

func (s *summer) content(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(s.hash, f)
	fmt.Fprintf(s.hash, "\n%d bytes\n", n)
	return err
}

// attributes hashes the extended attributes, where there are any.
func (s *summer) attributes(path string) error {
	var list [64 << 10]byte
	n, err := unix.Llistxattr(path, list[:])
	if err == unix.ENOTSUP || n == 0 && err == nil {
		return nil
	} else if err != nil {
		return fmt.Errorf("list attributes of %s: %w", path, err)
	}
	names := strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		var value [64 << 10]byte
		n, err := unix.Lgetxattr(path, name, value[:])
		if err != nil {
			return fmt.Errorf("attribute %s of %s: %w", name, path, err)
		}
		fmt.Fprintf(s.hash, "attribute %q %q\n", name, value[:n])
	}
	return nil
}
