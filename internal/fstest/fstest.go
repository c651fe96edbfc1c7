// Package fstest mounts real volumes for tests: one, or the two ends of a pair
// of replicas that hear each other. A test package that uses it calls Main
// from its TestMain, because the test binary is also the reveal helper.
package fstest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/synapsefs/synapsefs/fusefs"
	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// Main is the TestMain of a package that mounts.
func Main(m *testing.M) {
	if kernel.IsHelper() {
		if err := kernel.RunHelper(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// Options says what is to be mounted.
type Options struct {
	Store  store.Options  // Dir is set
	Mount  fusefs.Options // HelperExec is set, unless NoHelper
	Backed string         // the state directory; default: a temporary one
	// NoHelper leaves out the reveal helper.
	NoHelper bool
}

// A Node is one replica and its mount.
type Node struct {
	Dir    string // the mountpoint
	Volume *store.Volume
	Mount  *fusefs.Mounted
	DB     *store.DB

	t    testing.TB
	opts Options // as they came out
}

// Mount mounts a new volume until the end of the test. It skips the test where
// no mount is possible.
func Mount(t testing.TB, opts Options) *Node {
	t.Helper()
	return mount(t, store.NewVolumeID(), opts)
}

// NeedMount skips a test where no mount is possible.
func NeedMount(t testing.TB) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("no mounts here: %v", err)
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
}

func mount(t testing.TB, id store.VolumeID, opts Options) *Node {
	t.Helper()
	NeedMount(t)
	n := &Node{Dir: t.TempDir(), t: t}
	opts.Store.Dir = opts.Backed
	if opts.Backed == "" {
		opts.Store.Dir = t.TempDir()
	}
	opts.Store.Log = logger(t)
	var err error
	if n.DB, err = store.Open(opts.Store); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.DB.Close(); err != nil { // the present one
			t.Error(err)
		}
	})
	if n.Volume, err = n.DB.CreateReplica(id, "test", true); err != nil {
		t.Fatal(err)
	}
	if !opts.NoHelper {
		opts.Mount.HelperExec = fusefs.SelfHelper()
	}
	n.opts = opts
	n.opts.Mount = n.mount(opts.Mount)
	return n
}

// MountAgain mounts the node's volume on a further directory.
func (n *Node) MountAgain(opts fusefs.Options) *Node {
	n.t.Helper()
	again := &Node{Dir: n.t.TempDir(), Volume: n.Volume, DB: n.DB, t: n.t}
	opts.HelperExec = fusefs.SelfHelper()
	again.mount(opts)
	return again
}

// mount returns the options with what it added.
func (n *Node) mount(opts fusefs.Options) fusefs.Options {
	n.t.Helper()
	opts.Log, opts.Debug = logger(n.t), opts.Debug || os.Getenv("FSTEST_DEBUG") == "2"
	var err error
	if n.Mount, err = fusefs.Mount(context.Background(), n.Volume, n.Dir, opts); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(n.unmount)
	return opts
}

