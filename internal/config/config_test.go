package config

import (
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// load is what a daemon does with a file and arguments.
func load(t *testing.T, file string, args ...string) (*Config, error) {
	t.Helper()
	set := pflag.NewFlagSet("daemon", pflag.ContinueOnError)
	flags := Bind(set)
	if err := set.Parse(args); err != nil {
		return nil, err
	}
	path := ""
	if file != "" {
		path = filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return flags.Load(path)
}

func TestLoad(t *testing.T) {
	for _, tt := range []struct {
		name string
		file string
		args []string
		want func(*Config)
	}{
		{name: "defaults", want: func(*Config) {}},
		{name: "file", file: "node: a\nhold: 5ms\ninline-limit: 1KiB\njoin: [x, 'y:1']\nbootstrap: true\nlog-level: debug\n",
			want: func(c *Config) {
				c.Node, c.Hold, c.InlineLimit, c.Join, c.Bootstrap, c.LogLevel =
					"a", 5*time.Millisecond, 1024, []string{"x", "y:1"}, true, slog.LevelDebug
			}},
		{name: "flags", args: []string{"--node=a", "--join=x,y", "--join=z", "--bootstrap", "--inline-limit=8KiB", "--log-level=warn"},
			want: func(c *Config) {
				c.Node, c.Join, c.Bootstrap, c.InlineLimit, c.LogLevel = "a", []string{"x", "y", "z"}, true, 8<<10, slog.LevelWarn
			}},
		{name: "flag beats file", file: "node: a\nhold: 5ms\n", args: []string{"--node=b"},
			want: func(c *Config) { c.Node, c.Hold = "b", 5*time.Millisecond }},
		{name: "flag set to the default beats file", file: "hold: 5ms\n", args: []string{"--hold=40ms"}, want: func(*Config) {}},
		{name: "empty list beats file", file: "join: [a]\n", args: []string{"--join="}, want: func(*Config) {}},
		{name: "empty file", file: "# nothing\n", want: func(*Config) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := Default()
			want.Node = "host"
			tt.want(want)
			if !strings.Contains(tt.file, "node:") && !strings.Contains(strings.Join(tt.args, " "), "--node") {
				tt.args = append(tt.args, "--node=host")
			}
			got, err := load(t, tt.file, tt.args...)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		file string
		args []string
		want string // part of the error
	}{
		{name: "unknown key", file: "node: a\nnoode: b\n", want: `line 2: unknown key "noode"`},
		{name: "key twice", file: "hold: 1ms\nhold: 2ms\n", want: `"hold"`},
		{name: "no mapping", file: "- a\n", want: "want KEY: VALUE"},
		{name: "not YAML", file: "a: [\n", want: "yaml"},
		{name: "wrong type", file: "hold: soon\n", want: `key "hold"`},
		{name: "size", file: "inline-limit: 3 pages\n", want: "no size"},
		{name: "too large", args: []string{"--inline-limit=1MiB"}, want: "not between 0 and 256KiB"},
		{name: "node", args: []string{"--node=Node_1"}, want: "no DNS label"},
		{name: "long node", args: []string{"--node=" + strings.Repeat("n", 64)}, want: "at most 63"},
		{name: "longer node", args: []string{"--node=" + strings.Repeat("n.", 32) + "n"}, want: "more than the 64"},
		{name: "node with nothing between dots", args: []string{"--node=a..b"}, want: "empty"},
		{name: "relative", args: []string{"--state-dir=x"}, want: "not an absolute path"},
		{name: "long socket", args: []string{"--admin-socket=/" + strings.Repeat("s", 120)}, want: "at most 107"},
		{name: "bind", args: []string{"--bind=7946"}, want: "not ADDRESS:PORT"},
		{name: "bind name", args: []string{"--bind=example.com:1"}, want: "no IP address"},
		{name: "join", args: []string{"--join=a b"}, want: "want HOST or HOST:PORT"},
		{name: "advertise", args: []string{"--advertise=h:1"}, want: "has a port"},
		{name: "hold", args: []string{"--hold=2s"}, want: "not between"},
		{name: "format", args: []string{"--log-format=xml"}, want: "neither text nor json"},
		{name: "level", args: []string{"--log-level=loud"}, want: "loud"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, tt.file, tt.args...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// Several mistakes are told at once.
func TestValidateTellsAll(t *testing.T) {
	_, err := load(t, "", "--node=_", "--state-dir=x", "--hold=1h")
	for _, key := range []string{"node: ", "state-dir: ", "hold: "} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("got error %v, want one with %q", err, key)
		}
	}
}

// deploy/synapsefs.yaml shows every option with its default.
func TestExampleFile(t *testing.T) {
	f, err := os.Open("../../deploy/synapsefs.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := Default()
	if err := got.Read(f); err != nil {
		t.Fatal(err)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	want := Default()
	want.Node, want.Join, want.CSIEndpoint = "node1", []string{}, []string{}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the example's values are not the defaults:\ngot  %+v\nwant %+v", got, want)
	}
	text, err := os.ReadFile("../../deploy/synapsefs.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range Options() {
		if !strings.Contains(string(text), "\n"+o.Name+":") {
			t.Errorf("the example lacks %s", o.Name)
		}
	}
}

// Every field of Config is an option: nothing can be set that is not listed.
func TestEveryFieldIsAnOption(t *testing.T) {
	if got, want := len(Options()), reflect.TypeFor[Config]().NumField(); got != want {
		t.Errorf("%d options for %d fields", got, want)
	}
}

// The README has one row for each option: | `name` | `default` | meaning |.
func TestReadmeTable(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| `") {
			rows = append(rows, strings.TrimSpace(line))
		}
	}
	for n, o := range Options() {
		value := " "
		if o.Default() != "" {
			value = " `" + o.Default() + "` "
		}
		want := "| `" + o.Name + "` |" + value + "| " + o.Help + " |"
		if n >= len(rows) || rows[n] != want {
			t.Errorf("README row %d should be:\n%s", n+1, want)
		}
	}
	if len(rows) != len(Options()) {
		t.Errorf("README has %d rows, there are %d options", len(rows), len(Options()))
	}
}

// What the manifests configure is a configuration, once the node's name is added.
func TestManifests(t *testing.T) {
	text, err := os.ReadFile("../../deploy/manifests/synapsefs.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var object struct {
			Kind string
			Data map[string]string
		}
		if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
			t.Fatal(err)
		}
		if object.Kind != "ConfigMap" {
			continue
		}
		c := Default()
		if err := c.Read(strings.NewReader(object.Data["synapsefs.yaml"])); err != nil {
			t.Fatal(err)
		}
		c.Node = "node-a"
		if err := c.Validate(); err != nil {
			t.Error(err)
		}
		if len(c.CSIEndpoint) == 0 || len(c.Join) == 0 || !c.Keeper || c.KeeperStart {
			t.Errorf("%+v", c)
		}
		return
	}
	t.Error("there is no ConfigMap")
}

func TestFounder(t *testing.T) {
	for _, tt := range []struct {
		founder   string
		bootstrap bool
		want      bool
	}{{"", false, false}, {"node-a", false, true}, {"node-b", false, false}, {"node-b", true, true}} {
		c := Config{Node: "node-a", Founder: tt.founder, Bootstrap: tt.bootstrap}
		if got := c.Founds(); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "17": 17, "1KiB": 1 << 10, "3 MiB": 3 << 20, "2GiB": 2 << 30, "5B": 5} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q: got %d, %v, want %d", text, s, err, want)
		}
		var again Size
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Errorf("%v does not read back: %v, %v", s, again, err)
		}
	}
	for _, bad := range []string{"", "-1", "KiB", "1.5MiB", "1TB", "99999999999GiB"} {
		if err := new(Size).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
