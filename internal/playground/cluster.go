package playground

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/keys"
	"github.com/synapsefs/synapsefs/internal/wire"
)

// startTimeout is how long a daemon may take until it answers.
const startTimeout = 30 * time.Second

// stopTimeout is how long it may take to unmount and close.
const stopTimeout = 20 * time.Second

// A Cluster is some daemons of one binary on loopback, with their own keys,
// all below one directory.
type Cluster struct {
	Name   string
	Dir    string
	Binary string
	Nodes  []*Node

	// Hosts are where the nodes run, in order; nodes beyond them run on
	// loopback. To be set before Add.
	Hosts []Host
	// NoPassthrough is "passthrough: false". To be set before Add.
	NoPassthrough bool
	// CSI makes each node a CSI driver, too. To be set before Add.
	CSI bool
	// MountsEnd with their daemons: "keeper: false". To be set before Add.
	MountsEnd bool
}

// A Host is a network of its own on this machine: a namespace.
type Host struct {
	Address string   // of the node, without a port
	Enter   []string // the command that runs another in it
}

// A Node is one daemon of a Cluster, running or not.
type Node struct {
	Name   string
	Mount  string // where the playground's volume is mounted
	Socket string
	CSI    string // socket of the CSI driver, if it is one
	Config string // its configuration file
	Log    string // what the daemon wrote to stderr
	Bind   string // its gossip address
	State  string // its state directory

	command []string  // the daemon's, up to its subcommand
	child   *exec.Cmd // nil if not running
	exited  chan struct{}
}

