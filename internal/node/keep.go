package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/fusefs"
	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/keeper"
	"github.com/synapsefs/synapsefs/store"
)

const (
	// takeOverTime is how long a start waits for the daemon before to end.
	takeOverTime = 30 * time.Second
	// keeperRestart is how long to wait before a dead keeper is started again.
	keeperRestart = time.Second
)

// keeping is the keeper as the kernel package knows one.
type keeping struct{ *keeper.Client }

func (k keeping) Put(m kernel.Kept) error { return k.Client.Put(keeper.Mount(m)) }

// A mountNote is what the keeper has with a mount for the next daemon.
type mountNote struct {
	Volume string // id
	Mount  store.MountID
	Dir    string // as the mount call spelled it
}

func (m *mount) note() []byte {
	b, err := json.Marshal(mountNote{m.volume.String(), m.id, m.info.Dir})
	if err != nil {
		panic(err) // texts and a number
	}
	return b
}

// A keptMount is a mount that has outlived its daemon.
type keptMount struct {
	kernel.Kept
	mountNote
	volume store.VolumeID
}

// recall starts the keeper or finds it, if mounts are to outlive this daemon, and learns
// from it which have outlived another. The daemon before has then ended.
func (n *Node) recall(ctx context.Context) ([]keptMount, error) {
	if !n.cfg.Keeper || os.Geteuid() != 0 { // users' mounts end with their daemon
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, takeOverTime)
	defer cancel()
	client, err := n.startKeeper(ctx)
	if err != nil {
		return nil, err
	}
	n.keeper = client
	mounts, err := client.Attach(ctx)
	if err != nil {
		return nil, fmt.Errorf("take the mounts over from the daemon before: %w", err)
	}
	var kept []keptMount
	for _, m := range mounts {
		k := keptMount{Kept: kernel.Kept(m)}
		err := json.Unmarshal(k.Note, &k.mountNote)
		if err == nil {
			k.volume, err = store.ParseVolumeID(k.Volume)
		}
		if err != nil {
			return nil, fmt.Errorf("the keeper's note for the mount on %s: %w; unmount it (synapsefs umount) and mount again", m.Dir, err)
		}
		kept = append(kept, k)
	}
	return kept, nil
}

// startKeeper connects to the keeper, which this daemon starts if it is to.
func (n *Node) startKeeper(ctx context.Context) (*keeper.Client, error) {
	if !n.cfg.KeeperStart {
		return keeper.Start(ctx, n.cfg.KeeperSocket())
	}
	return keeper.Start(ctx, n.cfg.KeeperSocket(), selfKeeper()...)
}

// selfKeeper is the command line that makes this program the keeper.
func selfKeeper() []string { return append(fusefs.SelfHelper(), keeper.Command) }

// mountedOf says which mounts a store is opened under.
func mountedOf(kept []keptMount) map[store.VolumeID][]store.MountID {
	mounted := map[store.VolumeID][]store.MountID{}
	for _, k := range kept {
		mounted[k.volume] = append(mounted[k.volume], k.Mount)
	}
	return mounted
}

// resume takes over the mounts that have outlived their daemon, before anything
// new is merged. Programs go on when all are taken over. A mount whose volume is
// not here waits on; the others are served.
func (n *Node) resume(kept []keptMount) error {
	if err := n.sweepLedgers(kept); err != nil {
		return err
	}
	taken := make([]*mount, len(kept))
	err := each(kept, func(i int, k *keptMount) (err error) {
		taken[i], err = n.takeOver(k)
		return err
	})
	taken = slices.DeleteFunc(taken, func(m *mount) bool { return m == nil })
	if err != nil {
		for _, m := range taken {
			m.fs.Abandon()
		}
		return err
	}
	return each(taken, func(_ int, m **mount) error { return n.goOn(*m) })
}

// each calls fn for all at once.
func each[T any](all []T, fn func(int, *T) error) error {
	var group errgroup.Group
	for i := range all {
		group.Go(func() error { return fn(i, &all[i]) })
	}
	return group.Wait()
}

// takeOver returns nil for a mount that has ended, or that waits on.
func (n *Node) takeOver(k *keptMount) (*mount, error) {
	v := n.db.Volume(k.volume)
	if v == nil {
		err := fmt.Errorf("take over the mount on %s: %w: %s is not in %s; unmount it (synapsefs umount), or start the daemon with the state directory that it was mounted from",
			k.Kept.Dir, store.ErrNoVolume, k.Volume, n.cfg.StateDir)
		unix.Close(k.FD)
		n.log.Error("a mount is not served", "err", err)
		n.mu.Lock()
		n.unserved[k.Kept.Dir] = err
		n.mu.Unlock()
		return nil, nil
	}
	m := &mount{id: k.Mount, volume: k.volume, info: MountInfo{Volume: v.Name(), Dir: k.mountNote.Dir, Stale: true, Since: time.Now()}}
	fs, err := fusefs.Attach(v, k.Kept, n.mountOptions(m, nil))
	if errors.Is(err, kernel.ErrUnmounted) {
		n.log.Info("a mount has ended while no daemon served it", "volume", v.Name(), "dir", k.Kept.Dir)
		return nil, errors.Join(v.Unmounted(k.Mount), n.keeper.Drop(k.Epoch), removeIfThere(n.ledger(m)))
	}
	if err != nil {
		return nil, err
	}
	m.fs, m.info.ReadOnly = fs, fs.ReadOnly()
	return m, nil
}

