package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/wire"
)

const conflictsHelp = `List what lost conflicts, in a volume, at and below a path, or everywhere.

When two hosts change one thing without knowing of each other, one change shows
and the other loses. What lost is never put into the tree under another name; it
is kept, and listed here, until it is dismissed or restored.

  content  a version of a file; another version shows
  hidden   a file at a name where another file, or a directory, shows
  place    a name that a file or directory was moved to; it stands at another

A path has a slash or a dot in it, as ./file; else it is a volume's name.

Beyond the volume's conflict-limit (default 1GiB) the oldest are dismissed.
` + exitHelp

func newConflictsCommand(env *environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "conflicts [VOLUME|PATH]",
		Short: "List, show, restore and dismiss what lost conflicts",
		Long:  conflictsHelp,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("usage: %s", cmd.UseLine())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return runConflicts(cmd.Context(), env, strings.Join(args, ""))
		},
	}
	cmd.AddCommand(newConflictsShowCommand(env), newConflictsDiffCommand(env),
		newConflictsRestoreCommand(env), newConflictsDismissCommand(env))
	return cmd
}

func newConflictsShowCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Print the content that lost",
		Long:  "Print the bytes of the content that lost.\n" + exitHelp,
		Args:  exactly("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRead(cmd.Context(), env, env.stdout, &wire.ReadVersionRequest{Conflict: args[0]})
		},
	}
}

func newConflictsDiffCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "diff ID",
		Short: "Compare the content that lost with what shows",
		Long:  "Compare the content that lost (-) with the content that shows (+), by diff -u.\n" + exitHelp,
		Args:  exactly("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runConflictsDiff(cmd.Context(), env, args[0])
		},
	}
}

func newConflictsRestoreCommand(env *environment) *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "restore ID",
		Short: "Bring back what lost, and take it off the list",
		Long: "Bring back what lost, as a change like any other, and take it off the list:\n" +
			"content becomes the newest version of its file, a hidden file replaces the one\n" +
			"that shows, a place is moved to. What shows until then stays in the history.\n" +
			"With --to it is brought to another path, where nothing may stand.\n" + exitHelp,
		Args: exactly("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRestore(cmd.Context(), env, &wire.RestoreRequest{Conflict: args[0]}, to)
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "another path, in a mount of the volume")
	return cmd
}

func newConflictsDismissCommand(env *environment) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "dismiss ID... | --all VOLUME|PATH",
		Short: "Take conflicts off the list, on all hosts",
		Long: "Take conflicts off the list, on all hosts. What shows stays as it is; what lost\n" +
			"stays in the history as long as that goes back.\n" + exitHelp,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || all && len(args) > 1 {
				return usageError{fmt.Errorf("usage: %s", cmd.UseLine())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDismiss(cmd.Context(), env, args, all)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all of a volume, or at and below a path")
	return cmd
}

// An originView is who made a change, and when by that host's clock.
type originView struct {
	Version string     `json:"version"`
	Node    string     `json:"node,omitempty"`
	Replica string     `json:"replica"`
	Time    *time.Time `json:"time"`
}

func viewOrigin(o *wire.Origin) *originView {
	if o == nil {
		return nil
	}
	return &originView{Version: o.Version, Node: o.Node, Replica: o.Replica, Time: timeOf(o.UnixNs)}
}

// when is the origin in a listing.
func (o *originView) when() string {
	if o == nil {
		return "-"
	}
	return o.Time.Format(time.RFC3339)
}

func (o *originView) who() string {
	if o == nil {
		return "-"
	}
	if o.Node == "" {
		return "replica " + o.Replica
	}
	return o.Node
}

// A conflictView is a conflict as printed.
type conflictView struct {
	ID        string      `json:"id"`
	Volume    string      `json:"volume"`
	Kind      string      `json:"kind"` // content, hidden or place
	Path      string      `json:"path"` // within the volume
	What      string      `json:"what"`
	Size      int64       `json:"size"`
	Lost      *originView `json:"lost"`
	Against   *originView `json:"against"`
	ShownPath string      `json:"shown_path,omitempty"`
}

func runConflicts(ctx context.Context, env *environment, arg string) error {
	target, err := targetOf(arg)
	if err != nil {
		return err
	}
	return env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		reply, err := c.Conflicts(ctx, &wire.ConflictsRequest{Target: target})
		if err != nil {
			return err
		}
		views := make([]conflictView, len(reply.Conflicts))
		for n, r := range reply.Conflicts {
			views[n] = conflictView{
				ID: r.Id, Volume: r.Volume, Kind: r.Kind, Path: string(r.Path), What: r.What, Size: r.Size,
				Lost: viewOrigin(r.Lost), Against: viewOrigin(r.Against), ShownPath: string(r.ShownPath),
			}
		}
		return env.print(views, func(w io.Writer) { printConflicts(w, views) })
	})
}

