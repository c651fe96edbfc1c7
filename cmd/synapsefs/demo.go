package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/synapsefs/synapsefs/internal/playground"
)

const demoHelp = `Show it on this host: three daemons with three state directories, three real
mounts and keys of their own, one cluster over loopback.

A tree is unpacked on node1 and compared on all three; then a file is edited on
node3 and watched for on the others. Everything is cleaned up at the end, or
with --keep left running for you to play with.
` + exitHelp

// demoVolume is the volume of the demo.
const demoVolume = "demo"

// demoPoll is how often a mount is looked at for a change.
const demoPoll = 200 * time.Microsecond

// demoPatience is how long a change may take before the demo has failed.
const demoPatience = 2 * time.Minute

type demoOptions struct {
	tree string
	dir  string
	keep bool
}

func newDemoCommand(env *environment) *cobra.Command {
	var o demoOptions
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show three nodes on this host",
		Long:  demoHelp,
		Args:  exactly(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runDemo(cmd.Context(), env, o) },
	}
	cmd.Flags().StringVar(&o.tree, "tree", "", "what to unpack: a .tar.gz file or a directory (default: a small tree that comes along)")
	cmd.Flags().StringVar(&o.dir, "dir", "", "where to put everything (default: a new temporary directory)")
	cmd.Flags().BoolVar(&o.keep, "keep", false, "leave it running")
	return cmd
}

// runDemo prepares, plays and cleans up.
func runDemo(ctx context.Context, env *environment, o demoOptions) (err error) {
	if err := playground.Mountable(); err != nil {
		return err
	}
	source, err := playground.OpenSource(o.tree)
	if err != nil {
		return err
	}
	dir, err := demoDir(o.dir)
	if err != nil {
		return err
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	d := &demo{env: env, source: source, dir: dir}
	kept := false
	defer func() {
		if !kept {
			err = errors.Join(err, d.clean())
		}
	}()
	d.say("three nodes on this host, below %s", dir)
	if d.cluster, err = playground.New(dir, binary, 3); err != nil {
		return err
	}
	if err := d.play(ctx); err != nil {
		return err
	}
	if o.keep {
		kept = true
		d.explain()
	}
	return nil
}

// demoDir makes the demo's directory; one that exists must be empty.
func demoDir(dir string) (string, error) {
	if dir == "" {
		return os.MkdirTemp("", "synapsefs-demo-")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	names, err := os.ReadDir(dir)
	if err == nil && len(names) > 0 {
		err = usageError{fmt.Errorf("directory %s is not empty", dir)}
	}
	return dir, err
}

// A demo is one run.
type demo struct {
	env     *environment
	source  playground.Source
	dir     string
	cluster *playground.Cluster
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.env.stderr, "demo: "+format+"\n", args...)
}

// play is the demo itself.
func (d *demo) play(ctx context.Context) error {
	if err := d.start(ctx); err != nil {
		return err
	}
	rows, err := d.fill(ctx)
	if err != nil {
		return err
	}
	edit, err := d.edit(ctx)
	if err != nil {
		return err
	}
	if d.env.output == "json" {
		return d.env.printJSON(demoView{Dir: d.dir, Nodes: rows, Edit: edit})
	}
	return nil
}

// start starts the daemons and mounts the volume on each.
func (d *demo) start(ctx context.Context) error {
	begin := time.Now()
	if err := d.cluster.Start(ctx); err != nil {
		return err
	}
	for n, nd := range d.cluster.Nodes {
		if err := nd.MountVolume(ctx, demoVolume, n == 0); err != nil {
			return fmt.Errorf("mount on %s: %w", nd.Name, err)
		}
		d.say("%s: process %d, volume %q mounted at %s", nd.Name, nd.PID(), demoVolume, nd.Mount)
	}
	d.say("the cluster is up after %v", since(begin))
	return nil
}

// lastFile is written after the tree. What a node shows is never out of order:
// who shows this file shows everything before it.
const lastFile = "THIS-FILE-CAME-LAST"

// fill unpacks the tree on the first node and waits until all hold it.
func (d *demo) fill(ctx context.Context) ([]demoRow, error) {
	first := d.cluster.Nodes[0]
	d.say("unpacking %s on %s", d.source.Name, first.Name)
	begin := time.Now()
	if err := d.source.Unpack(ctx, first.Mount); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(first.Mount, lastFile), []byte("so all is here\n"), 0o644); err != nil {
		return nil, err
	}
	done := time.Now()
	d.say("unpacked in %v", since(begin))
	rows := make([]demoRow, len(d.cluster.Nodes))
	if err := d.arrivals(ctx, done, rows); err != nil {
		return nil, err
	}
	for n, nd := range d.cluster.Nodes {
		tree, err := playground.Sum(nd.Mount)
		if err != nil {
			return nil, err
		}
		rows[n].Node, rows[n].Files, rows[n].Bytes, rows[n].Hash = nd.Name, tree.Files, tree.Bytes, tree.Hash
	}
	return rows, d.compare(rows)
}

