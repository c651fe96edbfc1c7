package content

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"slices"
	"sort"

	"github.com/synapsefs/synapsefs/store/crdt"
	"github.com/zeebo/blake3"
)

// BlockSize is the length in bytes of every block of a file but the last.
const BlockSize = 1 << 20

const (
	manifestVersion = 1
	hashSize        = len(crdt.Hash{})
)

// A Manifest lists the blocks of one version of a file. It is immutable and
// takes memory for its non-hole blocks only. The zero Manifest is an empty
// file.
type Manifest struct {
	size int64
	runs []run
}

// A run is adjoining blocks of which none is a hole.
type run struct {
	first  int64 // index of the first block
	hashes []crdt.Hash
}

func (r *run) end() int64 { return r.first + int64(len(r.hashes)) }

// A manifestBlock is a non-hole block and its index.
type manifestBlock struct {
	index int64
	hash  crdt.Hash
}

// NewManifest makes the manifest of a file of size bytes from the hashes of
// all its blocks in order; a zero hash is a hole, and so are blocks beyond the
// end of hashes.
func NewManifest(size int64, hashes []crdt.Hash) (*Manifest, error) {
	if size < 0 || int64(len(hashes)) > blockCount(size) {
		return nil, fmt.Errorf("manifest of %d blocks for %d bytes: %w", len(hashes), size, ErrBadManifest)
	}
	m := &Manifest{size: size}
	for i, h := range hashes {
		if h != (crdt.Hash{}) {
			m.append(manifestBlock{int64(i), h})
		}
	}
	return m, nil
}

// append adds a block with a greater index than all before.
func (m *Manifest) append(b manifestBlock) {
	if n := len(m.runs); n > 0 && m.runs[n-1].end() == b.index {
		m.runs[n-1].hashes = append(m.runs[n-1].hashes, b.hash)
		return
	}
	m.runs = append(m.runs, run{b.index, []crdt.Hash{b.hash}})
}

// Size returns the file's size in bytes.
func (m *Manifest) Size() int64 { return m.size }

// Block returns the hash of the block with the given index; the zero hash for
// a hole and for indexes outside the file.
func (m *Manifest) Block(index int64) crdt.Hash {
	i := m.runAfter(index)
	if i == len(m.runs) || index < m.runs[i].first {
		return crdt.Hash{}
	}
	return m.runs[i].hashes[index-m.runs[i].first]
}

// runAfter returns the position of the first run that ends after index.
func (m *Manifest) runAfter(index int64) int {
	return sort.Search(len(m.runs), func(i int) bool { return m.runs[i].end() > index })
}

// Blocks yields index and hash of every block that is no hole, in order.
func (m *Manifest) Blocks() iter.Seq2[int64, crdt.Hash] {
	return func(yield func(int64, crdt.Hash) bool) {
		for _, r := range m.runs {
			for i, h := range r.hashes {
				if !yield(r.first+int64(i), h) {
					return
				}
			}
		}
	}
}

// BlockLength returns how many bytes of the file the block with the given
// index holds: BlockSize, fewer for the last block, 0 outside the file.
func (m *Manifest) BlockLength(index int64) int { return blockLength(m.size, index) }

// DataBytes returns how many bytes of the file are in blocks that are no hole.
func (m *Manifest) DataBytes() int64 {
	var sum int64
	for i := range m.Blocks() {
		sum += int64(m.BlockLength(i))
	}
	return sum
}

// An ExtentKind tells data from holes.
type ExtentKind int

const (
	// Hole is a range that reads as zeros and takes no disk.
	Hole ExtentKind = iota
	// Data is a range that takes disk.
	Data
)

// Extent tells what is at off and up to which offset that holds, at most the
// file's size. At or past the end of the file it returns (Hole, off).
func (m *Manifest) Extent(off int64) (kind ExtentKind, end int64) {
	if off < 0 || off >= m.size {
		return Hole, off
	}
	i := m.runAfter(off / BlockSize)
	switch {
	case i == len(m.runs):
		return Hole, m.size
	case off < m.runs[i].first*BlockSize:
		return Hole, m.runs[i].first * BlockSize
	}
	// A run may end past the greatest int64 in bytes, though not in blocks.
	if m.runs[i].end() == blockCount(m.size) {
		return Data, m.size
	}
	return Data, m.runs[i].end() * BlockSize
}

