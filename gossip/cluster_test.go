package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/goleak"

	"github.com/synapsefs/synapsefs/internal/keys"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

const root = store.NodeID(crdt.RootIno)

var testVolume = store.VolumeID{1, 2, 3}

// A testNode is a node of a cluster on loopback.
type testNode struct {
	name    string
	dir     string
	keys    *keys.Keys
	db      *store.DB
	cluster *Cluster
	v       *store.Volume
	keyring *memberlist.Keyring // of the membership gossip
	patient bool                // it takes no slow node for dead
}

// A testCluster makes nodes with keys of one CA.
type testCluster struct {
	t  testing.TB
	ca string
}

func newTestCluster(t testing.TB) *testCluster {
	t.Helper()
	// Registered first, so that it looks last.
	if _, ok := t.(*testing.T); ok {
		t.Cleanup(func() { goleak.VerifyNone(t) })
	}
	c := &testCluster{t: t, ca: filepath.Join(t.TempDir(), "ca")}
	if err := keys.InitCA(c.ca, "test"); err != nil {
		t.Fatal(err)
	}
	return c
}

func testLog(node string) *slog.Logger {
	if os.Getenv("GOSSIP_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", node)
}

func (c *testCluster) keysOf(name string) *keys.Keys {
	c.t.Helper()
	dir := filepath.Join(c.t.TempDir(), name)
	if err := keys.Issue(c.ca, dir, name); err != nil {
		c.t.Fatal(err)
	}
	k, err := keys.Load(dir)
	if err != nil {
		c.t.Fatal(err)
	}
	return k
}

// node makes a node with a store and a replica of the test volume.
func (c *testCluster) node(name string, ready bool) *testNode {
	c.t.Helper()
	n := &testNode{name: name, dir: c.t.TempDir(), keys: c.keysOf(name)}
	db, err := store.Open(store.Options{Dir: n.dir, Sign: n.keys.Sign, Hold: time.Millisecond, Log: testLog(name)})
	if err != nil {
		c.t.Fatal(err)
	}
	n.db = db
	c.t.Cleanup(func() {
		if err := db.Close(); err != nil {
			c.t.Error(err)
		}
	})
	if n.v, err = db.CreateReplica(testVolume, "test", ready); err != nil {
		c.t.Fatal(err)
	}
	return n
}

// start lets a node join others.
func (n *testNode) start(t testing.TB, others ...*testNode) {
	t.Helper()
	var join []string
	for _, o := range others {
		join = append(join, o.cluster.Address())
	}
	n.startAt(t, "127.0.0.1:0", join)
}

