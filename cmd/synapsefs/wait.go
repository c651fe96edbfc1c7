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

const waitHelp = `Return when all live peers that hold the volume have applied what this host had
when the command was called, and say how many those are.

A member whose link is not up yet may hold the volume, so it is waited for; use
--timeout to bound that. Not waited for are members that go away meanwhile, that
do not hold the volume, or that refuse this host or are refused.

With no such peer nothing is claimed: the command is refused (status 6). Only on
a host that is a cluster of its own, with no peer configured (join) and none
ever met, it succeeds, and says so.
` + exitHelp

func newWaitCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "wait VOLUME",
		Short: "Wait until all live peers have what this host has",
		Long:  waitHelp,
		Args:  exactly("VOLUME"),
		RunE:  func(cmd *cobra.Command, args []string) error { return runWait(cmd.Context(), env, args[0]) },
	}
}

func runWait(ctx context.Context, env *environment, volume string) error {
	return env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		reply, err := c.Wait(ctx, &wire.WaitRequest{Volume: volume})
		if err != nil {
			return err
		}
		took := time.Duration(reply.TookNs)
		view := struct {
			Volume  string   `json:"volume"`
			Seconds float64  `json:"seconds"`
			Peers   []string `json:"peers"` // that have it
		}{volume, took.Seconds(), append([]string{}, reply.Nodes...)}
		return env.print(view, func(w io.Writer) {
			fmt.Fprintf(w, "%s volume %s (waited %v)\n", havers(len(reply.Nodes)), volume, took.Round(time.Microsecond))
		})
	})
}

// havers is who has the volume, as subject and verb.
func havers(peers int) string {
	switch peers {
	case 0:
		return "this host is the only one of its cluster, and alone has"
	case 1:
		return "1 peer has"
	}
	return fmt.Sprintf("%d peers have", peers)
}
