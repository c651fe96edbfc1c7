package main

import (
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/synapsefs/synapsefs/internal/version"
)

func newVersionCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print which build this is",
		Args:  exactly(),
		RunE:  func(*cobra.Command, []string) error { return runVersion(env) },
	}
}

func runVersion(env *environment) error {
	view := struct {
		Version  string `json:"version"`
		Go       string `json:"go"`
		Platform string `json:"platform"`
	}{version.String(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
	return env.print(view, func(w io.Writer) {
		fmt.Fprintf(w, "synapsefs %s (%s, %s)\n", view.Version, view.Go, view.Platform)
	})
}
