package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
)

const importHelp = `Copy what is in SOURCE into DIR, a directory in a mount of a volume, and compare.

SOURCE is a directory of this host (an NFS mount, say), HOST:DIR, or
rsync://HOST/MODULE. rsync(1) copies and compares: it must be installed, and
what follows -- is given to it, as in
  synapsefs import rsync://old/configs /srv/configs -- --exclude=*.tmp
Kept are owners (by number), modes, times, ACLs, extended attributes, links of
both kinds, devices and holes. Each file appears whole, by a rename.

Run it again whenever you like: what is the same is not written, so nodes
hear nothing of it, and what was interrupted goes on. --delete removes what
SOURCE does not have. --verify only compares.

In the end every byte and attribute is compared. Differences are copied once
more, as SOURCE may have changed meanwhile; if some are left after --passes,
they are listed, and the exit status is 1.
` + exitHelp

type importOptions struct {
	source, dir string
	rsync       []string // its further options
	remove      bool
	verify      bool
	passes      int
}

func newImportCommand(env *environment) *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use:   "import SOURCE DIR [-- RSYNC-OPTION...]",
		Short: "Copy a directory or an rsync module into a volume, and verify",
		Long:  importHelp,
		Args: func(cmd *cobra.Command, args []string) error {
			own := len(args)
			if at := cmd.ArgsLenAtDash(); at >= 0 {
				own = at
			}
			if own != 2 {
				return usageError{fmt.Errorf("usage: %s", cmd.UseLine())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.source, o.dir, o.rsync = args[0], args[1], args[2:]
			if o.passes < 1 {
				return usageError{fmt.Errorf("--passes %d: at least 1", o.passes)}
			}
			return o.run(cmd.Context(), env)
		},
	}
	cmd.Flags().BoolVar(&o.remove, "delete", false, "remove from DIR what SOURCE does not have")
	cmd.Flags().BoolVar(&o.verify, "verify", false, "compare, and change nothing")
	cmd.Flags().IntVar(&o.passes, "passes", 3, "copy and compare at most so often")
	return cmd
}

// importDir holds what is not whole yet, in DIR, so that it gets its place by a
// rename. It is all that an import leaves when it is interrupted, and goes with the
// next that ends.
const importDir = ".synapsefs-import"

// An importView is an import as printed.
type importView struct {
	Source      string   `json:"source"`
	Dir         string   `json:"dir"`
	Passes      int      `json:"passes"`
	Differences []string `json:"differences"` // rsync's itemized changes
}

func (o *importOptions) run(ctx context.Context, env *environment) error {
	if env.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, env.timeout)
		defer cancel()
	}
	if err := o.check(); err != nil {
		return err
	}
	v := importView{Source: o.source, Dir: o.dir, Differences: []string{}}
	var err error
	var how []string // differences are told by: sizes and times at first
	for {
		v.Passes++
		if !o.verify {
			if err := o.copy(ctx, env.stderr, how...); err != nil {
				return err
			}
		}
		how = []string{"--checksum"}
		if v.Differences, err = o.compare(ctx, how...); err != nil {
			return err
		}
		if len(v.Differences) == 0 || v.Passes >= o.passes || o.verify {
			break
		}
		fmt.Fprintf(env.stderr, "%d differences: %s may have changed; once more\n", len(v.Differences), o.source)
	}
	if err := env.print(v, func(w io.Writer) { printImported(w, o, &v) }); err != nil {
		return err
	}
	if n := len(v.Differences); n > 0 {
		return fmt.Errorf("import %s: %d differences are left; does somebody write to %s or %s? Run it again when that has stopped", o.source, n, o.source, o.dir)
	}
	return nil
}

// check says what is wrong before anything is done.
func (o *importOptions) check() error {
	if _, err := exec.LookPath("rsync"); err != nil {
		return fmt.Errorf("import needs rsync: install it (apt-get install rsync): %w", err)
	}
	if !strings.Contains(o.source, ":") {
		if st, err := os.Stat(o.source); err != nil {
			return usageError{fmt.Errorf("source: %w", err)}
		} else if !st.IsDir() {
			return usageError{fmt.Errorf("source %s is no directory", o.source)}
		}
	}
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return err
	}
	o.dir = dir
	ours, err := kernel.InMount(dir)
	if err != nil {
		return usageError{fmt.Errorf("target: %w", err)}
	}
	if !ours {
		return usageError{fmt.Errorf("target %s is in no mount of a volume: mount one first (synapsefs mount VOLUME DIR)", dir)}
	}
	return nil
}

// options are rsync's for copying and comparing.
func (o *importOptions) options(more ...string) []string {
	half := filepath.Join(o.dir, importDir)
	args := append([]string{"-aHAXS", "--numeric-ids", "--partial-dir=" + half, "--exclude=/" + importDir}, more...)
	if o.remove {
		args = append(args, "--delete-delay")
	}
	return append(append(args, o.rsync...), strings.TrimSuffix(o.source, "/")+"/", o.dir+"/")
}

// rsyncVanished is rsync's exit code if files of the source were there no more
// when their turn came.
const rsyncVanished = 24

// copy makes the target what the source is; how is what tells rsync where they differ.
func (o *importOptions) copy(ctx context.Context, progress io.Writer, how ...string) error {
	some, err := o.compare(ctx, how...)
	if err != nil {
		return err
	}
	half := filepath.Join(o.dir, importDir)
	if _, err := os.Lstat(half); len(some) == 0 && errors.Is(err, fs.ErrNotExist) {
		return nil // nothing is touched
	}
	if err := os.MkdirAll(half, 0o700); err != nil {
		return err
	}
	more := append([]string{"--temp-dir=" + half}, how...)
	if f, ok := progress.(*os.File); ok {
		if st, err := f.Stat(); err == nil && st.Mode()&os.ModeCharDevice != 0 { // a terminal
			more = append(more, "--info=progress2")
		}
	}
	err = o.rsyncs(ctx, progress, o.options(more...))
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == rsyncVanished) {
		return err // what there is of a large file is for the next time
	}
	if err := os.RemoveAll(half); err != nil {
		return err
	}
	// That was a change of DIR, whose times are the source's, too.
	return o.rsyncs(ctx, progress, o.options("--dirs", "--no-recursive", "--exclude=/*"))
}

// compare lists what rsync would do, by sizes and times if it is not given more.
func (o *importOptions) compare(ctx context.Context, more ...string) (differences []string, err error) {
	var out bytes.Buffer
	err = o.rsyncs(ctx, &out, o.options(append(more, "--dry-run", "--itemize-changes")...))
	for line := range strings.Lines(out.String()) {
		differences = append(differences, strings.TrimSuffix(line, "\n"))
	}
	return differences, err
}

// rsyncs runs rsync. It is told to stop, rather than killed, so that what it has
// of a large file is kept for the next time.
func (o *importOptions) rsyncs(ctx context.Context, stdout io.Writer, args []string) error {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "rsync", args...)
	cmd.Stdout, cmd.Stderr = stdout, &stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("import %s: run it again to go on: %w", o.source, ctx.Err())
	}
	return fmt.Errorf("import %s: rsync: %w: %s", o.source, err, strings.TrimSpace(stderr.String()))
}

func printImported(w io.Writer, o *importOptions, v *importView) {
	for _, d := range v.Differences {
		fmt.Fprintln(w, d)
	}
	switch {
	case len(v.Differences) > 0:
	case o.verify:
		fmt.Fprintf(w, "%s is as %s\n", v.Dir, v.Source)
	default:
		fmt.Fprintf(w, "imported %s into %s; compared, and the same\n", v.Source, v.Dir)
	}
}
