package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/synapsefs/synapsefs/gossip"
	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/internal/keeper"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// foundingWait is how long a founder looks for members before it believes
// that the cluster is new.
const foundingWait = 3 * time.Second

// A Node is one host's part in a cluster.
type Node struct {
	// Fixed by Start.
	cfg       *config.Config
	log       *slog.Logger
	db        *store.DB
	cluster   *gossip.Cluster
	catalogue *catalogue
	started   time.Time
	upgrade   chan string // holds the program that is to take over

	// Closed by Close, before anything else goes.
	stopping chan struct{}
	// Holds one token if the catalogue changed since reconcile looked.
	changed chan struct{}

	// Goroutines that end with stopping.
	loops  sync.WaitGroup
	server *grpc.Server

	clocks    clocks
	placement placement
	copies    copies
	looked    atomic.Bool // for members with a newer catalogue, once, in vain

	// creations keeps a volume that is made here from being found unlisted.
	creations sync.Mutex
	// replicas serialises the creation and dropping of replicas.
	replicas sync.Mutex

	mu     sync.Mutex // guards what follows
	mounts map[string]*mount
	live   map[store.MountID]*mount // those, and the detached ones that are still used
	keeper *keeper.Client           // nil: mounts end with this daemon
	// unserved are mounts that were not taken over, by directory as the kernel
	// spells it, and why.
	unserved map[string]error
	closed   bool
}

// Start opens the state directory, joins the cluster and serves the admin API.
// ctx bounds the start only.
func Start(ctx context.Context, cfg *config.Config, log *slog.Logger) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	n := &Node{
		cfg: cfg, log: log.With("node", cfg.Node), started: time.Now(),
		stopping:  make(chan struct{}),
		changed:   make(chan struct{}, 1),
		upgrade:   make(chan string, 1),
		mounts:    map[string]*mount{},
		live:      map[store.MountID]*mount{},
		unserved:  map[string]error{},
		clocks:    clocks{limit: cfg.MaxClockSkew, log: log},
		placement: placement{away: map[string]time.Time{}},
	}
	// First, because it is cheap and finds a second daemon; calls that come
	// early wait until the node is up.
	listen := func(context.Context) (net.Listener, error) { return listenAdmin(cfg.AdminSocket) }
	if cfg.Standby {
		listen = n.standBy
	}
	socket, err := listen(ctx)
	if err != nil {
		return nil, err
	}
	if err := n.open(ctx); err != nil {
		return nil, errors.Join(err, n.retreat(), socket.Close())
	}
	n.watchMounts()
	n.loops.Go(n.reconcileLoop)
	n.serveAdmin(socket)
	n.log.Info("node is up", "cluster", cfg.Cluster, "admin", cfg.AdminSocket)
	return n, nil
}

// retreat ends a start that has failed. Mounts that were taken over wait for the
// next one: their programs must not meet a store that is closed.
func (n *Node) retreat() error {
	if err := n.leaveCluster(); err != nil {
		n.log.Warn("leave the cluster", "err", err)
	}
	if _, err := n.leaveMounts(); err != nil {
		return err
	}
	return n.shut()
}

// open opens what the node is made of; shut closes as much of it as there is.
func (n *Node) open(ctx context.Context) error {
	pair, known, err := loadKeys(n.cfg)
	if err != nil {
		return err
	}
	steps := beginSteps(n.log)
	kept, err := n.recall(ctx)
	if err != nil {
		return err
	}
	steps.done("ask the keeper")
	n.db, err = store.Open(store.Options{
		Mounted:          mountedOf(kept),
		Dir:              n.cfg.StateDir,
		Sign:             pair.Sign,
		Log:              n.log,
		InlineLimit:      max(int(n.cfg.InlineLimit), 1),
		PublishInterval:  n.cfg.PublishInterval,
		Hold:             max(n.cfg.Hold, 1), // 0 would mean the store's default
		ReplicaRetention: n.cfg.ReplicaRetention,
		JournalLimit:     int64(n.cfg.JournalLimit),
	})
	if err != nil {
		return err
	}
	steps.done("open the store")
	if err := n.resume(kept); err != nil { // before anything is merged
		return err
	}
	steps.done("take the mounts over")
	founder, err := n.openCatalogue()
	if err != nil {
		return fmt.Errorf("open catalogue: %w", err)
	}
	n.cluster, err = gossip.Start(ctx, gossip.Options{
		Node:        n.cfg.Node,
		Cluster:     n.cfg.Cluster,
		Bind:        n.cfg.Bind,
		ReplicaBind: n.cfg.ReplicaBind,
		Advertise:   n.cfg.Advertise,
		Join:        n.cfg.Join,
		Keys:        pair,
		StateDir:    n.cfg.StateDir,
		DB:          n.db,
		Log:         n.log,
	})
	if err != nil {
		return fmt.Errorf("join cluster %q: %w", n.cfg.Cluster, err)
	}
	if !known { // now, as gossip has seen whose replicas there are
		if err := writeOwner(n.cfg.StateDir, pair); err != nil {
			return err
		}
	}
	return n.joinReplicas(founder)
}

