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

const historyHelp = `List the versions of a file, the newest first: what shows now (*), what it
replaced, and what was deleted at that path. With --deleted, list what was
deleted in a directory and stands there no more.

A volume keeps the last 10 versions of a file, at most 30 days after they were
replaced or deleted (the volume's options history and history-age).
` + exitHelp

func newHistoryCommand(env *environment) *cobra.Command {
	var deleted bool
	cmd := &cobra.Command{
		Use:   "history PATH",
		Short: "List, show and restore old versions and deleted files",
		Long:  historyHelp,
		Args:  exactly("PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runHistory(cmd.Context(), env, args[0], deleted)
		},
	}
	cmd.Flags().BoolVar(&deleted, "deleted", false, "what was deleted in a directory")
	cmd.AddCommand(newHistoryShowCommand(env), newHistoryRestoreCommand(env))
	return cmd
}

func newHistoryShowCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "show PATH VERSION",
		Short: "Print an old version",
		Long:  "Print the bytes of a version that history lists.\n" + exitHelp,
		Args:  exactly("PATH", "VERSION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := pathOf(args[0])
			if err != nil {
				return err
			}
			return runRead(cmd.Context(), env, env.stdout, &wire.ReadVersionRequest{Target: target, Version: args[1]})
		},
	}
}

func newHistoryRestoreCommand(env *environment) *cobra.Command {
	var to string
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "restore PATH [VERSION]",
		Short: "Bring back an old version, or what was deleted",
		Long: "Bring back a version that history lists, as the newest version of the file that\n" +
			"stands at the path, or as a new file there with the old one's owner, mode and\n" +
			"extended attributes. Directories on the way that are gone are made again.\n\n" +
			"Without VERSION: what was deleted last at the path. A directory comes back with\n" +
			"what was deleted in it up to --since before it was deleted itself; names that\n" +
			"stand in it by now are left as they are.\n" + exitHelp,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usageError{fmt.Errorf("usage: %s", cmd.UseLine())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := pathOf(args[0])
			if err != nil {
				return err
			}
			r := &wire.RestoreRequest{Target: target, SinceNs: int64(since)}
			if len(args) == 2 {
				r.Version = args[1]
			}
			return runRestore(cmd.Context(), env, r, to)
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "another path, in a mount of the volume")
	cmd.Flags().DurationVar(&since, "since", time.Hour, "of a directory: also what was deleted in it so long before")
	return cmd
}

// A pastView is a version as printed.
type pastView struct {
	Version string      `json:"version"`
	Path    string      `json:"path"` // within the volume
	What    string      `json:"what"`
	Size    int64       `json:"size"`
	Current bool        `json:"current"`
	Deleted bool        `json:"deleted"`
	Written *originView `json:"written"`
	Until   *originView `json:"until,omitempty"` // replaced or deleted then
}

func runHistory(ctx context.Context, env *environment, path string, deleted bool) error {
	target, err := pathOf(path)
	if err != nil {
		return err
	}
	return env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		reply, err := c.History(ctx, &wire.HistoryRequest{Target: target, Deleted: deleted})
		if err != nil {
			return err
		}
		views := make([]pastView, len(reply.Versions))
		for n, p := range reply.Versions {
			views[n] = pastView{
				Path: string(p.Path), What: p.What, Size: p.Size, Current: p.Current, Deleted: p.Deleted,
				Written: viewOrigin(p.Written), Until: viewOrigin(p.Until),
			}
			if views[n].Written != nil {
				views[n].Version = views[n].Written.Version
			}
		}
		return env.print(views, func(w io.Writer) { printHistory(w, views, deleted) })
	})
}

func printHistory(w io.Writer, views []pastView, deleted bool) {
	if deleted {
		fmt.Fprintln(w, "PATH\tWHAT\tSIZE\tDELETED ON\tAT")
		for _, v := range views {
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", printable(v.Path), v.What, v.Size, v.Until.who(), v.Until.when())
		}
		return
	}
	fmt.Fprintln(w, "VERSION\t\tWHAT\tSIZE\tWRITTEN ON\tAT\tUNTIL")
	for _, v := range views {
		mark := ""
		if v.Current {
			mark = "*"
		}
		until := v.Until.when()
		if v.Deleted {
			until += " deleted"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", v.Version, mark, v.What, v.Size, v.Written.who(), v.Written.when(), until)
	}
}
