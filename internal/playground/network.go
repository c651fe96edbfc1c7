package playground

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// A Network is some hosts on one bridge, each a network namespace, so that
// their links can be cut. It needs root.
type Network struct {
	Hosts []Host

	prefix string
	undo   []string
}

// NewNetwork makes n hosts. Close removes them, also after an error.
func NewNetwork(n int) (*Network, error) {
	w := &Network{prefix: fmt.Sprintf("sf%d", os.Getpid()%10000)}
	bridge := w.prefix + "br"
	if err := w.make("link add "+bridge+" type bridge", "link del "+bridge); err != nil {
		return w, err
	}
	if err := ip("link set " + bridge + " up"); err != nil {
		return w, err
	}
	for i := range n {
		if err := w.add(i, bridge); err != nil {
			return w, err
		}
	}
	return w, nil
}

func (w *Network) add(i int, bridge string) error {
	ns := fmt.Sprintf("%sn%d", w.prefix, i)
	if err := w.make("netns add "+ns, "netns del "+ns); err != nil {
		return err
	}
	// A namespace takes its link with it, but not at once.
	veth := fmt.Sprintf("link add %s type veth peer name eth0 netns %s", w.link(i), ns)
	if err := w.make(veth, "link del "+w.link(i)); err != nil {
		return err
	}
	address := fmt.Sprintf("10.213.7.%d", i+1)
	for _, words := range []string{
		fmt.Sprintf("link set %s master %s up", w.link(i), bridge),
		fmt.Sprintf("-n %s addr add %s/24 dev eth0", ns, address),
		fmt.Sprintf("-n %s link set eth0 up", ns),
		fmt.Sprintf("-n %s link set lo up", ns),
	} {
		if err := ip(words); err != nil {
			return err
		}
	}
	w.Hosts = append(w.Hosts, Host{Address: address, Enter: []string{"nsenter", "--net=/run/netns/" + ns, "--"}})
	return nil
}

func (w *Network) link(i int) string { return fmt.Sprintf("%sv%d", w.prefix, i) }

func (w *Network) make(do, undo string) error {
	if err := ip(do); err != nil {
		return err
	}
	w.undo = append(w.undo, undo)
	return nil
}

// Cut blocks all traffic of host i.
func (w *Network) Cut(i int) error { return ip("link set " + w.link(i) + " down") }

// Heal lets the traffic of host i through again.
func (w *Network) Heal(i int) error { return ip("link set " + w.link(i) + " up") }

// Close removes the hosts.
func (w *Network) Close() error {
	var errs []error
	for len(w.undo) > 0 {
		last := len(w.undo) - 1
		errs = append(errs, ip(w.undo[last]))
		w.undo = w.undo[:last]
	}
	return errors.Join(errs...)
}

func ip(words string) error {
	if out, err := exec.Command("ip", strings.Fields(words)...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", words, err, out)
	}
	return nil
}
