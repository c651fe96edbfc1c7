package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/store"
)

// ErrNotServed says that a replica which never was ready must not be mounted:
// an empty directory would make programs undeploy everything (P11).
var ErrNotServed = errors.New("the replica has not caught up with a ready one; wait for it")

// Options says how to mount a volume. The zero value suits tests.
type Options struct {
	// ID tells the volume's mounts on this node apart, those included that
	// were detached and are still used. 0 takes a random one.
	ID store.MountID
	// AllowOther lets users other than the mounter in; root always does.
	AllowOther bool
	// ReadOnly refuses changes, until Remount. The superblock stays writable
	// all the same, as the reveal helper could not work otherwise.
	ReadOnly bool
	// Flags are mount(2)'s.
	Flags kernel.Flags
	// Guard lays a dead mount below, so that the bare mountpoint is an error
	// and never an empty directory. Needs root.
	Guard bool
	// Passthrough has the kernel read and write large and new files itself, by
	// files of the store: faster. All mounts of a volume are to agree on it.
	Passthrough bool
	// MaxBackground bounds the kernel's asynchronous requests in flight: more
	// helps a slow disk, less saves memory. 0 means 64.
	MaxBackground int
	// HelperExec starts the reveal helper: a program, with arguments, that
	// calls kernel.RunHelper. Without it changes are shown without events.
	HelperExec []string
	// Log takes what happens. nil means slog.Default().
	Log *slog.Logger
	// Debug logs each request. Slow.
	Debug bool
}

// A Mounted is a volume in the directory tree of this node.
type Mounted struct {
	// Fixed by Mount.
	conn     *kernel.Conn
	fs       *FS
	revealer *revealer
	cancel   func() // of the volume's viewer
	done     chan struct{}
	tasks    sync.WaitGroup

	remount sync.Mutex // one remount at a time

	err error // of the device loop; fixed before done is closed
}

// Mount mounts a volume on a directory, which must be empty, and serves it
// until it is unmounted. ctx bounds the start only.
func Mount(ctx context.Context, v *store.Volume, dir string, opts Options) (*Mounted, error) {
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.ID == 0 {
		opts.ID = store.MountID(rand.Uint64() | 1)
	}
	opts.Log = opts.Log.With("volume", v.Name(), "mount", dir)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("mount volume %q: %w", v.Name(), err)
	}
	if !v.Ready() {
		return nil, fmt.Errorf("mount volume %q: %w", v.Name(), ErrNotServed)
	}
	m, err := start(v, dir, opts)
	if err != nil {
		return nil, fmt.Errorf("mount volume %q: %w", v.Name(), err)
	}
	return m, nil
}

func start(v *store.Volume, dir string, opts Options) (*Mounted, error) {
	conn, err := kernel.Mount(dir, kernel.Options{
		FSName: v.Name(), AllowOther: opts.AllowOther, Guard: opts.Guard,
		Flags: opts.Flags, ACL: true, MaxBackground: opts.MaxBackground,
		Logger: slog.NewLogLogger(opts.Log.Handler(), slog.LevelWarn), Debug: opts.Debug,
	})
	if err != nil {
		return nil, err
	}
	fs := newFS(v, opts.ID, &opts, newWorkQueue())
	fs.epoch = conn.Epoch()
	if opts.Passthrough {
		fs.backer = conn
	}
	m := &Mounted{conn: conn, fs: fs, revealer: newRevealer(fs, conn), done: make(chan struct{})}
	// From here on no change is missed.
	m.cancel = v.AddViewer(opts.ID, fs.shown)
	if err := conn.Serve(fs); err != nil {
		m.cancel()
		conn.Close()
		// The guard stays: it may be there since before, and a retry reuses it.
		return nil, errors.Join(err, conn.Unmount(kernel.UnmountOptions{Lazy: true}))
	}
	if opts.ReadOnly {
		m.seal(opts.Flags)
	}
	if len(opts.HelperExec) > 0 {
		m.startHelper(opts.HelperExec)
		m.tasks.Go(func() { m.keepHelper(opts.HelperExec) })
	}
	m.tasks.Go(m.revealer.run)
	go m.finish()
	return m, nil
}

// seal has the kernel refuse changes of a read-only mount, where we may; then
// opens need not be asked for.
func (m *Mounted) seal(flags kernel.Flags) {
	if err := m.conn.Remount(true, flags); err != nil {
		m.fs.log.Info("opens of a read-only mount are slow", "err", err)
		return
	}
	m.fs.sealed.Store(true)
}

func (m *Mounted) startHelper(exec []string) bool {
	err := m.fs.helper.Start(m.conn, exec[0], exec[1:]...)
	if err != nil {
		m.fs.log.Error("changes of other nodes will be shown without inotify events", "err", err)
	} else if m.fs.helper.NeedsPaths() {
		m.fs.log.Info("reveal helper works without privileges")
	}
	return err == nil
}

