package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A largeFile is one that the workload changes in all the ways there are, with
// what it must hold. A reader may have it open, and a mapping may outlive the
// close of its descriptor.
type largeFile struct {
	path    string
	want    []byte
	reader  *os.File
	mapping []byte
}

// large changes some large files and compares them with a copy.
func (w *worker) large() (func() error, error) {
	const least, most = 100 << 10, 3 << 20
	var files []*largeFile
	for i := range 3 {
		f := &largeFile{path: filepath.Join(w.dir, fmt.Sprint(i)), want: w.bytes(least)[:least]}
		if err := os.WriteFile(f.path, f.want, 0o644); err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	size := func() int { return least + w.r.IntN(most-least) }
	return func() error {
		f := files[w.r.IntN(len(files))]
		steps := []struct {
			what string
			fn   func() error
		}{
			{"append", func() error { return w.appendTo(f, 1+w.r.IntN(300_000)) }},
			{"overwrite", func() error { return w.overwrite(f) }},
			{"open a reader", f.openReader},
			{"map", f.mapIt},
			{"replace", func() error { return f.replace(w.bytes(size())) }},
			{"rewrite", func() error { return f.rewrite(w.bytes(size())) }},
			{"remove", func() error { return f.anew(w.bytes(size())) }},
		}
		if f.mapping != nil {
			steps = append(steps[:3:3], []struct {
				what string
				fn   func() error
			}{
				{"store", func() error { return w.store(f) }},
				{"store again", func() error { return w.store(f) }},
				{"unmap", f.unmap},
			}...)
		}
		if len(f.want) > most {
			steps = steps[len(steps)-3:] // those that do not make it longer
		}
		step := steps[w.r.IntN(len(steps))]
		if err := w.call(step.what, step.fn); err != nil {
			return err
		}
		return w.call("compare after "+step.what, f.compare)
	}, nil
}

// with opens the file, has fn change it, and closes it.
func (f *largeFile) with(flags int, fn func(*os.File) error) error {
	file, err := os.OpenFile(f.path, flags, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(fn(file), file.Close())
}

func (w *worker) appendTo(f *largeFile, n int) error {
	b := w.bytes(n)[:n]
	f.want = append(f.want, b...)
	return f.with(os.O_WRONLY|os.O_APPEND, func(file *os.File) error {
		_, err := file.Write(b)
		return err
	})
}

func (w *worker) overwrite(f *largeFile) error {
	flags := os.O_RDWR
	if w.r.IntN(2) == 0 {
		flags = os.O_WRONLY
	}
	return f.with(flags, func(file *os.File) error {
		for range 1 + w.r.IntN(4) {
			n := 1 + w.r.IntN(50_000)
			off := w.r.IntN(len(f.want) - n)
			copy(f.want[off:], w.bytes(n)[:n])
			if _, err := file.WriteAt(f.want[off:off+n], int64(off)); err != nil {
				return err
			}
		}
		if w.r.IntN(4) == 0 {
			return file.Sync()
		}
		return nil
	})
}

// store changes the mapping.
func (w *worker) store(f *largeFile) error {
	n := 1 + w.r.IntN(20_000)
	off := w.r.IntN(len(f.mapping) - n)
	copy(f.want[off:], w.bytes(n)[:n])
	copy(f.mapping[off:], f.want[off:off+n])
	return nil
}

func (f *largeFile) mapIt() error {
	return f.with(os.O_RDWR, func(file *os.File) (err error) {
		f.mapping, err = unix.Mmap(int(file.Fd()), 0, len(f.want), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		return err
	})
}

func (f *largeFile) unmap() error {
	err := unix.Munmap(f.mapping)
	f.mapping = nil
	return err
}

func (f *largeFile) openReader() (err error) {
	if f.reader != nil {
		return f.closeReader()
	}
	f.reader, err = os.Open(f.path)
	return err
}

func (f *largeFile) closeReader() error {
	if f.reader == nil {
		return nil
	}
	err := f.reader.Close()
	f.reader = nil
	return err
}

// replace renames another file over it. Who reads it goes on reading the old one.
func (f *largeFile) replace(b []byte) error {
	err := os.WriteFile(f.path+".tmp", b, 0o644)
	if err == nil {
		err = os.Rename(f.path+".tmp", f.path)
	}
	return f.other(b, err)
}

// anew removes it, and makes one of the same name.
func (f *largeFile) anew(b []byte) error {
	err := os.Remove(f.path)
	if err == nil {
		err = os.WriteFile(f.path, b, 0o644)
	}
	return f.other(b, err)
}

func (f *largeFile) other(b []byte, err error) error {
	if err == nil && f.reader != nil {
		err = compareAll(f.reader, f.want)
	}
	f.want = b
	return errors.Join(err, f.closeReader())
}

// rewrite truncates and writes. It is not done yet while a reader has the file open.
func (f *largeFile) rewrite(b []byte) error {
	if err := f.closeReader(); err != nil {
		return err
	}
	f.want = b
	return f.with(os.O_WRONLY|os.O_TRUNC, func(file *os.File) error {
		_, err := file.Write(b)
		return err
	})
}

// compare reads it by all that is open.
func (f *largeFile) compare() error {
	if f.reader != nil {
		if err := compareAll(f.reader, f.want); err != nil {
			return fmt.Errorf("who had it open: %w", err)
		}
	}
	if f.mapping != nil && !bytes.Equal(f.mapping, f.want[:len(f.mapping)]) {
		return errors.New("the mapping is not what was written")
	}
	return f.with(os.O_RDONLY, func(file *os.File) error { return compareAll(file, f.want) })
}

func compareAll(file *os.File, want []byte) error {
	st, err := file.Stat()
	if err != nil {
		return err
	}
	got := make([]byte, len(want))
	n, err := file.ReadAt(got, 0)
	if err != nil || st.Size() != int64(len(want)) || !bytes.Equal(got[:n], want) {
		return fmt.Errorf("%d bytes of %d are not the %d written: %w", n, st.Size(), len(want), err)
	}
	return nil
}
