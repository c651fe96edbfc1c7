// Command render writes the chart, with its defaults, as plain manifests.
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
)

func main() {
	text, err := render("chart", nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
	fmt.Print(text)
}

// name is that of the release and of the namespace of the plain manifests.
const name = "synapsefs"

const head = `# Made from the chart by "make manifests": change that. Before it is applied, make the
# keys and the Secret that has them, and say which node founds the cluster (founder):
#
#   synapsefs keys init --dir ca
#   kubectl -n synapsefs create secret generic synapsefs-keys --from-file=ca
apiVersion: v1
kind: Namespace
metadata:
  name: synapsefs
  labels:
    pod-security.kubernetes.io/enforce: privileged
`

// render returns the objects of the chart at dir, those of a file after the other.
func render(dir string, values map[string]any) (string, error) {
	c, err := loader.Load(dir)
	if err != nil {
		return "", err
	}
	all, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: name, Namespace: name, Revision: 1, IsInstall: true}, nil)
	if err != nil {
		return "", err
	}
	files, err := engine.Engine{Strict: true}.Render(c, all)
	if err != nil {
		return "", err
	}
	var paths []string
	for path := range files {
		if strings.HasSuffix(path, ".yaml") {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	out := head
	for _, path := range paths {
		out += "---\n" + strings.TrimSpace(files[path]) + "\n"
	}
	return out, nil
}
