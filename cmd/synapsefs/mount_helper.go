package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/synapsefs/synapsefs/internal/admin"
)

// The exit codes of mount(8), which its helpers share.
const (
	mountUsage       = 1 // wrong usage or permissions
	mountInterrupted = 8
	mountFailed      = 32
)

// isMountHelper reports whether mount(8) called us: as mount.synapsefs, or, for
// a mount that it found in mountinfo, as mount.fuse.synapsefs.
func isMountHelper(name string) bool {
	return strings.HasPrefix(filepath.Base(name), "mount.")
}

// runMountHelper does what mount(8) wants of /sbin/mount.TYPE and returns the
// exit code. It says nothing unless something is wrong.
func runMountHelper(ctx context.Context, env *environment, args []string) int {
	cmd := newMountHelper(env)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(env.stderr, "mount.synapsefs:", err)
	}
	return mountCode(err)
}

func mountCode(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage), errors.Is(err, admin.ErrNoAccess):
		return mountUsage
	case errors.Is(err, context.Canceled):
		return mountInterrupted
	}
	return mountFailed
}

func newMountHelper(env *environment) *cobra.Command {
	// mount(8) says nosuid and nodev, but keeps suid and dev to itself.
	var o mountOptions
	o.flags.Suid, o.flags.Dev = true, true
	var list, fstype string
	var sloppy, fake, verbose, noMtab bool
	cmd := &cobra.Command{
		Use:           "mount.synapsefs VOLUME DIR [-sfnv] [-o OPTIONS]",
		Short:         "Mount a volume for mount(8)",
		Args:          exactly("VOLUME", "DIR"),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			// mount(8) makes a path of a name that exists where it was called.
			o.volume, o.dir = filepath.Base(args[0]), args[1]
			if err := o.parse(env, list, sloppy); err != nil {
				return usageError{err}
			}
			if fake {
				return nil
			}
			v, err := mountVolume(cmd.Context(), env, &o)
			if err == nil && (verbose || v.Stale) {
				printMounted(env.stderr, &o, v)
			}
			return err
		},
	}
	cmd.SetOut(env.stdout)
	cmd.SetErr(env.stderr)
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	env.socket = defaultSocket()
	flags := cmd.Flags()
	flags.StringVarP(&list, "options", "o", "", "see synapsefs mount --help")
	flags.BoolVarP(&sloppy, "sloppy", "s", false, "pass over unknown options")
	flags.BoolVarP(&fake, "fake", "f", false, "check the arguments only")
	flags.BoolVarP(&verbose, "verbose", "v", false, "say what was mounted")
	flags.BoolVarP(&noMtab, "no-mtab", "n", false, "nothing: there is no mtab")
	flags.StringVarP(&fstype, "types", "t", "", "nothing: there is one type")
	return cmd
}
