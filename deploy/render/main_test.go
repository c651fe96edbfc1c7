package main

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	rbac "k8s.io/api/rbac/v1"
	storage "k8s.io/api/storage/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

const manifests = "../manifests/synapsefs.yaml"

// The plain manifests are the chart's, word for word.
func TestManifestsAreTheChart(t *testing.T) {
	want, err := render("../chart", nil)
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile(manifests)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != want {
		t.Error("manifests and chart differ: make manifests")
	}
}

// kinds are the types that objects are read as.
var kinds = map[string]func() any{
	"v1/Namespace":                                    func() any { return &core.Namespace{} },
	"v1/ConfigMap":                                    func() any { return &core.ConfigMap{} },
	"v1/Service":                                      func() any { return &core.Service{} },
	"v1/ServiceAccount":                               func() any { return &core.ServiceAccount{} },
	"apps/v1/DaemonSet":                               func() any { return &apps.DaemonSet{} },
	"apps/v1/Deployment":                              func() any { return &apps.Deployment{} },
	"apps/v1/StatefulSet":                             func() any { return &apps.StatefulSet{} },
	"v1/PersistentVolumeClaim":                        func() any { return &core.PersistentVolumeClaim{} },
	"networking.k8s.io/v1/NetworkPolicy":              func() any { return &networking.NetworkPolicy{} },
	"policy/v1/PodDisruptionBudget":                   func() any { return &policy.PodDisruptionBudget{} },
	"rbac.authorization.k8s.io/v1/Role":               func() any { return &rbac.Role{} },
	"rbac.authorization.k8s.io/v1/RoleBinding":        func() any { return &rbac.RoleBinding{} },
	"rbac.authorization.k8s.io/v1/ClusterRole":        func() any { return &rbac.ClusterRole{} },
	"rbac.authorization.k8s.io/v1/ClusterRoleBinding": func() any { return &rbac.ClusterRoleBinding{} },
	"storage.k8s.io/v1/CSIDriver":                     func() any { return &storage.CSIDriver{} },
	"storage.k8s.io/v1/StorageClass":                  func() any { return &storage.StorageClass{} },
	"snapshot.storage.k8s.io/v1/VolumeSnapshotClass":  func() any { return &snapshotClass{} },
}

// snapshotClass is what that type of the external snapshotter, which is in no
// library of ours, has.
type snapshotClass struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	Driver          string            `json:"driver"`
	DeletionPolicy  string            `json:"deletionPolicy"`
	Parameters      map[string]string `json:"parameters"`
}

type object struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name string `json:"name"`
	} `json:"metadata"`
}

// read returns all objects of a text, each as what it says it is: a field that its
// type does not have is an error.
func read(t *testing.T, text string) (all []any) {
	t.Helper()
	seen := map[object]bool{}
	for _, doc := range strings.Split(text, "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if seen[o] {
			t.Errorf("%s %s is there twice", o.Kind, o.Metadata.Name)
		}
		seen[o] = true
		make := kinds[o.APIVersion+"/"+o.Kind]
		if make == nil {
			t.Fatalf("no type for %s %s", o.APIVersion, o.Kind)
		}
		typed := make()
		if err := yaml.UnmarshalStrict([]byte(doc), typed); err != nil {
			t.Errorf("%s %s: %v", o.Kind, o.Metadata.Name, err)
		}
		all = append(all, typed)
	}
	return all
}

func podsOf(all []any) map[string]*core.PodTemplateSpec {
	pods := map[string]*core.PodTemplateSpec{}
	for _, o := range all {
		switch o := o.(type) {
		case *apps.DaemonSet:
			pods[o.Name] = &o.Spec.Template
		case *apps.StatefulSet:
			pods[o.Name] = &o.Spec.Template
		case *apps.Deployment:
			pods[o.Name] = &o.Spec.Template
		}
	}
	return pods
}

