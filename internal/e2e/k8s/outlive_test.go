package k8s

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/synapsefs/synapsefs/internal/e2e/k8s/box"
)

// TestP9K8s: pods at work do not notice how a driver ends and comes back: only a
// call may take as long as none runs.
func TestP9K8s(t *testing.T) {
	s := newSpace(t, "outlive")
	s.claim("data", corev1.ReadWriteMany)
	volume := claimed("data", false)
	group := int64(2000)
	grouped := loaded("node1", "group", volume)
	grouped.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group}
	s.run(loaded("node1", "one", volume), grouped, loaded("node2", "two", volume))
	all := []string{"one", "group", "two"}

	s.undisturbed("driver killed", func() {
		before := s.component("node", "node1")
		killDaemon(t, s.Nodes[0])
		s.restarted(before)
	}, all...)
	s.undisturbed("driver's pod deleted", func() { s.replaced("node", "node1") }, all...)
	s.undisturbed("rollout restart", func() {
		s.system("rollout", "restart", "daemonset/synapsefs-node")
		s.system("rollout", "status", "daemonset/synapsefs-node", "--timeout=3m")
	}, all...)
	s.undisturbed("keeper's pod deleted, then the driver's", func() {
		s.replaced("keeper", "node1")
		s.replaced("node", "node1")
	}, all...)
	s.undisturbed("keeper killed, then the driver", func() {
		before := s.component("keeper", "node1")
		kill(t, s.Nodes[0], "synapsefs", "keeper")
		s.restarted(before)
		before = s.component("node", "node1")
		killDaemon(t, s.Nodes[0])
		s.restarted(before)
	}, all...)

	// What they made is on the other node, and they leave as usual.
	s.run(podOn("node2", "reader", volume))
	until(t, time.Minute, "the files of all", func() error {
		for _, p := range all {
			if got := s.sh("reader", "ls /data/"+p+" | grep -c '^file[0-9]*$'"); got != "50" {
				return fmt.Errorf("%s: %s files", p, got)
			}
		}
		return nil
	})
	s.gone(append(all, "reader")...)
	s.unmounted()
}

// system is kubectl in the driver's namespace.
func (s *space) system(args ...string) {
	s.t.Helper()
	if _, err := s.Kubectl(s.t.Context(), "", append([]string{"-n", namespace}, args...)...); err != nil {
		s.t.Fatal(err)
	}
}

// component is the pod of a part of the driver on a node.
func (s *space) component(part, node string) *corev1.Pod {
	s.t.Helper()
	for _, p := range pods(s.t, s.Box, namespace, "app.kubernetes.io/component="+part) {
		if p.Spec.NodeName == node && p.DeletionTimestamp == nil {
			return &p
		}
	}
	s.t.Fatalf("no %s on %s", part, node)
	return nil
}

// replaced deletes the pod of a part and returns when another one is ready.
func (s *space) replaced(part, node string) {
	s.t.Helper()
	p := s.component(part, node)
	s.system("delete", "pod", "--timeout=2m", p.Name)
	until(s.t, 2*time.Minute, "another "+p.Name, func() error {
		for _, q := range pods(s.t, s.Box, namespace, "app.kubernetes.io/component="+part) {
			if q.Spec.NodeName == node && q.UID != p.UID && isReady(&q) {
				return nil
			}
		}
		return fmt.Errorf("not ready")
	})
}

// restarted returns when a container of a pod was started more often than before,
// and all are ready.
func (s *space) restarted(before *corev1.Pod) {
	s.t.Helper()
	count := func(p *corev1.Pod) (n int32) {
		for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) { // the daemon is a sidecar
			n += c.RestartCount
		}
		return n
	}
	until(s.t, 2*time.Minute, before.Name+" again", func() error {
		now, err := s.Client.CoreV1().Pods(namespace).Get(s.t.Context(), before.Name, metav1.GetOptions{})
		if err == nil && (count(now) == count(before) || !isReady(now)) {
			err = fmt.Errorf("%d restarts", count(now))
		}
		return err
	})
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func killDaemon(t *testing.T, n *box.Node) {
	t.Helper()
	kill(t, n, "synapsefs", "daemon")
}

// kill kills a process of a node's containers by its program and first argument.
func kill(t *testing.T, n *box.Node, program, command string) {
	t.Helper()
	pid, err := n.Find(program, command)
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
}
