package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/node"
	"github.com/synapsefs/synapsefs/internal/version"
	"github.com/synapsefs/synapsefs/internal/wire"
)

const upgradeHelp = `Have the daemon of this host replaced by another program, under its mounts:
programs that use them see a pause, and no call fails.

Replace the program file first, or name another one. It is asked before anything
is stopped whether it can go on with the mounts; if not, the daemon goes on as
it is. The new daemon has the process id, the arguments and the environment of
the old one.
` + exitHelp

func newUpgradeCommand(env *environment) *cobra.Command {
	var binary string
	cmd := &cobra.Command{
		Use:   "upgrade [--binary FILE]",
		Short: "Replace the daemon under its mounts",
		Long:  upgradeHelp,
		Args:  exactly(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runUpgrade(cmd.Context(), env, binary) },
	}
	cmd.Flags().StringVar(&binary, "binary", "", "the new program (default: the file that the daemon was started from)")
	return cmd
}

type upgradeView struct {
	Version string `json:"version"`
}

func runUpgrade(ctx context.Context, env *environment, binary string) (err error) {
	if binary != "" {
		if binary, err = filepath.Abs(binary); err != nil {
			return err
		}
	}
	return env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		reply, err := c.Upgrade(ctx, &wire.UpgradeRequest{Binary: binary})
		if err != nil {
			return err
		}
		v := upgradeView{reply.Version}
		return env.print(v, func(w io.Writer) { fmt.Fprintln(w, "the daemon becomes", v.Version) })
	})
}

// newTakeOverCheckCommand is what a daemon asks a new program.
func newTakeOverCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:    node.CheckCommand + " SOCKET",
		Short:  "Say whether this program could take over a keeper's mounts",
		Hidden: true,
		Args:   exactly("SOCKET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := node.CheckTakeOver(cmd.Context(), args[0]); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version.String())
			return err
		},
	}
}