// Each object is one that an API server of the libraries' version takes, with what
// the promises need.
func TestObjects(t *testing.T) {
	text, err := render("../chart", map[string]any{"founder": "node-a", "snapshots": true, "sidecars": map[string]any{"registry": "example.com/"}})
	if err != nil {
		t.Fatal(err)
	}
	all := read(t, text)
	pods := podsOf(all)
	if len(pods) != 3 {
		t.Fatalf("%d kinds of pods", len(pods))
	}
	for name, pod := range pods {
		checkPod(t, name, pod)
	}
	for _, c := range pods["synapsefs-keeper"].Spec.Containers {
		for _, m := range c.VolumeMounts {
			if strings.HasPrefix(m.MountPath, "/var/lib/kubelet") {
				t.Errorf("the keeper mounts %s", m.MountPath)
			}
		}
	}
	for _, o := range all {
		switch o := o.(type) {
		case *apps.DaemonSet:
			if want := map[bool]apps.DaemonSetUpdateStrategyType{true: apps.OnDeleteDaemonSetStrategyType, false: apps.RollingUpdateDaemonSetStrategyType}[strings.HasSuffix(o.Name, "keeper")]; o.Spec.UpdateStrategy.Type != want {
				t.Errorf("%s is updated by %s", o.Name, o.Spec.UpdateStrategy.Type)
			}
			checkSelector(t, o.Name, o.Spec.Selector.MatchLabels, o.Spec.Template.Labels)
		case *apps.Deployment:
			checkSelector(t, o.Name, o.Spec.Selector.MatchLabels, o.Spec.Template.Labels)
		case *storage.CSIDriver:
			if *o.Spec.FSGroupPolicy != storage.NoneFSGroupPolicy || !*o.Spec.PodInfoOnMount || !*o.Spec.AttachRequired {
				t.Errorf("CSIDriver %+v", o.Spec)
			}
		case *core.ConfigMap:
			if !strings.Contains(o.Data["synapsefs.yaml"], `founder: "node-a"`) {
				t.Errorf("configuration:\n%s", o.Data["synapsefs.yaml"])
			}
		}
	}
}

// Each pod is under one policy at least, and each port that a policy opens is one of the
// pods that it is for.
func TestPolicies(t *testing.T) {
	text, err := render("../chart", nil)
	if err != nil {
		t.Fatal(err)
	}
	all := read(t, text)
	for name, pod := range podsOf(all) {
		var policies int
		for _, o := range all {
			p, ok := o.(*networking.NetworkPolicy)
			if !ok {
				continue
			}
			selector, err := meta.LabelSelectorAsSelector(&p.Spec.PodSelector)
			if err != nil {
				t.Fatal(err)
			}
			if !selector.Matches(labels.Set(pod.Labels)) {
				continue
			}
			policies++
			open := map[string]bool{}
			for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
				for _, p := range c.Ports {
					open[fmt.Sprint(p.ContainerPort, p.Protocol)] = true
				}
			}
			for _, rule := range p.Spec.Ingress {
				for _, port := range rule.Ports {
					if !open[fmt.Sprint(port.Port.IntVal, *port.Protocol)] {
						t.Errorf("%s opens %d, which no container of %s has", p.Name, port.Port.IntVal, name)
					}
				}
			}
		}
		if policies == 0 {
			t.Errorf("%s is under no policy", name)
		}
	}
}

func checkSelector(t *testing.T, name string, selector, labels map[string]string) {
	t.Helper()
	for key, value := range selector {
		if labels[key] != value {
			t.Errorf("%s selects %s=%s, its pods have %q", name, key, value, labels[key])
		}
	}
}

// checkPod finds what an API server would find only when the pod is made.
func checkPod(t *testing.T, name string, pod *core.PodTemplateSpec) {
	t.Helper()
	volumes, ports := map[string]bool{}, map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = true
	}
	containers := append(append([]core.Container{}, pod.Spec.InitContainers...), pod.Spec.Containers...)
	for _, c := range containers {
		if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Memory().IsZero() {
			t.Errorf("%s/%s has no limit of memory", name, c.Name)
		}
		if c.Image == "" || strings.HasPrefix(c.Image, "sig-storage") {
			t.Errorf("%s/%s has the image %q", name, c.Name, c.Image)
		}
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				t.Errorf("%s/%s mounts %s, which is no volume", name, c.Name, m.Name)
			}
			volumes[m.Name+" used"] = true
		}
		env := map[string]bool{}
		for _, e := range c.Env {
			env[e.Name] = true
		}
		for _, used := range regexp.MustCompile(`\$\(([A-Z_]+)\)`).FindAllStringSubmatch(strings.Join(c.Args, " "), -1) {
			if !env[used[1]] {
				t.Errorf("%s/%s uses %s, which it does not have", name, c.Name, used[1])
			}
		}
		for _, p := range c.Ports {
			ports[p.Name] = true
		}
		if c.LivenessProbe != nil && !ports[c.LivenessProbe.HTTPGet.Port.StrVal] {
			t.Errorf("%s/%s is asked at %s", name, c.Name, c.LivenessProbe.HTTPGet.Port.StrVal)
		}
	}
	for _, v := range pod.Spec.Volumes {
		if !volumes[v.Name+" used"] {
			t.Errorf("%s: nobody mounts %s", name, v.Name)
		}
	}
}

