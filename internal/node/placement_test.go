package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/gossip"
	"github.com/synapsefs/synapsefs/internal/fstest"
	"github.com/synapsefs/synapsefs/internal/keys"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// Who comes or goes moves no more than it must.
func TestRendezvousMovesLittle(t *testing.T) {
	var nodes []string
	for i := range 10 {
		nodes = append(nodes, fmt.Sprintf("node%d", i))
	}
	const volumes, k = 500, 3
	load, moved := map[string]int{}, 0
	for range volumes {
		id := store.NewVolumeID()
		all := rendezvous(id, nodes, k)
		shuffled := append(slices.Clone(nodes[5:]), nodes[:5]...)
		if again := rendezvous(id, shuffled, k); !slices.Equal(all, again) {
			t.Fatalf("the order of the nodes counts: %v, %v", all, again)
		}
		for _, node := range all {
			load[node]++
		}
		less := rendezvous(id, nodes[1:], k)
		for _, node := range all {
			if node != nodes[0] && !slices.Contains(less, node) {
				t.Errorf("%s lost a volume as %s went", node, nodes[0])
			}
		}
		if !slices.Equal(all, less) {
			moved++
		}
		if few := rendezvous(id, nodes[:2], k); len(few) != 2 {
			t.Errorf("of two nodes: %v", few)
		}
	}
	for _, node := range nodes {
		if load[node] < volumes*k/len(nodes)/2 || load[node] > volumes*k/len(nodes)*2 {
			t.Errorf("%s holds %d of %d", node, load[node], volumes*k)
		}
	}
	if moved != load[nodes[0]] {
		t.Errorf("%d volumes moved, %s had %d", moved, nodes[0], load[nodes[0]])
	}
}

func TestCandidates(t *testing.T) {
	p := placement{away: map[string]time.Time{}, leaving: map[string]bool{"drained": true}}
	now := time.Now()
	peers := []gossip.PeerStatus{
		{Node: "up", State: gossip.StateUp}, {Node: "linking", State: gossip.StateLinking}, {Node: "gone", State: gossip.StateGone},
		{Node: "refused", State: gossip.StateRefused}, {State: gossip.StateGone}, {Node: "drained", State: gossip.StateUp},
	}
	at := func(after time.Duration) []string {
		return p.candidates("self", peers, now.Add(after), time.Minute)
	}
	for after, want := range map[time.Duration][]string{
		0:           {"self", "up", "linking", "gone"},
		time.Minute: {"self", "up", "linking"},
	} {
		at(0)
		if got := at(after); !slices.Equal(got, want) {
			t.Errorf("after %v: %v, want %v", after, got, want)
		}
	}
	peers[2].State = gossip.StateUp // and gone once more
	at(time.Minute)
	peers[2].State = gossip.StateGone
	if got := at(90 * time.Second); !slices.Contains(got, "gone") {
		t.Errorf("one that was back: %v", got)
	}
}

// placing starts n nodes that place volumes at once.
func placing(t *testing.T, c *cluster, n int) (nodes []*Node) {
	t.Helper()
	for range n {
		var join []string
		if len(nodes) > 0 {
			join = []string{nodes[0].cluster.Address()}
		}
		cfg := c.config(join...)
		cfg.PlacementDelay = 0
		nodes = append(nodes, start(t, cfg))
	}
	return nodes
}

// holding returns the nodes that have a ready replica.
func holding(nodes []*Node, id store.VolumeID) (names []string) {
	for _, n := range nodes {
		if v := n.db.Volume(id); v != nil && v.Ready() {
			names = append(names, n.cfg.Node)
		}
	}
	return names
}

// restWithout are all nodes but one.
func restWithout(nodes []*Node, name string) (rest []*Node) {
	return slices.DeleteFunc(slices.Clone(nodes), func(n *Node) bool { return n.cfg.Node == name })
}

func named(nodes []*Node, name string) *Node {
	return nodes[slices.IndexFunc(nodes, func(n *Node) bool { return n.cfg.Node == name })]
}

