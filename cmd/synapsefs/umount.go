package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/internal/keeper"
	"github.com/synapsefs/synapsefs/internal/wire"
)

const umountHelp = `Take a mount away, and the guard below it: the bare directory shows. The replica
stays on this host and stays up to date.

A daemon that stops, is killed, or learns that a volume was deleted leaves a
guard (or a dead mount) behind: the directory answers with an error instead of
looking empty. umount lifts that as well, also when no daemon runs. A mount that
waits for its next daemon it takes away when none runs; programs that wait in it
get an error. It touches no mount that another daemon serves, and none of another
file system.
` + exitHelp

func newUmountCommand(env *environment) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "umount DIR",
		Aliases: []string{"unmount"},
		Short:   "Take a mount away",
		Long:    umountHelp,
		Args:    exactly("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runUmount(cmd.Context(), env, args[0], force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "detach it although files are open in it")
	return cmd
}

// An umountView says what was taken away: a mount of the daemon if both counts
// are 0, else what was left of an earlier run.
type umountView struct {
	Dir        string `json:"dir"`
	LeftMounts int    `json:"left_mounts"`
	LeftGuards int    `json:"left_guards"`
}

func runUmount(ctx context.Context, env *environment, dir string, force bool) error {
	v := umountView{}
	var err error
	if v.Dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	err = env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		reply, err := c.Unmount(ctx, &wire.UnmountRequest{Dir: []byte(v.Dir), Force: force})
		v.LeftMounts, v.LeftGuards = int(reply.GetLeftMounts()), int(reply.GetLeftGuards())
		return err
	})
	if errors.Is(err, admin.ErrNotRunning) {
		var left kernel.Cleared
		if left, err = clearMount(ctx, env, v.Dir); err != nil {
			return err
		}
		v.LeftMounts, v.LeftGuards = left.Dead, left.Guards
	}
	if err != nil {
		return err
	}
	return env.print(v, func(w io.Writer) { printUnmounted(w, v) })
}

// clearMount takes away what is left of a daemon that does not run.
func clearMount(ctx context.Context, env *environment, dir string) (kernel.Cleared, error) {
	if point, err := kernel.Canonical(dir); err == nil { // else Clear says what is wrong
		if _, err := keeper.ReleaseAt(ctx, config.KeeperSocket(env.socket), point); err != nil {
			return kernel.Cleared{}, err
		}
	}
	return kernel.Clear(dir)
}

func printUnmounted(w io.Writer, v umountView) {
	what := "unmounted"
	switch {
	case v.LeftMounts > 0 && v.LeftGuards > 0:
		what = "removed the dead mount of an earlier run and its guard at"
	case v.LeftMounts > 0:
		what = "removed the dead mount of an earlier run at"
	case v.LeftGuards > 0:
		what = "lifted the guard that an earlier run left at"
	}
	fmt.Fprintf(w, "%s %s\n", what, v.Dir)
}
