package gossip

import (
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// NodeOf is the node that wrote under a replica id, as its identity proves; ""
// if that is not known here.
func (c *Cluster) NodeOf(v *store.Volume, r crdt.ReplicaID) string {
	o, err := c.identities.of(v, r)
	if err != nil {
		return ""
	}
	return o.node
}
