package k8s

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// TestK8sKubeletKilled: kubelet is killed again and again while it gives volumes to
// pods, and while it takes them away. It asks again, and gets there.
func TestK8sKubeletKilled(t *testing.T) {
	s := newSpace(t, "kubelet")
	s.claim("data", corev1.ReadWriteMany)
	s.claim("more", corev1.ReadWriteMany)
	var names []string
	for i := range 6 {
		p := podOn("node1", fmt.Sprint("pod", i), claimed([]string{"data", "more"}[i%2], i == 4))
		if i == 5 {
			p = podOn("node1", "pod5", inline(nil))
		}
		names = append(names, p.Name)
		s.create(p)
	}
	// killed kills it thrice, each time when it has done something but not all.
	mounted := func() (n int) {
		for _, m := range s.mounts(s.Nodes[0]) {
			if strings.Contains(m, "/kubernetes.io~csi/") {
				n++
			}
		}
		return n
	}
	killed := func(done func() bool) {
		t.Helper()
		last := mounted()
		for range 3 {
			until(t, 2*time.Minute, "kubelet doing something", func() error {
				if mounted() == last && !done() {
					return fmt.Errorf("%d mounts", last)
				}
				return nil
			})
			if done() {
				return
			}
			last = mounted()
			until(t, time.Minute, "kubelet again", func() error { return s.Nodes[0].Signal("kubelet", unix.SIGKILL) })
			t.Logf("kubelet was killed at %d mounts", last)
		}
	}
	killed(func() bool { return mounted() >= len(names) })
	for _, p := range names {
		s.ready(p)
	}
	s.sh("pod0", "echo hello >/data/file")
	s.shows("pod2", "/data/file", "hello")

	s.kubectl(append([]string{"delete", "pod", "--wait=false"}, names...)...)
	killed(func() bool { return mounted() == 0 })
	s.gone(append([]string{"--ignore-not-found"}, names...)...)

	// A kubelet killed between a volume's last pod and the end of its staging forgets
	// the latter: it goes by pods' directories. The next use takes it up, and away.
	s.run(podOn("node1", "next", claimed("data", false)), podOn("node1", "last", claimed("more", false)))
	s.shows("next", "/data/file", "hello")
	s.gone("next", "last")
	s.unmounted()
}

// TestK8sReboot: a node is switched off and on. Pods elsewhere do not notice; its own
// start again and find what they had.
func TestK8sReboot(t *testing.T) {
	s := newSpace(t, "reboot")
	s.claim("data", corev1.ReadWriteMany)
	volume := claimed("data", false)
	s.run(podOn("node1", "here", volume), loaded("node2", "there", volume))
	s.sh("here", "echo kept >/data/file; sync")
	s.undisturbed("reboot of the other node", func() {
		n := s.Nodes[0]
		n.Off()
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		until(t, 3*time.Minute, "the pod again", func() error {
			p := pods(t, s.Box, s.name, "")
			for _, p := range p {
				if p.Name == "here" && isReady(&p) && p.Status.ContainerStatuses[0].RestartCount > 0 {
					return nil
				}
			}
			return fmt.Errorf("%d pods", len(p))
		})
	}, "there")
	s.shows("here", "/data/file", "kept")
	s.sh("here", "echo new >/data/file")
	s.run(podOn("node2", "reader", volume))
	s.shows("reader", "/data/file", "new")
	s.gone("here", "there", "reader")
	s.unmounted()
}

// TestK8sNodeLost: a node goes for good, and its disk with it. What was written there
// is on the other replica, and on the node that comes in its place.
func TestK8sNodeLost(t *testing.T) {
	s := newSpace(t, "lost")
	s.claim("data", corev1.ReadWriteMany)
	volume := claimed("data", false)
	n := s.Nodes[1]
	s.run(podOn(n.Name, "there", volume), podOn("node1", "here", volume))
	s.sh("there", "for i in $(seq 200); do echo $i >/data/file$i; done")
	s.shows("here", "/data/file200", "200")

	s.kubectl("cordon", n.Name)
	n.Off()
	if err := os.RemoveAll(n.Disk()); err != nil {
		t.Fatal(err)
	}
	// Kubernetes is told that the node will not write any more.
	const out = "node.kubernetes.io/out-of-service"
	s.kubectl("taint", "node", n.Name, out+"=nodeshutdown:NoExecute")
	s.gone("there")
	s.sh("here", "for i in $(seq 200); do test $(cat /data/file$i) = $i; done; echo after >/data/after")

	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.kubectl("taint", "node", n.Name, out+"-")
	s.kubectl("uncordon", n.Name)
	s.run(podOn(n.Name, "again", volume))
	s.shows("again", "/data/after", "after")
	s.sh("again", "for i in $(seq 200); do test $(cat /data/file$i) = $i; done; echo back >/data/back")
	s.shows("here", "/data/back", "back")
	s.gone("here", "again")
	s.unmounted()
}