// logger logs to the test, or, if FSTEST_DEBUG is set, all to its output.
func logger(t testing.TB) *slog.Logger {
	if os.Getenv("FSTEST_DEBUG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(logWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// unmount retries while the kernel still lets go of the test's files.
func (n *Node) unmount() {
	err := n.Mount.Unmount(false)
	for range 20 {
		if !errors.Is(err, kernel.ErrBusy) {
			break
		}
		time.Sleep(50 * time.Millisecond)
		err = n.Mount.Unmount(false)
	}
	if err != nil {
		n.t.Errorf("%v", err)
		n.Mount.Unmount(true) //nolint:errcheck // at the end of a test
		n.Mount.Wait()        //nolint:errcheck // at the end of a test
	}
}

type logWriter struct{ t testing.TB }

func (w logWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// Eventually polls until ok returns nil, and fails the test with its last
// error after ten seconds.
func Eventually(t testing.TB, ok func() error) {
	t.Helper()
	Within(t, 10*time.Second, ok)
}

// Until polls until something is so, and fails the test after a time.
func Until(t testing.TB, limit time.Duration, what string, met func() bool) {
	t.Helper()
	Within(t, limit, func() error {
		if !met() {
			return fmt.Errorf("timed out waiting for %s", what)
		}
		return nil
	})
}

// Within polls until ok returns nil, and fails the test with its last error after
// a time.
func Within(t testing.TB, limit time.Duration, ok func() error) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); ; <-tick.C {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// A Pair is two replicas of one volume, mounted on two directories.
type Pair struct {
	A, B *Node

	t      testing.TB
	ab, ba *pipe
}

// MountPair mounts two replicas that merge each other's batches at once.
func MountPair(t testing.TB, opts Options) *Pair {
	t.Helper()
	id := store.NewVolumeID()
	if opts.Store.Hold == 0 {
		opts.Store.Hold = 5 * time.Millisecond
	}
	p := &Pair{t: t, A: mount(t, id, opts), B: mount(t, id, opts)}
	p.ab = newPipe(t, p.A, p.B)
	p.ba = newPipe(t, p.B, p.A)
	return p
}

// Cut stops delivery both ways until the returned function is called.
func (p *Pair) Cut() (heal func()) {
	p.ab.hold(true)
	p.ba.hold(true)
	return func() {
		p.ab.hold(false)
		p.ba.hold(false)
	}
}

// Sync returns when both have merged all that was published, and show it.
func (p *Pair) Sync() {
	p.t.Helper()
	Eventually(p.t, func() error {
		for _, n := range []*Node{p.A, p.B} {
			if err := n.Volume.Sync(); err != nil {
				return err
			}
			s := n.Volume.Stats()
			if s.Unsealed > 0 || s.OpenDrafts > s.Kept {
				return fmt.Errorf("%d ops not sealed, %d drafts open, mount %+v", s.Unsealed, s.OpenDrafts, n.Mount.Stats())
			}
		}
		va, vb := p.A.Volume.Vector(), p.B.Volume.Vector()
		if !va.Contains(vb) || !vb.Contains(va) {
			return fmt.Errorf("vectors differ: %v and %v", va, vb)
		}
		for _, n := range []*Node{p.A, p.B} {
			if !n.Mount.Idle() {
				return fmt.Errorf("not all is shown: %+v", n.Mount.Stats())
			}
		}
		return nil
	})
}

// pipe delivers one replica's batches to another, in order, and the large
// content that they name.
type pipe struct {
	from, to *Node
	wake     chan struct{}

	mu    sync.Mutex
	queue []*store.Batch
	held  bool
}

func newPipe(t testing.TB, from, to *Node) *pipe {
	p := &pipe{from: from, to: to, wake: make(chan struct{}, 1)}
	ctx, stop := context.WithCancel(context.Background())
	unseal := from.Volume.OnSeal(p.push)
	unmerge := to.Volume.OnMerge(func(crdt.Vector) { p.kick() }) // what waited may be next now
	var tasks sync.WaitGroup
	tasks.Go(func() { p.run(ctx, t) })
	t.Cleanup(func() {
		unseal()
		unmerge()
		stop()
		tasks.Wait()
	})
	return p
}

func (p *pipe) push(b *store.Batch) {
	p.mu.Lock()
	p.queue = append(p.queue, b)
	p.mu.Unlock()
	p.kick()
}

func (p *pipe) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *pipe) hold(held bool) {
	p.mu.Lock()
	p.held = held
	p.mu.Unlock()
	p.kick()
}

func (p *pipe) deliver(b *store.Batch) error {
	err := p.to.Volume.Merge(b)
	if !errors.Is(err, store.ErrNoContent) {
		return err
	}
	wants, err := p.to.Volume.Wants(b)
	for _, h := range wants {
		if err == nil {
			err = p.copyContent(h)
		}
	}
	if err != nil {
		return err
	}
	return p.to.Volume.Merge(b)
}

// copyContent copies what a manifest lists, and then the manifest.
func (p *pipe) copyContent(h crdt.Hash) error {
	from, to := p.from.DB.Content(), p.to.DB.Content()
	m, ok, err := from.Manifest(h)
	if err != nil || !ok {
		return fmt.Errorf("manifest %x is at neither end: %w", h[:], err)
	}
	missing, err := to.Missing(m)
	if err != nil {
		return err
	}
	in, err := to.NewIncoming()
	if err != nil {
		return err
	}
	defer in.Abort()
	for _, block := range missing {
		b, err := from.Block(block)
		if err == nil {
			err = in.Put(block, b)
		}
		if err != nil {
			return err
		}
	}
	encoded, _ := m.Encode()
	return errors.Join(in.Commit(), p.to.DB.Index().PutManifest(h, encoded))
}

func (p *pipe) run(ctx context.Context, t testing.TB) {
	for {
		p.mu.Lock()
		var b *store.Batch
		if !p.held && len(p.queue) > 0 {
			b = p.queue[0]
		}
		p.mu.Unlock()
		var err error
		if b != nil {
			err = p.deliver(b)
		}
		switch {
		case b != nil && err == nil:
			p.mu.Lock()
			p.queue = p.queue[1:]
			p.mu.Unlock()
			continue
		case err != nil && !errors.Is(err, store.ErrNotNext):
			if ctx.Err() == nil {
				t.Errorf("merge: %v", err)
			}
			return
		}
		select {
		case <-p.wake:
		case <-ctx.Done():
			return
		}
	}
}
