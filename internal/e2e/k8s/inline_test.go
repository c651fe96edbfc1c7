package k8s

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// synapsefs runs the program in the driver's container of a node.
func (s *space) synapsefs(node string, args ...string) string {
	s.t.Helper()
	all := append([]string{"-n", namespace, "exec", s.component("node", node).Name, "-c", "synapsefs", "--", "/usr/local/bin/synapsefs"}, args...)
	out, err := s.Kubectl(s.t.Context(), "", all...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// TestK8sInline: a pod has a volume of its own, or an existing one that its
// namespace may have.
func TestK8sInline(t *testing.T) {
	s := newSpace(t, "inline")
	s.run(podOn("node1", "a", inline(nil)), podOn("node1", "b", inline(nil)))
	s.sh("a", "echo mine >/data/file")
	if got := s.sh("b", "ls /data"); got != "" {
		t.Errorf("another pod's own volume has %q", got)
	}
	s.gone("a", "b")
	until(t, time.Minute, "the pods' own volumes gone", func() error {
		if l := s.synapsefs("node1", "volumes", "list"); strings.Contains(l, "csi-") {
			return fmt.Errorf("%s", l)
		}
		return nil
	})

	s.synapsefs("node1", "volumes", "create", "existing", "--option", "replicas=2", "--option", "namespaces="+s.name)
	named := inline(map[string]string{"volume": "existing"})
	s.run(podOn("node1", "writer", named), podOn("node2", "reader", named))
	s.sh("writer", "echo shared >/data/file")
	s.shows("reader", "/data/file", "shared")

	other := newSpace(t, "inline-other")
	other.create(podOn("node1", "stranger", named))
	until(t, time.Minute, "the refusal", func() error {
		events, err := s.Client.CoreV1().Events(other.name).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.Reason == "FailedMount" && strings.Contains(e.Message, "PermissionDenied") {
				return nil
			}
		}
		return fmt.Errorf("%d events without it", len(events.Items))
	})
	other.gone("stranger")
	s.gone("writer", "reader")
	s.unmounted()
	s.synapsefs("node1", "volumes", "delete", "existing")
}

// TestK8sViews: pods on one node see one volume each in its own way, at once.
func TestK8sViews(t *testing.T) {
	s := newSpace(t, "views")
	s.claim("data", corev1.ReadWriteMany)
	all := []*corev1.Pod{
		podOn("node1", "writer", claimed("data", false)), podOn("node1", "reader", claimed("data", true)),
		podOn("node1", "g2000", claimed("data", false)), podOn("node1", "g3000", claimed("data", false)),
		podOn("node1", "g3000ro", claimed("data", true)),
	}
	for i, g := range []int64{0, 0, 2000, 3000, 3000} {
		if g != 0 {
			user := int64(1000)
			all[i].Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user, FSGroup: &g}
		}
	}
	s.run(all...)
	s.sh("writer", "echo hello >/data/file; chmod 660 /data/file")
	for pod, want := range map[string]string{"writer": "0", "reader": "0", "g2000": "2000", "g3000": "3000", "g3000ro": "3000"} {
		s.shows(pod, "/data/file", "hello")
		if got := s.sh(pod, "stat -c %g /data/file"); got != want {
			t.Errorf("%s sees group %s, want %s", pod, got, want)
		}
	}
	s.sh("g2000", "echo 2000 >/data/file")
	s.shows("g3000", "/data/file", "2000")
	s.refused("reader", "echo >/data/file", "Read-only file system")
	s.refused("g3000ro", "echo >/data/file", "Read-only file system")
	s.gone("g2000", "reader") // the others keep theirs
	s.sh("g3000", "echo 3000 >/data/file")
	s.shows("writer", "/data/file", "3000")
	s.shows("g3000ro", "/data/file", "3000")
	s.gone("writer", "g3000", "g3000ro")
	s.unmounted()
}

// TestK8sExpands: a claim may ask for more.
func TestK8sExpands(t *testing.T) {
	s := newSpace(t, "expands")
	s.claim("data", corev1.ReadWriteMany)
	s.run(podOn("node1", "pod", claimed("data", false)))
	s.kubectl("patch", "pvc", "data", "-p", `{"spec":{"resources":{"requests":{"storage":"3Gi"}}}}`)
	s.kubectl("wait", "pvc/data", "--for=jsonpath={.status.capacity.storage}=3Gi", "--timeout=1m")
	s.sh("pod", "echo more >/data/file")
}
