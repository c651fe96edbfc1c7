package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/internal/node"
	"github.com/synapsefs/synapsefs/internal/playground"
)

func TestMain(m *testing.M) {
	if kernel.IsHelper() {
		if err := kernel.RunHelper(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// synapsefs runs a command line, with DIR replaced.
func synapsefs(t *testing.T, dir, line string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	args := strings.Fields(strings.ReplaceAll(line, "DIR", dir))
	code = run(t.Context(), newEnv(&out, &errs), args)
	return code, out.String(), errs.String()
}

// A row is one command line and what comes of it.
type row struct {
	line   string
	code   int
	stdout string // must be in it; empty: must be empty
	stderr string
}

func (r row) check(t *testing.T, dir string) {
	t.Helper()
	code, stdout, stderr := synapsefs(t, dir, r.line)
	if code != r.code {
		t.Errorf("%s: exit %d, want %d; %s", r.line, code, r.code, stderr)
	}
	for _, s := range []struct{ name, got, want string }{{"stdout", stdout, r.stdout}, {"stderr", stderr, r.stderr}} {
		if want := strings.ReplaceAll(s.want, "DIR", dir); !strings.Contains(s.got, want) || want == "" && s.got != "" {
			t.Errorf("%s: %s is %q, want %q in it", r.line, s.name, s.got, want)
		}
	}
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sfs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Commands that need no daemon, or miss one.
func TestCommandsAlone(t *testing.T) {
	dir := shortDir(t)
	t.Setenv(socketVariable, filepath.Join(dir, "none.sock"))
	for _, r := range []row{
		{"version", exitOK, "synapsefs ", ""},
		{"version --output json", exitOK, `"version"`, ""},
		{"status", exitNotRunning, "", "DIR/none.sock: the daemon is not running"},
		{"umount DIR", exitNotFound, "", "nothing of synapsefs is mounted there"},
		{"umount DIR/none", exitNotFound, "", "no such file"},
		{"umount /proc", exitNotFound, "", "nothing of synapsefs is mounted there, but something of type proc"},
		{"mount v DIR", exitNotRunning, "", "start one with: synapsefs daemon"},
		{"mount v", exitUsage, "", "usage: synapsefs mount VOLUME"},
		{"status extra", exitUsage, "", "usage: synapsefs status"},
		{"status --output xml", exitUsage, "", "neither text nor json"},
		{"status --nonsense", exitUsage, "", "unknown flag: --nonsense"},
		{"nonsense", exitUsage, "", `unknown command "nonsense"`},
		{"volumes nonsense", exitUsage, "", `unknown command "nonsense"`},
		{"daemon --node Node_1", exitUsage, "", "no DNS label"},
		{"daemon --config DIR/none.yaml", exitUsage, "", "no such file"},
		{"daemon --node n --state-dir DIR/s --keys DIR/k --admin-socket DIR/a", exitError, "", "synapsefs keys"},
		{"demo --tree DIR/none.tar.gz", exitError, "", "no such file"},
		{"reveal-helper", exitError, "", "started by the daemon"},
		{"keys init --dir DIR/ca --cluster prod", exitOK, "keys of cluster prod", ""},
		{"keys init --dir DIR/ca --cluster prod", exitError, "", "exist already"},
		{"keys init --dir DIR/ca2 --cluster No", exitUsage, "", "no DNS label"},
		{"keys issue node1 --dir DIR/ca --out DIR/keys", exitOK, "keys of node1 in DIR/keys", ""},
		{"keys issue a/b --dir DIR/ca", exitUsage, "", "no DNS label"},
	} {
		if strings.HasPrefix(r.line, "demo") && playground.Mountable() != nil {
			continue
		}
		t.Run(r.line, func(t *testing.T) { r.check(t, dir) })
	}
}

// Every command documents the exit codes, and none panics for want of help.
func TestHelp(t *testing.T) {
	for _, c := range []string{"", "daemon", "mount", "umount", "mounts", "status", "peers", "volumes", "volumes list",
		"volumes create", "volumes delete", "wait",
		"conflicts", "conflicts show", "conflicts diff", "conflicts restore", "conflicts dismiss",
		"history", "history show", "history restore", "keys", "keys init", "keys issue", "demo"} {
		code, stdout, stderr := synapsefs(t, "", c+" --help")
		if code != exitOK || !strings.Contains(stdout, "Exit status:") || stderr != "" {
			t.Errorf("%s --help: exit %d, %q, %q", c, code, stdout, stderr)
		}
	}
}

// startNode runs a node in this process and points the commands at it.
func startNode(t *testing.T) (dir string) {
	t.Helper()
	dir = shortDir(t)
	row{"keys init --dir DIR/ca --cluster test", exitOK, "made", ""}.check(t, dir)
	row{"keys issue node1 --dir DIR/ca --out DIR/keys", exitOK, "made", ""}.check(t, dir)
	cfg := config.Default()
	cfg.Keeper = false // the test program is none
	cfg.Node, cfg.Cluster = "node1", "test"
	cfg.StateDir, cfg.Keys = filepath.Join(dir, "state"), filepath.Join(dir, "keys")
	cfg.AdminSocket = filepath.Join(dir, "admin.sock")
	cfg.Bind, cfg.ReplicaBind = freePort(t), freePort(t)
	n, err := node.Start(t.Context(), cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Setenv(socketVariable, cfg.AdminSocket)
	return dir
}

func freePort(t *testing.T) string {
	t.Helper()
	addr, err := playground.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func TestCommandsOfVolumes(t *testing.T) {
	dir := startNode(t)
	for _, r := range []row{
		{"status", exitOK, "node1 of cluster test", ""},
		{"peers", exitOK, "NODE", ""},
		{"volumes list", exitOK, "VOLUME", ""},
		{"volumes list --output json", exitOK, "[]", ""},
		{"volumes create configs", exitOK, "created volume configs (", ""},
		{"volumes create configs", exitRefused, "", `create volume "configs": volume exists`},
		{"volumes create Configs", exitUsage, "", "no DNS label"},
		{"volumes create small --option history=two", exitUsage, "", "volume option history"},
		{"volumes create small --option nonsense=2", exitUsage, "", "no volume option \"nonsense\": there are capacity, "},
		{"volumes create small --option history=2 --option conflict-limit=1MiB", exitOK, "created volume small", ""},
		{"volumes list --output json", exitOK, `"conflict-limit": "1MiB"`, ""},
		{"volumes delete small", exitOK, "deleted", ""},
		{"conflicts", exitOK, "ID", ""},
		{"conflicts configs --output json", exitOK, "[]", ""},
		{"conflicts nope", exitNotFound, "", "no such volume"},
		{"conflicts a b", exitUsage, "", "usage: synapsefs conflicts"},
		{"conflicts show nonsense", exitUsage, "", "want STAMP-REPLICA-NUMBER"},
		{"conflicts show a-b-0", exitNotFound, "", "no such conflict: a-b-0"},
		{"conflicts restore a-b-0", exitNotFound, "", "no such conflict"},
		{"conflicts dismiss a-b-0", exitNotFound, "", "no such conflict"},
		{"conflicts dismiss", exitUsage, "", "usage: synapsefs conflicts dismiss"},
		{"conflicts dismiss --all configs", exitOK, "dismissed 0", ""},
		{"history DIR", exitNotFound, "", "nothing of synapsefs is mounted there"},
		{"volumes list", exitOK, "configs  ready", ""},
		{"volumes delete konfigs", exitNotFound, "", "no such volume: there are configs"},
		{"wait configs", exitOK, "this host is the only one of its cluster, and alone has volume configs", ""},
		{"wait nope", exitNotFound, "", "no such volume"},
		{"mounts --output json", exitOK, "[]", ""},
		{"umount DIR", exitNotFound, "", "nothing of synapsefs is mounted there"},
		{"umount /proc", exitNotFound, "", "nothing of synapsefs is mounted there, but something of type proc"},
		{"daemon --node node1 --cluster test --state-dir DIR/state --keys DIR/keys --admin-socket DIR/admin.sock",
			exitRefused, "", "running already"},
		{"daemon --node node1 --cluster test --state-dir DIR/state --keys DIR/keys --keeper=false --admin-socket DIR/other.sock",
			exitError, "", "DIR/state: state directory is in use by another daemon"},
		{"volumes delete configs", exitOK, "deleted volume configs (", ""},
	} {
		t.Run(r.line, func(t *testing.T) { r.check(t, dir) })
	}
}

func TestCommandsOfMounts(t *testing.T) {
	if err := playground.Mountable(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := startNode(t)
	for _, d := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []row{
		{"mount v DIR/a", exitNotFound, "", "no such volume: the cluster has none yet; --create makes a new one"},
		{"mount v DIR/none --create", exitNotFound, "", "mountpoint does not exist"},
		{"mount v DIR/keys --create", exitRefused, "", "not empty"},
		{"mount v DIR/a --create", exitOK, "created and mounted volume v at DIR/a", ""},
		{"mount v DIR/a", exitRefused, "", "mounted here already"},
		{"mount v DIR/b -o ro,sync", exitUsage, "", `mount option "sync" is not known`},
		{"mount v DIR/b -o remount,ro", exitNotFound, "", "remount DIR/b: nothing of synapsefs is mounted there"},
		{"mount v DIR/b --read-only", exitOK, "mounted volume v at DIR/b", ""},
		{"mount v DIR/b -o remount", exitRefused, "", "remount DIR/b: what was mounted read-only stays so"},
		{"mount v DIR/a -o remount,ro", exitOK, "remounted volume v at DIR/a", ""},
		{"mount v DIR/a -o remount", exitOK, "remounted volume v at DIR/a", ""},
		{"mounts", exitOK, "DIR/b", ""},
		{"volumes delete v", exitRefused, "", "volume is mounted on this node at DIR/a, DIR/b"},
		{"umount DIR/b --socket DIR/none.sock", exitRefused, "", "a daemon serves this mount"},
		{"umount DIR/b", exitOK, "unmounted DIR/b", ""},
		{"umount DIR/b", exitNotFound, "", "nothing"},
		{"umount DIR/a --output json", exitOK, `"left_guards": 0`, ""},
		{"volumes delete v", exitOK, "deleted volume v", ""},
	} {
		t.Run(r.line, func(t *testing.T) { r.check(t, dir) })
	}
}

func TestStatusJSON(t *testing.T) {
	dir := startNode(t)
	row{"volumes create v", exitOK, "created", ""}.check(t, dir)
	_, stdout, _ := synapsefs(t, dir, "status --output json")
	var v statusView
	if err := json.Unmarshal([]byte(stdout), &v); err != nil {
		t.Fatal(err)
	}
	if v.Node != "node1" || !v.CatalogueReady || len(v.Volumes) != 1 || v.Volumes[0].Replica == nil || !v.Volumes[0].Replica.Ready {
		t.Errorf("got %+v", v)
	}
}
