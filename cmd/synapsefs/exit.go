package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/internal/keeper"
	"github.com/synapsefs/synapsefs/internal/node"
)

// The exit codes. They are promised to scripts: codes are added, never changed.
const (
	exitOK         = 0
	exitError      = 1
	exitUsage      = 2
	exitNotRunning = 3
	exitNotFound   = 4
	exitTimeout    = 5
	exitRefused    = 6
	exitInterrupt  = 130
)

const exitHelp = `
Exit status:
  0    done
  1    an error that is none of the following
  2    wrong usage, or a name that cannot be one
  3    the daemon is not running, or its socket is not yours
  4    no such volume, mount, directory, conflict or version
  5    not done within --timeout
  6    refused in this state: exists already, in use, not empty, not ready
  130  interrupted`

// usageError marks what the person at the keyboard got wrong.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// codeExits maps what the daemon answers to exit codes.
var codeExits = map[codes.Code]int{
	codes.InvalidArgument:    exitUsage,
	codes.NotFound:           exitNotFound,
	codes.DeadlineExceeded:   exitTimeout,
	codes.AlreadyExists:      exitRefused,
	codes.FailedPrecondition: exitRefused,
}

// exitCode maps an error to an exit code: the only place that does.
func exitCode(err error) int {
	var usage usageError
	var answer *admin.Error
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command "): // cobra has no type for it
		return exitUsage
	case errors.Is(err, admin.ErrNotRunning), errors.Is(err, admin.ErrNoAccess):
		return exitNotRunning
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	case errors.Is(err, context.Canceled):
		return exitInterrupt
	case errors.Is(err, kernel.ErrNotMounted):
		return exitNotFound
	case errors.Is(err, node.ErrRunning), errors.Is(err, kernel.ErrServed):
		return exitRefused
	case errors.As(err, &answer):
		if code, ok := codeExits[answer.Code]; ok {
			return code
		}
	}
	return exitError
}

// waitingHint adds to an error that no daemon runs which mounts wait for one.
func waitingHint(ctx context.Context, err error, socket string) error {
	if !errors.Is(err, admin.ErrNotRunning) {
		return err
	}
	c, dialErr := keeper.Dial(ctx, config.KeeperSocket(socket))
	if dialErr != nil {
		return err // nobody keeps any
	}
	defer c.Close()
	mounts, listErr := c.List(ctx)
	if listErr != nil || len(mounts) == 0 {
		return err
	}
	var dirs []string
	for _, m := range mounts {
		dirs = append(dirs, m.Dir)
	}
	return fmt.Errorf("%w\nprograms wait for it at: %s\nstart it again, or take a mount away with: synapsefs umount DIR",
		err, strings.Join(dirs, ", "))
}

// startHint adds to an error how to get a daemon.
func startHint(err error, socket string) error {
	if !errors.Is(err, admin.ErrNotRunning) {
		return err
	}
	return fmt.Errorf("%w\nstart one with: synapsefs daemon --config /etc/synapsefs/synapsefs.yaml\n"+
		"or name the socket of the one that runs with --socket or $%s (tried: %s)", err, socketVariable, socket)
}