// Another release in another namespace shares nothing with the first but what there is
// one of in a cluster.
func TestValuesAreUsed(t *testing.T) {
	values := map[string]any{
		"image": "elsewhere/synapsefs:1", "kubeletDir": "/k", "stateDir": "/s", "runDir": "/r", "cluster": "other",
		"keysSecret": "secret", "config": map[string]any{"hold": "0s", "passthrough": false},
		"storageClass": map[string]any{"name": "fast", "default": true, "parameters": map[string]any{"replicas": "5"}},
	}
	text, err := render("../chart", values)
	if err != nil {
		t.Fatal(err)
	}
	read(t, text)
	for _, old := range []string{"/var/lib/kubelet", "/var/lib/synapsefs", "/run/synapsefs", "synapsefs:dev", "synapsefs-keys\"", "cluster: synapsefs"} {
		if strings.Contains(strings.TrimPrefix(text, head), old) {
			t.Errorf("%s is left", old)
		}
	}
	for _, o := range read(t, text) {
		if c, ok := o.(*storage.StorageClass); ok && (c.Name != "fast" || !reflect.DeepEqual(c.Parameters, map[string]string{"replicas": "5"}) || c.Annotations["storageclass.kubernetes.io/is-default-class"] != "true") {
			t.Errorf("%+v", c)
		}
	}
}

// The next pod of a node's driver is there before the one before ends: it waits, is
// ready meanwhile, and tells kubelet of itself when it serves, behind what the one
// before has told.
func TestSuccessorWaits(t *testing.T) {
	text, err := render("../chart", map[string]any{"image": "synapsefs:2", "keeperImage": "synapsefs@sha256:1"})
	if err != nil {
		t.Fatal(err)
	}
	all := read(t, text)
	pods := podsOf(all)
	for _, o := range all {
		switch o := o.(type) {
		case *apps.DaemonSet:
			if u := o.Spec.UpdateStrategy.RollingUpdate; strings.HasSuffix(o.Name, "node") && (u.MaxSurge.IntValue() != 1 || u.MaxUnavailable.IntValue() != 0 || o.Spec.MinReadySeconds < 1) {
				t.Errorf("%s: %+v", o.Name, o.Spec)
			}
		case *core.ConfigMap:
			if !strings.Contains(o.Data["synapsefs.yaml"], "standby: true") {
				t.Errorf("configuration:\n%s", o.Data["synapsefs.yaml"])
			}
		}
	}
	pod := pods["synapsefs-node"].Spec
	if pod.HostNetwork || pod.HostPID {
		t.Error("two pods are to have the same ports")
	}
	daemon := pod.InitContainers[len(pod.InitContainers)-1]
	if daemon.Name != "synapsefs" || daemon.RestartPolicy == nil || *daemon.RestartPolicy != core.ContainerRestartPolicyAlways {
		t.Errorf("%s is no sidecar: it would end before kubelet is told", daemon.Name)
	}
	if daemon.StartupProbe != nil || daemon.ReadinessProbe != nil {
		t.Error("one that waits is not ready, and the one before never ends")
	}
	var private string // the volume with the socket of this pod alone
	for _, v := range pod.Volumes {
		if v.EmptyDir != nil {
			private = v.Name
		}
	}
	for _, c := range append(pod.Containers, daemon) {
		for _, p := range c.Ports {
			if p.HostPort != 0 {
				t.Errorf("%s has a port of the host", c.Name)
			}
		}
		for _, m := range c.VolumeMounts {
			if c.Name == "registrar" && m.Name == private && slices.Contains(c.Args, "--csi-address="+m.MountPath+"/csi.sock") {
				private = ""
			}
		}
	}
	if private != "" {
		t.Error("the registrar does not wait for the daemon of its pod")
	}
	if keeper := pods["synapsefs-keeper"].Spec.Containers[0].Image; daemon.Image != "synapsefs:2" || keeper != "synapsefs@sha256:1" {
		t.Errorf("images %s and %s", daemon.Image, keeper)
	}
}
