package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/synapsefs/synapsefs/internal/playground"
)

// moveTo gives a node that does not run the n-th address, on the ports given; nobody
// tells the others.
func moveTo(t *testing.T, nd *playground.Node, n int, ports [2]string) {
	t.Helper()
	host := fmt.Sprintf("127.0.0.%d", 2+n)
	text, err := os.ReadFile(nd.Config)
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := yaml.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	c["advertise"], c["bind"], c["replica-bind"] = host, net.JoinHostPort(host, ports[0]), net.JoinHostPort(host, ports[1])
	if c["bootstrap"] == false {
		c["join"] = []string{net.JoinHostPort("127.0.0.2", ports[0])} // of who has it, as a name in the DNS would be
	}
	if text, err = yaml.Marshal(c); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(nd.Config, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Field case 34: nodes come back with each other's addresses, and then one with a new
// one while the others run. Names count, addresses do not.
func TestNodesSwapAddresses(t *testing.T) {
	c := prepare(t, 3)
	var ports [2]string
	for i := range ports {
		address, err := playground.FreeAddress()
		if err != nil {
			t.Fatal(err)
		}
		_, ports[i], _ = net.SplitHostPort(address) // made by JoinHostPort
	}
	begin := func(places ...int) {
		t.Helper()
		for i, nd := range c.Nodes {
			if err := nd.Stop(); err != nil {
				t.Fatal(err)
			}
			moveTo(t, nd, places[i], ports)
		}
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i, nd := range c.Nodes {
			mount(t, nd, i == 0)
		}
	}
	begin(0, 1, 2)
	replicas := map[string]string{}
	check := func(round string) {
		t.Helper()
		for _, nd := range c.Nodes {
			write(t, nd, round+"-"+nd.Name, "x")
		}
		if tree := equal(t, c.Nodes...); tree.Files%3 != 0 {
			t.Errorf("%s: %d files", round, tree.Files)
		}
		for _, nd := range c.Nodes {
			s := statusOf(t, nd)
			for _, p := range s.Peers {
				if p.State != "up" {
					t.Errorf("%s: %s sees %s %s: %s", round, nd.Name, p.Node, p.State, p.Error)
				}
			}
			if replicas[nd.Name] == "" {
				replicas[nd.Name] = s.Volumes[0].Replica
			}
			if got := s.Volumes[0].Replica; got != replicas[nd.Name] {
				t.Errorf("%s: %s has the replica %s, and had %s", round, nd.Name, got, replicas[nd.Name])
			}
		}
	}
	check("first")
	begin(1, 2, 0)
	check("rotated")
	last := c.Nodes[2]
	if err := last.Stop(); err != nil {
		t.Fatal(err)
	}
	moveTo(t, last, 3, ports)
	if err := last.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	mount(t, last, false)
	check("alone")
	if names, err := filepath.Glob(last.Mount + "/*"); err != nil || len(names) != 9 {
		t.Errorf("%v, %v", names, err)
	}
}
