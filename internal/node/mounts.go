package node

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/fusefs"
	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/store"
)

// A MountRequest says what to mount where.
type MountRequest struct {
	Volume     string
	Dir        string // absolute
	Create     bool   // make the volume if there is none of that name
	ReadOnly   bool
	AllowOther bool
	Group      *uint32 // all files show as of it (fusefs.Options.Group)
	Flags      MountFlags
}

// MountFlags are mount(2)'s.
type MountFlags = kernel.Flags

// A MountInfo is one mount of this node.
type MountInfo struct {
	Volume   string
	ID       store.VolumeID
	Dir      string
	ReadOnly bool
	Group    *uint32 // as in the request
	// Stale: no ready peer was reachable within catch-up-timeout, and the
	// replica, ready once, serves its own data until it has caught up.
	Stale   bool
	Since   time.Time
	Created bool // the volume was made by the call that mounted it

	Kept       bool   // it outlives the daemon
	Generation uint64 // how many daemons have served it, this one included
	Resent     uint64 // requests that an earlier one had read and not answered
	Repeated   uint64 // of all requests of the volume, those that it had done
}

// A mount is reserved in Node.mounts before anything slow is done for it, so
// that two calls cannot mount one directory.
type mount struct {
	info   MountInfo
	id     store.MountID
	volume store.VolumeID
	fs     *fusefs.Mounted // nil while the mount is being made
}

// Mount mounts a volume and returns when the mount serves: when this node's
// replica is ready and has caught up with a live peer (P11).
func (n *Node) Mount(ctx context.Context, r MountRequest) (MountInfo, error) {
	ctx, release := n.scope(ctx)
	defer release()
	m := &mount{info: MountInfo{Volume: r.Volume, Dir: filepath.Clean(r.Dir), ReadOnly: r.ReadOnly}}
	if err := n.reserve(m); err != nil {
		return MountInfo{}, fmt.Errorf("mount volume %q: %w", r.Volume, err)
	}
	n.identify(m)
	if err := n.fill(ctx, m, r); err != nil {
		n.forget(m)
		n.freeID(m)
		return MountInfo{}, err
	}
	info := n.infoOf(m)
	n.log.Info("mounted", "volume", info.Volume, "dir", info.Dir, "stale", info.Stale)
	n.kick() // should the volume have been deleted meanwhile
	return info, nil
}

// fill does the work of mount for a reserved directory.
func (n *Node) fill(ctx context.Context, m *mount, r MountRequest) error {
	v, err := n.prepare(ctx, m, r)
	if err != nil {
		return fmt.Errorf("mount volume %q: %w", r.Volume, err)
	}
	fs, err := fusefs.Mount(ctx, v, m.info.Dir, n.mountOptions(m, &r))
	if err != nil {
		return err
	}
	return n.keep(m, fs)
}

// mountOptions are those of a mount, or, without r, of one that is taken over.
func (n *Node) mountOptions(m *mount, r *MountRequest) fusefs.Options {
	o := fusefs.Options{
		ID:            m.id,
		NoPassthrough: !n.cfg.Passthrough,
		HelperExec:    fusefs.SelfHelper(),
		Log:           n.log,
	}
	if r != nil {
		o.ReadOnly, o.Flags, o.AllowOther, o.Group = r.ReadOnly, r.Flags, r.AllowOther, r.Group
		o.Guard = os.Geteuid() == 0 // P11; a user cannot lay one
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.keeper != nil {
		o.Keeper, o.Note, o.Ledger = keeping{n.keeper}, m.note(), n.ledger(m)
	}
	return o
}

// identify gives a mount the id that its directory has after every restart,
// so that what the store keeps for it stays bounded, unless that is taken: by a
// mount that was detached from there and is still used.
func (n *Node) identify(m *mount) {
	h := fnv.New64a()
	h.Write([]byte(m.info.Dir)) // never fails
	n.mu.Lock()
	defer n.mu.Unlock()
	for m.id = store.MountID(h.Sum64() | 1); n.live[m.id] != nil; {
		m.id += 2
	}
	n.live[m.id] = m
}

// freeID says that a mount has ended.
func (n *Node) freeID(m *mount) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.live, m.id)
}

// prepare returns the replica to mount, caught up.
func (n *Node) prepare(ctx context.Context, m *mount, r MountRequest) (*store.Volume, error) {
	if err := checkMountpoint(m.info.Dir); err != nil {
		return nil, err // before a volume is made or fetched for nothing
	}
	v, err := n.volumeFor(ctx, m, r)
	if err != nil || m.info.Created {
		return v, err
	}
	m.info.Stale, err = n.catchUp(ctx, v)
	return v, err
}