// A volume is on as many nodes as it is to be, whoever made it, uses it, leaves
// or comes back, and what is in it stays.
func TestPlacement(t *testing.T) {
	mountable(t)
	rooted(t)
	c := newCluster(t)
	nodes := placing(t, c, 4)
	for _, n := range nodes {
		fstest.Until(t, time.Minute, "links", func() bool { return len(n.candidates(time.Now())) == len(nodes) })
	}
	info, err := nodes[0].CreateVolume(t.Context(), "v", map[string]string{"replicas": "2"})
	if err != nil {
		t.Fatal(err)
	}
	placed := rendezvous(info.ID, []string{"node1", "node2", "node3", "node4"}, 2)
	if held := holding(nodes, info.ID); !subset(placed, held) {
		t.Errorf("once it is created %v hold it, not %v", held, placed)
	}
	is := func(want ...string) func() bool {
		return func() bool {
			held := holding(nodes, info.ID)
			return subset(want, held) && subset(held, want)
		}
	}
	fstest.Until(t, time.Minute, "its maker lets go", is(placed...))

	// Another node mounts it, writes and leaves.
	user := restWithout(restWithout(nodes, placed[0]), placed[1])[0]
	dir := mountpoint(t)
	if _, err := user.Mount(t.Context(), MountRequest{Volume: "v", Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(holding(nodes, info.ID), user.cfg.Node) {
		t.Error("who mounts it has no replica")
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := user.Unmount(dir, false); err != nil {
		t.Fatal(err)
	}
	fstest.Until(t, time.Minute, "its user lets go", is(placed...))

	// A placed node is drained: another one takes it, and the first keeps it.
	if err := user.Drain(t.Context(), placed[0], false); err != nil {
		t.Fatal(err)
	}
	var rest []string
	for _, n := range restWithout(nodes, placed[0]) {
		rest = append(rest, n.cfg.Node)
	}
	moved := rendezvous(info.ID, rest, 2)
	fstest.Until(t, time.Minute, "it is repaired", is(append(slices.Clone(moved), placed[0])...))
	// It goes, with its disk.
	gone := named(nodes, placed[0])
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	nodes = restWithout(nodes, placed[0])
	for _, name := range moved {
		n := named(nodes, name)
		a, _, err := n.db.Volume(info.ID).Lookup(root, "f")
		if err != nil || a.Size != 1 {
			t.Errorf("%s: f: %+v, %v", name, a, err)
		}
	}
	// And comes back.
	back := start(t, gone.cfg)
	nodes = append(nodes, back)
	if err := back.Drain(t.Context(), back.cfg.Node, true); err != nil {
		t.Fatal(err)
	}
	fstest.Until(t, time.Minute, "it is as before", is(placed...))

	// A node goes undrained: the others repair it as soon as it is not waited for.
	if err := named(nodes, placed[1]).Close(); err != nil {
		t.Fatal(err)
	}
	nodes = restWithout(nodes, placed[1])
	rest = nil
	for _, n := range nodes {
		rest = append(rest, n.cfg.Node)
	}
	fstest.Until(t, time.Minute, "it is repaired", is(rendezvous(info.ID, rest, 2)...))

	// Deleted, it is nowhere.
	if _, err := nodes[0].DeleteVolume(t.Context(), "v", false); err != nil {
		t.Fatal(err)
	}
	fstest.Until(t, time.Minute, "it is gone", func() bool {
		return !slices.ContainsFunc(nodes, func(n *Node) bool { return n.db.Volume(info.ID) != nil })
	})
}

func subset(some, all []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(all, s) })
}

// With fewer nodes than replicas all hold it, and status says so.
func TestPlacementShortfall(t *testing.T) {
	c := newCluster(t)
	nodes := placing(t, c, 2)
	fstest.Until(t, time.Minute, "links", func() bool { return len(nodes[0].candidates(time.Now())) == 2 })
	info, err := nodes[0].CreateVolume(t.Context(), "v", map[string]string{"replicas": "3"})
	if err != nil {
		t.Fatal(err)
	}
	problem := func() string {
		all, err := nodes[0].ListVolumes(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("%+v, %v", all, err)
		}
		return all[0].Problem
	}
	fstest.Until(t, time.Minute, "both hold it", func() bool {
		return len(holding(nodes, info.ID)) == 2 && strings.HasPrefix(problem(), "2 of 3 replicas: ")
	})
	if err := nodes[0].Drain(t.Context(), "node1", false); err != nil {
		t.Fatal(err)
	}
	if err := nodes[1].Close(); err != nil {
		t.Fatal(err)
	}
	fstest.Until(t, time.Minute, "it says who has the last one", func() bool { return strings.Contains(problem(), "only ready replica") })
	if _, err := nodes[0].SetOptions(t.Context(), "v", map[string]string{"replicas": "1"}); err != nil {
		t.Fatal(err)
	}
	if err := nodes[0].Drain(t.Context(), "node1", true); err != nil {
		t.Fatal(err)
	}
	fstest.Until(t, time.Minute, "one is enough", func() bool { return problem() == "" })
	err = nodes[0].Drain(t.Context(), "nobody", false)
	if !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("drain of nobody: %v", err)
	}
}

