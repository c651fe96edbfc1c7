package kernel

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

var pageSize = unix.Getpagesize()

const (
	// A WRITE's payload follows this many bytes of headers. It is placed
	// on a page boundary, so that it can go on to O_DIRECT files.
	writeHeaderSize = 80
	// Buffers kept for reuse, and how many while more are in use time and
	// again: to map them costs more than most requests.
	spareBuffers = 8
	mostBuffers  = 64
	// How long they are kept that are more than spareBuffers.
	buffersKept = 10 * time.Second
)

// buffers are the memory of one reader. They are mapped and present before
// any system call touches them: a thread killed while copying into an absent
// page makes the kernel answer EIO instead of leaving the request for resend.
type buffers struct {
	mapping []byte
	in, out []byte
}

func mapBuffers(maxWrite int) (*buffers, error) {
	inSize, outSize := pageSize+maxWrite+pageSize, maxWrite+pageSize
	m, err := unix.Mmap(-1, 0, inSize+outSize, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of request buffers: %w", inSize+outSize, err)
	}
	return &buffers{
		mapping: m,
		in:      m[pageSize-writeHeaderSize : inSize : inSize],
		out:     m[inSize:],
	}, nil
}

// takeBuffers returns spare buffers or maps new ones.
func (c *Conn) takeBuffers() (*buffers, error) {
	c.mu.Lock()
	if n := len(c.spare); n > 0 {
		b := c.spare[n-1]
		c.spare = c.spare[:n-1]
		c.mu.Unlock()
		return b, nil
	}
	c.mu.Unlock()
	return mapBuffers(c.maxWrite())
}

func (c *Conn) giveBuffers(b *buffers) {
	c.mu.Lock()
	keep := len(c.spare) < mostBuffers && !c.ended
	if keep {
		c.spare = append(c.spare, b)
	}
	if len(c.spare) > spareBuffers && !c.trimming {
		c.trimming = true
		time.AfterFunc(buffersKept, c.trimBuffers)
	}
	c.mu.Unlock()
	if !keep {
		unix.Munmap(b.mapping) // cannot fail: it is what Mmap returned
	}
}

// trimBuffers frees what a burst of requests has left.
func (c *Conn) trimBuffers() {
	c.mu.Lock()
	keep := min(len(c.spare), spareBuffers)
	rest := slices.Clone(c.spare[keep:])
	clear(c.spare[keep:])
	c.spare, c.trimming = c.spare[:keep], false
	c.mu.Unlock()
	for _, b := range rest {
		unix.Munmap(b.mapping)
	}
}

// dropBuffers frees the spare ones; those given back later are freed then.
func (c *Conn) dropBuffers() {
	c.mu.Lock()
	spare := c.spare
	c.spare, c.ended = nil, true
	c.mu.Unlock()
	for _, b := range spare {
		unix.Munmap(b.mapping)
	}
}
