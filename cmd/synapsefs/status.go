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

func newStatusCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the daemon, its peers, volumes and mounts",
		Long:  "Show the daemon of this host, its peers, volumes and mounts.\n" + exitHelp,
		Args:  exactly(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runStatus(cmd.Context(), env) },
	}
}

// A statusView is the daemon's status as printed.
type statusView struct {
	Node           string       `json:"node"`
	Cluster        string       `json:"cluster"`
	Version        string       `json:"version"`
	PID            int64        `json:"pid"`
	Started        *time.Time   `json:"started"`
	StateDir       string       `json:"state_dir"`
	CatalogueReady bool         `json:"catalogue_ready"`
	Peers          []peerView   `json:"peers"`
	Volumes        []volumeView `json:"volumes"`
	Mounts         []mountView  `json:"mounts"`
	Leaving        bool         `json:"leaving"` // it was drained
	Problems       []string     `json:"problems"`
}

func runStatus(ctx context.Context, env *environment) error {
	err := env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		s, err := c.Status(ctx, &wire.NodeStatusRequest{})
		if err != nil {
			return err
		}
		v := statusView{
			Node: s.Node, Cluster: s.Cluster, Version: s.Version, PID: s.Pid,
			Started: timeOf(s.StartedUnixNs), StateDir: s.StateDir, CatalogueReady: s.CatalogueReady,
			Peers: viewPeers(s.Peers), Volumes: viewVolumes(s.Volumes), Mounts: viewMounts(s.Mounts),
			Leaving:  s.Leaving,
			Problems: append([]string{}, s.Problems...),
		}
		return env.print(v, func(w io.Writer) { printStatus(w, v) })
	})
	return waitingHint(ctx, err, env.socket)
}

func printStatus(w io.Writer, v statusView) {
	fmt.Fprintf(w, "node\t%s of cluster %s\n", v.Node, v.Cluster)
	fmt.Fprintf(w, "daemon\t%s, process %d, since %s\n", v.Version, v.PID, v.Started.Format(time.RFC3339))
	fmt.Fprintf(w, "state\t%s\n", v.StateDir)
	if !v.CatalogueReady {
		fmt.Fprintln(w, "catalogue\tnot ready: no member that knows the volumes was met yet")
	}
	if v.Leaving {
		fmt.Fprintln(w, "placement\tleaving: volumes are placed on other hosts")
	}
	for _, p := range v.Problems {
		fmt.Fprintf(w, "problem\t%s\n", p)
	}
	sections := []struct {
		title string
		n     int
		print func()
	}{
		{"peers", len(v.Peers), func() { printPeers(w, v.Peers) }},
		{"volumes", len(v.Volumes), func() { printVolumes(w, v.Volumes) }},
		{"mounts", len(v.Mounts), func() { printMounts(w, v.Mounts) }},
	}
	for _, s := range sections {
		if s.n == 0 {
			fmt.Fprintf(w, "%s\tnone\n", s.title)
			continue
		}
		fmt.Fprintf(w, "\n%s\n", s.title)
		s.print()
	}
}
