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
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	rejoinFirst   = 250 * time.Millisecond // between attempts while alone, growing
	rejoinAlone   = 5 * time.Second        // to this
	rejoinSteady  = 15 * time.Second       // while there are members
	rejoinSecond  = time.Second            // while another node has the name
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
	// Instance is random, of this run of the daemon; 0 is that of a node that
	// does not know of it.
	Instance uint64 `json:"i,omitempty"`
	// Second says that the node is kept from its name: another one has it.
	Second bool `json:"s,omitempty"`
}

// A member is a live node as memberlist sees it.
type member struct {
	node     string
	address  string // of the membership gossip
	replica  string // of the replica service
	instance uint64 // of its daemon's run, or 0
}

// membership keeps this node in the cluster.
type membership struct {
	// Fixed by startMembership.
	self     string
	meta     nodeMeta
	encoded  [2][]byte // meta, and meta of the second of its name
	join     []string
	dir      string
	now      func() time.Time
	log      *slog.Logger
	refusals *refusals
	list     *memberlist.Memberlist
	changed  chan struct{} // holds a token if members changed
	linked   func() bool   // whether some peer accepts this node
	crash    bool          // for tests: leave without a word

	second  atomic.Bool // this node is kept from its name
	clashed atomic.Bool // since the last round began, another one had it

	mu         sync.Mutex // guards what follows
	members    map[string]member
	remembered map[string]rememberedPeer
	dirty      bool // remembered is not yet written
	closed     bool // nobody is to hear of anything any more
}

// startMembership begins to gossip. replicaPort is that of the replica service.
func startMembership(o *Options, replica net.Addr, r *refusals, linked func() bool) (*membership, error) {
	m := &membership{
		self: o.Node, join: o.Join, dir: o.StateDir, now: o.Now, refusals: r, linked: linked,
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
	m.meta = nodeMeta{Cluster: o.Keys.ClusterID, Replica: replicaAddress(advertise, replica), Min: minVersion, Max: maxVersion, Instance: rand.Uint64() | 1}
	meta := m.meta
	for n := range m.encoded {
		meta.Second = n > 0
		if m.encoded[n], err = json.Marshal(meta); err != nil || len(m.encoded[n]) > memberlist.MetaMaxSize {
			return nil, fmt.Errorf("metadata of node %q: %d bytes: %w", o.Node, len(m.encoded[n]), err)
		}
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
	// The second would take the first along, as its name is all it says.
	if !m.crash && !m.second.Load() && !m.clashed.Load() {
		if err := m.list.Leave(leaveTimeout); err != nil {
			m.log.Debug("leave", "err", err) // they will find out
		}
	}
	err := m.list.Shutdown()
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("stop membership gossip: %w", err)
	}
	return nil
}

// NotifyAlive refuses nodes of other clusters and versions, and those that know
// that another node has their name.
func (m *membership) NotifyAlive(n *memberlist.Node) error {
	if n.Name == m.self {
		return nil
	}
	meta, err := m.compatible(n)
	if err == nil && meta.Second {
		m.clash(n)
		return errSecond
	}
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
	p := member{node: n.Name, address: n.Address(), replica: net.JoinHostPort(host, port), instance: meta.Instance}
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
	if m.closed { // a timer of memberlist that outlives it
		return
	}
	if _, ok := m.members[n.Name]; ok {
		m.log.Info("member is gone", "peer", n.Name)
	}
	delete(m.members, n.Name)
	m.signal()
}

func (m *membership) signal() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// NodeMeta is spread about this node.
func (m *membership) NodeMeta(int) []byte {
	if m.second.Load() {
		return m.encoded[1]
	}
	return m.encoded[0]
}

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
