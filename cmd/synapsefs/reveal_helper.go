package main

import (
	"github.com/spf13/cobra"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
)

// newRevealHelperCommand answers who starts the helper by hand. The daemon
// starts it with an environment that main sees before any command.
func newRevealHelperCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "reveal-helper",
		Short:              "The daemon's helper process",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE:               func(*cobra.Command, []string) error { return kernel.RunHelper() },
	}
}
