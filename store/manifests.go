package store

import (
	"sync"

	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// manifestCache keeps the manifests read last, so that a sequential read of a
// large file does not decode its manifest for each call.
type manifestCache struct {
	mu    sync.Mutex
	order []crdt.Hash // oldest first
	by    map[crdt.Hash]*content.Manifest
	data  map[crdt.Hash]int64 // bytes in blocks that are no hole
}

const cachedManifests = 16 // of at most 32 bytes for each MiB of file

func (c *manifestCache) get(h crdt.Hash, load func(crdt.Hash) (*content.Manifest, error)) (*content.Manifest, error) {
	c.mu.Lock()
	m := c.by[h]
	c.mu.Unlock()
	if m != nil {
		return m, nil
	}
	m, err := load(h)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = map[crdt.Hash]*content.Manifest{}
	}
	if c.by[h] == nil {
		c.by[h] = m
		c.order = append(c.order, h)
	}
	if len(c.order) > cachedManifests {
		delete(c.by, c.order[0])
		c.order = c.order[1:]
	}
	return m, nil
}

// maxDataBytes bounds the contents whose bytes without holes are remembered.
const maxDataBytes = 1 << 16

// dataBytes is how many bytes of a content are in no hole; all of them if that
// cannot be told.
func (c *manifestCache) dataBytes(h crdt.Hash, size int64, load func(crdt.Hash) (*content.Manifest, error)) int64 {
	c.mu.Lock()
	n, ok := c.data[h]
	c.mu.Unlock()
	if ok {
		return n
	}
	m, err := c.get(h, load)
	if err != nil {
		return size
	}
	n = m.DataBytes()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.data == nil || len(c.data) >= maxDataBytes {
		c.data = map[crdt.Hash]int64{}
	}
	c.data[h] = n
	return n
}
