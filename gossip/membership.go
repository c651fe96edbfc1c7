package gossip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sync/errgroup"
)

const (
	rejoinFirst   = 250 * time.Millisecond // between attempts while alone, growing
	rejoinAlone   = 5 * time.Second        // to this
	rejoinSteady  = 15 * time.Second       // while there are members
	rejoinAtOnce  = 4                      // addresses tried at a time
	rejoinRound   = 32                     // remembered addresses tried in a round
	leaveTimeout  = time.Second
	streamTimeout = 5 * time.Second
	// A name is free for another address as soon as its node is known dead.
	reclaimAfter = time.Millisecond
)

// ErrIncompatible says that a node is of another cluster or speaks no common
// protocol version.
var ErrIncompatible = errors.New("incompatible node")

// nodeMeta is what memberlist spreads about a node, at most 512 bytes.
type nodeMeta struct {
	Cluster string `json:"c"` // id
	Replica string `json:"r"` // address of the replica service; without host, that of memberlist
	Min     uint32 `json:"m"` // protocol versions
	Max     uint32 `json:"x"`
}

// A member is a live node as memberlist sees it.
type member struct {
	node    string
	address string // of the membership gossip
	replica string // of the replica service
}

// membership keeps this node in the cluster.
type membership struct {
	// Fixed by startMembership.
	self     string
	meta     nodeMeta
	encoded  []byte // meta
	join     []string
	dir      string
	now      func() time.Time
	log      *slog.Logger
	refusals *refusals
	list     *memberlist.Memberlist
	changed  chan struct{} // holds a token if members changed
	crash    bool          // for tests: leave without a word

	mu         sync.Mutex // guards what follows
	members    map[string]member
	remembered map[string]rememberedPeer
	dirty      bool // remembered is not yet written
}

// startMembership begins to gossip. replicaPort is that of the replica service.
func startMembership(o *Options, replica net.Addr, r *refusals) (*membership, error) {
	m := &membership{
		self: o.Node, join: o.Join, dir: o.StateDir, now: o.Now, refusals: r,
		log: o.Log.With("part", "membership"), changed: make(chan struct{}, 1),
		members: map[string]member{}, remembered: map[string]rememberedPeer{},
	}
	peers, err := readRemembered(o.StateDir)
	if err != nil {
		m.log.Warn("peers of the last run are forgotten", "err", err)
	}
	for _, p := range peers {
		m.remembered[p.Node] = p
	}
	conf, advertise, err := memberlistConfig(o)
	if err != nil {
		return nil, err
	}
	m.meta = nodeMeta{Cluster: o.Keys.ClusterID, Replica: replicaAddress(advertise, replica), Min: minVersion, Max: maxVersion}
	if m.encoded, err = json.Marshal(m.meta); err != nil || len(m.encoded) > memberlist.MetaMaxSize {
		return nil, fmt.Errorf("metadata of node %q: %d bytes: %w", o.Node, len(m.encoded), err)
	}
	conf.Delegate, conf.Events, conf.Alive, conf.Conflict = m, m, m, m
	conf.Logger = log.New(&logWriter{m.log}, "", 0)
	if m.list, err = memberlist.Create(conf); err != nil {
		return nil, fmt.Errorf("gossip on %s: %w", o.Bind, err)
	}
	return m, nil
}

func memberlistConfig(o *Options) (conf *memberlist.Config, advertise string, err error) {
	conf = memberlist.DefaultLANConfig()
	conf.Name = o.Node
	conf.DeadNodeReclaimTime = reclaimAfter
	conf.TCPTimeout = streamTimeout
	conf.RequireNodeNames = false
	if conf.BindAddr, conf.BindPort, err = resolve(o.Bind); err != nil {
		return nil, "", fmt.Errorf("bind address %q: %w", o.Bind, err)
	}
	conf.AdvertisePort = conf.BindPort
	if o.Advertise != "" {
		host, port, err := net.SplitHostPort(o.Advertise)
		if err != nil {
			host, port = o.Advertise, strconv.Itoa(conf.BindPort)
		}
		if conf.AdvertiseAddr, conf.AdvertisePort, err = resolve(net.JoinHostPort(host, port)); err != nil {
			return nil, "", fmt.Errorf("advertise address %q: %w", o.Advertise, err)
		}
	}
	if conf.Keyring, err = memberlist.NewKeyring(o.Keys.Gossip[1:], o.Keys.Gossip[0]); err != nil {
		return nil, "", fmt.Errorf("gossip keys: %w", err)
	}
	if o.tuneMembership != nil {
		o.tuneMembership(conf)
	}
	return conf, conf.AdvertiseAddr, nil
}

