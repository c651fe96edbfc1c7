package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/wire"
)

const mountHelp = `Mount a volume on an empty directory of this host.

The command returns when the mount serves: when this host's replica has caught
up with a live peer. A volume that exists nowhere is an error, unless --create
is given. A replica that has caught up before serves what it has if no peer
answers within the daemon's catch-up-timeout; the command then says "stale", and
so do mounts and status until it has caught up.

-o takes options as mount(8) does, separated by commas:
  ro, rw, suid, nosuid, dev, nodev, exec, noexec, symfollow, nosymfollow,
  atime, noatime, diratime, nodiratime, relatime
              as for any filesystem; the default is rw,nosuid,nodev
              (from mount(8): rw,suid,dev)
  create      as --create
  remount     change ro and the like of a mount; what is not given is the
              default. What was mounted ro stays so
  socket=PATH, timeout=TIME
              as --socket and --timeout
What other programs write into /etc/fstab (nofail, _netdev, x-systemd...) is
ignored. Called by the name mount.synapsefs, as mount -t synapsefs does, this
command takes its arguments in mount(8)'s order and exits with its codes.
` + exitHelp

type mountOptions struct {
	volume, dir string
	create      bool
	readOnly    bool
	allowOther  bool
	remount     bool
	flags       wire.MountFlags
}

func newMountCommand(env *environment) *cobra.Command {
	var o mountOptions
	var list string
	cmd := &cobra.Command{
		Use:   "mount VOLUME DIR",
		Short: "Mount a volume on a directory",
		Long:  mountHelp,
		Args:  exactly("VOLUME", "DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.volume, o.dir = args[0], args[1]
			if err := o.parse(env, list, false); err != nil {
				return usageError{err}
			}
			return runMount(cmd.Context(), env, &o)
		},
	}
	cmd.Flags().StringVarP(&list, "options", "o", "", "options as mount(8) takes them")
	cmd.Flags().BoolVar(&o.create, "create", false, "make the volume if there is none of that name")
	cmd.Flags().BoolVar(&o.readOnly, "read-only", false, "refuse changes made through this mount")
	cmd.Flags().BoolVar(&o.allowOther, "allow-other", false, "let other users in (always so as root)")
	return cmd
}

// A mountView is a mount as printed.
type mountView struct {
	Volume   string     `json:"volume"`
	Dir      string     `json:"dir"`
	ReadOnly bool       `json:"read_only"`
	Stale    bool       `json:"stale"`
	Created  bool       `json:"created,omitempty"`
	Since    *time.Time `json:"since"`

	Kept       bool   `json:"kept"`              // it outlives the daemon
	Generation uint64 `json:"generation"`        // how many daemons have served it
	Resent     uint64 `json:"resent_requests"`   // that the daemon before had read and not answered
	Repeated   uint64 `json:"repeated_requests"` // that it had done already
}

func viewMount(m *wire.MountStatus) mountView {
	return mountView{
		Volume: m.Volume, Dir: string(m.Dir), ReadOnly: m.ReadOnly,
		Stale: m.Stale, Created: m.Created, Since: timeOf(m.SinceUnixNs),
		Kept: m.Kept, Generation: m.Generation, Resent: m.Resent, Repeated: m.Repeated,
	}
}

func viewMounts(mounts []*wire.MountStatus) []mountView {
	out := make([]mountView, len(mounts))
	for n, m := range mounts {
		out[n] = viewMount(m)
	}
	return out
}

func runMount(ctx context.Context, env *environment, o *mountOptions) error {
	v, err := mountVolume(ctx, env, o)
	if err != nil {
		return err
	}
	return env.print(v, func(w io.Writer) { printMounted(w, o, v) })
}

// mountVolume mounts, or changes the mount that there is.
func mountVolume(ctx context.Context, env *environment, o *mountOptions) (v mountView, err error) {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return v, err
	}
	err = env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		var reply *wire.MountStatus
		var err error
		if o.remount {
			reply, err = c.Remount(ctx, &wire.RemountRequest{Dir: []byte(dir), ReadOnly: o.readOnly, Flags: &o.flags})
		} else {
			reply, err = c.Mount(ctx, &wire.MountVolumeRequest{
				Volume: o.volume, Dir: []byte(dir), Create: o.create,
				ReadOnly: o.readOnly, AllowOther: o.allowOther, Flags: &o.flags,
			})
		}
		if err == nil {
			v = viewMount(reply)
		}
		return err
	})
	return v, startHint(err, env.socket)
}

func printMounted(w io.Writer, o *mountOptions, v mountView) {
	verb := "mounted"
	switch {
	case o.remount:
		verb = "remounted"
	case v.Created:
		verb = "created and mounted"
	}
	fmt.Fprintf(w, "%s volume %s at %s\n", verb, v.Volume, v.Dir)
	if v.Stale {
		fmt.Fprintln(w, "stale: no ready peer answered; it shows what this host had")
	}
}

func newMountsCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "mounts",
		Short: "List the mounts of this host's daemon",
		Long:  "List the mounts of this host's daemon.\n" + exitHelp,
		Args:  exactly(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return runMounts(cmd.Context(), env) },
	}
}

func runMounts(ctx context.Context, env *environment) error {
	err := env.call(ctx, func(ctx context.Context, c *admin.Client) error {
		reply, err := c.Mounts(ctx, &wire.MountsRequest{})
		if err != nil {
			return err
		}
		v := viewMounts(reply.Mounts)
		return env.print(v, func(w io.Writer) { printMounts(w, v) })
	})
	return waitingHint(ctx, err, env.socket)
}

func printMounts(w io.Writer, mounts []mountView) {
	fmt.Fprintln(w, "VOLUME\tDIRECTORY\tREAD-ONLY\tSTALE\tKEPT\tDAEMONS\tSINCE")
	for _, m := range mounts {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", m.Volume, m.Dir, yesNo(m.ReadOnly), yesNo(m.Stale), yesNo(m.Kept), m.Generation, m.Since.Format(time.RFC3339))
	}
}
