package content

import (
	"container/list"
	"errors"
	"io"
	"os"
	"sync"
)

// A fileCache keeps the descriptors of recently read immutable files open.
type fileCache struct {
	// Fixed by newFileCache.
	limit int
	path  func(FileID) string

	mu     sync.Mutex // guards what follows and the fields of openFile
	byID   map[FileID]*openFile
	recent *list.List // of *openFile, latest use first
}

// An openFile is one descriptor, closed when it left the cache and the last
// reader is done.
type openFile struct {
	id      FileID
	f       *os.File
	element *list.Element
	readers int
	evicted bool
	unread  chan struct{} // not nil: closed when the last reader is done
}

func newFileCache(limit int, path func(FileID) string) *fileCache {
	return &fileCache{limit: limit, path: path, byID: make(map[FileID]*openFile), recent: list.New()}
}

// readAt fills p from a file.
func (c *fileCache) readAt(id FileID, p []byte, off int64) error {
	o, err := c.acquire(id)
	if err != nil {
		return err
	}
	defer c.release(o)
	_, err = o.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (c *fileCache) acquire(id FileID) (*openFile, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o, ok := c.byID[id]
	if !ok {
		f, err := os.Open(c.path(id))
		if err != nil {
			return nil, err
		}
		o = &openFile{id: id, f: f}
		o.element = c.recent.PushFront(o)
		c.byID[id] = o
		c.trimLocked(c.limit) //nolint:errcheck // files that are read
	}
	c.recent.MoveToFront(o.element)
	o.readers++
	return o, nil
}

func (c *fileCache) release(o *openFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o.readers--
	if o.evicted && o.readers == 0 {
		o.f.Close()
		if o.unread != nil {
			close(o.unread)
		}
	}
}

// forget returns when nobody reads any more what was at a file's place when it
// was called.
func (c *fileCache) forget(id FileID) {
	c.mu.Lock()
	o, ok := c.byID[id]
	if !ok {
		c.mu.Unlock()
		return
	}
	c.recent.Remove(o.element)
	delete(c.byID, id)
	o.evicted = true
	if o.readers == 0 {
		o.f.Close()
		c.mu.Unlock()
		return
	}
	o.unread = make(chan struct{})
	c.mu.Unlock()
	<-o.unread
}

// trimLocked evicts the least recently used files beyond limit.
func (c *fileCache) trimLocked(limit int) (err error) {
	for c.recent.Len() > limit {
		o := c.recent.Remove(c.recent.Back()).(*openFile)
		delete(c.byID, o.id)
		o.evicted = true
		if o.readers == 0 {
			err = errors.Join(err, o.f.Close())
		}
	}
	return err
}

func (c *fileCache) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.trimLocked(0)
}