// helperRestart is how long to wait before a dead helper is started again.
const helperRestart = time.Second

// keepHelper starts the helper again when it dies before the mount ends.
func (m *Mounted) keepHelper(exec []string) {
	for {
		if gone := m.fs.helper.Gone(); gone != nil {
			select {
			case <-m.revealer.ctx.Done():
				return
			case <-gone:
			}
		}
		t := time.NewTimer(helperRestart)
		select {
		case <-m.revealer.ctx.Done():
			t.Stop()
			return
		case <-t.C:
			m.startHelper(exec)
		}
	}
}

// finish ends what belongs to the mount when its connection has ended, whoever
// unmounted it.
func (m *Mounted) finish() {
	m.err = m.conn.Wait()
	m.revealer.stop()
	m.fs.helper.Close()
	m.tasks.Wait()
	m.fs.helper.Close() // keepHelper may have just started one
	m.revealer.tasks.Wait()
	m.cancel()
	m.fs.leaveAll()
	m.fs.releaseAll()
	close(m.done)
}

// Dir is the mountpoint as the kernel spells it.
func (m *Mounted) Dir() string { return m.conn.Dir() }

// Conn is the connection to the kernel.
func (m *Mounted) Conn() *kernel.Conn { return m.conn }

// Unmount removes the mount and its guard: the bare directory shows. If it is
// in use it fails with kernel.ErrBusy, or, forced, takes it out of the tree at
// once; then its users keep what they have open, and Wait tells when the last
// has let go.
func (m *Mounted) Unmount(force bool) error {
	return m.unmount(kernel.UnmountOptions{Lazy: force, Guard: true})
}

// Leave is Unmount, but the guard stays: for an end that is not what somebody
// at this directory asked for (P11).
func (m *Mounted) Leave(force bool) error {
	return m.unmount(kernel.UnmountOptions{Lazy: force})
}

func (m *Mounted) unmount(opts kernel.UnmountOptions) error {
	if err := m.conn.Unmount(opts); err != nil {
		return err
	}
	if opts.Lazy {
		return nil
	}
	return m.Wait()
}

// Remount changes whether the mount refuses changes, and its flags. It fails
// with kernel.ErrBusy if it is to be read-only and somebody has a file open for
// writing in it, and with kernel.ErrStaysReadOnly if it was read-only from the
// beginning: then the kernel has stopped telling us of opens.
func (m *Mounted) Remount(readOnly bool, flags kernel.Flags) error {
	m.remount.Lock()
	defer m.remount.Unlock()
	if !readOnly && m.fs.sealed.Load() {
		return fmt.Errorf("remount %s: %w", m.Dir(), kernel.ErrStaysReadOnly)
	}
	if err := m.conn.Remount(readOnly, flags); err != nil {
		return err
	}
	m.fs.readOnly.Store(readOnly)
	m.fs.noAtime.Store(flags.NoAtime)
	return nil
}

// Wait returns when the mount has ended and everything of it is closed.
func (m *Mounted) Wait() error {
	<-m.done
	return m.err
}

// Done is closed when Wait would return.
func (m *Mounted) Done() <-chan struct{} { return m.done }

// Idle reports whether all that was merged is shown.
func (m *Mounted) Idle() bool { return m.fs.shown.queue.length() == 0 }

// WaitIdle returns when all that was merged before is shown, or ctx has ended.
func (m *Mounted) WaitIdle(ctx context.Context) error {
	select {
	case <-m.fs.shown.queue.idle():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stats counts how changes were shown.
type Stats struct {
	Reveals       uint64 // calls of the helper, with genuine events
	Fallbacks     uint64 // changes shown by notification only, or without an event
	Notifications uint64
	Queue         int // changes merged and not yet shown
	Pending       int // names among them
	Nodes         int // that the kernel knows
	Frozen        int // of them, old versions that somebody still uses
	Direct        int // open files that the kernel reads and writes without us
}

// Stats returns the counters.
func (m *Mounted) Stats() Stats {
	s := Stats{
		Reveals:       m.revealer.reveals.Load(),
		Fallbacks:     m.revealer.fallbacks.Load(),
		Notifications: m.revealer.notifies.Load(),
		Queue:         m.fs.shown.queue.length(),
	}
	m.fs.shown.counts(&s)
	s.Direct = m.fs.direct()
	return s
}

func (s *shown) counts(out *Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out.Nodes, out.Frozen = len(s.nodes), len(s.frozen)
	for _, names := range s.pending {
		out.Pending += len(names)
	}
}

// SelfHelper is the HelperExec of a program whose main calls kernel.RunHelper
// when kernel.IsHelper.
func SelfHelper() []string {
	exe, err := os.Executable()
	if err != nil {
		exe = "/proc/self/exe"
	}
	return []string{exe}
}
