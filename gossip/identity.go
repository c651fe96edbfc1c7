package gossip

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/synapsefs/synapsefs/internal/keys"
	"github.com/synapsefs/synapsefs/internal/wire"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

var (
	// ErrIdentity says that an identity record is not valid.
	ErrIdentity = errors.New("invalid identity")
	// ErrForeignState says that a store is written with another node's key.
	ErrForeignState = errors.New("state of another node: start with that node's keys, or with an empty state directory")
	// ErrSignature says that a batch was not signed by its origin's node.
	ErrSignature = errors.New("batch has a bad signature")
	// errUnknownOrigin says that the identity of a batch's origin is not here.
	errUnknownOrigin = errors.New("identity of the batch's origin is not known")
)

const identityContext = "synapsefs replica v1"

// maxIdentity bounds an encoded identity record, in bytes.
const maxIdentity = 8 << 10

// An Identity binds a replica to the node that writes under its id.
type Identity struct {
	Volume    store.VolumeID
	Replica   crdt.ReplicaID
	Chain     [][]byte // DER, the node's certificate first
	Signature []byte   // by the node's key
}

// NewIdentity makes the identity of a replica of this node.
func NewIdentity(k *keys.Keys, v store.VolumeID, r crdt.ReplicaID) *Identity {
	return &Identity{Volume: v, Replica: r, Chain: k.Cert.Certificate, Signature: k.Sign(identityMessage(v, r))}
}

func identityMessage(v store.VolumeID, r crdt.ReplicaID) []byte {
	m := append([]byte(identityContext), v[:]...)
	return binary.BigEndian.AppendUint64(m, uint64(r))
}

// Encode returns the record that is stored and sent.
func (i *Identity) Encode() []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&wire.Identity{
		Volume: i.Volume[:], Replica: uint64(i.Replica), Chain: i.Chain, Signature: i.Signature,
	})
	if err != nil {
		panic(err) // a message without required fields and strings always encodes
	}
	return b
}

// DecodeIdentity reads a record, without verifying it.
func DecodeIdentity(b []byte) (*Identity, error) {
	var w wire.Identity
	if len(b) > maxIdentity {
		return nil, fmt.Errorf("%w: %d bytes", ErrIdentity, len(b))
	}
	if err := proto.Unmarshal(b, &w); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	i := &Identity{Replica: crdt.ReplicaID(w.GetReplica()), Chain: w.GetChain(), Signature: w.GetSignature()}
	if copy(i.Volume[:], w.GetVolume()) != len(w.GetVolume()) || len(w.GetVolume()) != len(i.Volume) || i.Replica == 0 {
		return nil, fmt.Errorf("%w: volume or replica", ErrIdentity)
	}
	return i, nil
}

// Verify checks the record against the cluster's CA and returns the node's
// certificate.
func (i *Identity) Verify(ca *x509.CertPool) (*x509.Certificate, error) {
	cert, err := keys.VerifyNode(ca, i.Chain)
	if err != nil {
		return nil, fmt.Errorf("%w of replica %v: %w", ErrIdentity, i.Replica, err)
	}
	if !ed25519.Verify(cert.PublicKey.(ed25519.PublicKey), identityMessage(i.Volume, i.Replica), i.Signature) {
		return nil, fmt.Errorf("%w of replica %v: bad signature", ErrIdentity, i.Replica)
	}
	return cert, nil
}

// maxKnown bounds the verified identities kept in memory.
const maxKnown = 16384

// An origin is a replica whose identity was verified.
type origin struct {
	node   string
	key    ed25519.PublicKey
	record []byte
}

// identities are the verified identities, kept in the volumes and, for speed,
// in memory. It is safe for concurrent use.
type identities struct {
	// Fixed.
	keys *keys.Keys

	mu    sync.Mutex // guards what follows
	known map[replicaKey]origin
}

func newIdentities(k *keys.Keys) *identities {
	return &identities{keys: k, known: map[replicaKey]origin{}}
}

// own makes sure that the volume has the identity of this node's replica r.
func (s *identities) own(v *store.Volume, r crdt.ReplicaID) error {
	o, err := s.of(v, r)
	switch {
	case errors.Is(err, errUnknownOrigin):
		return s.learn(v, NewIdentity(s.keys, v.ID(), r).Encode())
	case errors.Is(err, ErrIdentity):
		return fmt.Errorf("%w: replica %v of volume %q: %w", ErrForeignState, r, v.Name(), err)
	case err == nil && !o.key.Equal(s.keys.Cert.Leaf.PublicKey):
		return fmt.Errorf("%w: replica %v of volume %q is written with a key of node %q, and this is another one of node %q",
			ErrForeignState, r, v.Name(), o.node, s.keys.Node)
	}
	return err
}

// ownAll refuses a store of which peers would believe nothing that this node
// writes.
func (s *identities) ownAll(db *store.DB) error {
	for _, v := range db.Volumes() {
		if err := s.own(v, v.Replica()); err != nil {
			return err
		}
	}
	return nil
}

// of returns the verified origin of a replica, or errUnknownOrigin.
func (s *identities) of(v *store.Volume, r crdt.ReplicaID) (origin, error) {
	k := replicaKey{v.ID(), r}
	s.mu.Lock()
	o, ok := s.known[k]
	s.mu.Unlock()
	if ok {
		return o, nil
	}
	record, err := v.Identity(r)
	if err != nil {
		return origin{}, err
	}
	if record == nil {
		return origin{}, errUnknownOrigin
	}
	return s.verify(k, record)
}

func (s *identities) verify(k replicaKey, record []byte) (origin, error) {
	i, err := DecodeIdentity(record)
	if err != nil {
		return origin{}, err
	}
	if i.Volume != k.volume || i.Replica != k.replica {
		return origin{}, fmt.Errorf("%w: of another replica", ErrIdentity)
	}
	cert, err := i.Verify(s.keys.CA)
	if err != nil {
		return origin{}, err
	}
	o := origin{node: cert.Subject.CommonName, key: cert.PublicKey.(ed25519.PublicKey), record: record}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.known) >= maxKnown {
		clear(s.known)
	}
	s.known[k] = o
	return o, nil
}

// record is a replica's record if it was verified lately, else nil. It blocks for
// nothing.
func (s *identities) record(k replicaKey) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[k].record
}

// learn verifies and keeps a record; the first valid one for a replica stands.
func (s *identities) learn(v *store.Volume, record []byte) error {
	i, err := DecodeIdentity(record)
	if err != nil {
		return err
	}
	switch _, err := s.of(v, i.Replica); {
	case err == nil:
		return nil
	case errors.Is(err, errUnknownOrigin), errors.Is(err, ErrIdentity):
	default:
		return err
	}
	if _, err := s.verify(replicaKey{v.ID(), i.Replica}, record); err != nil {
		return err
	}
	if err := v.PutIdentity(i.Replica, record); err != nil {
		return fmt.Errorf("keep identity of replica %v: %w", i.Replica, err)
	}
	return nil
}

// check verifies that a batch was signed by its origin's node.
func (s *identities) check(v *store.Volume, b *store.Batch) error {
	o, err := s.of(v, b.Origin)
	if err != nil {
		return err
	}
	digest := b.Digest()
	if !ed25519.Verify(o.key, digest[:], b.Signature) {
		return fmt.Errorf("%w: %v:%d of node %q", ErrSignature, b.Origin, b.First, o.node)
	}
	return nil
}
