package gossip

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/synapsefs/synapsefs/internal/keys"
	"github.com/synapsefs/synapsefs/store"
)

// Options say how a node takes part in its cluster. Zero fields mean the
// default.
type Options struct {
	// Node is this node's name, the one in its certificate.
	Node string
	// Cluster is the name of the cluster; if set, the keys must be of it.
	Cluster string
	// Bind is the address (host:port) of the membership gossip, TCP and UDP.
	// Port 0 takes any. Default 0.0.0.0:7946.
	Bind string
	// ReplicaBind is the address of the replica service, TCP. Default
	// 0.0.0.0:7947.
	ReplicaBind string
	// Advertise is the host, or host:port of the membership gossip, by which
	// peers reach this node. Default: Bind's, or a private address of this
	// host if that is 0.0.0.0.
	Advertise string
	// Join lists addresses or DNS names (host:port) of members. They are
	// tried for ever.
	Join []string
	// Keys are this node's.
	Keys *keys.Keys
	// StateDir is where peers are remembered; "" remembers none.
	StateDir string
	// DB holds the volumes.
	DB *store.DB
	// Log takes what happens; default nothing.
	Log *slog.Logger
	// Now is the clock; default time.Now.
	Now func() time.Time
	// Limits bound the protocol.
	Limits Limits
	// Transfer brings large content here. Default: block by block.
	Transfer Transfer

	// For tests.
	tuneMembership func(*memberlist.Config)
}

func (o *Options) setDefaults() error {
	switch {
	case o.Keys == nil || o.DB == nil:
		return errors.New("keys or store are missing")
	case o.Node != o.Keys.Node:
		return fmt.Errorf("%w: they are for node %q, this is %q: issue some for it", keys.ErrInvalid, o.Keys.Node, o.Node)
	case o.Cluster != "" && o.Keys.Cluster != "" && o.Cluster != o.Keys.Cluster:
		return fmt.Errorf("%w: they are for cluster %q, not %q: correct the option or use that cluster's keys",
			keys.ErrInvalid, o.Keys.Cluster, o.Cluster)
	}
	if o.Bind == "" {
		o.Bind = "0.0.0.0:7946"
	}
	if o.ReplicaBind == "" {
		o.ReplicaBind = "0.0.0.0:7947"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Limits.setDefaults()
	return nil
}