// arrivals notes for each other node how long after done it held everything.
func (d *demo) arrivals(ctx context.Context, done time.Time, rows []demoRow) error {
	group, ctx := errgroup.WithContext(ctx)
	for n, nd := range d.cluster.Nodes[1:] {
		group.Go(func() error {
			at, err := awaitContent(ctx, filepath.Join(nd.Mount, lastFile), "so all is here\n")
			rows[n+1].Lag = max(0, at.Sub(done)).Seconds()
			return err
		})
	}
	return group.Wait()
}

// awaitContent polls a file until it holds the text, and returns when it did.
func awaitContent(ctx context.Context, path, want string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, demoPatience)
	defer cancel()
	tick := time.NewTicker(demoPoll)
	defer tick.Stop()
	for {
		data, err := os.ReadFile(path)
		if err == nil && string(data) == want {
			return time.Now(), nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return time.Time{}, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%s did not change: %w", path, ctx.Err())
		}
	}
}

// edit changes a file on the last node and waits for it on the others.
func (d *demo) edit(ctx context.Context) (*demoEdit, error) {
	nodes := d.cluster.Nodes
	last, others := nodes[len(nodes)-1], nodes[:len(nodes)-1]
	name, err := someFile(last.Mount)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(last.Mount, name)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	edit := &demoEdit{Node: last.Name, File: name, Seconds: make([]float64, len(others))}
	line := "<!-- edited on " + last.Name + " -->\n"
	d.say("appending a line to %s on %s", name, last.Name)
	if err := appendTo(path, line); err != nil {
		return nil, err
	}
	begin := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for n, nd := range others {
		group.Go(func() error {
			at, err := awaitContent(ctx, filepath.Join(nd.Mount, name), string(data)+line)
			edit.Seconds[n] = at.Sub(begin).Seconds()
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for n, nd := range others {
		d.say("%s shows it %.1f ms after the close on %s", nd.Name, edit.Seconds[n]*1000, last.Name)
	}
	return edit, nil
}

// someFile finds an XML file to edit, else any file.
func someFile(root string) (string, error) {
	found := lastFile
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || !strings.HasSuffix(path, ".xml") {
			return err
		}
		found, err = filepath.Rel(root, path)
		return errors.Join(err, fs.SkipAll)
	})
	if errors.Is(err, fs.SkipAll) {
		err = nil
	}
	return found, err
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// clean stops what this demo started and removes its directory.
func (d *demo) clean() error {
	if d.cluster != nil {
		if err := d.cluster.Close(); err != nil { // guards, too
			return fmt.Errorf("clean up %s: %w", d.dir, err)
		}
		for _, nd := range d.cluster.Nodes {
			// Remove refuses a mountpoint and what is not empty: nothing
			// replicated is ever deleted by the clean-up.
			if err := os.Remove(nd.Mount); err != nil {
				return fmt.Errorf("clean up: %w", err)
			}
		}
	}
	d.say("cleaned up")
	return os.RemoveAll(d.dir)
}

func since(t time.Time) time.Duration { return time.Since(t).Round(time.Millisecond) }
