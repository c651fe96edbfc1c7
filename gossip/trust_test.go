package gossip

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/synapsefs/synapsefs/internal/keys"
	"github.com/synapsefs/synapsefs/internal/wire"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A stranger talks to a node's replica service by hand.
type stranger struct {
	t      testing.TB
	stream exchangeClient
	err    error // of opening it
}

func dialAs(t testing.TB, conf *tls.Config, to *testNode) *stranger {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+to.cluster.ReplicaAddr().String(),
		grpc.WithTransportCredentials(credentials.NewTLS(conf)), grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(2*maxFrame)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	stream, err := wire.NewReplicaClient(conn).Exchange(timeout(t))
	if err != nil {
		return &stranger{t: t, err: err}
	}
	return &stranger{t: t, stream: stream}
}

func (s *stranger) send(f *wire.Frame) { _ = s.stream.Send(f) } // why it failed comes with end

func (s *stranger) greet(h *wire.Hello) error {
	if s.stream == nil {
		return s.err
	}
	s.send(&wire.Frame{Body: &wire.Frame_Hello{Hello: h}})
	_, err := s.stream.Recv()
	return err
}

// end returns why the node ended the link.
func (s *stranger) end() error {
	for {
		if _, err := s.stream.Recv(); err != nil {
			return err
		}
	}
}

// push sends a batch, with an identity if it is given.
func (s *stranger) push(b *store.Batch, identity []byte) {
	s.send(&wire.Frame{Body: &wire.Frame_Push{Push: &wire.Push{Volume: testVolume[:], Batch: b.Encode(), Identity: identity}}})
}

func helloOf(k *keys.Keys) *wire.Hello {
	return &wire.Hello{Cluster: k.ClusterID, Node: k.Node, MinVersion: minVersion, MaxVersion: maxVersion}
}

// alone is one node, and keys of another that is none.
func alone(t testing.TB) (*testCluster, *testNode, *keys.Keys) {
	c := newTestCluster(t)
	x := c.node("x", true)
	x.start(t)
	return c, x, c.keysOf("mallory")
}

func TestP12RefusedConnections(t *testing.T) {
	c, x, mallory := alone(t)
	other := (&testCluster{t: t, ca: t.TempDir()})
	if err := keys.InitCA(other.ca, "test"); err != nil {
		t.Fatal(err)
	}
	foreign := other.keysOf("y")
	trusting := func(k *keys.Keys) *tls.Config { // believes any server
		conf := clientTLS(k, "x")
		conf.InsecureSkipVerify, conf.VerifyConnection = true, nil
		return conf
	}
	old := clientTLS(mallory, "x")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	bare := clientTLS(mallory, "x")
	bare.Certificates = nil
	as := func(edit func(*wire.Hello)) *wire.Hello {
		h := helloOf(mallory)
		edit(h)
		return h
	}
	tests := []struct {
		name  string
		conf  *tls.Config
		hello *wire.Hello
		code  codes.Code
	}{
		{"certificate of another CA", trusting(foreign), helloOf(foreign), codes.Unavailable},
		{"no certificate", bare, helloOf(mallory), codes.Unavailable},
		{"TLS 1.2", old, helloOf(mallory), codes.Unavailable},
		{"server is another node", clientTLS(mallory, "z"), helloOf(mallory), codes.Unavailable},
		{"another's name", clientTLS(mallory, "x"), as(func(h *wire.Hello) { h.Node = "y" }), codes.FailedPrecondition},
		{"another cluster", clientTLS(mallory, "x"), as(func(h *wire.Hello) { h.Cluster = "zz" }), codes.FailedPrecondition},
		{"later version", clientTLS(mallory, "x"), as(func(h *wire.Hello) { h.MinVersion, h.MaxVersion = 98, 99 }), codes.FailedPrecondition},
		{"the node's own name", clientTLS(c.keysOf("x"), "x"), helloOf(x.keys), codes.FailedPrecondition},
		{"all is well", clientTLS(mallory, "x"), helloOf(mallory), codes.OK},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if err := dialAs(t, test.conf, x).greet(test.hello); status.Code(err) != test.code {
				t.Errorf("answer is %v, want %v", err, test.code)
			}
		})
	}
	found := false
	for _, p := range x.cluster.Peers() {
		found = found || p.Node == "mallory" && p.Refusals >= 3 && p.State == StateRefused && strings.Contains(p.Error, "99")
	}
	if !found {
		t.Errorf("refusals are not listed: %+v", x.cluster.Peers())
	}
}

// signed makes a batch with one op, signed with k.
func signed(t testing.TB, k *keys.Keys, origin crdt.ReplicaID) *store.Batch {
	t.Helper()
	b := &store.Batch{Volume: testVolume, Origin: origin, First: 1, Last: 1, Stamp: 5, Ops: [][]byte{[]byte("op")}}
	digest := b.Digest()
	b.Signature = k.Sign(digest[:])
	return b
}