// A replica that is not needed stays as long as others lack it, or it is used.
func TestP5SpareReplicaStays(t *testing.T) {
	c := newCluster(t)
	nodes := placing(t, c, 3)
	for _, n := range nodes {
		fstest.Until(t, time.Minute, "links", func() bool { return len(n.candidates(time.Now())) == len(nodes) })
	}
	info, err := nodes[0].CreateVolume(t.Context(), "v", map[string]string{"replicas": "1"})
	if err != nil {
		t.Fatal(err)
	}
	place := rendezvous(info.ID, []string{"node1", "node2", "node3"}, 1)[0]
	fstest.Until(t, time.Minute, "one holds it", func() bool { return slices.Equal(holding(nodes, info.ID), []string{place}) })
	other := restWithout(nodes, place)[0]
	v, err := other.replica(info.Listing, false)
	if err != nil {
		t.Fatal(err)
	}
	if dropped, err := other.dropSpare(v, func(crdt.Vector) bool { return false }); dropped || err != nil {
		t.Errorf("nobody has it: dropped %v, %v", dropped, err)
	}
	m := &mount{id: 1}
	other.mu.Lock()
	other.live[m.id] = m
	other.mu.Unlock()
	other.uses(m, info.Listing)
	if dropped, err := other.dropSpare(v, func(crdt.Vector) bool { return true }); dropped || err != nil {
		t.Errorf("in use: dropped %v, %v", dropped, err)
	}
	other.freeID(m)
}