func (n *testNode) startAt(t testing.TB, bind string, join []string) {
	t.Helper()
	cluster, err := Start(context.Background(), Options{
		Node: n.name, Bind: bind, ReplicaBind: "127.0.0.1:0", Join: join, Keys: n.keys,
		StateDir: n.dir, DB: n.db, Log: testLog(n.name), tuneMembership: func(conf *memberlist.Config) {
			quick(conf)
			if n.patient {
				conf.SuspicionMult = 100
			}
			n.keyring = conf.Keyring
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.cluster = cluster
	t.Cleanup(func() {
		if err := cluster.Close(); err != nil {
			t.Error(err)
		}
	})
	cluster.AddVolume(n.v)
}

// quick makes memberlist find failures fast.
func quick(c *memberlist.Config) {
	c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult = 100*time.Millisecond, 50*time.Millisecond, 2
	c.GossipInterval, c.PushPullInterval = 20*time.Millisecond, time.Second
}

// eventually waits for cond, which other goroutines bring about.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for !cond() {
		select {
		case <-ticker.C:
		case <-deadline.C:
			t.Fatalf("never: %s", what)
		}
	}
}

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (n *testNode) write(t testing.TB, name string, data []byte) {
	t.Helper()
	a, h, err := n.v.Create(store.Request{}, root, name, store.NewNode{Mode: 0o644})
	if errors.Is(err, crdt.ErrExist) {
		if a, _, err = n.v.Lookup(root, name); err == nil {
			h, err = n.v.OpenWrite(store.Request{}, a.Node, true)
		}
	}
	if err == nil {
		_, err = n.v.WriteAt(a.Node, h, data, 0, false)
	}
	if err == nil {
		err = n.v.Flush(a.Node, h)
	}
	if err == nil {
		err = n.v.Release(store.Request{}, a.Node, h)
	}
	if err != nil {
		t.Fatalf("write %q on %s: %v", name, n.name, err)
	}
}

// read returns nil if there is no such file.
func (n *testNode) read(t testing.TB, name string) []byte {
	t.Helper()
	a, _, err := n.v.Lookup(root, name)
	if errors.Is(err, crdt.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, a.Size)
	if _, err := n.v.ReadAt(a.Node, b, 0); err != nil && err != io.EOF {
		t.Fatalf("read %q on %s: %v", name, n.name, err)
	}
	return b
}

func (n *testNode) has(t testing.TB, name string, data []byte) func() bool {
	return func() bool { return bytes.Equal(n.read(t, name), data) }
}

// tree lists names and contents.
func (n *testNode) tree(t testing.TB) string {
	t.Helper()
	var names []string
	if err := n.v.ReadDir(root, 0, func(e store.DirEntry) bool { names = append(names, e.Name); return true }); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, name := range names {
		fmt.Fprintf(&out, "%s %s\n", name, n.read(t, name))
	}
	return out.String()
}

func linked(nodes ...*testNode) func() bool {
	return func() bool {
		for _, n := range nodes {
			for _, o := range nodes {
				if o == n {
					continue
				}
				up := false
				for _, p := range n.cluster.Peers() {
					up = up || p.Node == o.name && p.State == StateUp
				}
				if !up {
					return false
				}
			}
		}
		return true
	}
}

// same waits until all nodes have applied the same and show the same.
func same(t testing.TB, nodes ...*testNode) {
	t.Helper()
	eventually(t, "equal vectors", func() bool {
		all := crdt.Vector{}
		for _, n := range nodes {
			if n.v.Stats().Unsealed > 0 {
				return false
			}
			all.Max(n.v.Vector())
		}
		for _, n := range nodes {
			if !n.v.Vector().Contains(all) {
				return false
			}
		}
		return true
	})
	want := nodes[0].tree(t)
	for _, n := range nodes[1:] {
		if got := n.tree(t); got != want {
			t.Errorf("%s shows\n%s%s shows\n%s", nodes[0].name, want, n.name, got)
		}
	}
}

// trio is three linked nodes, all of them ready.
func trio(t testing.TB) (*testCluster, *testNode, *testNode, *testNode) {
	return trioOf(t, false)
}

func trioOf(t testing.TB, patient bool) (*testCluster, *testNode, *testNode, *testNode) {
	c := newTestCluster(t)
	x, y, z := c.node("x", true), c.node("y", true), c.node("z", true)
	x.patient, y.patient, z.patient = patient, patient, patient
	x.start(t)
	y.start(t, x)
	z.start(t, x)
	eventually(t, "links", linked(x, y, z))
	return c, x, y, z
}

func TestP4ConvergeConcurrent(t *testing.T) {
	_, x, y, z := trio(t)
	var writers sync.WaitGroup
	for _, n := range []*testNode{x, y, z} {
		writers.Go(func() {
			for i := range 60 {
				n.write(t, fmt.Sprintf("f%d", i%20), fmt.Appendf(nil, "%s %d", n.name, i))
			}
		})
	}
	writers.Wait()
	same(t, x, y, z)
	for _, n := range []*testNode{x, y, z} {
		if have, err := n.cluster.WaitAll(timeout(t), testVolume); err != nil || len(have) != 2 {
			t.Error(have, err)
		}
		if p := n.cluster.Problems(); len(p) > 0 {
			t.Errorf("%s has problems: %+v", n.name, p)
		}
		for _, p := range n.cluster.Peers() {
			if p.State != StateUp || p.Error != "" {
				t.Errorf("%s sees %+v", n.name, p)
			}
		}
	}
}

func TestCutAndHeal(t *testing.T) {
	_, x, y, z := trio(t)
	cut := func(on bool) {
		for _, o := range []*testNode{y, z} {
			x.cluster.setCut(o.name, on)
			o.cluster.setCut(x.name, on)
		}
	}
	cut(true)
	backlog := 30
	if n, err := strconv.Atoi(os.Getenv("GOSSIP_BACKLOG")); err == nil {
		backlog = n
	}
	for i := range backlog {
		x.write(t, fmt.Sprintf("x%d", i), []byte("x"))
		y.write(t, fmt.Sprintf("y%d", i), []byte("y"))
		both := fmt.Sprintf("both%d", i%100)
		z.write(t, both, fmt.Appendf(nil, "z%d", i))
		x.write(t, both, fmt.Appendf(nil, "x%d", i))
	}
	same(t, y, z)
	if x.read(t, "y0") != nil {
		t.Fatal("not cut")
	}
	cut(false)
	began := time.Now()
	same(t, x, y, z)
	t.Logf("healed in %v", time.Since(began))
}

func TestRelay(t *testing.T) {
	_, x, y, z := trio(t)
	x.cluster.setCut("y", true)
	y.cluster.setCut("x", true)
	x.write(t, "f", []byte("through z"))
	eventually(t, "relayed", y.has(t, "f", []byte("through z")))
	y.write(t, "f", []byte("and back"))
	eventually(t, "relayed back", x.has(t, "f", []byte("and back")))
	same(t, x, y, z)
}

func TestP11JoinByJournal(t *testing.T) {
	c := newTestCluster(t)
	x, y, z := c.node("x", true), c.node("y", false), c.node("z", false)
	y.start(t)
	z.start(t, y)
	eventually(t, "links", linked(y, z))
	short, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if err := y.cluster.WaitReady(short, testVolume); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("an empty joiner became ready by another: %v", err)
	}
	for i := range 50 {
		x.write(t, fmt.Sprintf("f%d", i), []byte("hello"))
	}
	if err := x.v.Settle(); err != nil { // what is in no batch yet, x does not say that it has
		t.Fatal(err)
	}
	x.start(t, y)
	for _, n := range []*testNode{y, z} {
		if err := n.cluster.CaughtUp(timeout(t), testVolume); err != nil {
			t.Fatal(err)
		}
		if !n.v.Ready() || n.read(t, "f49") == nil {
			t.Errorf("%s is not what it should be", n.name)
		}
	}
	same(t, x, y, z)
}

