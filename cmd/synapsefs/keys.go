package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/internal/keys"
)

const keysHelp = `Make the keys of a cluster.

  synapsefs keys init --dir ca --cluster prod    once, on a safe host
  synapsefs keys issue node1 --dir ca --out keys-node1

Then copy the directory keys-node1 to node1, where the option "keys" names it.
It holds the CA's certificate, the node's certificate and key, and the key of
the membership gossip. The CA's own key stays in the directory ca.
` + exitHelp

func newKeysCommand(env *environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make the keys of a cluster",
		Long:  keysHelp,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKeysInitCommand(env), newKeysIssueCommand(env))
	return cmd
}

func newKeysInitCommand(env *environment) *cobra.Command {
	var dir, cluster string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a cluster's certificate authority and gossip key",
		Long:  keysHelp,
		Args:  exactly(),
		RunE:  func(*cobra.Command, []string) error { return runKeysInit(env, dir, cluster) },
	}
	cmd.Flags().StringVar(&dir, "dir", "ca", "where to put them")
	cmd.Flags().StringVar(&cluster, "cluster", config.Default().Cluster, "name of the cluster")
	return cmd
}

func runKeysInit(env *environment, dir, cluster string) error {
	if err := config.CheckLabel(cluster); err != nil {
		return usageError{fmt.Errorf("cluster: %w", err)}
	}
	if err := keys.InitCA(dir, cluster); err != nil {
		return err
	}
	view := struct {
		Dir     string `json:"dir"`
		Cluster string `json:"cluster"`
	}{dir, cluster}
	return env.print(view, func(w io.Writer) {
		fmt.Fprintf(w, "made the keys of cluster %s in %s; keep that directory safe\n", cluster, dir)
	})
}

func newKeysIssueCommand(env *environment) *cobra.Command {
	var dir, out string
	cmd := &cobra.Command{
		Use:   "issue NODE",
		Short: "Make the keys of one node",
		Long:  keysHelp,
		Args:  exactly("NODE"),
		RunE: func(_ *cobra.Command, args []string) error {
			if out == "" {
				out = "keys-" + args[0]
			}
			return runKeysIssue(env, dir, out, args[0])
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "ca", "where keys init put the authority")
	cmd.Flags().StringVar(&out, "out", "", "where to put the node's keys (default: keys-NODE)")
	return cmd
}

func runKeysIssue(env *environment, dir, out, node string) error {
	if err := config.CheckNode(node); err != nil {
		return usageError{fmt.Errorf("node: %w", err)}
	}
	if err := keys.Issue(dir, out, node); err != nil {
		return err
	}
	view := struct {
		Node string `json:"node"`
		Dir  string `json:"dir"`
	}{node, out}
	return env.print(view, func(w io.Writer) {
		fmt.Fprintf(w, "made the keys of %s in %s; copy that directory to the node\n", node, out)
	})
}