// Encode returns the canonical encoding and its hash, which names the content.
func (m *Manifest) Encode() ([]byte, crdt.Hash) {
	n := 1 + binary.MaxVarintLen64
	for _, r := range m.runs {
		n += 2*binary.MaxVarintLen64 + len(r.hashes)*hashSize
	}
	b := append(make([]byte, 0, n), manifestVersion)
	b = binary.AppendUvarint(b, uint64(m.size))
	var end int64
	for _, r := range m.runs {
		b = binary.AppendUvarint(b, uint64(r.first-end))
		b = binary.AppendUvarint(b, uint64(len(r.hashes)))
		for i := range r.hashes {
			b = append(b, r.hashes[i][:]...)
		}
		end = r.end()
	}
	return b, blake3.Sum256(b)
}

// DecodeManifest decodes what Encode made. Bytes from a peer are safe: memory
// is bounded by a small multiple of len(b), and anything that Encode would not
// have made is an error that wraps [ErrBadManifest].
func DecodeManifest(b []byte) (*Manifest, error) {
	m, err := decodeManifest(b)
	if err != nil {
		return nil, fmt.Errorf("decode manifest of %d bytes: %w", len(b), err)
	}
	return m, nil
}

func decodeManifest(b []byte) (*Manifest, error) {
	if len(b) == 0 || b[0] != manifestVersion {
		return nil, fmt.Errorf("%w: unknown version", ErrBadManifest)
	}
	size, b, ok := cutUvarint(b[1:])
	if !ok || size > math.MaxInt64 {
		return nil, fmt.Errorf("%w: size", ErrBadManifest)
	}
	m := &Manifest{size: int64(size)}
	var end uint64
	for limit := uint64(blockCount(m.size)); len(b) > 0; {
		r, rest, err := decodeRun(b, end, limit)
		if err != nil {
			return nil, err
		}
		m.runs = append(m.runs, r)
		b, end = rest, uint64(r.end())
	}
	return m, nil
}

// decodeRun decodes the run that follows one that ended at block end, in a
// file of limit blocks.
func decodeRun(b []byte, end, limit uint64) (run, []byte, error) {
	gap, b, ok := cutUvarint(b)
	if !ok || gap > limit-end || gap == 0 && end > 0 {
		return run{}, nil, fmt.Errorf("%w: gap after block %d", ErrBadManifest, end)
	}
	first := end + gap
	n, b, ok := cutUvarint(b)
	if !ok || n == 0 || n > limit-first || n > uint64(len(b)/hashSize) {
		return run{}, nil, fmt.Errorf("%w: run at block %d", ErrBadManifest, first)
	}
	r := run{int64(first), make([]crdt.Hash, n)}
	for i := range r.hashes {
		b = b[copy(r.hashes[i][:], b):]
	}
	if slices.Contains(r.hashes, crdt.Hash{}) {
		return run{}, nil, fmt.Errorf("%w: hole listed in the run at block %d", ErrBadManifest, first)
	}
	return r, b, nil
}

// cutUvarint takes a minimally encoded uvarint off the front of b.
func cutUvarint(b []byte) (v uint64, rest []byte, ok bool) {
	v, n := binary.Uvarint(b)
	if n <= 0 || n > 1 && b[n-1] == 0 {
		return 0, nil, false
	}
	return v, b[n:], true
}

// blockCount returns how many blocks a file of size bytes has.
func blockCount(size int64) int64 {
	n := size / BlockSize
	if size%BlockSize != 0 {
		n++
	}
	return n
}

// blockLength returns how many bytes block index of a file of size bytes has.
func blockLength(size, index int64) int {
	if index < 0 || index >= blockCount(size) {
		return 0
	}
	return int(min(BlockSize, size-index*BlockSize))
}
