package store

import (
	"fmt"

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
	next := NodeID(randomID()) | switchedNode
	if c.nodes.put == nil {
		c.nodes.put, c.nodes.current = map[NodeID]*nodeRecord{}, map[crdt.Ino]NodeID{}
	}
	c.nodes.put[was], c.nodes.put[next] = old, &nodeRecord{Ino: ino}
	c.nodes.current[ino] = next
	if err := putJSON(c.t, c.keys.key('n', uint64(was)), old); err != nil {
		return err
	}
	return putJSON(c.t, c.keys.key('n', uint64(next)), c.nodes.put[next])
}

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

// ForgetNode drops a frozen version that the kernel no longer knows.
func (v *Volume) ForgetNode(id NodeID) {
	v.nodesMu.Lock()
	r := v.nodes[id]
	if r == nil || r.Frozen == nil {
		v.nodesMu.Unlock()
		return
	}
	delete(v.nodes, id)
	v.nodesMu.Unlock()
	v.pruning.add([]pastKey{{ino: r.Ino}}) // history kept the version for this node
	if err := v.db.kv.update(func(t txn) error { return t.del(v.keys.key('n', uint64(id))) }); err != nil {
		v.db.opts.Log.Error("forget node", "volume", v.Name(), "node", uint64(id), "err", err)
	}
}

// clearNodes forgets all switched nodes, when no kernel knows any.
func (v *Volume) clearNodes() error { return v.db.deletePrefix(v.keys.key('n')) }
