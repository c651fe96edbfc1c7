package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/synapsefs/synapsefs/csi"
	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/internal/node"
)

const daemonHelp = `Run this host's part of the cluster, in the foreground, until SIGTERM or SIGINT.

At SIGTERM the daemon leaves its mounts to the next one: programs that use them
wait until that has started ("synapsefs umount DIR" frees them if none is to). At
SIGINT it takes the mounts away; then directories answer with an error until
they are mounted again, or umount lifts that. With "keeper: false", or not as root,
SIGTERM does the same.

Options come from the file named by --config and from flags; a flag wins. Both
have the same names: see deploy/synapsefs.yaml for each with its meaning.
` + exitHelp

func newDaemonCommand(env *environment) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "daemon [--config FILE]",
		Short: "Run the daemon of this host",
		Long:  daemonHelp,
		Args:  exactly(),
	}
	cmd.Flags().StringVar(&file, "config", "", "YAML file with the same names as the flags")
	flags := config.Bind(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := flags.Load(file)
		if err != nil {
			return usageError{err}
		}
		// The socket the other commands are given works here too.
		if given := cmd.Flag("socket"); given.Changed && !cmd.Flags().Changed("admin-socket") {
			cfg.AdminSocket = env.socket
		}
		return runDaemon(cmd.Context(), cfg)
	}
	return cmd
}

// memoryTarget is what the Go heap may grow to before it is collected more
// often, in bytes: the daemon shares its host with what it serves. The
// environment's GOMEMLIMIT overrides it.
const memoryTarget = 128 << 20

// leastProcs is the least GOMAXPROCS, unless the environment sets it: a thread
// that comes back from the kernel with a request does not wait for one of those
// that hash, or are about to be woken.
const leastProcs = 4

func runDaemon(ctx context.Context, cfg *config.Config) error {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryTarget)
	}
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < leastProcs {
		runtime.GOMAXPROCS(leastProcs)
	}
	n, err := node.Start(ctx, cfg, cfg.Logger(os.Stderr))
	if errors.Is(err, context.Canceled) || ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		return nil // told to stop while starting
	}
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	driver, err := serveCSI(n, cfg)
	if err != nil {
		return errors.Join(fmt.Errorf("start: %w", err), n.HandOver())
	}
	select {
	case <-ctx.Done():
		driver.Close()
		if cause, ok := errors.AsType[stopSignal](context.Cause(ctx)); ok && cause.Signal == syscall.SIGTERM {
			return n.HandOver()
		}
		return n.Close()
	case binary := <-n.UpgradeTo():
		driver.Close()
		if err := n.HandOver(); err != nil {
			return err
		}
		return node.Become(binary)
	}
}

// serveCSI makes the node a CSI driver, if it is to be one; nil is none.
func serveCSI(n *node.Node, cfg *config.Config) (*csi.Driver, error) {
	if len(cfg.CSIEndpoint) == 0 {
		return nil, nil
	}
	return csi.Serve(n, cfg.CSIEndpoint, cfg.Logger(os.Stderr).With("part", "csi"))
}