// goOn serves a mount that was taken over.
func (n *Node) goOn(m *mount) error {
	there, err := m.fs.Conn().Mounted()
	if err != nil {
		m.fs.Abandon()
		return fmt.Errorf("take over the mount on %s: %w", m.fs.Dir(), err)
	}
	err = m.fs.Resume()
	if errors.Is(err, kernel.ErrUnmounted) {
		return nil // just now
	}
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.live[m.id] = m
	if there { // else it is detached, and another may be in its place
		n.mounts[m.info.Dir] = m
	}
	n.mu.Unlock()
	n.log.Info("took over", "volume", m.info.Volume, "dir", m.info.Dir, "generation", m.fs.Conn().Generation(), "took", time.Since(m.info.Since))
	return nil
}

// watchMounts begins to follow the mounts that were taken over, and the keeper.
func (n *Node) watchMounts() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.live {
		n.follow(m, m.fs, m.info.Stale)
	}
	if n.keeper != nil {
		n.loops.Go(n.watchKeeper)
	}
}

// ledger is where a mount keeps what a successor must know.
func (n *Node) ledger(m *mount) string {
	return filepath.Join(n.cfg.StateDir, "mounts", fmt.Sprintf("%s-%016x", m.volume, uint64(m.id)))
}

// sweepLedgers removes those of mounts that ended with their daemon.
func (n *Node) sweepLedgers(kept []keptMount) error {
	dir := filepath.Join(n.cfg.StateDir, "mounts")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	live := map[string]bool{}
	for _, k := range kept {
		live[n.ledger(&mount{id: k.Mount, volume: k.volume})] = true
	}
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if path := filepath.Join(dir, e.Name()); !live[strings.TrimSuffix(path, fusefs.KnownSuffix)] {
			err = errors.Join(err, removeIfThere(path))
		}
	}
	return err
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// watchKeeper has another keeper when this one dies, and gives it the mounts.
func (n *Node) watchKeeper() {
	for {
		select {
		case <-n.stopping:
			return
		case <-n.keeper.Gone():
		}
		n.log.Error("the keeper is gone: until another has the mounts they end with this daemon")
		ctx, release := n.scope(context.Background())
		for !n.renewKeeper(ctx) {
			select {
			case <-n.stopping:
				release()
				return
			case <-time.After(keeperRestart):
			}
		}
		release()
	}
}

// renewKeeper starts or finds another keeper and gives it the mounts.
func (n *Node) renewKeeper(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, takeOverTime)
	defer cancel()
	client, err := n.startKeeper(ctx)
	var known []keeper.Mount
	if err == nil {
		known, err = client.Attach(ctx)
	}
	for _, m := range known { // it had merely hung up
		unix.Close(m.FD)
	}
	if err != nil {
		n.log.Error("start another keeper", "err", err)
		return false
	}
	n.mu.Lock()
	n.keeper = client
	mounts := n.servedLocked()
	n.mu.Unlock()
	for _, m := range mounts {
		if err := m.fs.Conn().Keep(keeping{client}); err != nil {
			n.log.Error("have a mount kept", "dir", m.info.Dir, "err", err)
		}
	}
	n.log.Info("another keeper has the mounts", "mounts", len(mounts))
	return true
}

// release ends a mount that was not taken over, if it is on dir.
func (n *Node) release(dir string) error {
	point, err := kernel.Canonical(dir)
	if err != nil {
		return nil // whoever looks for a mount there will say so
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.unserved[point] == nil {
		return nil
	}
	delete(n.unserved, point)
	if _, err := n.keeper.Release(point); err != nil && !errors.Is(err, keeper.ErrUnknown) {
		return err
	}
	return nil
}

// kept reports whether mounts outlive this daemon.
func (n *Node) kept() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.keeper != nil
}

// releaseMounts has nobody keep the mounts that were detached and are still used:
// they end with this process, and no program waits for another.
func (n *Node) releaseMounts() error {
	n.mu.Lock()
	mounts, client := n.servedLocked(), n.keeper
	n.mu.Unlock()
	if client == nil || len(mounts) == 0 {
		return nil
	}
	var errs []error
	for _, m := range mounts {
		if _, err := client.Release(m.fs.Dir()); !errors.Is(err, keeper.ErrUnknown) && !errors.Is(err, keeper.ErrGone) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (n *Node) served() []*mount {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.servedLocked()
}

// servedLocked are the mounts that programs may use, detached ones included.
func (n *Node) servedLocked() (mounts []*mount) {
	for _, m := range n.live {
		if m.fs != nil {
			mounts = append(mounts, m)
		}
	}
	return mounts
}