func printConflicts(w io.Writer, views []conflictView) {
	fmt.Fprintln(w, "ID\tKIND\tVOLUME\tPATH\tSIZE\tLOST: WRITTEN ON\tAT\tSHOWN: WRITTEN ON\tAT")
	for _, v := range views {
		path := printable(v.Path)
		if v.Kind == "place" {
			path = fmt.Sprintf("%s (stands at %s)", path, printable(v.ShownPath))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", v.ID, v.Kind, v.Volume, path, v.Size,
			v.Lost.who(), v.Lost.when(), v.Against.who(), v.Against.when())
	}
}

// printable keeps a name with control characters from spoiling the terminal.
func printable(name string) string {
	for _, r := range name {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return fmt.Sprintf("%q", name)
		}
	}
	return name
}

// targetOf makes a path absolute; a volume's name, a DNS label, stays.
func targetOf(arg string) ([]byte, error) {
	if arg == "" || !strings.ContainsAny(arg, "./") {
		return []byte(arg), nil
	}
	abs, err := filepath.Abs(arg)
	return []byte(abs), err
}

// pathOf makes an argument that is a path absolute.
func pathOf(arg string) ([]byte, error) {
	if arg == "" {
		return nil, nil
	}
	abs, err := filepath.Abs(arg)
	return []byte(abs), err
}

// runRead prints the bytes of a version.
func runRead(ctx context.Context, env *environment, to io.Writer, r *wire.ReadVersionRequest) error {
	return env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		stream, err := c.ReadVersion(ctx, r)
		if err != nil {
			return err
		}
		for {
			reply, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if _, err := to.Write(reply.Data); err != nil {
				return err
			}
		}
	})
}

func runConflictsDiff(ctx context.Context, env *environment, id string) error {
	dir, err := os.MkdirTemp("", "synapsefs-diff-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, side := range []string{"lost", "shown"} {
		f, err := os.Create(filepath.Join(dir, side))
		if err != nil {
			return err
		}
		err = runRead(ctx, env, f, &wire.ReadVersionRequest{Conflict: id, Against: side == "shown"})
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	diff := exec.CommandContext(ctx, "diff", "-u", "--label", "lost", "--label", "shown", "lost", "shown")
	diff.Dir, diff.Stdout, diff.Stderr = dir, env.stdout, env.stderr
	var exit *exec.ExitError
	if err := diff.Run(); !errors.As(err, &exit) || exit.ExitCode() != 1 { // 1: they differ
		return err
	}
	return nil
}

func runRestore(ctx context.Context, env *environment, r *wire.RestoreRequest, to string) (err error) {
	if r.To, err = pathOf(to); err != nil {
		return err
	}
	return env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		reply, err := c.Restore(ctx, r)
		if err != nil {
			return err
		}
		view := struct {
			Volume string `json:"volume"`
			Path   string `json:"path"`
			Made   uint64 `json:"made"`
		}{reply.Volume, string(reply.Path), reply.Made}
		return env.print(view, func(w io.Writer) {
			fmt.Fprintf(w, "restored %s in volume %s", printable(view.Path), view.Volume)
			if view.Made != 1 {
				fmt.Fprintf(w, ": %d files and directories", view.Made)
			}
			fmt.Fprintln(w)
		})
	})
}

func runDismiss(ctx context.Context, env *environment, args []string, all bool) error {
	r := &wire.DismissConflictsRequest{Ids: args}
	if all {
		target, err := targetOf(args[0])
		if err != nil {
			return err
		}
		r = &wire.DismissConflictsRequest{Target: target}
	}
	return env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		reply, err := c.DismissConflicts(ctx, r)
		if err != nil {
			return err
		}
		view := struct {
			Dismissed uint64 `json:"dismissed"`
		}{reply.Dismissed}
		return env.print(view, func(w io.Writer) { fmt.Fprintf(w, "dismissed %d\n", view.Dismissed) })
	})
}