// resolve parses host:port, where host is a name or an address.
func resolve(address string) (ip string, port int, err error) {
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return "", 0, err
	}
	if a.IP == nil {
		a.IP = net.IPv4zero
	}
	return a.IP.String(), a.Port, nil
}

// replicaAddress is where peers find the replica service. Without a host they
// use that of the membership gossip.
func replicaAddress(advertise string, listening net.Addr) string {
	host, port, err := net.SplitHostPort(listening.String())
	if err != nil {
		return listening.String()
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = ""
	}
	if advertise != "" {
		host = advertise
	}
	return net.JoinHostPort(host, port)
}

// run joins, and joins again, the configured and remembered peers until ctx
// ends: memberlist alone never heals a long partition.
func (m *membership) run(ctx context.Context) {
	delay := rejoinFirst
	for {
		m.joinRound(ctx)
		m.save()
		if m.alone() {
			delay = min(delay*2, rejoinAlone)
		} else {
			delay = rejoinSteady
		}
		jitter := time.Duration(rand.Int64N(int64(delay)/4 + 1))
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay - jitter):
		}
	}
}

func (m *membership) alone() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.members) == 0
}

// joinRound tries all addresses at which a member may be that is not known.
func (m *membership) joinRound(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(rejoinAtOnce)
	for _, address := range m.targets() {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			m.tried(address, m.joinOne(address))
			return nil
		})
	}
	_ = g.Wait() // it carries no error
}

func (m *membership) joinOne(address string) error {
	_, err := m.list.Join([]string{address})
	return err
}

// tried notes what came of joining an address.
func (m *membership) tried(address string, err error) {
	if !isForeignKey(err) {
		m.refusals.drop(address)
		if err != nil && m.alone() {
			m.log.Debug("join", "address", address, "err", err)
		}
		return
	}
	reason := fmt.Sprintf("the node at %s answers under another gossip key: one of the two has a wrong gossip.key; "+
		"copy the cluster's into this node's directory of keys and start it again", address)
	if m.refusals.put(Refusal{Address: address, Reason: reason}, 2*rejoinSteady) {
		m.log.Error("join", "address", address, "err", reason)
	}
}

// isForeignKey reports whether a node's answer to a join could not be read with
// any of this node's gossip keys. memberlist tells that by the text alone.
func isForeignKey(err error) bool {
	return err != nil && strings.Contains(err.Error(), "no installed keys could decrypt the message")
}

func (m *membership) targets() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	live := map[string]bool{}
	for _, p := range m.members {
		live[p.address] = true
	}
	var out, old []string
	for _, address := range m.join {
		if !live[address] {
			out = append(out, address)
		}
	}
	for _, p := range m.remembered {
		if _, ok := m.members[p.Node]; !ok && !live[p.Address] && !slices.Contains(out, p.Address) {
			old = append(old, p.Address)
		}
	}
	rand.Shuffle(len(old), func(i, j int) { old[i], old[j] = old[j], old[i] })
	return append(out, old[:min(len(old), rejoinRound)]...)
}

// save writes the remembered peers if they changed.
func (m *membership) save() {
	m.mu.Lock()
	dirty := m.dirty
	m.dirty = false
	peers := slices.Collect(maps.Values(m.remembered))
	m.mu.Unlock()
	if !dirty || m.dir == "" {
		return
	}
	if err := writeRemembered(m.dir, peers); err != nil {
		m.log.Warn("peers will be unknown after a restart", "err", err)
	}
}

// live returns the members other than this node.
func (m *membership) live() map[string]member {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.members)
}

// known returns all peers remembered.
func (m *membership) known() map[string]rememberedPeer {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.remembered)
}

// close leaves the cluster; run must have ended.
func (m *membership) close() error {
	m.save()
	if !m.crash {
		if err := m.list.Leave(leaveTimeout); err != nil {
			m.log.Debug("leave", "err", err) // they will find out
		}
	}
	if err := m.list.Shutdown(); err != nil {
		return fmt.Errorf("stop membership gossip: %w", err)
	}
	return nil
}

