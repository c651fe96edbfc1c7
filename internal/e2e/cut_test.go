package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/synapsefs/synapsefs/internal/playground"
)

// hosts makes n network namespaces on one bridge, and removes them at the end.
// It needs root.
func hosts(t *testing.T, n int) (hosts []playground.Host, link func(i int) string) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("network namespaces need root")
		}
		t.Skip("network namespaces need root")
	}
	prefix := fmt.Sprintf("sf%d", os.Getpid()%10000)
	bridge := prefix + "br"
	link = func(i int) string { return fmt.Sprintf("%sv%d", prefix, i) }
	ip(t, "link add %s type bridge", bridge)
	t.Cleanup(func() { ip(t, "link del %s", bridge) })
	ip(t, "link set %s up", bridge)
	for i := range n {
		ns := fmt.Sprintf("%sn%d", prefix, i)
		ip(t, "netns add %s", ns)
		t.Cleanup(func() { ip(t, "netns del %s", ns) })
		ip(t, "link add %s type veth peer name eth0 netns %s", link(i), ns)
		ip(t, "link set %s master %s up", link(i), bridge)
		address := fmt.Sprintf("10.213.7.%d", i+1)
		ip(t, "-n %s addr add %s/24 dev eth0", ns, address)
		ip(t, "-n %s link set eth0 up", ns)
		ip(t, "-n %s link set lo up", ns)
		hosts = append(hosts, playground.Host{
			Address: address,
			Enter:   []string{"nsenter", "--net=/run/netns/" + ns, "--"},
		})
	}
	return hosts, link
}

func ip(t *testing.T, format string, args ...any) {
	t.Helper()
	words := strings.Fields(fmt.Sprintf(format, args...))
	if out, err := exec.Command("ip", words...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v\n%s", words, err, out)
	}
}

// A node whose traffic is blocked goes on, and so do the others; healed, all
// have everything.
func TestP1CutAndHeal(t *testing.T) {
	hs, link := hosts(t, 3)
	c := prepare(t, 0)
	c.Hosts = hs
	for range hs {
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
	write(t, c.Nodes[0], "both", "before")
	equal(t, c.Nodes...)

	ip(t, "link set %s down", link(2))
	for i := range 200 {
		write(t, c.Nodes[0], fmt.Sprintf("connected-%d", i), "x")
		write(t, c.Nodes[2], fmt.Sprintf("cut-off-%d", i), "x")
	}
	write(t, c.Nodes[0], "both", "connected")
	write(t, c.Nodes[2], "both", "cut off") // later: it wins
	if err := os.Mkdir(c.Nodes[1].Mount+"/dir", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(c.Nodes[2].Mount+"/dir", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, c.Nodes[2], "dir/inside", "x")
	equal(t, c.Nodes[0], c.Nodes[1])

	ip(t, "link set %s up", link(2))
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
