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
when the command was called.
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
			Volume  string  `json:"volume"`
			Seconds float64 `json:"seconds"`
		}{volume, took.Seconds()}
		return env.print(view, func(w io.Writer) {
			fmt.Fprintf(w, "all live peers have volume %s (waited %v)\n", volume, took.Round(time.Microsecond))
		})
	})
}
