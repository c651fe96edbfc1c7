package playground

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/internal/keeper"
)

// Mountable says in one line what keeps this user from mounting on this host,
// or nothing.
func Mountable() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errors.New("/dev/fuse is missing: load the kernel's module (modprobe fuse), or pass the device into the container")
	case errors.Is(err, os.ErrPermission):
		return errors.New("/dev/fuse is not yours to open: run as root, or have its mode set to 0666")
	case err != nil:
		return fmt.Errorf("/dev/fuse cannot be opened: %w", err)
	}
	f.Close()
	if os.Geteuid() == 0 {
		return nil
	}
	if _, err := exec.LookPath("fusermount3"); err != nil {
		return errors.New("fusermount3 is missing: install the package fuse3, or run as root")
	}
	return nil
}

// clearMount detaches what a stopped or killed daemon left mounted.
func (nd *Node) clearMount() error {
	_, err := keeper.ReleaseAt(context.Background(), config.KeeperSocket(nd.Socket), nd.Mount)
	return errors.Join(err, kernel.Unmount(nd.Mount, kernel.UnmountOptions{Lazy: true, Guard: true}))
}