// NotifyAlive refuses nodes of other clusters and versions.
func (m *membership) NotifyAlive(n *memberlist.Node) error {
	if n.Name == m.self {
		return nil
	}
	_, err := m.compatible(n)
	if err != nil && m.refusals.add(n.Name, err.Error()) {
		m.log.Error("refused a node", "peer", n.Name, "address", n.Address(), "err", err)
	}
	return err
}

func (m *membership) compatible(n *memberlist.Node) (nodeMeta, error) {
	var meta nodeMeta
	if err := json.Unmarshal(n.Meta, &meta); err != nil {
		return meta, fmt.Errorf("%w: metadata: %w", ErrIncompatible, err)
	}
	if meta.Cluster != m.meta.Cluster {
		return meta, fmt.Errorf("%w: it is of cluster %q, this is %q", ErrIncompatible, meta.Cluster, m.meta.Cluster)
	}
	_, err := commonVersion(meta.Min, meta.Max)
	return meta, err
}

// NotifyJoin takes a member; memberlist's lock is held.
func (m *membership) NotifyJoin(n *memberlist.Node) { m.seen(n) }

// NotifyUpdate takes a member's new address or metadata.
func (m *membership) NotifyUpdate(n *memberlist.Node) { m.seen(n) }

func (m *membership) seen(n *memberlist.Node) {
	if n.Name == m.self {
		return
	}
	meta, err := m.compatible(n)
	if err != nil {
		return // NotifyAlive said so
	}
	host, port, err := net.SplitHostPort(meta.Replica)
	if err != nil {
		m.refusals.add(n.Name, fmt.Sprintf("address of its replica service %q: %v", meta.Replica, err))
		return
	}
	if host == "" {
		host = n.Addr.String()
	}
	p := member{node: n.Name, address: n.Address(), replica: net.JoinHostPort(host, port)}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.members[p.node] != p {
		m.log.Info("member", "peer", p.node, "address", p.address)
	}
	m.members[p.node] = p
	m.rememberLocked(rememberedPeer{p.node, p.address, m.now()})
	m.signal()
}

func (m *membership) rememberLocked(p rememberedPeer) {
	m.remembered[p.Node] = p
	m.dirty = true
	if len(m.remembered) <= maxRemembered {
		return
	}
	oldest := p
	for _, r := range m.remembered {
		if r.Seen.Before(oldest.Seen) {
			oldest = r
		}
	}
	delete(m.remembered, oldest.Node)
}

// NotifyLeave drops a member that died or left; memberlist's lock is held.
func (m *membership) NotifyLeave(n *memberlist.Node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.members[n.Name]; ok {
		m.log.Info("member is gone", "peer", n.Name)
	}
	delete(m.members, n.Name)
	m.signal()
}

// NotifyConflict reports two live nodes of one name.
func (m *membership) NotifyConflict(existing, other *memberlist.Node) {
	reason := fmt.Sprintf("two live nodes are named %q, at %s and %s: give one of them another name and keys",
		existing.Name, existing.Address(), other.Address())
	if m.refusals.add(existing.Name, reason) {
		m.log.Error("name conflict", "peer", existing.Name, "err", reason)
	}
}

func (m *membership) signal() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// NodeMeta is spread about this node.
func (m *membership) NodeMeta(int) []byte { return m.encoded }

// NotifyMsg and the others below are not used: data goes over links.
func (m *membership) NotifyMsg([]byte) {}

// GetBroadcasts: see NotifyMsg.
func (m *membership) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState: see NotifyMsg.
func (m *membership) LocalState(bool) []byte { return nil }

// MergeRemoteState: see NotifyMsg.
func (m *membership) MergeRemoteState([]byte, bool) {}

// logWriter hands memberlist's lines on.
type logWriter struct{ log *slog.Logger }

func (w *logWriter) Write(line []byte) (int, error) {
	s := strings.TrimSpace(string(line))
	level, text := slog.LevelDebug, s
	for prefix, l := range map[string]slog.Level{"[WARN]": slog.LevelDebug, "[ERR]": slog.LevelWarn} {
		if rest, ok := strings.CutPrefix(s, prefix); ok {
			level, text = l, rest
		}
	}
	w.log.Log(context.Background(), level, strings.TrimPrefix(strings.TrimSpace(text), "memberlist: "))
	return len(line), nil
}
