package e2e

import (
	"fmt"
	"os"
	"testing"

	"github.com/synapsefs/synapsefs/internal/playground"
)

// network makes n hosts whose links can be cut, and removes them at the end.
func network(t *testing.T, n int) *playground.Network {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("network namespaces need root")
		}
		t.Skip("network namespaces need root")
	}
	w, err := playground.NewNetwork(n)
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// startOn starts a node with the volume mounted on each host.
func startOn(t *testing.T, w *playground.Network) *playground.Cluster {
	t.Helper()
	c := prepare(t, 0)
	c.Hosts = w.Hosts
	for range w.Hosts {
		if _, err := c.Add(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, nd := range c.Nodes {
		mount(t, nd, i == 0)
	}
	return c
}

func cut(t *testing.T, how func(int) error, host int) {
	t.Helper()
	if err := how(host); err != nil {
		t.Fatal(err)
	}
}

// A node whose traffic is blocked goes on, and so do the others; healed, all
// have everything.
func TestP1CutAndHeal(t *testing.T) {
	w := network(t, 3)
	c := startOn(t, w)
	write(t, c.Nodes[0], "both", "before")
	equal(t, c.Nodes...)

	cut(t, w.Cut, 2)
	for i := range 200 {
		write(t, c.Nodes[0], fmt.Sprintf("connected-%d", i), "x")
		write(t, c.Nodes[2], fmt.Sprintf("cut-off-%d", i), "x")
	}
	write(t, c.Nodes[0], "both", "connected")
	until(t, "the version to be published", shows(c.Nodes[1], "both", "connected"))
	write(t, c.Nodes[2], "both", "cut off") // later: it wins
	if err := os.Mkdir(c.Nodes[1].Mount+"/dir", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(c.Nodes[2].Mount+"/dir", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, c.Nodes[2], "dir/inside", "x")
	equal(t, c.Nodes[0], c.Nodes[1])

	cut(t, w.Heal, 2)
	until(t, "the cut off node to catch up", func() bool {
		_, same := sums(t, c.Nodes)
		return same
	})
	if tree := equal(t, c.Nodes...); tree.Files != 402 {
		t.Errorf("%d files, want 402", tree.Files)
	}
	for _, nd := range c.Nodes {
		if b, err := os.ReadFile(nd.Mount + "/both"); err != nil || string(b) != "cut off" {
			t.Errorf("%s: %q, %v", nd.Name, b, err)
		}
	}
}
