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
	// Group, if not nil, has all files show as of that group, which may do what
	// the owner may: for who is to share a volume and must not change it to do so.
	// What is made gets the group for good; nothing else is stored.
	Group *uint32
	// Flags are mount(2)'s.
	Flags kernel.Flags
	// Guard lays a dead mount below, so that the bare mountpoint is an error
	// and never an empty directory. Needs root.
	Guard bool
	// NoPassthrough brings all reads and writes to the daemon. Without it the
	// kernel does those of large and new files itself, by files of the store, if
	// it can. All mounts of a volume are to agree on it.
	NoPassthrough bool
	// MaxBackground bounds the kernel's asynchronous requests in flight: more
	// helps a slow disk, less saves memory. 0 means 64.
	MaxBackground int
	// HelperExec starts the reveal helper: a program, with arguments, that
	// calls kernel.RunHelper. Without it changes are shown without events.
	HelperExec []string
	// Keeper makes the mount outlive this process (P9), Note is kept with it.
	// Ledger is then the file that tells a successor what was not shown yet.
	Keeper kernel.Keeper
	Note   []byte
	Ledger string
	// Log takes what happens. nil means slog.Default().
	Log *slog.Logger
	// Debug logs each request. Slow.
	Debug bool
}

// A Mounted is a volume in the directory tree of this node.
type Mounted struct {
	// Fixed by Mount.
	conn       *kernel.Conn
	fs         *FS
	revealer   *revealer
	helperExec []string
	cancel     func() // of the volume's viewer
	done       chan struct{}
	tasks      sync.WaitGroup

	remount sync.Mutex // one remount at a time

	err error // of the device loop; fixed before done is closed
}

// Mount mounts a volume on a directory, which must be empty, and serves it
// until it is unmounted. ctx bounds the start only.
func Mount(ctx context.Context, v *store.Volume, dir string, opts Options) (*Mounted, error) {
	opts.prepare(v, dir)
	err := ctx.Err()
	if err == nil && !v.Ready() {
		err = ErrNotServed
	}
	var m *Mounted
	if err == nil {
		m, err = mount(v, dir, opts)
	}
	if err != nil {
		return nil, fmt.Errorf("mount volume %q: %w", v.Name(), err)
	}
	return m, nil
}

func (o *Options) prepare(v *store.Volume, dir string) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.ID == 0 {
		o.ID = store.MountID(rand.Uint64() | 1)
	}
	o.Log = o.Log.With("volume", v.Name(), "mount", dir)
}

func (o *Options) kernel(v *store.Volume) kernel.Options {
	return kernel.Options{
		FSName: v.Name(), AllowOther: o.AllowOther, Guard: o.Guard,
		Flags: o.Flags, ACL: true, MaxBackground: o.MaxBackground,
		Keeper: o.Keeper, Note: o.Note,
		Logger: slog.NewLogLogger(o.Log.Handler(), slog.LevelWarn), Debug: o.Debug,
	}
}

