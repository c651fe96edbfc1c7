package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Drain stops serving a mount that is kept, for the next process to take over:
// requests that handlers are at are finished, all others are left to it. It
// returns when no method of the filesystem runs any more and the descriptor is
// closed; Wait then says ErrHandedOver. Callers in the mount wait meanwhile.
//
// If ctx ends first, handlers are still at work and the mount is still ours:
// only the end of this process makes it free, which the kernel survives, as it
// sends again what was not answered. There is no way back; Drain may be called
// again, to wait longer.
//
// It is no error that the mount has ended meanwhile.
func (c *Conn) Drain(ctx context.Context) error {
	err := c.drain(ctx)
	if err != nil {
		return fmt.Errorf("hand over the mount on %s: %w", c.mount.point, err)
	}
	return nil
}

func (c *Conn) drain(ctx context.Context) error {
	if !c.Kept() {
		return ErrNotKept
	}
	c.mu.Lock()
	fresh := !c.served && !c.ended
	c.served = true
	c.mu.Unlock()
	c.draining.Store(true)
	if fresh {
		c.finish(nil)
	} else if err := c.wake(ctx); err != nil {
		return err
	}
	if err := c.Wait(); !errors.Is(err, ErrHandedOver) {
		return err
	}
	return nil
}

// wakeSignal means nothing to anybody; the Go runtime catches it and, as
// nobody asked for it, does nothing.
const wakeSignal = unix.Signal(60)

// How often wake looks whether handlers are through, and whether a reader was
// missed because it was about to call read(2).
const wakeInterval = time.Millisecond

// wake ends the read(2) of the idle readers, and returns when all readers have
// left. The kernel has nothing that would send each of them a request, so a
// signal ends the calls of all threads, once no handler is at work: all that
// goes on then can bear EINTR.
func (c *Conn) wake(ctx context.Context) error {
	if err := interruptible(); err != nil {
		return fmt.Errorf("wake the readers: %w", err)
	}
	tick := time.NewTicker(wakeInterval)
	defer tick.Stop()
	for {
		if c.alive.Load() == c.idle.Load() {
			if err := signalThreads(); err != nil {
				return fmt.Errorf("wake the readers: %w", err)
			}
		}
		select {
		case <-c.done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("requests are in progress: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// A sigaction is the kernel's struct sigaction of amd64 and arm64.
type sigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

const saRestart = 0x10000000

// interruptible makes wakeSignal end system calls with EINTR; as the Go runtime
// sets it up they would go on.
func interruptible() error {
	var act sigaction
	if err := rtSigaction(nil, &act); err != nil || act.flags&saRestart == 0 {
		return err
	}
	act.flags &^= saRestart
	return rtSigaction(&act, nil)
}

func rtSigaction(set, old *sigaction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(wakeSignal),
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), unsafe.Sizeof(sigaction{}.mask), 0, 0)
	if errno != 0 {
		return fmt.Errorf("set up signal %d: %w", wakeSignal, errno)
	}
	return nil
}

func signalThreads() error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err != nil {
			return err
		}
		if err := unix.Tgkill(unix.Getpid(), id, wakeSignal); err != nil && err != unix.ESRCH {
			return err
		}
	}
	return nil
}

// leaving reports whether a reader has to go, with the request that it has
// just read: FORGET alone is never sent again, so it still counts here.
func (c *Conn) leaving(in []byte) bool {
	if !c.draining.Load() {
		return false
	}
	switch opcode(in) {
	case opForget, opBatchForget:
		c.server.HandleRequest([][]byte{in}, nil)
	}
	return true
}
