// Package config reads the configuration of one daemon: defaults, then a YAML
// file, then flags. File and flags have the same names, listed once, in
// options.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Config is what a daemon is told. Default fills it; each field's meaning,
// name and bounds are in options and Validate.
type Config struct {
	// Who and where this node is.
	Node    string
	Cluster string

	// Where it keeps things.
	StateDir    string
	Keys        string
	AdminSocket string
	CSIEndpoint []string
	Standby     bool

	// How it meets its peers.
	Bind        string
	ReplicaBind string
	Advertise   string
	Join        []string
	Bootstrap   bool
	Founder     string

	// How it treats changes.
	InlineLimit     Size
	PublishInterval time.Duration
	Hold            time.Duration
	CatchUpTimeout  time.Duration
	PlacementDelay  time.Duration
	Passthrough     bool
	Keeper          bool
	KeeperStart     bool
	MaxClockSkew    time.Duration

	// What it keeps for those that are away.
	ReplicaRetention time.Duration
	JournalLimit     Size

	// What it tells.
	LogLevel  slog.Level
	LogFormat string
}

// Default returns the configuration of a node that was told nothing.
func Default() *Config {
	return &Config{
		Node:             hostLabel(),
		Cluster:          "synapsefs",
		StateDir:         "/var/lib/synapsefs",
		Keys:             "/etc/synapsefs/keys",
		AdminSocket:      "/run/synapsefs/admin.sock",
		Bind:             "0.0.0.0:7946",
		ReplicaBind:      "0.0.0.0:7947",
		InlineLimit:      64 << 10,
		PublishInterval:  time.Second,
		Hold:             40 * time.Millisecond,
		CatchUpTimeout:   30 * time.Second,
		PlacementDelay:   5 * time.Minute,
		Keeper:           true,
		KeeperStart:      true,
		MaxClockSkew:     5 * time.Second,
		ReplicaRetention: 7 * 24 * time.Hour,
		JournalLimit:     256 << 20,
		LogLevel:         slog.LevelInfo,
		LogFormat:        "text",
	}
}

// Founds reports whether this node founds the cluster if no member answers.
func (c *Config) Founds() bool { return c.Bootstrap || c.Founder != "" && c.Founder == c.Node }

// KeeperSocket is where the keeper of the daemon's mounts listens.
func (c *Config) KeeperSocket() string { return KeeperSocket(c.AdminSocket) }

// KeeperSocket is that of the daemon with an admin socket.
func KeeperSocket(adminSocket string) string {
	return strings.TrimSuffix(adminSocket, ".sock") + ".keeper.sock"
}

// hostLabel is the first label of the host's name, in lower case.
func hostLabel() string {
	host, err := os.Hostname()
	if err != nil {
		return ""
	}
	label, _, _ := strings.Cut(strings.ToLower(host), ".")
	return label
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// CheckLabel says what keeps a name from being a DNS label (RFC 1123).
func CheckLabel(name string) error {
	switch {
	case name == "":
		return errors.New("the name is empty")
	case len(name) > 63:
		return fmt.Errorf("name %q has %d characters, a DNS label at most 63", name, len(name))
	case !dnsLabel.MatchString(name):
		return fmt.Errorf("name %q is no DNS label: use a to z, 0 to 9 and inner hyphens", name)
	}
	return nil
}

// maxNode is the longest name of a node: that of a certificate.
const maxNode = 64

// CheckNode says what keeps a name from being a node's: DNS labels with dots
// between, as the full name of a host.
func CheckNode(name string) error {
	for label := range strings.SplitSeq(name, ".") {
		if err := CheckLabel(label); err != nil {
			return fmt.Errorf("node name %q: %w", name, err)
		}
	}
	if len(name) > maxNode {
		return fmt.Errorf("node name %q has %d characters, more than the %d that a certificate can have", name, len(name), maxNode)
	}
	return nil
}

// Validate says everything that is wrong with the configuration.
func (c *Config) Validate() error {
	var problems []error
	reject := func(key string, err error) {
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", key, err))
		}
	}
	reject("node", CheckNode(c.Node))
	reject("cluster", CheckLabel(c.Cluster))
	reject("state-dir", absolute(c.StateDir))
	reject("keys", absolute(c.Keys))
	reject("admin-socket", socketPath(c.AdminSocket))
	for _, e := range c.CSIEndpoint {
		reject("csi-endpoint", socketPath(strings.TrimPrefix(e, "unix://")))
	}
	reject("bind", hostPort(c.Bind))
	reject("replica-bind", hostPort(c.ReplicaBind))
	for _, a := range c.Join {
		reject("join", joinAddress(a))
	}
	if c.Founder != "" {
		reject("founder", CheckNode(c.Founder))
	}
	reject("advertise", plainHost(c.Advertise))
	reject("inline-limit", within(c.InlineLimit, 0, maxInline))
	reject("publish-interval", within(c.PublishInterval, 10*time.Millisecond, time.Hour))
	reject("hold", within(c.Hold, 0, time.Second))
	reject("catch-up-timeout", within(c.CatchUpTimeout, 0, 24*time.Hour))
	reject("placement-delay", within(c.PlacementDelay, 0, 24*time.Hour))
	reject("max-clock-skew", within(c.MaxClockSkew, time.Millisecond, 24*time.Hour))
	reject("replica-retention", within(c.ReplicaRetention, time.Second, 10*365*24*time.Hour))
	reject("journal-limit", within(c.JournalLimit, 1<<20, 1<<40))
	if c.LogFormat != "text" && c.LogFormat != "json" {
		reject("log-format", fmt.Errorf("%q is neither text nor json", c.LogFormat))
	}
	return errors.Join(problems...)
}

// maxInline keeps an op small enough for one message and one database value.
const maxInline Size = 256 << 10

func within[T ~int64](v, low, high T) error {
	if v < low || v > high {
		return fmt.Errorf("%v is not between %v and %v", v, low, high)
	}
	return nil
}

func absolute(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%q is not an absolute path", path)
	}
	return nil
}

// socketPath also checks the kernel's limit (sun_path, unix(7)).
func socketPath(path string) error {
	if len(path) > 107 {
		return fmt.Errorf("%q has %d characters, a unix socket's path at most 107", path, len(path))
	}
	return absolute(path)
}

func hostPort(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not ADDRESS:PORT", addr)
	}
	if host != "" && net.ParseIP(host) == nil {
		return fmt.Errorf("%q: %q is no IP address of this host", addr, host)
	}
	_, err = net.LookupPort("tcp", port)
	return err
}

func joinAddress(addr string) error {
	if addr == "" || strings.ContainsAny(addr, " \t,") {
		return fmt.Errorf("%q is no address: want HOST or HOST:PORT", addr)
	}
	return nil
}

func plainHost(host string) error {
	if host == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(host); err == nil {
		return fmt.Errorf("%q has a port: the ports are those of bind and replica-bind", host)
	}
	return nil
}

// Logger returns the logger that the configuration asks for.
func (c *Config) Logger(w *os.File) *slog.Logger {
	o := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