func mount(v *store.Volume, dir string, opts Options) (*Mounted, error) {
	if opts.Ledger != "" { // of an earlier mount there
		if err := os.Remove(opts.Ledger); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	conn, err := kernel.Mount(dir, opts.kernel(v))
	if err != nil {
		return nil, err
	}
	m, err := newMounted(v, conn, &opts)
	if err == nil {
		m.cancel = v.AddViewer(opts.ID, m.fs.shown)
		if err = conn.Serve(m.fs); err != nil {
			m.cancel()
			m.fs.shown.ledger.close()
		}
	}
	if err != nil {
		conn.Close()
		// The guard stays: it may be there since before, and a retry reuses it.
		return nil, errors.Join(err, conn.Unmount(kernel.UnmountOptions{Lazy: true}))
	}
	if opts.ReadOnly {
		m.seal(opts.Flags)
	}
	m.fs.bequeathMode()
	m.start()
	return m, nil
}

// Attach takes over a mount of the volume whose daemon has ended, or has handed
// it over. It misses no change from here on; its programs wait for Resume, or
// Abandon. Nothing may have been merged into the volume since the store was
// opened, nor may another of its mounts be resumed: this one would not be told
// what programs change there. Of opts the mount keeps what its first daemon
// said, but for Keeper, NoPassthrough, HelperExec and Log; ID and Ledger must be
// the same. Errors are those of kernel.Attach; kernel.ErrUnmounted says that the
// mount has ended, which the volume is to be told (Volume.Unmounted). With any
// other error the mount stays for who can serve it.
func Attach(v *store.Volume, kept kernel.Kept, opts Options) (*Mounted, error) {
	opts.prepare(v, kept.Dir)
	m, err := attach(v, kept, opts)
	if err != nil {
		return nil, fmt.Errorf("take over a mount of volume %q: %w", v.Name(), err)
	}
	return m, nil
}

// Agrees returns why this program could not take over a mount.
func Agrees(kept *kernel.Kept) error { return kept.Agrees(kernel.Options{ACL: true}) }

func attach(v *store.Volume, kept kernel.Kept, opts Options) (*Mounted, error) {
	conn, err := kernel.Attach(kept, opts.kernel(v))
	if err != nil {
		return nil, err
	}
	m, err := newMounted(v, conn, &opts)
	if err == nil {
		err = m.adopt()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	m.cancel = v.AddViewer(opts.ID, m.fs.shown)
	return m, nil
}

// Resume lets the programs of a mount go on that Attach has returned. Errors are
// as those of Attach; of a mount that has ended the volume is told.
func (m *Mounted) Resume() error {
	err := m.conn.Serve(m.fs)
	switch {
	case err == nil:
		m.start()
		return nil
	case errors.Is(err, kernel.ErrUnmounted):
		m.ended()
	default:
		m.leave()
	}
	return fmt.Errorf("take over a mount of volume %q: %w", m.fs.vol.Name(), err)
}

// Abandon leaves a mount that Attach has returned as it was, instead of Resume.
func (m *Mounted) Abandon() {
	m.conn.Close()
	m.leave()
}

func newMounted(v *store.Volume, conn *kernel.Conn, opts *Options) (*Mounted, error) {
	fs := newFS(v, opts.ID, opts, newWorkQueue())
	fs.epoch = conn.Epoch()
	fs.backer = conn
	fs.noBacking.Store(opts.NoPassthrough)
	if opts.Ledger != "" {
		l, err := openLedger(opts.Ledger, opts.Log)
		if err != nil {
			return nil, err
		}
		fs.inherit(l)
	}
	return &Mounted{
		conn: conn, fs: fs, revealer: newRevealer(fs, conn), helperExec: opts.HelperExec, done: make(chan struct{}),
	}, nil
}

// start begins to tell the kernel.
func (m *Mounted) start() {
	if len(m.helperExec) > 0 && !m.detached() {
		m.revealer.startSpare = m.runHelper
		m.startHelper()
		m.tasks.Go(m.keepHelper)
	}
	m.tasks.Go(m.revealer.run)
	go m.finish()
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

// finish ends what belongs to the mount when its connection has ended, whoever
// unmounted it, or goes on elsewhere.
func (m *Mounted) finish() {
	m.err = m.conn.Wait()
	m.quiet()
	if !errors.Is(m.err, kernel.ErrHandedOver) { // else Left does the rest
		m.ended()
	}
	close(m.done)
}

// Left leaves what the kernel has open, and knows, to the next daemon, after
// HandOver. It is to be called when all mounts of the volume have been handed
// over: until then this one hears of what programs change in the others, for the
// next daemon to show.
func (m *Mounted) Left() {
	<-m.done
	if errors.Is(m.err, kernel.ErrHandedOver) { // else it has ended meanwhile
		m.leave()
		if err := m.leaveKnown(); err != nil {
			m.fs.log.Warn("hand over", "err", err)
		}
	}
}

func (m *Mounted) leave() {
	m.fs.vol.Await(m.fs.mount)
	m.cancel()
	m.fs.shown.ledger.close()
}

// ended closes what a connection that has ended had open.
func (m *Mounted) ended() {
	m.cancel()
	m.fs.leaveAll()
	m.fs.releaseAll()
	if err := m.fs.shown.ledger.remove(); err != nil {
		m.fs.log.Warn("unmount", "err", err)
	}
}

// quiet stops telling the kernel.
func (m *Mounted) quiet() {
	m.revealer.stop()
	m.fs.helpers.close()
	m.tasks.Wait()
	m.fs.helpers.close() // keepHelper may have just started one
	m.revealer.tasks.Wait()
}

// HandOver stops serving the mount, for the next daemon to take over; programs
// that use it wait. Left is to follow. Nothing may be merged into the volume any
// more; what is not shown yet (WaitIdle) the next daemon shows. Should a request
// not come to its end before ctx, this process must end all the same.
func (m *Mounted) HandOver(ctx context.Context) error {
	m.quiet()           // first: nobody would answer the helper
	begin := time.Now() // from here programs wait
	if err := m.conn.Drain(ctx); err != nil {
		return err
	}
	<-m.done
	m.fs.log.Debug("drained", "took", time.Since(begin))
	return nil
}

// Dir is the mountpoint as the kernel spells it.
func (m *Mounted) Dir() string { return m.conn.Dir() }

// ReadOnly reports whether the mount refuses changes.
func (m *Mounted) ReadOnly() bool { return m.fs.readOnly.Load() }

// Group is that of Options.Group; nil if files show their own.
func (m *Mounted) Group() *uint32 { return (*uint32)(m.fs.group) }

// Repeated counts the requests of the volume's mounts that came again and were
// done already.
func (m *Mounted) Repeated() uint64 { return m.fs.vol.Repeated() }

// Conn is the connection to the kernel.
func (m *Mounted) Conn() *kernel.Conn { return m.conn }

// Unmount removes the mount and its guard: the bare directory shows. If it is
// in use it fails with kernel.ErrBusy, or, forced, takes it out of the tree at
// once; then its users keep what they have open, and Wait tells when the last
// has let go. So it is, too, if another mount namespace has a copy of the mount.
func (m *Mounted) Unmount(force bool) error {
	return m.unmount(kernel.UnmountOptions{Lazy: force, Guard: true})
}

// Leave is Unmount, but the guard stays: for an end that is not what somebody
// at this directory asked for (P11).
func (m *Mounted) Leave(force bool) error {
	return m.unmount(kernel.UnmountOptions{Lazy: force})
}

// Abort is Leave by force, at which its users get errors at once: for one whose
// volume is no more.
func (m *Mounted) Abort() error {
	return m.unmount(kernel.UnmountOptions{Lazy: true, Abort: true})
}

func (m *Mounted) unmount(opts kernel.UnmountOptions) error {
	if err := m.conn.Unmount(opts); err != nil {
		return err
	}
	if opts.Lazy {
		return nil
	}
	t := time.NewTimer(endsWithin)
	defer t.Stop()
	select {
	case <-m.done:
		return m.err
	case <-t.C:
		m.fs.log.Warn("the mount is gone from here, but another mount namespace has a copy: it is served until that is gone, too")
		return nil
	}
}

// endsWithin is how long the connection of a mount that was unmounted may take
// to end. It does not as long as a mount namespace that was made under the mount
// has a copy of it.
const endsWithin = 3 * time.Second

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
	m.fs.bequeathMode()
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
// It is this very program, whatever has its file's name by now.
func SelfHelper() []string { return []string{"/proc/self/exe"} }