func TestP12RefusedBatches(t *testing.T) {
	c, x, mallory := alone(t)
	x.write(t, "f", []byte("1"))
	eventually(t, "sealed", func() bool { return x.v.Stats().Unsealed == 0 })
	before := x.v.Vector()
	other := (&testCluster{t: t, ca: t.TempDir()})
	if err := keys.InitCA(other.ca, "test"); err != nil {
		t.Fatal(err)
	}
	foreign := other.keysOf("mallory")
	own := NewIdentity(mallory, testVolume, 77).Encode()
	victim := x.v.Replica()
	next := signed(t, mallory, victim)
	next.First, next.Last, next.Prev = before[victim].Seq+1, before[victim].Seq+1, before[victim].Hash
	digest := next.Digest()
	next.Signature = mallory.Sign(digest[:])
	tampered := signed(t, mallory, 77)
	tampered.Ops[0][0] ^= 1
	unsigned := signed(t, mallory, 77)
	unsigned.Signature = nil
	broken := NewIdentity(mallory, testVolume, 78)
	broken.Signature[0] ^= 1
	tests := []struct {
		name     string
		batch    *store.Batch
		identity []byte
	}{
		{"in another's name", next, nil},
		{"in another's name with an identity for it", next, NewIdentity(mallory, testVolume, victim).Encode()},
		{"tampered", tampered, own},
		{"unsigned", unsigned, own},
		{"identity with a bad signature", signed(t, mallory, 78), broken.Encode()},
		{"identity of another CA", signed(t, foreign, 79), NewIdentity(foreign, testVolume, 79).Encode()},
		{"identity for another volume", signed(t, mallory, 80), NewIdentity(mallory, store.VolumeID{9}, 80).Encode()},
		{"identity that is none", signed(t, mallory, 81), []byte("x")},
	}
	for n, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := dialAs(t, clientTLS(mallory, "x"), x)
			if err := s.greet(helloOf(mallory)); err != nil {
				t.Fatal(err)
			}
			s.push(test.batch, test.identity)
			if err := s.end(); status.Code(err) != codes.PermissionDenied {
				t.Errorf("link ended with %v", err)
			}
			if got := x.cluster.BadBatches(); got != uint64(n+1) {
				t.Errorf("%d bad batches are counted, want %d", got, n+1)
			}
		})
	}
	if after := x.v.Vector(); !before.Contains(after) {
		t.Errorf("something was merged: %v", after)
	}
	y := c.node("y", false) // and others still can
	y.start(t, x)
	if err := y.cluster.WaitReady(timeout(t), testVolume); err != nil {
		t.Fatal(err)
	}
}

func TestP12UnknownOriginIsAskedFor(t *testing.T) {
	_, x, mallory := alone(t)
	s := dialAs(t, clientTLS(mallory, "x"), x)
	if err := s.greet(helloOf(mallory)); err != nil {
		t.Fatal(err)
	}
	s.push(signed(t, mallory, 90), nil)
	s.send(&wire.Frame{Body: &wire.Frame_Ping{Ping: &wire.Ping{Id: 7}}})
	f, err := s.stream.Recv()
	if err != nil || f.GetPong().GetId() != 7 {
		t.Fatalf("the link ended or answered wrong: %v, %v", f, err)
	}
	if x.cluster.BadBatches() != 0 {
		t.Error("a batch of an unknown origin counts as bad")
	}
}

func TestP13OversizedFrame(t *testing.T) {
	_, x, mallory := alone(t)
	s := dialAs(t, clientTLS(mallory, "x"), x)
	if err := s.greet(helloOf(mallory)); err != nil {
		t.Fatal(err)
	}
	s.send(&wire.Frame{Body: &wire.Frame_Push{Push: &wire.Push{Volume: testVolume[:], Batch: make([]byte, maxFrame+1)}}})
	if err := s.end(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("link ended with %v", err)
	}
}

func TestMalformedFrames(t *testing.T) {
	_, x, mallory := alone(t)
	for name, f := range map[string]*wire.Frame{
		"volume of no id":   {Body: &wire.Frame_Digest{Digest: &wire.Digest{Volume: []byte{1}}}},
		"batch of nothing":  {Body: &wire.Frame_Push{Push: &wire.Push{Volume: testVolume[:]}}},
		"pull of no volume": {Body: &wire.Frame_Pull{Pull: &wire.Pull{}}},
		"many identities": {Body: &wire.Frame_IdentityRequest{IdentityRequest: &wire.IdentityRequest{
			Volume: testVolume[:], Replicas: make([]uint64, maxRecords+1)}}},
	} {
		t.Run(name, func(t *testing.T) {
			s := dialAs(t, clientTLS(mallory, "x"), x)
			if err := s.greet(helloOf(mallory)); err != nil {
				t.Fatal(err)
			}
			s.send(f)
			if err := s.end(); status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.PermissionDenied {
				t.Errorf("link ended with %v", err)
			}
		})
	}
	s := dialAs(t, clientTLS(mallory, "x"), x)
	if err := s.greet(helloOf(mallory)); err != nil {
		t.Fatal(err)
	}
	s.send(&wire.Frame{}) // of a later version
	s.send(&wire.Frame{Body: &wire.Frame_Ping{Ping: &wire.Ping{Id: 1}}})
	if f, err := s.stream.Recv(); err != nil || f.GetPong() == nil {
		t.Errorf("an unknown frame ended the link: %v", err)
	}
}

