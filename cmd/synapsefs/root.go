package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/internal/version"
)

// An environment is what the commands share: where they print, and the flags
// that all of them have.
type environment struct {
	stdout, stderr io.Writer

	socket  string
	output  string // text or json
	timeout time.Duration
}

func newEnv(stdout, stderr io.Writer) *environment {
	return &environment{stdout: stdout, stderr: stderr}
}

// socketVariable names the socket for a whole shell session.
const socketVariable = "SYNAPSEFS_SOCKET"

const rootHelp = `synapsefs keeps one directory tree the same on many hosts.

Each host runs "synapsefs daemon". The other commands speak to the daemon of
their host over its admin socket.
` + exitHelp

// run executes a command line and returns the exit code.
func run(ctx context.Context, env *environment, args []string) int {
	root := newRootCommand(env)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(env.stderr, "synapsefs:", err)
	}
	return exitCode(err)
}

func newRootCommand(env *environment) *cobra.Command {
	root := &cobra.Command{
		Use:           "synapsefs",
		Short:         "One directory tree, the same on many hosts",
		Long:          rootHelp,
		SilenceErrors: true, // run prints them, once
		SilenceUsage:  true,
		Version:       version.String(),
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if env.output != "text" && env.output != "json" {
				return usageError{fmt.Errorf("--output %q is neither text nor json", env.output)}
			}
			return nil
		},
	}
	root.SetOut(env.stdout)
	root.SetErr(env.stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	flags := root.PersistentFlags()
	flags.StringVar(&env.socket, "socket", defaultSocket(), "admin socket of the daemon (or $"+socketVariable+")")
	flags.StringVar(&env.output, "output", "text", "text or json")
	flags.DurationVar(&env.timeout, "timeout", 0, "give up after this time (0: never)")
	root.AddCommand(
		newDaemonCommand(env), newMountCommand(env), newUmountCommand(env), newMountsCommand(env),
		newStatusCommand(env), newPeersCommand(env), newVolumesCommand(env), newWaitCommand(env),
		newConflictsCommand(env), newHistoryCommand(env), newImportCommand(env),
		newKeysCommand(env), newDemoCommand(env), newVersionCommand(env), newRevealHelperCommand(), newUpgradeCommand(env), newTakeOverCheckCommand(),
	)
	return root
}

func defaultSocket() string {
	if socket := os.Getenv(socketVariable); socket != "" {
		return socket
	}
	return config.Default().AdminSocket
}

// call runs fn with a connection to the daemon, within --timeout. The time is
// kept here alone: told a deadline, the daemon may find it passed before we do,
// and what gRPC then reports looks like a broken stream.
func (env *environment) call(ctx context.Context, fn func(context.Context, *admin.Client) error) error {
	if env.timeout > 0 {
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(ctx)
		defer cancel(nil)
		defer time.AfterFunc(env.timeout, func() { cancel(context.DeadlineExceeded) }).Stop()
	}
	client, err := admin.Dial(env.socket)
	if err != nil {
		return err
	}
	defer client.Close()
	err = admin.Explain(fn(ctx, client))
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, context.DeadlineExceeded) {
		return fmt.Errorf("not done within --timeout %v: %w", env.timeout, cause)
	}
	return err
}

// exactly is cobra.ExactArgs with words instead of a count.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usageError{fmt.Errorf("usage: %s", cmd.UseLine())}
		}
		return nil
	}
}
