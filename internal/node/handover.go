package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/fusefs"
	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/keeper"
	"github.com/synapsefs/synapsefs/store"
)

const (
	// handOverTime bounds how long the requests in progress may take when the
	// mounts are handed over. What is not through then is done again.
	handOverTime = 2 * time.Second
	// settleTime bounds how long a hand-over waits for changes to be shown, and
	// for the store to come to rest, before programs have to wait.
	settleTime = time.Second
	// standbyInterval is between two looks at a daemon that has closed its state
	// directory and not ended yet.
	standbyInterval = 10 * time.Millisecond
)

// steps tells how long each step of a hand-over takes: programs wait meanwhile.
type steps struct {
	log   *slog.Logger
	since time.Time
}

func beginSteps(log *slog.Logger) *steps { return &steps{log, time.Now()} }

// done says that a step was, and that the next begins.
func (s *steps) done(step string) {
	now := time.Now()
	s.log.Debug("hand-over", "step", step, "took", now.Sub(s.since))
	s.since = now
}

// HandOver ends this daemon and leaves its mounts to the next: programs that use
// them wait for it. Where nobody keeps the mounts it is Close. After an error
// this process must end at once: the mounts may be served still.
func (n *Node) HandOver() error {
	if !n.kept() {
		return n.Close()
	}
	if !n.end() {
		return nil
	}
	if _, err := n.keeper.Epochs(); err != nil { // it has just died, and the mounts would end with us
		n.renewKeeper(context.Background())
	}
	// First, so that nothing is merged any more: programs go on meanwhile.
	if err := n.leaveCluster(); err != nil {
		n.log.Warn("leave the cluster", "err", err)
	}
	begin := time.Now()
	steps := beginSteps(n.log)
	n.settle()
	steps.done("settle")
	mounts, err := n.leaveMounts()
	if err != nil {
		return err
	}
	steps.done("leave the mounts")
	err = n.shut()
	steps.done("close the store")
	n.log.Info("handed over", "mounts", mounts, "took", time.Since(begin))
	return err
}

// settle does before programs have to wait what need not be done while they do:
// what is merged is shown, and the store made quick to close. The next daemon
// shows the rest.
func (n *Node) settle() {
	show, cancel := context.WithTimeout(context.Background(), settleTime)
	defer cancel()
	for _, m := range n.served() {
		m.fs.WaitIdle(show) //nolint:errcheck // as said above
	}
	calm, cancel := context.WithTimeout(context.Background(), settleTime)
	defer cancel()
	if err := n.db.PrepareClose(calm); err != nil {
		n.log.Warn("sync the store", "err", err)
	}
}

// leaveMounts stops serving the mounts, for the next daemon to take over. After
// an error what they need must stay open until this process ends.
func (n *Node) leaveMounts() (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), handOverTime)
	defer cancel()
	mounts := n.served()
	err := each(mounts, func(_ int, m **mount) error { return (*m).fs.HandOver(ctx) })
	if err != nil {
		return 0, fmt.Errorf("hand over the mounts: %w", err)
	}
	for _, m := range mounts {
		m.fs.Left()
	}
	return len(mounts), nil
}

// Upgrade has the mounts handed over to another program, if that can go on with
// them, and returns its version. The process is to become that program by
// UpgradeTo, once HandOver has returned.
func (n *Node) Upgrade(ctx context.Context, binary string) (string, error) {
	if !n.kept() {
		return "", fmt.Errorf("upgrade: %w; stop this daemon and start the other", kernel.ErrNotKept)
	}
	if binary == "" {
		var err error
		if binary, err = os.Readlink("/proc/self/exe"); err != nil {
			return "", err
		}
		binary = strings.TrimSuffix(binary, " (deleted)") // replaced
	}
	cmd := exec.CommandContext(ctx, binary, CheckCommand, n.cfg.KeeperSocket())
	var said strings.Builder
	cmd.Stderr = &said
	version, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("upgrade to %s: %w: %s; this daemon goes on", binary, err, strings.TrimSpace(said.String()))
	}
	select {
	case n.upgrade <- binary:
		n.log.Info("upgrade", "binary", binary, "version", strings.TrimSpace(string(version)))
		return strings.TrimSpace(string(version)), nil
	default:
		return "", fmt.Errorf("upgrade: %w", ErrStopping)
	}
}

// UpgradeTo gets the program by which Upgrade wants this one replaced.
func (n *Node) UpgradeTo() <-chan string { return n.upgrade }

// standBy returns the admin socket when the daemon before is gone, of itself or by
// its death. What would keep this one from going on is found first: who starts it
// before the other is told to end can leave that as it is.
func (n *Node) standBy(ctx context.Context) (net.Listener, error) {
	if _, _, err := loadKeys(n.cfg); err != nil {
		return nil, fmt.Errorf("stand by: %w", err)
	}
	if n.cfg.Keeper {
		if err := CheckTakeOver(ctx, n.cfg.KeeperSocket()); err != nil && !errors.Is(err, keeper.ErrNoKeeper) {
			return nil, fmt.Errorf("stand by: %w", err)
		}
	}
	n.log.Info("on standby, until no daemon has the state directory", "dir", n.cfg.StateDir)
	begin := time.Now()
	for tries := 0; ; tries++ {
		if err := store.WaitClosed(ctx, n.cfg.StateDir); err != nil {
			return nil, fmt.Errorf("stand by: %w", err)
		}
		socket, err := listenAdmin(n.cfg.AdminSocket)
		if err == nil {
			n.log.Info("the daemon before is gone", "waited", time.Since(begin))
		}
		if !errors.Is(err, ErrRunning) || time.Duration(tries)*standbyInterval > takeOverTime {
			return socket, err
		}
		// It is dying yet, or has become another program and will open its state again.
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("stand by: %w", ctx.Err())
		case <-time.After(standbyInterval):
		}
	}
}

// CheckCommand makes a program say whether it could take over the mounts of the
// keeper whose socket follows.
const CheckCommand = "takeover-check"

// CheckTakeOver returns why this program could not go on with the mounts that
// the keeper on socket has.
func CheckTakeOver(ctx context.Context, socket string) error {
	client, err := keeper.Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer client.Close()
	mounts, err := client.List(ctx)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		k := kernel.Kept(m)
		if err := fusefs.Agrees(&k); err != nil {
			return fmt.Errorf("the mount on %s: %w", m.Dir, err)
		}
	}
	return nil
}

// Become replaces this process, which has handed its mounts over, by a program
// with the same arguments.
func Become(binary string) error {
	if err := unix.Exec(binary, os.Args, os.Environ()); err != nil {
		return fmt.Errorf("become %s: %w; the mounts wait: start a daemon", binary, err)
	}
	return nil
}