// checkMountpoint finds what kernel.Mount would refuse. What it is unsure of,
// such as a dead mount of an earlier run, it leaves to kernel.Mount.
func checkMountpoint(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("directory %q is not an absolute path: %w", dir, ErrBadName)
	}
	var here, above unix.Stat_t
	switch err := unix.Stat(dir, &here); {
	case err == unix.ENOENT:
		return fmt.Errorf("mount %s: %w", dir, kernel.ErrMountpointMissing)
	case err != nil:
		return nil
	case here.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("mount %s: %w", dir, kernel.ErrNotDirectory)
	}
	if err := unix.Stat(filepath.Join(dir, ".."), &above); err != nil || here.Dev != above.Dev {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("mount %s: %w", dir, kernel.ErrNotEmpty)
	}
	return err
}

// volumeFor returns the replica to mount, of a volume made now if asked for.
func (n *Node) volumeFor(ctx context.Context, m *mount, r MountRequest) (*store.Volume, error) {
	l, err := n.findVolume(ctx, r.Volume)
	if errors.Is(err, store.ErrNoVolume) && r.Create {
		info, err := n.createVolume(ctx, r.Volume, nil)
		if !errors.Is(err, ErrVolumeExists) {
			m.info.Created = err == nil
			if err == nil {
				n.uses(m, info.Listing)
			}
			return info.Replica, err
		}
		l, err = n.catalogue.find(r.Volume) // somebody was faster
		if err != nil {
			return nil, err
		}
	} else if errors.Is(err, store.ErrNoVolume) {
		return nil, fmt.Errorf("%w; --create makes a new one", err)
	} else if err != nil {
		return nil, err
	}
	if !r.ReadOnly && l.isSnapshot() {
		return nil, ErrSnapshot
	}
	n.uses(m, l)
	return n.replica(l, false)
}

// uses says which volume a mount is of: from here on its replica stays.
func (n *Node) uses(m *mount, l Listing) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m.volume, m.info.Volume = l.ID, l.Name
}

// used reports whether a volume is mounted here, is being mounted or copied, or was
// detached and is still in use.
func (n *Node) used(id store.VolumeID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.live {
		if m.volume == id {
			return true
		}
	}
	return n.copies.from[id] > 0
}

// Remount changes whether a mount is read-only, and its flags.
func (n *Node) Remount(dir string, readOnly bool, flags kernel.Flags) (MountInfo, error) {
	m, err := n.mountAt(filepath.Clean(dir))
	if err == nil && !readOnly {
		err = n.mayWrite(m.volume)
	}
	if err != nil {
		return MountInfo{}, fmt.Errorf("remount %s: %w", dir, err)
	}
	if err := m.fs.Remount(readOnly, flags); err != nil {
		return MountInfo{}, err
	}
	n.mu.Lock()
	m.info.ReadOnly = readOnly
	n.mu.Unlock()
	info := n.infoOf(m)
	n.log.Info("remounted", "volume", info.Volume, "dir", info.Dir, "read-only", readOnly)
	return info, nil
}

// mountAt returns the mount at dir, a clean path: as the mount call spelled it,
// or as the kernel does, which is what mount(8) knows.
func (n *Node) mountAt(dir string) (*mount, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.mounts[dir]
	for _, other := range n.mounts {
		if m == nil && other.fs != nil && other.fs.Dir() == dir {
			m = other
		}
	}
	switch {
	case m == nil:
		return nil, kernel.ErrNotMounted
	case m.fs == nil:
		return nil, fmt.Errorf("%w: another call is at work there", kernel.ErrBusy)
	default:
		return m, nil
	}
}

// Unmount takes a mount and its guard away. With force it is detached although
// files are open in it. Where this node has no mount it clears away what an
// earlier run left, and says what that was.
func (n *Node) Unmount(dir string, force bool) (kernel.Cleared, error) {
	dir = filepath.Clean(dir)
	err := n.unmount(dir, force, (*fusefs.Mounted).Unmount)
	if !errors.Is(err, kernel.ErrNotMounted) {
		return kernel.Cleared{}, err
	}
	m := &mount{info: MountInfo{Dir: dir}} // nobody may mount there meanwhile
	if err := n.reserve(m); err != nil {
		return kernel.Cleared{}, fmt.Errorf("unmount %s: %w", dir, err)
	}
	defer n.forget(m)
	if err := n.release(dir); err != nil {
		return kernel.Cleared{}, fmt.Errorf("unmount %s: %w", dir, err)
	}
	left, err := kernel.Clear(dir)
	if err == nil {
		n.log.Info("cleared away what an earlier run left", "dir", dir, "mounts", left.Dead, "guards", left.Guards)
	}
	return left, err
}

