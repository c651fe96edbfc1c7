package k8s

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/synapsefs/synapsefs/internal/e2e/k8s/box"
)

func TestMain(m *testing.M) { os.Exit(box.Main(m.Run)) }

// root is that of the repository: "make image" was run there.
const root = "../../.."

const (
	driver    = "csi.synapsefs.io"
	namespace = "synapsefs"
)

// cluster returns the box, with the driver installed on two nodes.
func cluster(t *testing.T) *box.Box {
	t.Helper()
	b, err := installed()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := b.Kubectl(context.Background(), "", "get", "pods,pvc,volumeattachments", "-A", "-o", "wide")
			t.Log(out)
			out, _ = b.Kubectl(context.Background(), "", "get", "events", "-A", "--field-selector=type!=Normal")
			t.Log(out)
		}
	})
	return b
}

var installed = sync.OnceValues(func() (*box.Box, error) {
	ctx := context.Background()
	manifests, err := os.ReadFile(filepath.Join(root, "deploy/manifests/synapsefs.yaml"))
	if err != nil {
		return nil, err
	}
	dir := box.Dir()

	// Images of the names that the manifests have.
	images := map[string]string{loadImage: box.Program("load")}
	for _, m := range regexp.MustCompile(`image: (sig-storage/\S+)`).FindAllSubmatch(manifests, -1) {
		tag := string(m[1])
		name, _, _ := strings.Cut(path.Base(tag), ":")
		switch name {
		case "csi-node-driver-registrar", "livenessprobe":
			images[tag] = filepath.Join(dir, name)
			if err := os.Symlink(box.Program("sidecar"), images[tag]); err != nil {
				return nil, err
			}
		default:
			images[tag] = box.Program(name)
		}
	}
	archive := filepath.Join(dir, "images.tar")
	if err := box.Images(archive, images); err != nil {
		return nil, err
	}
	own, err := filepath.Abs(filepath.Join(root, "bin/synapsefs-image.tar"))
	if err != nil {
		return nil, err
	}
	b, err := box.Start(ctx, 2, archive, own)
	if err != nil {
		return nil, err
	}

	// What the manifests' head says, as a user does it.
	keys := filepath.Join(dir, "ca")
	if out, err := exec.Command(filepath.Join(root, "bin/image/synapsefs"), "keys", "init", "--dir", keys).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("keys init: %w: %s", err, out)
	}
	founded := strings.Replace(string(manifests), `founder: ""`, `founder: "node1"`, 1)
	for _, c := range [][]string{
		{"", "create", "namespace", namespace},
		{"", "-n", namespace, "create", "secret", "generic", "synapsefs-keys", "--from-file=" + keys},
		{founded, "apply", "-f", "-"},
		{"", "-n", namespace, "wait", "--for=jsonpath={.status.numberReady}=2", "daemonset/synapsefs-keeper", "--timeout=2m"},
		{"", "-n", namespace, "rollout", "status", "daemonset/synapsefs-node", "--timeout=2m"},
		{"", "-n", namespace, "rollout", "status", "deployment/synapsefs-controller", "--timeout=2m"},
	} {
		if _, err := b.Kubectl(ctx, c[0], c[1:]...); err != nil {
			events, _ := b.Kubectl(ctx, "", "-n", namespace, "get", "events")
			return nil, fmt.Errorf("%w\n%s", err, events)
		}
	}
	return b, nil
})

// TestK8sInstalls: the objects as they are come up, and kubelet knows the driver.
func TestK8sInstalls(t *testing.T) {
	b := cluster(t)
	for _, n := range b.Nodes {
		until(t, time.Minute, "the driver on "+n.Name, func() error {
			c, err := b.Client.StorageV1().CSINodes().Get(t.Context(), n.Name, metav1.GetOptions{})
			if err == nil && (len(c.Spec.Drivers) != 1 || c.Spec.Drivers[0].Name != driver) {
				err = fmt.Errorf("drivers: %v", c.Spec.Drivers)
			}
			return err
		})
	}
	for _, p := range pods(t, b, namespace, "app.kubernetes.io/component!=controller") { // which waits by starting again
		for _, c := range p.Status.ContainerStatuses {
			if c.RestartCount > 0 {
				last, _ := b.Kubectl(t.Context(), "", "-n", namespace, "logs", "--previous", "--tail=20", p.Name, "-c", c.Name)
				t.Errorf("%s: container %s was started %d times:\n%s", p.Name, c.Name, c.RestartCount+1, last)
			}
		}
	}
}

func until(t *testing.T, d time.Duration, what string, ask func() error) {
	t.Helper()
	if err := box.Until(t.Context(), d, what, ask); err != nil {
		t.Fatal(err)
	}
}

// pods lists those with a label; "" is all.
func pods(t *testing.T, b *box.Box, namespace, label string) []corev1.Pod {
	t.Helper()
	l, err := b.Client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: label})
	if err != nil {
		t.Fatal(err)
	}
	return l.Items
}