func TestP11JoinBySnapshot(t *testing.T) {
	c := newTestCluster(t)
	x, y, z := c.node("x", true), c.node("y", false), c.node("z", false)
	for i := range 700 { // each makes several ops
		name := fmt.Sprintf("f%d", i)
		x.write(t, name, []byte("one"))
		x.write(t, name, []byte("two"))
		x.write(t, name, []byte("three"))
	}
	large := make([]byte, 3<<20+17)
	rand.NewChaCha8([32]byte{1}).Read(large)
	x.write(t, "large", large)
	if err := x.v.Settle(); err != nil { // what is in no batch yet, x does not say that it has
		t.Fatal(err)
	}
	x.start(t)
	y.start(t, x)
	if err := y.cluster.WaitReady(timeout(t), testVolume); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(y.read(t, "large"), large) {
		t.Error("large content is not here")
	}
	same(t, x, y)
	// Its journal begins at the snapshot: it cannot serve the past by pulls.
	x.cluster.Close()
	z.start(t, y)
	if err := z.cluster.WaitReady(timeout(t), testVolume); err != nil {
		t.Fatal(err)
	}
	z.write(t, "f0", []byte("four"))
	same(t, y, z)
	eventually(t, "write after the snapshot", y.has(t, "f0", []byte("four")))
}

func TestP2LargeContent(t *testing.T) {
	_, x, y, z := trio(t)
	large := make([]byte, 40<<20+5)
	rand.NewChaCha8([32]byte{2}).Read(large)
	x.write(t, "large", large)
	y.write(t, "small", []byte("does not wait"))
	eventually(t, "large", y.has(t, "large", large))
	eventually(t, "large", z.has(t, "large", large))
	same(t, x, y, z)
	copy(large[20<<20:], "changed")
	x.write(t, "large", large)
	eventually(t, "changed", y.has(t, "large", large))
	same(t, x, y, z)
}

