package gossip

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/internal/wire"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// ErrWord says that a peer passed on what is no word of that replica, or showed
// another node's replica as its own.
var ErrWord = errors.New("not what that replica says")

// maxAsked bounds the identities asked for at a time.
const maxAsked = 64

// words are the words of a volume's replicas that were verified last: most come
// many times, by all peers.
type words struct {
	mu   sync.Mutex // guards what follows
	last map[crdt.ReplicaID]word
}

type word struct {
	at     int64
	signed string // what was signed, and the signature
}

// check returns what of a member can be believed: all of it, or, if a newer word
// of it was seen, that it is there. fresh says that it was not seen before.
func (w *words) check(id store.VolumeID, m store.Member, o origin) (believed store.Member, fresh bool, err error) {
	there := store.Member{Replica: m.Replica, Node: m.Node}
	if m.Node != o.node {
		return there, false, fmt.Errorf("%w: replica %v is one of node %q, not of %q", ErrWord, m.Replica, o.node, m.Node)
	}
	w.mu.Lock()
	last := w.last[m.Replica]
	w.mu.Unlock()
	if m.At == 0 || m.At < last.at {
		return there, false, nil
	}
	message := m.Signed(id)
	signed := string(message) + string(m.Signature)
	if signed == last.signed {
		return m, false, nil
	}
	if !ed25519.Verify(o.key, message, m.Signature) {
		return there, false, fmt.Errorf("%w: bad signature of replica %v of node %q", ErrWord, m.Replica, o.node)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.last) >= maxKnown {
		clear(w.last)
	}
	w.last[m.Replica] = word{m.At, signed}
	return m, true, nil
}

// receivedRoster verifies what is said of replicas before the protocol sees it.
func (c *Cluster) receivedRoster(in *inbound, w *wire.Roster) error {
	var d decoder
	m := d.roster(w)
	d.check(len(w.GetIdentities()) <= maxRecords, "too many identities")
	if d.err != nil {
		return status.Error(codes.InvalidArgument, d.err.Error())
	}
	hv := c.held(m.Volume)
	if hv == nil {
		return nil // closed here meanwhile
	}
	for _, record := range w.GetIdentities() {
		if err := c.learn(in.node, hv, record); err != nil {
			return err
		}
	}
	believed, unknown, err := c.believe(hv, m.Members)
	if errors.Is(err, ErrWord) {
		return c.distrust(in.node, err)
	}
	if err != nil {
		c.log.Error("verify roster", "volume", hv.v.Name(), "err", err)
	}
	if len(unknown) > 0 {
		c.stepFrom(in, Unverified{in.node, m.Volume, unknown})
	}
	if len(believed) > 0 {
		c.stepFrom(in, Received{in.node, Roster{Volume: m.Volume, Members: believed}})
	}
	return nil
}

// believe returns those of the members that can be believed, up to the first
// whose replica nothing is known of: what others said, having known that one, is
// not to be taken without it. What to ask for comes besides.
func (c *Cluster) believe(hv *heldVolume, members []store.Member) (believed []store.Member, unknown []crdt.ReplicaID, err error) {
	whole := true
	for _, m := range members {
		o, err := c.identities.of(hv.v, m.Replica)
		if errors.Is(err, errUnknownOrigin) || errors.Is(err, ErrIdentity) {
			whole = false
			if unknown = append(unknown, m.Replica); len(unknown) >= maxAsked {
				break
			}
			continue
		}
		if err != nil {
			return believed, unknown, err
		}
		if !whole {
			continue
		}
		b, fresh, err := hv.words.check(hv.v.ID(), m, o)
		if err != nil {
			return nil, nil, err
		}
		believed = append(believed, b)
		if fresh { // the store takes nobody for out of whom nothing is known
			unknown = c.unknown(hv, b.Out, unknown)
		}
	}
	return believed, unknown, nil
}

// unknown adds the replicas without an identity to a list, up to maxAsked.
func (c *Cluster) unknown(hv *heldVolume, replicas, to []crdt.ReplicaID) []crdt.ReplicaID {
	for _, r := range replicas {
		if len(to) >= maxAsked {
			break
		}
		if _, err := c.identities.of(hv.v, r); errors.Is(err, errUnknownOrigin) {
			to = append(to, r)
		}
	}
	return to
}

// provable returns those of the members that peers can verify, with what they
// can. Others were kept by an earlier version.
func (c *Cluster) provable(hv *heldVolume, members []store.Member) []store.Member {
	out := make([]store.Member, 0, len(members))
	for _, m := range members {
		o, err := c.identities.of(hv.v, m.Replica)
		if err != nil || o.node != m.Node {
			continue
		}
		if len(m.Signature) == 0 {
			m = store.Member{Replica: m.Replica, Node: m.Node}
		}
		out = append(out, m)
	}
	return out
}

// checkHoldings checks that the replicas that a peer says it holds are its own.
func (c *Cluster) checkHoldings(in *inbound, w *wire.Holdings) error {
	for _, h := range w.GetChanged() {
		var d decoder
		id := d.volume(h.GetVolume())
		if d.err != nil {
			return status.Error(codes.InvalidArgument, d.err.Error())
		}
		hv := c.held(id)
		if hv == nil {
			continue // its roster comes when there is a replica here
		}
		if err := c.checkReplica(in.node, hv, crdt.ReplicaID(h.GetReplica()), h.GetIdentity()); err != nil {
			return err
		}
	}
	return nil
}

// checkReplica checks that a replica is one of a node, whose record the node has
// sent with it; an error ends the link or the call.
func (c *Cluster) checkReplica(node string, hv *heldVolume, r crdt.ReplicaID, record []byte) error {
	o, err := c.identities.of(hv.v, r)
	if errors.Is(err, errUnknownOrigin) || errors.Is(err, ErrIdentity) {
		if err := c.learn(node, hv, record); err != nil {
			return err
		}
		o, err = c.identities.of(hv.v, r)
	}
	switch {
	case errors.Is(err, errUnknownOrigin), errors.Is(err, ErrIdentity):
		return c.distrust(node, fmt.Errorf("%w: no identity of replica %v", ErrWord, r))
	case err != nil:
		c.log.Error("read identity", "volume", hv.v.Name(), "err", err)
		return status.Error(codes.Unavailable, "identity cannot be read")
	case o.node != node:
		return c.distrust(node, fmt.Errorf("%w: replica %v is one of node %q, not of %q", ErrWord, r, o.node, node))
	}
	return nil
}

// proveLocked puts into a frame the identities that its message needs. It blocks
// for nothing: a record that is not in memory is asked for.
func (c *Cluster) proveLocked(m Message, f *wire.Frame) *wire.Frame {
	switch m := m.(type) {
	case Holdings:
		w := f.GetHoldings()
		for n, h := range m.Changed {
			if hv := c.volumes[h.Volume]; hv != nil {
				w.Changed[n].Identity = hv.own.of(h.Replica)
			}
		}
		// What cannot be proven, since the identity could not be made, is not
		// shown: peers would cut the link.
		w.Changed = slices.DeleteFunc(w.Changed, func(h *wire.Holding) bool { return h.Identity == nil })
	case Roster:
		for _, r := range m.WithIdentity {
			if record := c.identities.record(replicaKey{m.Volume, r}); record != nil {
				f.GetRoster().Identities = append(f.GetRoster().Identities, record)
			}
		}
	}
	return f
}