// openCatalogue finds or makes this node's replica of the catalogue. founder
// says that it may declare it ready if no member has one.
func (n *Node) openCatalogue() (founder bool, err error) {
	v := n.db.Volume(store.CatalogueID)
	if v == nil {
		alone := len(n.cfg.Join) == 0
		if held := n.db.Volumes(); len(held) > 0 && (alone || n.cfg.Founds()) {
			return false, fmt.Errorf("%w: the state directory %s holds volume %q and %d more, and no catalogue: with a new one they could not be reached; "+
				"set join to a member that knows them and leave bootstrap out, or start with an empty state directory",
				ErrNoCatalogue, n.cfg.StateDir, held[0].Name(), len(held)-1)
		}
		v, err = n.db.CreateReplica(store.CatalogueID, "catalogue", alone)
		if err != nil {
			return false, err
		}
	}
	n.catalogue = &catalogue{v: v}
	return n.cfg.Founds() && !v.Ready(), nil
}

// joinReplicas lets the peers have the replicas of this node, except those
// whose volume was deleted while it was down.
func (n *Node) joinReplicas(founder bool) error {
	for _, v := range n.db.Volumes() {
		if gone, err := n.catalogue.deleted(v.ID()); err != nil {
			return fmt.Errorf("read catalogue: %w", err)
		} else if !gone {
			n.join(v)
		}
	}
	// At once: what is pruned by the defaults is gone.
	listed, err := n.catalogue.list()
	if err != nil {
		return fmt.Errorf("read catalogue: %w", err)
	}
	n.limit(listed)
	n.catalogue.v.OnMerge(func(crdt.Vector) { n.kick() })
	n.kick()
	if founder {
		n.loops.Go(n.found)
	}
	return nil
}

// join lets the peers have a replica of this node.
func (n *Node) join(v *store.Volume) {
	n.cluster.AddVolume(v)
	v.OnMerge(func(vector crdt.Vector) { n.clocks.check(v.Name(), vector, time.Now()) })
}

// found declares the catalogue ready if no member with a ready one turns up.
func (n *Node) found() {
	ctx, cancel := context.WithTimeout(context.Background(), foundingWait)
	defer cancel()
	ctx, release := n.scope(ctx)
	defer release()
	err := n.cluster.WaitReady(ctx, store.CatalogueID)
	if err == nil || n.isStopping() {
		return
	}
	if err := n.catalogue.v.SetReady(); err != nil {
		n.log.Error("found the cluster", "err", err)
		return
	}
	n.log.Info("no member answered: this node founds the cluster", "cluster", n.cfg.Cluster)
}

// Close takes the mounts away and leaves the cluster.
func (n *Node) Close() error {
	if !n.end() {
		return nil
	}
	err := errors.Join(n.unmountAll(), n.releaseMounts(), n.shut())
	n.log.Info("node is down")
	return err
}

// end stops whatever could begin something new. It returns false if that was
// done before.
func (n *Node) end() bool {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return false
	}
	n.closed = true
	n.mu.Unlock()
	close(n.stopping)
	stopServer(n.server)
	n.loops.Wait()
	return true
}

// shut closes cluster and state, in this order.
func (n *Node) shut() error {
	errs := []error{n.leaveCluster()}
	if n.db != nil {
		errs = append(errs, n.db.Close())
	}
	if n.keeper != nil {
		n.keeper.Close()
	}
	return errors.Join(errs...)
}

// leaveCluster ends all merging.
func (n *Node) leaveCluster() error {
	if n.cluster == nil {
		return nil
	}
	err := n.cluster.Close()
	n.cluster = nil
	return err
}

// scope returns a context that also ends when the node stops.
func (n *Node) scope(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		select {
		case <-n.stopping:
			cancel(ErrStopping)
		case <-done:
		}
	}()
	return ctx, sync.OnceFunc(func() { close(done); cancel(nil) })
}

func (n *Node) isStopping() bool {
	select {
	case <-n.stopping:
		return true
	default:
		return false
	}
}

// kick makes the reconcile loop look at the catalogue.
func (n *Node) kick() {
	select {
	case n.changed <- struct{}{}:
	default: // it will look anyway
	}
}

// reconcileLoop drops the replicas of deleted volumes, tells of those whose
// name was taken, and places the others.
func (n *Node) reconcileLoop() {
	warned := map[store.VolumeID]bool{}
	placing := time.NewTicker(placeEvery)
	defer placing.Stop()
	for {
		var err error
		select {
		case <-n.stopping:
			return
		case <-n.changed:
			err = errors.Join(n.reconcile(), n.warnUnlisted(warned))
		case <-placing.C:
		}
		if err := errors.Join(err, n.place(time.Now())); err != nil {
			n.log.Error("follow the catalogue", "err", err)
		}
	}
}

// reconcile drops each replica whose volume was deleted, mounts first. A name
// that merely went missing drops nothing (P11).
func (n *Node) reconcile() error {
	var errs []error
	replicas := n.db.Volumes()
	for _, v := range replicas {
		gone, err := n.catalogue.deleted(v.ID())
		if err == nil && gone {
			n.log.Info("volume was deleted", "volume", v.Name(), "id", v.ID())
			err = n.drop(v)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("volume %q: %w", v.Name(), err))
		}
	}
	listed, err := n.catalogue.list()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	n.limit(listed)
	errs = append(errs, n.dropHalfCopies(replicas, listed))
	leaving, err := n.catalogue.marks(leavingDir)
	if err == nil {
		n.placement.follow(listed, leaving)
	}
	return errors.Join(append(errs, err)...)
}
