package k8s

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/synapsefs/synapsefs/internal/e2e/k8s/box"
)

// TestK8sShared: a claim is a directory that pods on all nodes share.
func TestK8sShared(t *testing.T) {
	s := newSpace(t, "shared")
	s.claim("data", corev1.ReadWriteMany)
	volume := claimed("data", false)
	s.run(podOn("node1", "a", volume), podOn("node1", "b", volume), podOn("node2", "c", volume))
	s.sh("a", "mkdir /data/dir; echo hello >/data/dir/file")
	for _, p := range []string{"a", "b", "c"} {
		s.shows(p, "/data/dir/file", "hello")
	}
	s.sh("c", "echo there >/data/dir/file")
	s.shows("a", "/data/dir/file", "there")

	t.Run("read only", func(t *testing.T) {
		s := &space{s.Box, t, s.name}
		s.run(podOn("node1", "reader", claimed("data", true)))
		s.shows("reader", "/data/dir/file", "there")
		s.refused("reader", "echo >/data/no", "Read-only file system")
		s.refused("reader", "rm /data/dir/file", "Read-only file system")
		s.sh("a", "echo still >/data/yes") // the others on the node are as they were
		s.shows("reader", "/data/yes", "still")
		s.gone("reader")
	})

	t.Run("sub-path", func(t *testing.T) {
		s := &space{s.Box, t, s.name}
		p := podOn("node2", "sub", volume)
		p.Spec.Containers[0].VolumeMounts[0].SubPath = "dir/below"
		s.run(p)
		s.sh("sub", "test ! -e /data/file; echo deep >/data/x")
		s.shows("a", "/data/dir/below/x", "deep")
		s.gone("sub")
	})

	t.Run("group", func(t *testing.T) {
		s := &space{s.Box, t, s.name}
		s.sh("a", "echo mine >/data/private; chmod 640 /data/private; chown 5:5 /data/private")
		user, group := int64(1000), int64(2000)
		p := podOn("node1", "group", volume)
		p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user, RunAsGroup: &user, FSGroup: &group}
		s.run(p)
		if got := s.sh("group", "stat -c %u:%g /data/private; cat /data/private; echo more >>/data/private; mkdir /data/made"); got != "5:2000\nmine" {
			t.Errorf("with fsGroup: %q", got)
		}
		s.shows("c", "/data/private", "mine\nmore")
		if got := s.sh("c", "stat -c %u:%g:%a /data/private"); got != "5:5:640" {
			t.Errorf("the file itself: %q", got)
		}
		s.gone("group")
	})

	t.Run("read-only claim", func(t *testing.T) {
		s := &space{s.Box, t, s.name}
		s.claim("readers", corev1.ReadOnlyMany)
		s.run(podOn("node1", "ro1", claimed("readers", false)), podOn("node2", "ro2", claimed("readers", false)))
		s.refused("ro1", "echo >/data/no", "Read-only file system")
		s.refused("ro2", "echo >/data/no", "Read-only file system")
		s.gone("ro1", "ro2")
	})

	s.gone("a", "b", "c")
	s.unmounted()
	s.run(podOn("node2", "later", volume))
	s.shows("later", "/data/dir/file", "there")

	// A claim that is deleted takes its volume along.
	name := s.kubectl("get", "pvc", "data", "-o", "jsonpath={.spec.volumeName}")
	s.gone("later")
	s.kubectl("delete", "pvc", "data", "--timeout=1m")
	absent(t, "the persistent volume", func() error {
		_, err := s.Client.CoreV1().PersistentVolumes().Get(t.Context(), name, metav1.GetOptions{})
		return err
	})
}

// unmounted: no node has a mount of ours for a pod, nor one staged.
func (s *space) unmounted() {
	s.t.Helper()
	for _, n := range s.Nodes {
		until(s.t, time.Minute, "mounts of pods on "+n.Name+" gone", func() error {
			if m := s.mounts(n); len(m) > 0 {
				return errors.New(strings.Join(m, "\n"))
			}
			return nil
		})
	}
}

// mounts lists what a node has mounted for pods, and staged.
func (s *space) mounts(n *box.Node) (all []string) {
	s.t.Helper()
	table, err := os.ReadFile(n.Path("/proc/1/mountinfo"))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, line := range strings.Split(string(table), "\n") {
		if strings.Contains(line, "/kubernetes.io~csi/") || strings.Contains(line, "/globalmount") {
			all = append(all, line)
		}
	}
	return all
}

// TestK8sScale: a deployment without pods has its data when it has pods again.
func TestK8sScale(t *testing.T) {
	s := newSpace(t, "scale")
	s.claim("data", corev1.ReadWriteMany)
	replicas := int32(2)
	labels := map[string]string{"app": "scaled"}
	template := podOn("", "", claimed("data", false))
	template.Labels = labels
	template.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
		MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: &metav1.LabelSelector{MatchLabels: labels},
	}}
	_, err := s.Client.AppsV1().Deployments(s.name).Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "scaled"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: template.ObjectMeta, Spec: template.Spec},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	scaled := func() []corev1.Pod { return pods(t, s.Box, s.name, "app=scaled") }
	s.kubectl("rollout", "status", "deployment/scaled", "--timeout=2m")
	for i, p := range scaled() {
		s.sh(p.Name, fmt.Sprintf("echo kept >/data/file%d", i))
	}
	for range 2 {
		s.kubectl("scale", "deployment/scaled", "--replicas=0")
		until(t, time.Minute, "no pods", func() error {
			if p := scaled(); len(p) > 0 {
				return fmt.Errorf("%d pods", len(p))
			}
			return nil
		})
		s.unmounted()
		s.kubectl("scale", "deployment/scaled", "--replicas=2")
		s.kubectl("rollout", "status", "deployment/scaled", "--timeout=2m")
		for _, p := range scaled() {
			if p.DeletionTimestamp == nil {
				s.shows(p.Name, "/data/file0", "kept")
				s.shows(p.Name, "/data/file1", "kept")
			}
		}
	}
}

// TestK8sClone: a claim may begin as a copy of another one.
func TestK8sClone(t *testing.T) {
	s := newSpace(t, "clone")
	s.claim("data", corev1.ReadWriteMany)
	s.run(podOn("node1", "of", claimed("data", false)))
	s.sh("of", "echo then >/data/file")
	s.claimOf("copy", corev1.ReadWriteMany, &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "data"})
	s.run(podOn("node2", "copied", claimed("copy", false)))
	s.sh("of", "echo now >/data/file")
	s.shows("copied", "/data/file", "then")
	s.sh("copied", "echo own >/data/file")
	s.shows("of", "/data/file", "now")
}
