package main

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/wire"
)

func newUmountCommand(env *environment) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "umount DIR",
		Aliases: []string{"unmount"},
		Short:   "Take a mount away",
		Long:    "Take a mount away. The replica stays on this host and stays up to date.\n" + exitHelp,
		Args:    exactly("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runUmount(cmd.Context(), env, args[0], force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "detach it although files are open in it")
	return cmd
}

func runUmount(ctx context.Context, env *environment, dir string, force bool) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	return env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		_, err := c.Unmount(ctx, &wire.UnmountRequest{Dir: []byte(dir), Force: force})
		return err
	})
}