// unmount takes a mount away by one of the ways that a Mounted has.
func (n *Node) unmount(dir string, force bool, way func(m *fusefs.Mounted, force bool) error) error {
	m, err := n.mountAt(dir)
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	if err := way(m.fs, force); err != nil {
		return err
	}
	n.forget(m)
	n.log.Info("unmounted", "volume", m.info.Volume, "dir", dir)
	return nil
}

// unmountAll is the end: mounts in use are detached. Guards stay, so that who
// watches the directories sees an error and not that all was removed (P11).
func (n *Node) unmountAll() error {
	var errs []error
	for _, m := range n.Mounts() {
		err := n.unmount(m.Dir, false, (*fusefs.Mounted).Leave)
		if errors.Is(err, kernel.ErrBusy) {
			n.log.Warn("mount is in use: detaching it", "dir", m.Dir, "err", err)
			err = n.unmount(m.Dir, true, (*fusefs.Mounted).Leave)
		}
		if err != nil && !errors.Is(err, kernel.ErrNotMounted) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Mounts lists the mounts of this node by directory.
func (n *Node) Mounts() []MountInfo {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []MountInfo
	for _, m := range n.mounts {
		if m.fs != nil {
			all = append(all, m.infoNow())
		}
	}
	slices.SortFunc(all, func(a, b MountInfo) int { return slices.Compare([]byte(a.Dir), []byte(b.Dir)) })
	return all
}

// mountsOf returns the directories where a volume is mounted here.
func (n *Node) mountsOf(id store.VolumeID) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var dirs []string
	for dir, m := range n.mounts {
		if m.fs != nil && m.volume == id {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	return dirs
}

func (n *Node) reserve(m *mount) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return ErrStopping
	}
	if there := n.mounts[m.info.Dir]; there != nil {
		// umount(8) tells nobody, and who uses a detached mount may take his time.
		if gone, err := there.gone(); err != nil || !gone {
			return errors.Join(fmt.Errorf("mount %s: %w", m.info.Dir, kernel.ErrMounted), err)
		}
	}
	n.mounts[m.info.Dir] = m
	return nil
}

// gone reports whether a mount is no longer at its place.
func (m *mount) gone() (bool, error) {
	if m.fs == nil {
		return false, nil
	}
	there, err := m.fs.Conn().Mounted()
	return !there, err
}

// keep enters a live mount, and forgets it when it goes, by whose hand ever.
func (n *Node) keep(m *mount, fs *fusefs.Mounted) error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return errors.Join(ErrStopping, fs.Leave(true))
	}
	m.fs, m.info.Since = fs, time.Now()
	stale := m.info.Stale
	n.mu.Unlock()
	n.follow(m, fs, stale)
	return nil
}

// follow forgets a mount when it ends.
func (n *Node) follow(m *mount, fs *fusefs.Mounted, stale bool) {
	mounted, ended := context.WithCancel(context.Background())
	go func() {
		if err := fs.Wait(); err != nil && !errors.Is(err, kernel.ErrHandedOver) {
			n.log.Error("mount ended", "dir", m.info.Dir, "err", err)
		}
		ended()
		n.forget(m)
		n.freeID(m)
	}()
	if stale {
		go n.freshen(mounted, m, fs)
	}
}

// freshen takes the mark from a stale mount when its replica has caught up and
// the mount shows it.
func (n *Node) freshen(mounted context.Context, m *mount, fs *fusefs.Mounted) {
	if n.cluster.CaughtUp(mounted, m.volume) != nil || fs.WaitIdle(mounted) != nil {
		return // the mount, the volume or the node ended
	}
	n.mu.Lock()
	m.info.Stale = false
	n.mu.Unlock()
	n.log.Info("caught up with a ready peer: stale no longer", "volume", m.info.Volume, "dir", m.info.Dir)
}

func (n *Node) infoOf(m *mount) MountInfo {
	n.mu.Lock()
	defer n.mu.Unlock()
	return m.infoNow()
}

func (m *mount) infoNow() MountInfo {
	i := m.info
	i.ID = m.volume
	if m.fs != nil {
		c := m.fs.Conn()
		i.Group = m.fs.Group()
		i.Kept, i.Generation, i.Resent, i.Repeated = c.Kept(), c.Generation(), c.Resent(), m.fs.Repeated()
	}
	return i
}

func (n *Node) forget(m *mount) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mounts[m.info.Dir] == m {
		delete(n.mounts, m.info.Dir)
	}
}
