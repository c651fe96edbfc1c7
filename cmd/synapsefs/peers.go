package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/wire"
)

const peersHelp = `List the other members of the cluster as this host sees them.

  up       linked both ways
  linking  a member, but not linked both ways
  gone     no member any more, or not yet again
  refused  no peer: one of the two refuses the other, and the note says why

A line without a node's name is an address whose node answers under another
gossip key (see gossip.key in the directories of keys of both), or has the name
of this one.
` + exitHelp

func newPeersCommand(env *environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "List the other members of the cluster as this host sees them",
		Long:  peersHelp,
		Args:  exactly(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runPeers(cmd.Context(), env) },
	}
	cmd.AddCommand(newPeersForgetCommand(env), newPeersDrainCommand(env))
	return cmd
}

func newPeersDrainCommand(env *environment) *cobra.Command {
	var undo bool
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "Say that a host is about to leave",
		Long: "Say that a host is about to leave. Volumes with the option replicas that are placed\n" +
			"on it get another replica at once; it keeps what it has, and serves its mounts.\n" +
			"\"synapsefs volumes list\" on it says of which volume it has the only ready replica.\n" + exitHelp,
		Args: exactly("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.call(cmd.Context(), func(ctx context.Context, c *admin.Client) error {
				if _, err := c.DrainPeer(ctx, &wire.DrainPeerRequest{Node: args[0], Undo: undo}); err != nil {
					return err
				}
				v := struct {
					Node    string `json:"node"`
					Leaving bool   `json:"leaving"`
				}{args[0], !undo}
				return env.print(v, func(w io.Writer) {
					if v.Leaving {
						fmt.Fprintf(w, "node %s is leaving\n", v.Node)
					} else {
						fmt.Fprintf(w, "node %s stays\n", v.Node)
					}
				})
			})
		},
	}
	cmd.Flags().BoolVar(&undo, "undo", false, "it stays")
	return cmd
}

func newPeersForgetCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "forget NODE",
		Short: "Say that a host will not come back",
		Long: "Say that a host will not come back: no host waits for it any more before it drops\n" +
			"what it keeps for those that are away. It is refused while the host is a member.\n" +
			"Should the host come back all the same, it takes a snapshot, and the changes that\n" +
			"only it has are made anew.\n" + exitHelp,
		Args: exactly("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.call(cmd.Context(), func(ctx context.Context, c *admin.Client) error {
				reply, err := c.ForgetPeer(ctx, &wire.ForgetPeerRequest{Node: args[0]})
				if err != nil {
					return err
				}
				v := struct {
					Node     string `json:"node"`
					Replicas uint32 `json:"replicas"`
				}{args[0], reply.Replicas}
				return env.print(v, func(w io.Writer) {
					fmt.Fprintf(w, "forgot node %s with %d replicas\n", v.Node, v.Replicas)
				})
			})
		},
	}
}

// A peerView is a peer as printed.
type peerView struct {
	Node     string     `json:"node"`
	Address  string     `json:"address"`
	State    string     `json:"state"`
	RTT      float64    `json:"rtt_seconds"`
	Lag      uint64     `json:"lag"` // changes it has not yet said to have
	LastSeen *time.Time `json:"last_seen,omitempty"`
	Refusals uint64     `json:"refusals"`
	Leaving  bool       `json:"leaving,omitempty"` // it was drained
	Error    string     `json:"error,omitempty"`
}

func viewPeers(peers []*wire.PeerStatus) []peerView {
	out := make([]peerView, len(peers))
	for n, p := range peers {
		out[n] = peerView{
			Node: p.Node, Address: p.Address, State: p.State, RTT: time.Duration(p.RttNs).Seconds(),
			Lag: p.Lag, LastSeen: timeOf(p.LastSeenUnixNs), Refusals: p.Refusals, Leaving: p.Leaving, Error: p.Error,
		}
	}
	return out
}

func runPeers(ctx context.Context, env *environment) error {
	return env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		reply, err := c.Peers(ctx, &wire.PeersRequest{})
		if err != nil {
			return err
		}
		v := viewPeers(reply.Peers)
		return env.print(v, func(w io.Writer) { printPeers(w, v) })
	})
}

func printPeers(w io.Writer, peers []peerView) {
	fmt.Fprintln(w, "NODE\tADDRESS\tSTATE\tRTT\tLAG\tNOTE")
	for _, p := range peers {
		rtt := "-"
		if p.RTT > 0 {
			rtt = fmt.Sprintf("%.2f ms", p.RTT*1000)
		}
		state := p.State
		if p.Leaving {
			state += ", leaving"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", dash(p.Node), dash(p.Address), state, rtt, p.Lag, dash(p.Error))
	}
}
