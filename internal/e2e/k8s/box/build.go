package box

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// What is built: Kubernetes from a module of its own, and the sidecars, which want
// other versions of the same libraries, from this one.
const (
	kubeVersion = "v1.34.4"
	kubeModule  = "kube"
	csiModules  = "github.com/kubernetes-csi/"
)

var (
	kubeParts = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"}
	sidecars  = []string{
		csiModules + "external-attacher/v4/cmd/csi-attacher",
		csiModules + "external-provisioner/v6/cmd/csi-provisioner",
		csiModules + "external-resizer/v2/cmd/csi-resizer",
	}
)

// Program is the path of one that was built for the box: of Kubernetes and its
// sidecars, or a package of this module.
func Program(name string) string {
	own := filepath.Join(Dir(), "bin", name)
	if _, err := os.Stat(own); err == nil {
		return own
	}
	return filepath.Join(os.Getenv(binVar), name)
}

// programs returns the directory that has them, in the cache: building takes minutes,
// and what they are is decided by the two go.sum.
func programs(cache string) (string, error) {
	key := sha256.New()
	for _, f := range []string{"go.sum", kubeModule + "/go.sum", kubeModule + "/main.go"} {
		text, err := os.ReadFile(f)
		if err != nil {
			return "", fmt.Errorf("run it in the module's directory: %w", err)
		}
		key.Write(text)
	}
	fmt.Fprint(key, runtime.Version(), runtime.GOARCH, sidecars)
	dir := filepath.Join(cache, fmt.Sprintf("bin-%x", key.Sum(nil)[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	fmt.Println("box: building Kubernetes", kubeVersion, "and its sidecars, once: 10 minutes on two cores")
	minor := strings.Split(kubeVersion, ".")[1]
	const version = " -X k8s.io/component-base/version.git"
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := goBuild(kubeModule, tmp+"/", version+"Version="+kubeVersion+version+"Major=1"+version+"Minor="+minor, "."); err != nil {
		return "", err
	}
	for _, part := range kubeParts {
		if err := os.Symlink("kube", filepath.Join(tmp, part)); err != nil {
			return "", err
		}
	}
	if err := goBuild(".", tmp+"/", "", sidecars...); err != nil {
		return "", err
	}
	old, _ := filepath.Glob(filepath.Join(cache, "bin-*"))
	if err := os.Rename(tmp, dir); err != nil {
		return "", err
	}
	for _, d := range old {
		if d != tmp {
			os.RemoveAll(d)
		}
	}
	return dir, nil
}

// goBuild builds packages of a module, static, into out.
func goBuild(module, out, ldflags string, packages ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w" + ldflags, "-o", out}, packages...)...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s in module %s: %w", strings.Join(packages, " "), module, err)
	}
	return nil
}
