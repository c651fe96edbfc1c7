package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/wire"
)

func newVolumesCommand(env *environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volumes",
		Short: "List, create and delete volumes",
		Long:  "List, create and delete the cluster's volumes. Where a volume is named, by any\ncommand, its id does as well.\n" + exitHelp,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newVolumesListCommand(env), newVolumesCreateCommand(env), newVolumesDeleteCommand(env))
	return cmd
}

func newVolumesListCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the cluster's volumes",
		Long:  "List the cluster's volumes, and for those held on this host the changes written\nhere and merged from others since the daemon started.\n" + exitHelp,
		Args:  exactly(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runVolumesList(cmd.Context(), env) },
	}
}

func newVolumesCreateCommand(env *environment) *cobra.Command {
	var options map[string]string
	var from string
	var snapshot bool
	cmd := &cobra.Command{
		Use:   "create VOLUME",
		Short: "Make a volume, empty or as a copy",
		Long: "Make an empty volume, with its first replica on this host. Its name is a DNS label.\n" +
			"A volume of a free name that this host holds and the catalogue does not list is\n" +
			"listed again instead, with what is in it.\n\n" +
			"With --from it is a copy of what another volume shows on this host at one moment,\n" +
			"without history and conflicts; files that are open are as they were last closed.\n" +
			"Large content is shared on disk. With --snapshot nobody can write it: to go back\n" +
			"to a snapshot, make a volume from it.\n\n" +
			"Options of a volume, the same on all hosts:\n" +
			"  history=10          how many old versions of a file are kept\n" +
			"  history-age=720h    how long they are kept after they were replaced or deleted\n" +
			"  conflict-limit=1GiB how much the losers of conflicts may take before the oldest are dismissed\n" +
			"  replicas=3          how many hosts hold it, mounted or not; by default those that mount it\n" + exitHelp,
		Args: exactly("VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			all := maps.Clone(options)
			if all == nil {
				all = map[string]string{}
			}
			if from != "" {
				all["source"] = from
			}
			if snapshot {
				all["snapshot"] = "true"
			}
			return runVolumesCreate(cmd.Context(), env, args[0], all)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "the `VOLUME` that it is to be a copy of")
	cmd.Flags().BoolVar(&snapshot, "snapshot", false, "nobody may write it (with --from)")
	cmd.Flags().StringToStringVar(&options, "option", nil, "an option of the volume, KEY=VALUE; may be repeated")
	return cmd
}

func newVolumesDeleteCommand(env *environment) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "delete VOLUME",
		Short: "Delete a volume on all hosts, for ever",
		Long: "Delete a volume, its replicas and its mounts on all hosts, for ever.\n" +
			"Refused while the volume is mounted on this host, unless --force is given.\n" +
			"Where it was mounted the directory answers with an error until umount.\n" + exitHelp,
		Args: exactly("VOLUME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVolumesDelete(cmd.Context(), env, args[0], force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also if it is mounted on this host")
	return cmd
}

// A volumeView is a volume as printed.
type volumeView struct {
	Name      string            `json:"name"`
	ID        string            `json:"id"`
	Options   map[string]string `json:"options,omitempty"`
	Created   *time.Time        `json:"created,omitempty"`
	CreatedBy string            `json:"created_by,omitempty"`
	Replica   *replicaView      `json:"replica,omitempty"` // of this host
	Mounts    uint32            `json:"mounts"`
	Placed    *placedView       `json:"placed,omitempty"` // with the option replicas
	Problem   string            `json:"problem,omitempty"`
}

// A placedView says which hosts are to hold a volume.
type placedView struct {
	Wanted uint32   `json:"wanted"`
	Ready  uint32   `json:"ready"`
	Hosts  []string `json:"hosts"`
}

