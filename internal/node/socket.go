package node

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/synapsefs/synapsefs/internal/admin"
)

// listenAdmin makes the admin socket, for the daemon's user only. One that a
// dead daemon left is replaced; one at which somebody listens is not.
func listenAdmin(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	l, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) {
		err = ErrRunning // started in this very moment
	}
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	// Between Listen and Chmod the directory's mode protects: it is ours, or
	// as closed as whoever made it wanted.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("admin socket: %w", err), l.Close())
	}
	return l, nil
}

func removeStale(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if fi.Mode().Type() != os.ModeSocket {
		return errors.New("there is something that is no socket; move it away")
	}
	switch err := admin.Probe(path); {
	case err == nil:
		return fmt.Errorf("%w: give this one a socket of its own (--admin-socket)", ErrRunning)
	case !errors.Is(err, admin.ErrNotRunning):
		return err
	}
	return os.Remove(path)
}