// A change made here a moment ago, of which the cluster was not told yet, is one
// that the others lack: the replica stays.
func TestP5SpareReplicaStaysForLastChange(t *testing.T) {
	c := newCluster(t)
	var nodes []*Node
	for range 2 {
		var join []string
		if len(nodes) > 0 {
			join = []string{nodes[0].cluster.Address()}
		}
		cfg := c.config(join...)
		cfg.PlacementDelay = time.Hour // the test lets go
		nodes = append(nodes, start(t, cfg))
	}
	for _, n := range nodes {
		fstest.Until(t, time.Minute, "links", func() bool { return len(n.candidates(time.Now())) == len(nodes) })
	}
	info, err := nodes[0].CreateVolume(t.Context(), "v", nil)
	if err != nil {
		t.Fatal(err)
	}
	other, placed := nodes[1], []string{nodes[0].cfg.Node}
	v, err := other.db.CreateReplica(info.ID, "v", false)
	if err != nil {
		t.Fatal(err)
	}
	sealed, tell := make(chan struct{}, 1), make(chan struct{})
	for range 64 { // in no order: one of them before the cluster is told
		v.OnSeal(func(*store.Batch) {
			select {
			case sealed <- struct{}{}:
			default:
			}
			<-tell
		})
	}
	defer close(tell)
	other.join(v)
	fstest.Until(t, time.Minute, "both have the volume", func() bool {
		return v.Ready() && slices.ContainsFunc(other.cluster.Holders(info.ID), func(h gossip.Holder) bool { return h.Ready && h.Lag == 0 })
	})
	if _, err := v.Mknod(store.Request{}, root, "f", store.NewNode{Kind: crdt.KindFile, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	<-sealed
	if other.allHave(v, v.Vector(), placed) {
		t.Error("the only replica with the last change is to be dropped")
	}
}

// A node of Kubernetes may be called as its host is, in full.
func TestNodesWithDots(t *testing.T) {
	c := newCluster(t)
	var nodes []*Node
	for _, name := range []string{"ip-10-0-0-1.ec2.internal", "ip-10-0-0-2.ec2.internal"} {
		var join []string
		if len(nodes) > 0 {
			join = []string{nodes[0].cluster.Address()}
		}
		cfg := c.config(join...)
		cfg.Node, cfg.PlacementDelay = name, 0
		if err := keys.Issue(filepath.Join(c.dir, "ca"), cfg.Keys+name, name); err != nil {
			t.Fatal(err)
		}
		cfg.Keys += name
		nodes = append(nodes, start(t, cfg))
	}
	for _, n := range nodes {
		fstest.Until(t, time.Minute, "links", func() bool { return len(n.candidates(time.Now())) == len(nodes) })
	}
	info, err := nodes[0].CreateVolume(t.Context(), "v", map[string]string{"replicas": "2"})
	if err != nil {
		t.Fatal(err)
	}
	fstest.Until(t, time.Minute, "both hold it", func() bool { return len(holding(nodes, info.ID)) == 2 })
	second := nodes[1].cfg.Node
	if err := nodes[0].Attach(t.Context(), info.ID, second, Attachment{Mode: "any"}); err != nil {
		t.Fatal(err)
	}
	if all, err := nodes[0].Attachments(); err != nil || len(all[info.ID]) != 1 || all[info.ID][second].Mode != "any" {
		t.Errorf("attachments %v, %v", all, err)
	}
	if err := nodes[0].Drain(t.Context(), second, false); err != nil {
		t.Fatal(err)
	}
	fstest.Until(t, time.Minute, "it leaves", func() bool { return nodes[1].placement.isLeaving(second) })
}

// P6: a node that was away, and changed a volume meanwhile that the others had
// deleted, brings neither the volume nor its name back.
func TestP6ChangedWhileAway(t *testing.T) {
	c := newCluster(t)
	nodes := placing(t, c, 2)
	linked := func() {
		t.Helper()
		for _, n := range nodes {
			fstest.Until(t, time.Minute, "links", n.linkedBothWays)
		}
	}
	linked()
	old, err := nodes[0].CreateVolume(t.Context(), "v", map[string]string{"replicas": "2"})
	if err != nil {
		t.Fatal(err)
	}
	fstest.Until(t, time.Minute, "both hold it", func() bool { return len(holding(nodes, old.ID)) == 2 })

	again := func(i int) {
		t.Helper()
		nodes[i] = start(t, nodes[i].cfg)
	}
	if err := nodes[1].Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes[0].DeleteVolume(t.Context(), "v", false); err != nil {
		t.Fatal(err)
	}
	if err := nodes[0].Close(); err != nil {
		t.Fatal(err)
	}
	again(1)
	if _, err := nodes[1].SetOptions(t.Context(), "v", map[string]string{"replicas": "1"}); err != nil {
		t.Fatal(err)
	}
	again(0)
	linked()
	for _, n := range nodes {
		fstest.Until(t, time.Minute, "its replica to go", func() bool { return n.db.Volume(old.ID) == nil })
		for _, name := range []string{"v", old.ID.String()} {
			if i, err := n.FindVolume(t.Context(), name); !errors.Is(err, store.ErrNoVolume) {
				t.Errorf("%s finds %s: %+v, %v", n.cfg.Node, name, i, err)
			}
		}
	}
	young, err := nodes[0].CreateVolume(t.Context(), "v", map[string]string{"replicas": "2"})
	if err != nil {
		t.Fatal(err)
	}
	fstest.Until(t, time.Minute, "both hold the new one", func() bool { return len(holding(nodes, young.ID)) == 2 })
	for _, n := range nodes {
		if i, err := n.FindVolume(t.Context(), "v"); err != nil || i.ID != young.ID || i.ID == old.ID {
			t.Errorf("%s finds %+v, %v; want %v", n.cfg.Node, i, err, young.ID)
		}
		if len(holding([]*Node{n}, old.ID)) != 0 {
			t.Errorf("%s holds the deleted one", n.cfg.Node)
		}
	}
}