type replicaView struct {
	ID         string `json:"id"`
	Ready      bool   `json:"ready"`
	Ops        uint64 `json:"ops"`         // local changes since the daemon started
	Merged     uint64 `json:"merged"`      // changes of others since then
	Unsealed   uint64 `json:"unsealed"`    // local changes that have not left yet
	OpenDrafts uint64 `json:"open_drafts"` // files being written
	Unfinished uint64 `json:"unfinished"`  // files whose writer died before the close
	Conflicts  uint64 `json:"conflicts"`   // what lost a conflict and was not dismissed
	ForcedOut  uint64 `json:"forced_out"`  // conflicts dismissed for the conflict-limit since the daemon started

	// What is kept for replicas that are away.
	JournalBytes uint64 `json:"journal_bytes"`
	JournalLimit uint64 `json:"journal_limit"`
	Unstable     uint64 `json:"unstable"`   // changes that some replica that counts lacks
	Counting     uint32 `json:"counting"`   // other replicas that count
	Out          uint32 `json:"out"`        // that must take a snapshot when they come back
	Tombstones   uint64 `json:"tombstones"` // of files removed and not yet forgotten
	Lost         uint64 `json:"lost"`       // files that have lost their place
}

func viewVolume(v *wire.VolumeStatus) volumeView {
	view := volumeView{
		Name: v.Name, ID: v.Id, Options: v.Options, Created: timeOf(v.CreatedUnixNs),
		CreatedBy: v.CreatedBy, Mounts: v.Mounts, Problem: v.Problem,
	}
	if v.ReplicasWanted > 0 {
		view.Placed = &placedView{v.ReplicasWanted, v.ReplicasReady, v.Placed}
	}
	if v.Held {
		view.Replica = &replicaView{
			ID: v.Replica, Ready: v.Ready, Ops: v.Ops, Merged: v.Merged, Unsealed: v.Unsealed,
			OpenDrafts: v.OpenDrafts, Unfinished: v.Unfinished, Conflicts: v.Conflicts, ForcedOut: v.ForcedOut,
			JournalBytes: v.JournalBytes, JournalLimit: v.JournalLimit, Unstable: v.Unstable,
			Counting: v.Counting, Out: v.Out, Tombstones: v.Tombstones, Lost: v.Lost,
		}
	}
	return view
}

func viewVolumes(volumes []*wire.VolumeStatus) []volumeView {
	out := make([]volumeView, len(volumes))
	for n, v := range volumes {
		out[n] = viewVolume(v)
	}
	return out
}

func runVolumesList(ctx context.Context, env *environment) error {
	return env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		reply, err := c.ListVolumes(ctx, &wire.ListVolumesRequest{})
		if err != nil {
			return err
		}
		v := viewVolumes(reply.Volumes)
		return env.print(v, func(w io.Writer) { printVolumes(w, v) })
	})
}

func runVolumesCreate(ctx context.Context, env *environment, name string, options map[string]string) error {
	return env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		reply, err := c.CreateVolume(ctx, &wire.CreateVolumeRequest{Name: name, Options: options})
		if err != nil {
			return err
		}
		return env.print(viewVolume(reply), func(w io.Writer) {
			fmt.Fprintf(w, "created volume %s (%s)\n", reply.Name, reply.Id)
		})
	})
}

func runVolumesDelete(ctx context.Context, env *environment, name string, force bool) error {
	return env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		reply, err := c.DeleteVolume(ctx, &wire.DeleteVolumeRequest{Name: name, Force: force})
		if err != nil {
			return err
		}
		return env.print(viewVolume(reply), func(w io.Writer) {
			fmt.Fprintf(w, "deleted volume %s (%s)\n", reply.Name, reply.Id)
		})
	})
}

func printVolumes(w io.Writer, volumes []volumeView) {
	fmt.Fprintln(w, "VOLUME\tSTATE\tWRITTEN\tMERGED\tCONFLICTS\tJOURNAL\tMOUNTS\tNOTE")
	for _, v := range volumes {
		state, written, merged, conflicts, journal := "not here", "-", "-", "-", "-"
		if r := v.Replica; r != nil {
			state = "catching up"
			if r.Ready {
				state = "ready"
			}
			written, merged, conflicts = fmt.Sprint(r.Ops), fmt.Sprint(r.Merged), fmt.Sprint(r.Conflicts)
			journal = fmt.Sprintf("%.1f MiB", float64(r.JournalBytes)/(1<<20))
			if r.Lost > 0 {
				v.Problem = strings.TrimPrefix(fmt.Sprintf("%s; %d files have lost their place", v.Problem, r.Lost), "; ")
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", v.Name, state, written, merged, conflicts, journal, v.Mounts, dash(v.Problem))
	}
}
