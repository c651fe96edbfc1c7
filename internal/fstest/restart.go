package fstest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/fusefs"
	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/store"
)

// A shelf keeps one mount within the test.
type shelf struct {
	mu   sync.Mutex
	kept kernel.Kept // FD -1: none
}

func (s *shelf) Put(k kernel.Kept) error {
	return s.with(func() (err error) {
		k.FD, err = unix.FcntlInt(uintptr(k.FD), unix.F_DUPFD_CLOEXEC, 0)
		s.kept = k
		return err
	})
}

func (s *shelf) Init(_ uint64, in []byte) error {
	return s.with(func() error { s.kept.InitIn = in; return nil })
}

func (s *shelf) Reply(_ uint64, out []byte) error {
	return s.with(func() error { s.kept.InitOut = out; return nil })
}

func (s *shelf) Done(uint64) error {
	return s.with(func() error { s.kept.InitDone = true; return nil })
}

func (s *shelf) Drop(uint64) error {
	return s.with(func() error {
		err := unix.Close(s.kept.FD)
		s.kept.FD = -1
		return err
	})
}

func (s *shelf) with(fn func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fn()
}

// take is what the next daemon gets.
func (s *shelf) take() (k kernel.Kept, err error) {
	err = s.with(func() error {
		s.kept.Generation++
		k = s.kept
		k.FD, err = unix.FcntlInt(uintptr(k.FD), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	return k, err
}

// KeptMount is Mount of a node that can Restart.
func KeptMount(t testing.TB, opts Options) *Node {
	t.Helper()
	return keptMount(t, store.NewVolumeID(), opts)
}

func keptMount(t testing.TB, id store.VolumeID, opts Options) *Node {
	t.Helper()
	opts.Mount.Keeper = &shelf{}
	opts.Mount.ID = 7
	opts.Mount.Ledger = filepath.Join(t.TempDir(), "ledger")
	return mount(t, id, opts)
}

// KeptPair is a pair of which B can Restart, while cut off, and only A changes
// anything.
func KeptPair(t testing.TB, opts Options) *Pair {
	t.Helper()
	id := store.NewVolumeID()
	opts.Store.Hold = time.Millisecond
	p := &Pair{t: t, A: mount(t, id, opts), B: keptMount(t, id, opts)}
	p.ab = newPipe(t, p.A, p.B)
	p.ba = newPipe(t, p.B, p.A)
	return p
}

// Ledger is the file that a mount keeps for its successor.
func (n *Node) Ledger() string { return n.opts.Mount.Ledger }

// Restart hands the mount over, closes the store, opens it again, and takes
// the mount over.
func (n *Node) Restart() {
	n.t.Helper()
	n.RestartWith(func() {}, func() {})
}

// RestartWith is Restart that calls left when nobody has the mount, and taken
// when it is taken over and its programs still wait.
func (n *Node) RestartWith(left, taken func()) {
	n.t.Helper()
	err := n.leave()
	if err == nil {
		left()
		err = n.takeOver()
	}
	if err == nil {
		taken()
		err = n.Mount.Resume()
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *Node) leave() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	shown, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	n.Mount.WaitIdle(shown) //nolint:errcheck // the next one shows the rest
	if err := n.Mount.HandOver(ctx); err != nil {
		return err
	}
	n.Mount.Left()
	if err := n.Mount.Wait(); !errors.Is(err, kernel.ErrHandedOver) {
		return fmt.Errorf("after a hand-over the mount says %w", err)
	}
	return n.DB.Close()
}

func (n *Node) takeOver() error {
	id := n.Volume.ID()
	opts := n.opts
	opts.Store.Mounted = map[store.VolumeID][]store.MountID{id: {opts.Mount.ID}}
	var err error
	if n.DB, err = store.Open(opts.Store); err != nil {
		return err
	}
	n.Volume = n.DB.Volume(id)
	kept, err := opts.Mount.Keeper.(*shelf).take()
	if err != nil {
		return err
	}
	n.Mount, err = fusefs.Attach(n.Volume, kept, opts.Mount)
	return err
}
