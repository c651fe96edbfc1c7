package content

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/synapsefs/synapsefs/store/crdt"
	"github.com/zeebo/blake3"
)

// maxHashers bounds the goroutines, each with a buffer of BlockSize, that hash
// one draft.
const maxHashers = 4

// hashLocked hashes the given changed blocks side by side. On an error some
// are done and some are not.
func (d *Draft) hashLocked(indexes []int64) error {
	var (
		workers  sync.WaitGroup
		next     atomic.Int64
		failure  error
		failOnce sync.Once
	)
	work := func() {
		buf := blockBuffers.Get().(*[]byte)
		defer blockBuffers.Put(buf)
		for i := next.Add(1) - 1; i < int64(len(indexes)); i = next.Add(1) - 1 {
			b, err := d.readDirty(indexes[i], *buf)
			if err != nil {
				failOnce.Do(func() { failure = err })
				next.Store(int64(len(indexes)))
				return
			}
			block := d.blocks[indexes[i]]
			block.hash, block.changed = hashBlock(b), false
		}
	}
	for range min(maxHashers, runtime.GOMAXPROCS(0), len(indexes)) {
		workers.Go(work)
	}
	workers.Wait()
	return failure
}

// changedLocked returns the indexes of the blocks to hash, in order.
func (d *Draft) changedLocked() []int64 {
	var changed []int64
	for index, b := range d.blocks {
		if b.changed {
			changed = append(changed, index)
		}
	}
	slices.Sort(changed)
	return changed
}

// readDirty reads all of a dirty block into buf.
func (d *Draft) readDirty(index int64, buf []byte) ([]byte, error) {
	if d.f == nil {
		return nil, ErrClosed
	}
	if err := d.store.failing("read"); err != nil {
		return nil, err
	}
	b := buf[:blockLength(d.size, index)]
	_, err := d.f.ReadAt(b, index*BlockSize)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

// hashBlock returns a block's hash: zero if it is all zeros.
func hashBlock(b []byte) crdt.Hash {
	if bytes.Equal(b, zeroBlock[:len(b)]) {
		return crdt.Hash{}
	}
	return blake3.Sum256(b)
}
