package content

import (
	"errors"
	"fmt"
	"os"
)

// Whole opens the immutable file that holds exactly what m describes, byte for
// byte, if there is one: kernels may then read it without us.
func (s *Store) Whole(m *Manifest) (f *os.File, id FileID, ok bool, err error) {
	if id, ok, err = s.whole(m); err != nil || !ok {
		return nil, id, false, err
	}
	f, err = os.Open(s.filePath(id))
	if err == nil {
		ok, err = m.describes(f)
	}
	if f != nil && (err != nil || !ok) {
		f.Close()
	}
	if err != nil {
		return nil, id, false, fmt.Errorf("open immutable file: %w", err)
	}
	return f, id, ok, nil
}

// whole finds the file that has all blocks, each at its own offset.
func (s *Store) whole(m *Manifest) (id FileID, ok bool, err error) {
	for index, h := range m.Blocks() {
		loc, err := s.locate(h)
		var missing *MissingBlockError
		if errors.As(err, &missing) {
			return id, false, nil
		}
		if err != nil {
			return id, false, err
		}
		if ok && loc.File != id || loc.Offset != index*BlockSize {
			return id, false, nil
		}
		id, ok = loc.File, true
	}
	return id, ok, nil
}

// describes reports whether a file that has m's blocks has nothing else.
func (m *Manifest) describes(f *os.File) (bool, error) {
	if fileSize(f) != m.size {
		return false, nil
	}
	for off := int64(0); off < m.size; {
		kind, end := m.Extent(off)
		if kind == Hole {
			start, _, err := nextData(f, off, end)
			if err != nil || start < end {
				return false, err
			}
		}
		off = end
	}
	return true, nil
}
