package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/synapsefs/synapsefs/internal/playground"
)

// synapsefs runs a command on a node and returns what it printed.
func synapsefs(t *testing.T, nd *playground.Node, args ...string) string {
	t.Helper()
	out, err := command(nd, args...)
	if err != nil {
		t.Fatalf("synapsefs %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func command(nd *playground.Node, args ...string) (string, error) {
	out, err := exec.Command(binary, append([]string{"--socket", nd.Socket}, args...)...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = errors.New(strings.TrimSpace(string(exit.Stderr)))
	}
	return string(out), err
}

// listed decodes what a command prints as JSON.
func listed(t *testing.T, nd *playground.Node, args ...string) (out []map[string]any) {
	t.Helper()
	text := synapsefs(t, nd, append(args, "--output", "json")...)
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatalf("%v: %v in %s", args, err, text)
	}
	return out
}

func content(t *testing.T, nd *playground.Node, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(nd.Mount, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Two nodes that are cut from each other write the same files; the commands
// tell what lost, bring it back, and take it off the list everywhere.
func TestP5ConflictsOfTwoNodesCutApart(t *testing.T) {
	w := network(t, 2)
	c := startOn(t, w)
	a, b := c.Nodes[0], c.Nodes[1]
	for _, name := range []string{"edited", "dismissed"} {
		write(t, a, name, "base\n")
	}
	equal(t, a, b)

	cut(t, w.Cut, 1)
	for _, name := range []string{"edited", "dismissed", "created"} {
		write(t, a, name, "of node1\n")
	}
	for _, name := range []string{"edited", "dismissed", "created"} { // later: they win
		write(t, b, name, "of node2\n")
	}
	cut(t, w.Heal, 1)
	until(t, "both to list three conflicts", func() bool {
		return len(listed(t, a, "conflicts", volume)) == 3 && len(listed(t, b, "conflicts", volume)) == 3
	})
	equal(t, a, b)

	ids := map[string]string{}
	for _, r := range listed(t, b, "conflicts", b.Mount) {
		ids[r["path"].(string)] = r["id"].(string)
		lost, against := r["lost"].(map[string]any), r["against"].(map[string]any)
		if lost["node"] != "node1" || against["node"] != "node2" {
			t.Errorf("%s lost on %v against %v", r["path"], lost["node"], against["node"])
		}
	}
	if text := synapsefs(t, b, "conflicts", filepath.Join(b.Mount, "edited")); strings.Count(text, "\n") != 2 || !strings.Contains(text, ids["edited"]) {
		t.Errorf("of one path:\n%s", text)
	}
	if got := synapsefs(t, b, "conflicts", "show", ids["edited"]); got != "of node1\n" {
		t.Errorf("show: %q", got)
	}
	if got := synapsefs(t, b, "conflicts", "diff", ids["edited"]); !strings.Contains(got, "-of node1") || !strings.Contains(got, "+of node2") {
		t.Errorf("diff:\n%s", got)
	}

	synapsefs(t, b, "conflicts", "restore", ids["edited"])
	synapsefs(t, b, "conflicts", "restore", ids["created"], "--to", filepath.Join(b.Mount, "beside", "created"))
	synapsefs(t, b, "conflicts", "dismiss", ids["dismissed"], ids["dismissed"]) // named twice
	until(t, "the other node to hear of it", func() bool { return len(listed(t, a, "conflicts")) == 0 })
	equal(t, a, b)
	for name, want := range map[string]string{
		"edited": "of node1\n", "created": "of node2\n", "beside/created": "of node1\n", "dismissed": "of node2\n",
	} {
		if got := content(t, a, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if _, err := command(a, "conflicts", "show", ids["edited"]); err == nil || !strings.Contains(err.Error(), "no such conflict") {
		t.Errorf("a conflict that is no more: %v", err)
	}
	versions := listed(t, a, "history", filepath.Join(a.Mount, "edited"))
	if len(versions) != 4 || versions[0]["current"] != true {
		t.Errorf("history: %v", versions)
	}
}

// What was deleted, and what was replaced, comes back by command, also after
// the daemon was restarted.
func TestP5HistoryByCommand(t *testing.T) {
	c := start(t, 2)
	a, b := c.Nodes[0], c.Nodes[1]
	if err := os.MkdirAll(filepath.Join(a.Mount, "tree", "sub"), 0o750); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two", "three"} {
		write(t, a, "tree/sub/file", text)
		write(t, a, "new", text)
		if err := os.Rename(filepath.Join(a.Mount, "new"), filepath.Join(a.Mount, "replaced")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(a.Mount, "tree")); err != nil {
		t.Fatal(err)
	}
	equal(t, a, b)
	if err := b.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	mount(t, b, false)

	replaced := filepath.Join(b.Mount, "replaced")
	versions := listed(t, b, "history", replaced)
	if len(versions) != 3 {
		t.Fatalf("history: %v", versions)
	}
	oldest := versions[2]["version"].(string)
	if got := synapsefs(t, b, "history", "show", replaced, oldest); got != "one" {
		t.Errorf("show: %q", got)
	}
	synapsefs(t, b, "history", "restore", replaced, oldest)
	deleted := listed(t, b, "history", "--deleted", b.Mount)
	if len(deleted) != 1 || deleted[0]["path"] != "tree" {
		t.Errorf("deleted: %v", deleted)
	}
	synapsefs(t, b, "history", "restore", filepath.Join(b.Mount, "tree"))
	equal(t, a, b)
	for name, want := range map[string]string{"replaced": "one", "tree/sub/file": "three"} {
		if got := content(t, a, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	st, err := os.Stat(filepath.Join(a.Mount, "tree", "sub"))
	if err != nil || st.Mode().Perm() != 0o750 {
		t.Errorf("the directory came back as %v, %v", st, err)
	}
}