// A node of another cluster that somehow has this one's gossip key.
func TestP12WrongClusterIsReported(t *testing.T) {
	c, x, _ := alone(t)
	other := &testCluster{t: t, ca: t.TempDir()}
	if err := keys.InitCA(other.ca, "test"); err != nil {
		t.Fatal(err)
	}
	y := c.node("y", true)
	y.keys = other.keysOf("y")
	y.keys.Gossip = x.keys.Gossip
	y.start(t, x)
	for _, pair := range [][2]*testNode{{x, y}, {y, x}} {
		eventually(t, "refusal is listed", func() bool {
			for _, p := range pair[0].cluster.Peers() {
				if p.Node == pair[1].name && p.State == StateRefused && strings.Contains(p.Error, "cluster") {
					return true
				}
			}
			return false
		})
	}
}

func TestP12WrongGossipKey(t *testing.T) {
	c, x, _ := alone(t)
	y := c.node("y", true)
	y.keys.Gossip = [][]byte{make([]byte, keys.GossipKeySize)}
	y.start(t, x)
	if _, err := y.cluster.members.list.Join([]string{x.cluster.Address()}); err == nil {
		t.Error("joined with a wrong gossip key")
	}
	if n := len(x.cluster.members.live()); n != 0 {
		t.Errorf("%d members", n)
	}
	refused := func() bool {
		p := y.cluster.Peers()
		return len(p) == 1 && p[0].State == StateRefused && p[0].Address == x.cluster.Address() &&
			strings.Contains(p[0].Error, "gossip.key")
	}
	eventually(t, "the joiner lists the address", refused)
	if p := y.cluster.Problems(); len(p) != 1 || !strings.Contains(p[0].Reason, x.cluster.Address()) {
		t.Errorf("problems of the joiner: %+v", p)
	}
	// Once the node at the address takes the joiner's key, all is well.
	if err := x.keyring.AddKey(y.keys.Gossip[0]); err != nil {
		t.Fatal(err)
	}
	if err := y.keyring.AddKey(x.keys.Gossip[0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "links", linked(x, y))
	if p := append(y.cluster.Problems(), x.cluster.Problems()...); len(p) != 0 {
		t.Errorf("problems that stayed: %+v", p)
	}
}

func TestIdentity(t *testing.T) {
	c := &testCluster{t: t, ca: t.TempDir()}
	if err := keys.InitCA(c.ca, "test"); err != nil {
		t.Fatal(err)
	}
	k := c.keysOf("x")
	i, err := DecodeIdentity(NewIdentity(k, testVolume, 5).Encode())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := i.Verify(k.CA)
	if err != nil || cert.Subject.CommonName != "x" {
		t.Fatalf("%v", err)
	}
	for name, edit := range map[string]func(*Identity){
		"replica": func(i *Identity) { i.Replica = 6 },
		"volume":  func(i *Identity) { i.Volume[0]++ },
		"node":    func(i *Identity) { i.Chain = c.keysOf("y").Cert.Certificate },
		"chain":   func(i *Identity) { i.Chain = nil },
	} {
		j := *i
		edit(&j)
		if _, err := j.Verify(k.CA); !errors.Is(err, ErrIdentity) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	if _, err := i.Verify(x509.NewCertPool()); !errors.Is(err, ErrIdentity) {
		t.Errorf("without its CA: %v", err)
	}
}

func TestStartRefuses(t *testing.T) {
	c := newTestCluster(t)
	x := c.node("x", true)
	for name, o := range map[string]Options{
		"another's keys":   {Node: "y", Keys: x.keys, DB: x.db},
		"another cluster":  {Node: "x", Cluster: "prod", Keys: x.keys, DB: x.db},
		"bad bind address": {Node: "x", Keys: x.keys, DB: x.db, Bind: "127.0.0.1", ReplicaBind: "127.0.0.1:0"},
		"no keys":          {Node: "x", DB: x.db},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		if cluster, err := Start(ctx, o); err == nil {
			cluster.Close()
			t.Errorf("%s: started", name)
		}
		cancel()
	}
}
