// Command synapsefs keeps one directory tree the same on many hosts.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/keeper"
)

func main() {
	// Before anything else: neither may do what a command does.
	if len(os.Args) > 1 && os.Args[1] == keeper.Command {
		if err := keeper.Main(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "synapsefs:", err)
			os.Exit(exitError)
		}
		return
	}
	if kernel.IsHelper() {
		if err := kernel.RunHelper(); err != nil {
			fmt.Fprintln(os.Stderr, "synapsefs:", err)
			os.Exit(exitError)
		}
		return
	}
	ctx, stop := notify()
	env := newEnv(os.Stdout, os.Stderr)
	var code int
	if isMountHelper(os.Args[0]) {
		code = runMountHelper(ctx, env, os.Args[1:])
	} else {
		code = run(ctx, env, os.Args[1:])
	}
	stop()
	os.Exit(code)
}

// stopSignal is the cause of the end of a context.
type stopSignal struct{ os.Signal }

func (s stopSignal) Error() string { return "got " + s.String() }

// notify returns a context that SIGINT or SIGTERM ends. A second one ends the
// program at once.
func notify() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	came := make(chan os.Signal, 1)
	signal.Notify(came, os.Interrupt, syscall.SIGTERM)
	stop := func() { signal.Stop(came); cancel(nil) }
	go func() {
		select {
		case s := <-came:
			cancel(stopSignal{s})
		case <-ctx.Done():
		}
		stop()
	}()
	return ctx, stop
}
