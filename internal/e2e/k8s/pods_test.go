package k8s

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/synapsefs/synapsefs/internal/e2e/k8s/box"
)

const loadImage = "load:box"

// A space is a namespace of its own for a test, which goes with it.
type space struct {
	*box.Box
	t    *testing.T
	name string
}

func newSpace(t *testing.T, name string) *space {
	t.Helper()
	s := &space{Box: cluster(t), t: t, name: name}
	_, err := s.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() { // a volume that cannot be taken away is a fault too
			if _, err := s.Kubectl(context.Background(), "", "delete", "namespace", name, "--timeout=2m"); err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

// kubectl runs it in the namespace; an error is fatal.
func (s *space) kubectl(args ...string) string {
	s.t.Helper()
	out, err := s.Kubectl(s.t.Context(), "", append([]string{"-n", s.name}, args...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// claim makes a PersistentVolumeClaim.
func (s *space) claim(name string, mode corev1.PersistentVolumeAccessMode) {
	s.t.Helper()
	s.claimOf(name, mode, nil)
}

// claimOf makes one that begins as a copy.
func (s *space) claimOf(name string, mode corev1.PersistentVolumeAccessMode, of *corev1.TypedLocalObjectReference) {
	s.t.Helper()
	class := "synapsefs"
	_, err := s.Client.CoreV1().PersistentVolumeClaims(s.name).Create(s.t.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{mode}, StorageClassName: &class, DataSource: of,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
}

// claimed is a claim as a pod's volume.
func claimed(claim string, readOnly bool) corev1.VolumeSource {
	return corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim, ReadOnly: readOnly}}
}

// inline is a volume written into the pod.
func inline(attributes map[string]string) corev1.VolumeSource {
	return corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: driver, VolumeAttributes: attributes}}
}

// podOn is a pod on a node that does nothing, with a volume at /data. Node "": any.
func podOn(node, name string, volume corev1.VolumeSource) *corev1.Pod {
	grace := int64(1)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "main", Image: box.Busybox, ImagePullPolicy: corev1.PullNever,
				Command:      []string{"sleep", "infinity"},
				VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}},
			}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: volume}},
		},
	}
	if node != "" {
		p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
	}
	return p
}

// create makes pods without waiting.
func (s *space) create(pods ...*corev1.Pod) {
	s.t.Helper()
	for _, p := range pods {
		if _, err := s.Client.CoreV1().Pods(s.name).Create(s.t.Context(), p, metav1.CreateOptions{}); err != nil {
			s.t.Fatal(err)
		}
	}
}

// run makes pods and returns when they run.
func (s *space) run(pods ...*corev1.Pod) {
	s.t.Helper()
	s.create(pods...)
	for _, p := range pods {
		s.ready(p.Name)
	}
}

func (s *space) ready(pod string) {
	s.t.Helper()
	s.kubectl("wait", "--for=condition=Ready", "--timeout=2m", "pod/"+pod)
}

// gone deletes pods and returns when they have gone.
func (s *space) gone(pods ...string) {
	s.t.Helper()
	s.kubectl(append([]string{"delete", "pod", "--timeout=2m"}, pods...)...)
}

// sh runs a script in a pod and returns what it said, without white space at its ends.
func (s *space) sh(pod, script string) string {
	s.t.Helper()
	return strings.TrimSpace(s.kubectl("exec", pod, "--", "sh", "-ec", script))
}

// refused runs a script that must fail with a word in its message.
func (s *space) refused(pod, script, word string) {
	s.t.Helper()
	out, err := s.Kubectl(s.t.Context(), "", "-n", s.name, "exec", pod, "--", "sh", "-ec", script)
	if err == nil || !strings.Contains(err.Error(), word) {
		s.t.Errorf("%s: %s: %s, %v; want an error with %q", pod, script, out, err, word)
	}
}

// shows waits until a file shows a text in a pod.
func (s *space) shows(pod, file, want string) {
	s.t.Helper()
	until(s.t, time.Minute, pod+": "+file, func() error {
		got, err := s.Kubectl(s.t.Context(), "", "-n", s.name, "exec", pod, "--", "cat", file)
		if err == nil && strings.TrimSpace(got) != want {
			err = fmt.Errorf("%q, want %q", got, want)
		}
		return err
	})
}

// loaded is a pod that works on a directory of its own of the volume.
func loaded(node, name string, volume corev1.VolumeSource) *corev1.Pod {
	p := podOn(node, name, volume)
	p.Spec.Containers[0].Image, p.Spec.Containers[0].Command = loadImage, nil
	p.Spec.Containers[0].Args = []string{"/data/" + name}
	return p
}

// A report is what a loaded pod says: see command load.
type report struct {
	Ops, Errors int
	Last        string
	Longest     time.Duration
}

func (s *space) reports(pod string) (all []report) {
	s.t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(s.kubectl("logs", pod)), "\n") {
		var r report
		if err := json.Unmarshal([]byte(line), &r); err == nil {
			all = append(all, r)
		}
	}
	return all
}

// undisturbed does something while pods are at work. None of their calls may fail,
// and all must go on afterwards. It returns the longest call.
func (s *space) undisturbed(what string, do func(), pods ...string) (longest time.Duration) {
	s.t.Helper()
	before := map[string][]report{}
	for _, p := range pods {
		until(s.t, time.Minute, p+" at work", func() error {
			before[p] = s.reports(p)
			if n := len(before[p]); n == 0 || before[p][n-1].Ops < 100 {
				return fmt.Errorf("%v", before[p])
			}
			return nil
		})
	}
	do()
	for _, p := range pods {
		mark := s.reports(p)
		until(s.t, time.Minute, p+" going on after "+what, func() error {
			all := s.reports(p)
			last := all[len(all)-1]
			if last.Errors > 0 {
				s.t.Fatalf("%s: %s: %d of %d calls failed: %s", what, p, last.Errors, last.Ops, last.Last)
			}
			if last.Ops < mark[len(mark)-1].Ops+200 {
				return fmt.Errorf("%+v", last)
			}
			for _, r := range all[len(before[p]):] {
				longest = max(longest, r.Longest)
			}
			return nil
		})
	}
	s.t.Logf("%s: longest call %v", what, longest.Round(time.Millisecond))
	return longest
}

// absent returns when an object has gone.
func absent(t *testing.T, what string, get func() error) {
	t.Helper()
	until(t, 2*time.Minute, what+" gone", func() error {
		if err := get(); !apierrors.IsNotFound(err) {
			return fmt.Errorf("still there: %w", err)
		}
		return nil
	})
}
