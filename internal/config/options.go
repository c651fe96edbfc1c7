package config

import (
	"encoding"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// An Option is one key of the file and one flag of the daemon.
type Option struct {
	Name string
	Help string

	field any // pointer into a Config
}

// Default is the option's present value, as in the file.
func (o Option) Default() string { return o.value() }

// options lists what can be configured: the only list.
func (c *Config) options() []Option {
	return []Option{
		{"node", "name of this node, a host name, unique in the cluster (default: the host's name)", &c.Node},
		{"cluster", "name of the cluster; nodes of another one are refused", &c.Cluster},
		{"state-dir", "directory of the journal, the state and the contents; of one daemon only, and bound to its key: a daemon with another node's keys does not start on it", &c.StateDir},
		{"keys", "directory with the cluster's CA certificate, this node's certificate and key, and the gossip keyring", &c.Keys},
		{"admin-socket", "unix socket of the admin API, used by the other commands", &c.AdminSocket},
		{"csi-endpoint", "unix sockets at which the daemon is a CSI driver, identity, controller and node, for an orchestrator such as Kubernetes (default: it is none)", &c.CSIEndpoint},
		{"standby", "if another daemon has the state directory open, wait until it ends and go on with its mounts, rather than refuse to start", &c.Standby},
		{"bind", "address of the membership gossip, TCP and UDP", &c.Bind},
		{"replica-bind", "address of the replica service, TCP", &c.ReplicaBind},
		{"advertise", "host or address by which peers reach this node (default: found from bind)", &c.Advertise},
		{"join", "addresses or DNS names of members, tried for ever; one is enough", &c.Join},
		{"bootstrap", "this node founds the cluster if no member answers; set it on one node only", &c.Bootstrap},
		{"founder", "name of the node that founds the cluster if no member answers, where all nodes have one configuration; to be taken out once the cluster is there", &c.Founder},
		{"inline-limit", "files up to this size travel inside the change itself; at most 256KiB", &c.InlineLimit},
		{"publish-interval", "how often a file that is held open and written in place is published", &c.PublishInterval},
		{"hold", "how long an unlink or rename away waits for the name to come back", &c.Hold},
		{"passthrough", "experimental: the kernel reads and writes large and new files itself, by files of the state directory (FUSE passthrough, as root, Linux 6.9; where it cannot, the daemon does); faster, but who reads a file that another program rewrites or has mapped was seen to read old bytes after the daemon was replaced", &c.Passthrough},
		{"keeper", "mounts outlive the daemon: a small process keeps them, programs wait while none runs, and the next one goes on with them (as root; Linux 6.9)", &c.Keeper},
		{"keeper-start", "start the keeper where none runs; if not, something else does, as in Kubernetes a pod of its own: a keeper that the daemon started would end with the daemon's pod", &c.KeeperStart},
		{"catch-up-timeout", "how long a mount of a replica that was ready before waits for a live peer, before it serves its own data, marked stale until it has caught up", &c.CatchUpTimeout},
		{"placement-delay", "how long a node may be away before the volumes that it is to hold are placed on another, and how long a replica stays that is not needed here any more", &c.PlacementDelay},
		{"max-clock-skew", "a peer whose clock is further ahead is reported", &c.MaxClockSkew},
		{"replica-retention", "how long a host may be away before it must take a snapshot to come back; removed files are remembered as long", &c.ReplicaRetention},
		{"journal-limit", "size of a volume's journal over which changes are dropped that an absent host lacks; it then takes a snapshot", &c.JournalLimit},
		{"log-level", "debug, info, warn or error", &c.LogLevel},
		{"log-format", "text or json", &c.LogFormat},
	}
}

// Options lists what can be configured, with the defaults of a host that has
// no name.
func Options() []Option {
	c := Default()
	c.Node = ""
	return c.options()
}

func (o Option) value() string {
	switch f := o.field.(type) {
	case *string:
		return *f
	case *bool:
		return strconv.FormatBool(*f)
	case *time.Duration:
		return f.String()
	case *[]string:
		return strings.Join(*f, ",")
	case interface{ String() string }:
		return strings.ToLower(f.String())
	}
	panic(fmt.Sprintf("option %s: no text for %T", o.Name, o.field))
}

// flag adapts an option to pflag.
type flag struct {
	Option
	seen bool // a list given by flags replaces the default, then grows
}

func (f *flag) String() string {
	if f.field == nil {
		return ""
	}
	return f.value()
}

func (f *flag) Type() string {
	switch f.field.(type) {
	case *bool:
		return "bool"
	case *time.Duration:
		return "duration"
	case *[]string:
		return "list"
	}
	return "string"
}

func (f *flag) Set(s string) (err error) {
	switch p := f.field.(type) {
	case *string:
		*p = s
	case *bool:
		*p, err = strconv.ParseBool(s)
	case *time.Duration:
		*p, err = time.ParseDuration(s)
	case *[]string:
		if !f.seen {
			*p = nil
		}
		f.seen = true
		*p = append(*p, splitList(s)...)
	case encoding.TextUnmarshaler:
		err = p.UnmarshalText([]byte(s))
	default:
		panic(fmt.Sprintf("option %s: cannot set %T", f.Name, f.field))
	}
	return err
}

func splitList(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// Flags are the options given on a command line.
type Flags struct {
	config *Config
	set    *pflag.FlagSet
}

// Bind adds a flag for each option to a command's flags.
func Bind(set *pflag.FlagSet) *Flags {
	f := &Flags{config: Default(), set: set}
	for _, o := range f.config.options() {
		set.Var(&flag{Option: o}, o.Name, o.Help)
		if _, ok := o.field.(*bool); ok {
			set.Lookup(o.Name).NoOptDefVal = "true"
		}
	}
	return f
}

// Load returns the defaults, overlaid with the file (if path is not empty) and
// the flags that were given.
func (f *Flags) Load(path string) (*Config, error) {
	c := Default()
	if path != "" {
		if err := c.readFile(path); err != nil {
			return nil, err
		}
	}
	given := f.config.options()
	for n, o := range c.options() {
		if f.set.Changed(o.Name) {
			reflect.ValueOf(o.field).Elem().Set(reflect.ValueOf(given[n].field).Elem())
		}
	}
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return c, nil
}

func (c *Config) readFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	if err := c.Read(f); err != nil {
		return fmt.Errorf("configuration %s: %w", path, err)
	}
	return nil
}

// Read overlays c with a YAML file. A key that is unknown or given twice is an
// error.
func (c *Config) Read(r io.Reader) error {
	var doc yaml.Node
	if err := yaml.NewDecoder(r).Decode(&doc); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return err
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: want KEY: VALUE lines", top.Line)
	}
	fields := map[string]any{}
	for _, o := range c.options() {
		fields[o.Name] = o.field
	}
	seen := map[string]bool{}
	for n := 0; n+1 < len(top.Content); n += 2 {
		key, value := top.Content[n], top.Content[n+1]
		field, known := fields[key.Value]
		switch {
		case !known:
			return fmt.Errorf("line %d: unknown key %q", key.Line, key.Value)
		case seen[key.Value]:
			return fmt.Errorf("line %d: key %q is given twice", key.Line, key.Value)
		}
		seen[key.Value] = true
		if err := value.Decode(field); err != nil {
			return fmt.Errorf("line %d: key %q: %w", key.Line, key.Value, err)
		}
	}
	return nil
}