// New prepares a cluster of n nodes below dir: keys, configurations and empty
// mountpoints. Nothing runs yet.
func New(dir, binary string, n int) (*Cluster, error) {
	c := &Cluster{Name: "playground", Dir: dir, Binary: binary}
	if err := keys.InitCA(filepath.Join(dir, "ca"), c.Name); err != nil {
		return nil, err
	}
	for range n {
		if _, err := c.Add(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Add prepares one more node. The first is the founder, the others join the
// nodes before them.
func (c *Cluster) Add() (*Node, error) {
	name := "node" + strconv.Itoa(len(c.Nodes)+1)
	dir := filepath.Join(c.Dir, name)
	nd := &Node{
		Name: name, command: []string{c.Binary},
		Mount:  filepath.Join(dir, "mnt"),
		Socket: filepath.Join(dir, "run", "admin.sock"),
		Config: filepath.Join(dir, "synapsefs.yaml"),
		Log:    filepath.Join(dir, "daemon.log"),
		State:  filepath.Join(dir, "state"),
	}
	endpoints := []string{}
	if c.CSI {
		nd.CSI = filepath.Join(dir, "run", "csi.sock")
		endpoints = append(endpoints, "unix://"+nd.CSI)
	}
	if err := os.MkdirAll(nd.Mount, 0o755); err != nil {
		return nil, err
	}
	keyDir := filepath.Join(dir, "keys")
	if err := keys.Issue(filepath.Join(c.Dir, "ca"), keyDir, name); err != nil {
		return nil, err
	}
	advertise, replicaBind, err := c.place(nd)
	if err != nil {
		return nil, err
	}
	var join []string
	for _, before := range c.Nodes {
		join = append(join, before.Bind)
	}
	text, err := yaml.Marshal(map[string]any{
		"node": name, "cluster": c.Name, "state-dir": nd.State, "keys": keyDir,
		"admin-socket": nd.Socket, "bind": nd.Bind, "replica-bind": replicaBind,
		"advertise": advertise, "join": join, "bootstrap": len(join) == 0, "passthrough": !c.NoPassthrough, "keeper": !c.MountsEnd,
		"csi-endpoint": endpoints,
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(nd.Config, text, 0o600); err != nil {
		return nil, err
	}
	c.Nodes = append(c.Nodes, nd)
	return nd, nil
}

// place decides where the node runs and listens.
func (c *Cluster) place(nd *Node) (advertise, replicaBind string, err error) {
	if i := len(c.Nodes); i < len(c.Hosts) {
		h := c.Hosts[i]
		nd.command = append(append([]string{}, h.Enter...), c.Binary)
		nd.Bind = net.JoinHostPort(h.Address, "7946")
		return h.Address, net.JoinHostPort(h.Address, "7947"), nil
	}
	if nd.Bind, err = FreeAddress(); err != nil {
		return "", "", err
	}
	replicaBind, err = FreeAddress()
	return "127.0.0.1", replicaBind, err
}

// FreeAddress finds a loopback port that is free for TCP and UDP. It is none of
// those that the kernel gives to outgoing connections: one of them could take
// it before the daemon does.
func FreeAddress() (string, error) {
	const first, last = 20000, 32000
	var err error
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", first+rand.IntN(last-first))
		var l net.Listener
		var p net.PacketConn
		if l, err = net.Listen("tcp", addr); err != nil {
			continue
		}
		p, err = net.ListenPacket("udp", addr)
		l.Close()
		if err == nil {
			return addr, p.Close()
		}
	}
	return "", fmt.Errorf("find a free port: %w", err)
}

// Start starts all nodes, the founder first.
func (c *Cluster) Start(ctx context.Context) error {
	for _, nd := range c.Nodes {
		if err := nd.Start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Close stops all nodes that run and lifts what they leave at their mounts.
// Their directories stay.
func (c *Cluster) Close() error {
	var errs []error
	for _, nd := range c.Nodes {
		errs = append(errs, nd.Stop(), nd.clearMount())
	}
	return errors.Join(errs...)
}

// ErrEnded says that a daemon ended before it answered, and ErrKilled that a
// signal ended it.
var (
	ErrEnded  = errors.New("the daemon ended at once")
	ErrKilled = fmt.Errorf("%w, by a signal", ErrEnded)
)

// Start starts the daemon and returns when it answers. It runs in a session of
// its own: a Ctrl-C at the terminal is not for it.
func (nd *Node) Start(ctx context.Context) error {
	if err := nd.launch(); err != nil {
		return err
	}
	err := nd.answers(ctx)
	if errors.Is(err, ErrEnded) {
		nd.child = nil
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", nd.Name, err)
	}
	return nil
}

// launch starts the daemon, with flags beside its configuration.
func (nd *Node) launch(flags ...string) error {
	log, err := os.OpenFile(nd.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := append(append([]string{}, nd.command[1:]...), "daemon", "--config", nd.Config)
	child := exec.Command(nd.command[0], append(args, flags...)...)
	child.Stdout, child.Stderr = log, log
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return fmt.Errorf("start %s: %w", nd.Name, err)
	}
	exited := make(chan struct{})
	go func() {
		_ = child.Wait() // how it ended is in its log and its ProcessState
		close(exited)
	}()
	nd.child, nd.exited = child, exited
	return nil
}

// Standby starts another daemon beside the one that runs, on standby, and returns
// it: nd stays the one that runs, until Succeed.
func (nd *Node) Standby() (*Node, error) {
	next := *nd
	next.child = nil
	return &next, next.launch("--standby")
}

// Succeed makes nd's daemon that which was on standby, once it answers.
func (nd *Node) Succeed(ctx context.Context, next *Node) error {
	nd.child, nd.exited = next.child, next.exited
	return nd.answers(ctx)
}

// answers waits until the daemon's socket answers.
func (nd *Node) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := nd.Call(func(c *admin.Client) error {
			_, err := c.Status(ctx, &wire.NodeStatusRequest{})
			return err
		})
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-nd.exited:
			ended := ErrEnded
			if s, ok := nd.child.ProcessState.Sys().(syscall.WaitStatus); ok && s.Signaled() {
				ended = ErrKilled
			}
			return fmt.Errorf("%w:\n%s", ended, nd.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("the daemon does not answer: %w\n%s", err, nd.LogTail())
		}
	}
}

// LogTail is the end of the daemon's log.
func (nd *Node) LogTail() string {
	data, err := os.ReadFile(nd.Log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// PID is the daemon's process id, 0 if it does not run.
func (nd *Node) PID() int {
	if nd.child == nil {
		return 0
	}
	return nd.child.Process.Pid
}

// Exited is closed when the daemon has ended.
func (nd *Node) Exited() <-chan struct{} { return nd.exited }

// Stop asks the daemon to end with its mounts, and kills it if it does not in
// time. Its guard stays at nd.Mount.
func (nd *Node) Stop() error { return nd.signal(syscall.SIGINT) }

// HandOver asks the daemon to end and to leave its mounts to the next.
func (nd *Node) HandOver() error { return nd.signal(syscall.SIGTERM) }

func (nd *Node) signal(s os.Signal) error {
	if nd.child == nil {
		return nil
	}
	if err := nd.child.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-nd.exited:
		state := nd.child.ProcessState
		nd.child = nil
		if !state.Success() {
			return fmt.Errorf("stop %s: %v\n%s", nd.Name, state, nd.LogTail())
		}
		return nil
	case <-time.After(stopTimeout):
		return errors.Join(fmt.Errorf("stop %s: it does not end", nd.Name), nd.Kill())
	}
}

// Kill kills the daemon as kill -9 does. Its mount stays at nd.Mount, dead if
// the mounts end with their daemons.
func (nd *Node) Kill() error {
	if nd.child == nil {
		return nil
	}
	err := nd.child.Process.Kill()
	<-nd.exited
	nd.child = nil
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	return err
}

// Call runs fn with a connection to the daemon's admin API.
func (nd *Node) Call(fn func(*admin.Client) error) error {
	c, err := admin.Dial(nd.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	return admin.Explain(fn(c))
}

// MountVolume mounts a volume at nd.Mount.
func (nd *Node) MountVolume(ctx context.Context, volume string, create bool) error {
	return nd.Call(func(c *admin.Client) error {
		_, err := c.Mount(ctx, &wire.MountVolumeRequest{Volume: volume, Dir: []byte(nd.Mount), Create: create})
		return err
	})
}

// Wait returns when all live peers have what the node has now.
func (nd *Node) Wait(ctx context.Context, volume string) error {
	return nd.Call(func(c *admin.Client) error {
		_, err := c.Wait(ctx, &wire.WaitRequest{Volume: volume})
		return err
	})
}
