package main

import (
	"os"
	"path/filepath"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	policy "k8s.io/api/policy/v1"
	storage "k8s.io/api/storage/v1"
)

// Each example is what an API server takes, and fits the chart: its claims are of the
// chart's class and shared, and there for the pods that name them.
func TestExamples(t *testing.T) {
	text, err := render("../chart", nil)
	if err != nil {
		t.Fatal(err)
	}
	var class string
	for _, o := range read(t, text) {
		if c, ok := o.(*storage.StorageClass); ok {
			class = c.Name
		}
	}
	files, err := filepath.Glob("../examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			all := read(t, string(text))
			claims := map[string]bool{}
			for _, o := range all {
				if c, ok := o.(*core.PersistentVolumeClaim); ok {
					claims[c.Name] = true
					if c.Spec.StorageClassName == nil || *c.Spec.StorageClassName != class {
						t.Errorf("claim %s is of another class than %s", c.Name, class)
					}
					if len(c.Spec.AccessModes) != 1 || c.Spec.AccessModes[0] != core.ReadWriteMany || c.Spec.Resources.Requests.Storage().IsZero() {
						t.Errorf("claim %s: %+v", c.Name, c.Spec)
					}
				}
			}
			labels := map[string]bool{}
			for name, pod := range podsOf(all) {
				checkPod(t, name, pod)
				labels[pod.Labels["app"]] = true
				used := false
				for _, v := range pod.Spec.Volumes {
					if c := v.PersistentVolumeClaim; c != nil {
						used = true
						if !claims[c.ClaimName] {
							t.Errorf("%s: there is no claim %s", name, c.ClaimName)
						}
					}
				}
				if !used {
					t.Errorf("%s uses no volume", name)
				}
			}
			for _, o := range all {
				switch o := o.(type) {
				case *apps.Deployment:
					checkSelector(t, o.Name, o.Spec.Selector.MatchLabels, o.Spec.Template.Labels)
				case *apps.StatefulSet:
					checkSelector(t, o.Name, o.Spec.Selector.MatchLabels, o.Spec.Template.Labels)
				case *policy.PodDisruptionBudget:
					if !labels[o.Spec.Selector.MatchLabels["app"]] {
						t.Errorf("%s is for no pods", o.Name)
					}
				case *core.Service:
					if !labels[o.Spec.Selector["app"]] {
						t.Errorf("%s is for no pods", o.Name)
					}
				}
			}
		})
	}
}
