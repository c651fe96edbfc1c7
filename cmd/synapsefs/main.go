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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends it at once
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