func TestComesBackAtNewAddress(t *testing.T) {
	_, x, y, z := trio(t)
	x.write(t, "before", []byte("1"))
	same(t, x, y, z)
	if err := z.cluster.Close(); err != nil {
		t.Fatal(err)
	}
	x.write(t, "while away", []byte("2"))
	z.startAt(t, "127.0.0.1:0", nil) // it remembers its peers
	eventually(t, "links", linked(x, y, z))
	same(t, x, y, z)
}

// A node that crashes and comes back elsewhere is taken back as soon as the
// others have noticed.
func TestCrashAndComeBackElsewhere(t *testing.T) {
	_, x, y, z := trio(t)
	z.cluster.members.crash = true
	if err := z.cluster.Close(); err != nil {
		t.Fatal(err)
	}
	x.write(t, "while away", []byte("2"))
	z.startAt(t, "127.0.0.1:0", nil)
	eventually(t, "links", linked(x, y, z))
	same(t, x, y, z)
}

func TestRemoveVolume(t *testing.T) {
	_, x, y, z := trio(t)
	y.cluster.RemoveVolume(testVolume)
	x.write(t, "f", []byte("1"))
	same(t, x, z)
	if err := y.cluster.WaitReady(timeout(t), testVolume); !errors.Is(err, store.ErrNoVolume) {
		t.Errorf("wait for a removed volume: %v", err)
	}
	if y.read(t, "f") != nil {
		t.Error("a removed volume was replicated")
	}
	y.cluster.AddVolume(y.v)
	same(t, x, y, z)
}

// A peer that does not take what is sent delays no write here, and gets
// everything later.
func TestP13SlowPeer(t *testing.T) {
	_, x, y, z := trio(t)
	y.cluster.mu.Lock() // y stands still
	locked := true
	defer func() {
		if locked {
			y.cluster.mu.Unlock()
		}
	}()
	const room = 256 << 10
	x.cluster.mu.Lock()
	q := x.cluster.links["y"].queue
	q.maxBytes = room
	x.cluster.mu.Unlock()
	data := make([]byte, 60<<10)
	for i := range 150 { // more than the connection buffers
		data[0] = byte(i)
		x.write(t, fmt.Sprintf("f%d", i), data)
	}
	q.mu.Lock()
	if q.bytes > room {
		t.Errorf("%d bytes wait for a slow peer", q.bytes)
	}
	q.mu.Unlock()
	eventually(t, "the other peer has it", func() bool { return z.v.Vector().Contains(x.v.Vector()) })
	y.cluster.mu.Unlock()
	locked = false
	same(t, x, y, z)
}

// A push whose origin's identity was lost on the way is asked for again.
func TestIdentityRequested(t *testing.T) {
	_, x, y, z := trio(t)
	x.cluster.mu.Lock()
	x.cluster.proto.peer("y").introduced[replicaKey{testVolume, x.v.Replica()}] = true
	x.cluster.mu.Unlock()
	x.write(t, "f", []byte("1"))
	eventually(t, "merged", y.has(t, "f", []byte("1")))
	same(t, x, y, z)
	if n := y.cluster.BadBatches(); n != 0 {
		t.Errorf("%d bad batches", n)
	}
}

func TestWaitAllWaitsForWhatIsNotSealed(t *testing.T) {
	_, x, y, z := trio(t)
	for i := range 20 {
		data := fmt.Appendf(nil, "%d", i)
		x.write(t, "f", data)
		if _, err := x.cluster.WaitAll(timeout(t), testVolume); err != nil {
			t.Fatal(err)
		}
		for _, n := range []*testNode{y, z} {
			if got := n.read(t, "f"); !bytes.Equal(got, data) {
				t.Fatalf("%s shows %q after waiting for %q", n.name, got, data)
			}
		}
	}
}
