package store

import (
	"fmt"
	"maps"
	"slices"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// nodeRecord says what a node id that is no inode number means: the current
// version of an inode, or, frozen, an old version of it, whose bytes are kept
// as long.
type nodeRecord struct {
	Ino    crdt.Ino
	Frozen *crdt.Version `json:",omitempty"`
}

// nodeChanges is what one transaction changes in the tables of node ids.
type nodeChanges struct {
	put     map[NodeID]*nodeRecord
	current map[crdt.Ino]NodeID
}

// switchNode freezes the node that shows an inode's present content and gives
// the inode a new one.
func (c *change) switchNode(ino crdt.Ino, told *Changes) error {
	var before *crdt.Version
	for _, i := range told.Inodes {
		if i.Ino == ino && i.Content {
			before = i.Before
		}
	}
	if before == nil || c.nodes.current[ino] != 0 || c.v.overshadows(c.v.Node(ino)) {
		return nil
	}
	old, was := &nodeRecord{Ino: ino, Frozen: before}, c.v.Node(ino)
	next := c.v.freshNode()
	if c.nodes.put == nil {
		c.nodes.put, c.nodes.current = map[NodeID]*nodeRecord{}, map[crdt.Ino]NodeID{}
	}
	c.nodes.current[ino] = next
	if err := c.putNode(was, old); err != nil {
		return err
	}
	return c.putNode(next, &nodeRecord{Ino: ino})
}

func (c *change) putNode(id NodeID, r *nodeRecord) error {
	c.nodes.put[id] = r
	return putJSON(c.t, c.keys.key('n', uint64(id)), r)
}

// freshNode is a node id that is no inode number.
func (v *Volume) freshNode() NodeID { return NodeID(v.db.randomID()) | switchedNode }

// frozen reports whether some node shows an old version.
func (v *Volume) frozen(ino crdt.Ino, id crdt.VersionID) bool {
	v.nodesMu.RLock()
	defer v.nodesMu.RUnlock()
	for _, r := range v.nodes {
		if r.Ino == ino && r.Frozen != nil && r.Frozen.ID == id {
			return true
		}
	}
	return false
}

// frozenInodes adds the inodes of which some node shows an old version.
func (v *Volume) frozenInodes(to map[crdt.Ino]bool) {
	v.nodesMu.RLock()
	defer v.nodesMu.RUnlock()
	for _, r := range v.nodes {
		if r.Frozen != nil {
			to[r.Ino] = true
		}
	}
}

// applyNodes takes over the tables when the transaction is committed.
func (v *Volume) applyNodes(n *nodeChanges) {
	if n.put == nil {
		return
	}
	v.nodesMu.Lock()
	defer v.nodesMu.Unlock()
	for id, r := range n.put {
		v.nodes[id] = r
	}
	for ino, id := range n.current {
		v.current[ino] = id
	}
}

// Node is the present node id of an inode.
func (v *Volume) Node(ino crdt.Ino) NodeID {
	v.nodesMu.RLock()
	defer v.nodesMu.RUnlock()
	if id, ok := v.current[ino]; ok {
		return id
	}
	return NodeID(ino)
}

// node returns the inode of a node id, and its record if it has one.
func (v *Volume) node(id NodeID) (crdt.Ino, *nodeRecord, error) {
	v.nodesMu.RLock()
	defer v.nodesMu.RUnlock()
	if r := v.nodes[id]; r != nil {
		return r.Ino, r, nil
	}
	if id&switchedNode != 0 {
		return 0, nil, fmt.Errorf("%w: node %x", ErrStale, uint64(id))
	}
	return crdt.Ino(id), nil, nil
}

// Inode returns the inode that a node id means; false if it means none.
func (v *Volume) Inode(id NodeID) (crdt.Ino, bool) {
	ino, _, err := v.node(id)
	return ino, err == nil
}

// Kept reports whether something is kept for those who have a node open: an old
// version, or the draft of a file without a name.
func (v *Volume) Kept(id NodeID) bool {
	if d := v.draftOf(id); d != nil && d.kept.Load() {
		return true
	}
	v.nodesMu.RLock()
	defer v.nodesMu.RUnlock()
	r := v.nodes[id]
	return r != nil && r.Frozen != nil
}

// Drafted reports whether a node has a draft: what it shows is then not only
// what is recorded.
func (v *Volume) Drafted(id NodeID) bool { return v.draftOf(id) != nil }

// knownLocked reports whether some mount's kernel knows, or may know, a node.
func (v *Volume) knownLocked(id NodeID) bool {
	if len(v.awaited) > 0 {
		return true
	}
	for _, w := range v.viewers {
		if w.Knows(id) {
			return true
		}
	}
	return false
}

// showsLocked reports whether some mount still shows a name of an inode that is
// merged as removed.
func (v *Volume) showsLocked(ino crdt.Ino) bool {
	for _, w := range v.viewers {
		if w.Shows(ino) {
			return true
		}
	}
	return false
}

// LetGo ends what is kept for a node if no kernel knows it any more, or, of a
// draft, if its file has got a name again.
func (v *Volume) LetGo(id NodeID) {
	if d := v.draftOf(id); d != nil && d.kept.Load() {
		d.mu.Lock()
		if d.kept.Load() && !d.dead && !v.closed.Load() {
			v.finish(d, 0) //nolint:errcheck // logs, and tries again
		}
		d.mu.Unlock()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.nodesMu.RLock()
	r := v.nodes[id]
	v.nodesMu.RUnlock()
	if r == nil || r.Frozen == nil || v.knownLocked(id) || v.closed.Load() {
		return
	}
	v.nodesMu.Lock()
	delete(v.nodes, id)
	v.nodesMu.Unlock()
	v.pruning.add([]pastKey{{ino: r.Ino}}) // history kept the version for this node
	if err := v.db.kv.update(func(t txn) error { return t.del(v.keys.key('n', uint64(id))) }); err != nil {
		v.db.opts.Log.Error("forget node", "volume", v.name, "node", uint64(id), "err", err)
	}
}

// AllKept are the nodes that are Kept.
func (v *Volume) AllKept() []NodeID {
	v.draftsMu.Lock()
	ids := slices.Collect(maps.Keys(v.drafts))
	v.draftsMu.Unlock()
	v.nodesMu.RLock()
	ids = slices.AppendSeq(ids, maps.Keys(v.nodes))
	v.nodesMu.RUnlock()
	return slices.DeleteFunc(ids, func(id NodeID) bool { return !v.Kept(id) })
}

// letGoAll is LetGo of all nodes for which something is kept.
func (v *Volume) letGoAll() {
	for _, id := range v.AllKept() {
		v.LetGo(id)
	}
}

// clearNodes forgets all switched nodes, when no kernel knows any.
func (v *Volume) clearNodes() error { return v.db.deletePrefix(v.keys.key('n')) }
