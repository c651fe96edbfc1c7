package node

import (
	"fmt"
	"strings"

	"github.com/synapsefs/synapsefs/gossip"
	"github.com/synapsefs/synapsefs/store"
)

// A Finding is one thing that is not as it should be with a volume on this node.
type Finding struct {
	Reason string // in camel case, for programs
	Detail string
	Bad    bool // the volume cannot be used here
}

// Health says what is not as it should be with a volume on this node.
func (n *Node) Health(i VolumeInfo) (all []Finding) {
	note := func(bad bool, reason, format string, args ...any) {
		all = append(all, Finding{reason, fmt.Sprintf(format, args...), bad})
	}
	if i.Placed.Wanted > i.Placed.Ready() {
		note(false, "TooFewReplicas", "%s", i.Placed.problem())
	}
	v := i.Replica
	if v == nil {
		return all
	}
	if !v.Ready() {
		note(true, "NotReady", "the replica of this node has not caught up yet")
	}
	if stale, mounted := n.shows(i.ID); mounted && stale {
		note(false, "Stale", "no ready peer was reached yet: what this node has is shown")
	}
	if gone := n.unreachable(v); len(gone) > 0 {
		note(false, "PeersUnreachable", "not reachable: %s", strings.Join(gone, ", "))
	}
	for _, h := range n.cluster.Holders(i.ID) {
		if h.Lag > 0 {
			note(false, "PeersBehind", "peer %s lacks %d changes of this node", h.Node, h.Lag)
			break // one is enough: the reason must not come twice
		}
	}
	if records := countRecords(v); records > 0 {
		note(false, "Conflicts", "%d conflicts are to be looked at: synapsefs conflicts %s", records, i.Name)
	}
	s := v.Stats()
	if s.Full {
		note(false, "DiskFull", "the disk of this node is full: changes are refused")
	}
	if s.Unfinished > 0 {
		note(false, "UnfinishedFiles", "%d files were never closed by who wrote them", s.Unfinished)
	}
	return all
}

// unreachable are the nodes that have a replica which counts and are not up.
func (n *Node) unreachable(v *store.Volume) (gone []string) {
	up := map[string]bool{n.cfg.Node: true}
	for _, p := range n.cluster.Peers() {
		if p.State == gossip.StateUp {
			up[p.Node] = true
		}
	}
	for _, r := range v.Roster() {
		if !r.Out && r.Node != "" && !up[r.Node] {
			up[r.Node] = true // once
			gone = append(gone, r.Node)
		}
	}
	return gone
}

// Space is that of the disk below this node's replicas, without asking the
// kernel's mounts.
func (n *Node) Space() (store.Statfs, error) { return n.catalogue.v.Statfs() }

// Name is the node's.
func (n *Node) Name() string { return n.cfg.Node }
