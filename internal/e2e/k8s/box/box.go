package box

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Addresses of the segment: the box, then nodes at node0+N, then pods of node N at
// 10.213.N.x. It is in no namespace but the box's.
const (
	subnet  = "10.213.0.0/16"
	gateway = "10.213.0.1"
	apiIP   = "10.96.0.1"
	dnsIP   = "10.96.0.10"
	service = "10.96.0.0/16"
	apiURL  = "https://" + apiIP
	bridge  = "br0"
)

// Box is a running cluster.
type Box struct {
	Client *kubernetes.Clientset
	Config *rest.Config
	Nodes  []*Node

	dir string // of state: all of it goes with the box
	bin string // of the programs of Kubernetes
	pki *pki
}

// Start brings up a cluster with so many nodes, and returns when all are ready. It
// is to be called inside of Main, once. Images are archives that all nodes load.
func Start(ctx context.Context, nodes int, images ...string) (*Box, error) {
	b := &Box{dir: Dir(), bin: os.Getenv(binVar)}
	if b.dir == "" {
		return nil, errors.New("box: Start outside of Main")
	}
	var err error
	if b.pki, err = newPKI(filepath.Join(b.dir, "pki")); err != nil {
		return nil, err
	}
	for _, c := range []string{
		"ip link set lo up",
		"ip link add " + bridge + " type bridge",
		"ip link set " + bridge + " up",
		"ip addr add " + gateway + "/16 dev " + bridge,
		"ip addr add " + apiIP + "/32 dev " + bridge,
		"ip addr add " + dnsIP + "/32 dev " + bridge,
	} {
		if err := run(strings.Fields(c)...); err != nil {
			return nil, err
		}
	}
	if err := b.control(ctx); err != nil {
		return nil, err
	}
	if err := b.serveDNS(ctx); err != nil {
		return nil, err
	}
	for i := range nodes {
		n := &Node{Name: nodeName(i + 1), box: b, number: i + 1, images: images}
		b.Nodes = append(b.Nodes, n)
		if err := n.Start(ctx); err != nil {
			return nil, err
		}
	}
	for _, n := range b.Nodes {
		if err := n.WaitReady(ctx); err != nil {
			return nil, err
		}
	}
	return b, Until(ctx, time.Minute, "the default service account", func() error {
		_, err := b.Client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// control starts etcd and what runs on the control plane's host.
func (b *Box) control(ctx context.Context) error {
	admin, err := b.kubeconfig("admin", "system:masters")
	if err != nil {
		return err
	}
	api, err := b.pki.issue("apiserver", "", apiIP, gateway)
	if err != nil {
		return err
	}
	account, err := b.pki.key("accounts")
	if err != nil {
		return err
	}
	const etcd = "http://127.0.0.1:2379"
	const peer = "http://127.0.0.1:2380"
	if err := b.daemon("etcd", "--data-dir="+filepath.Join(b.dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+etcd, "--advertise-client-urls="+etcd, "--listen-peer-urls="+peer,
		"--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer); err != nil {
		return err
	}
	if err := b.daemon("kube-apiserver", "--etcd-servers="+etcd, "--bind-address=0.0.0.0", "--secure-port=443",
		"--advertise-address="+gateway, "--service-cluster-ip-range="+service, "--allow-privileged",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--profiling=false",
		"--client-ca-file="+b.pki.ca(), "--tls-cert-file="+api.cert, "--tls-private-key-file="+api.key,
		"--kubelet-client-certificate="+admin.cert, "--kubelet-client-key="+admin.key,
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+account, "--service-account-signing-key-file="+account); err != nil {
		return err
	}
	if b.Config, err = clientcmd.BuildConfigFromFlags("", b.Kubeconfig()); err != nil {
		return err
	}
	b.Config.QPS, b.Config.Burst = 100, 100
	if b.Client, err = kubernetes.NewForConfig(b.Config); err != nil {
		return err
	}
	if err := Until(ctx, 3*time.Minute, "the API server", func() error {
		return b.Client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	}); err != nil {
		return err
	}
	if err := b.daemon("kube-controller-manager", "--kubeconfig="+b.Kubeconfig(), "--leader-elect=false",
		"--profiling=false", "--root-ca-file="+b.pki.ca(), "--service-account-private-key-file="+account,
		"--use-service-account-credentials", "--node-monitor-grace-period=20s"); err != nil {
		return err
	}
	return b.daemon("kube-scheduler", "--kubeconfig="+b.Kubeconfig(), "--leader-elect=false", "--profiling=false")
}

// Dir is a directory that goes with the box.
func Dir() string { return os.Getenv(dirVar) }

// Kubeconfig is the file with which one is the cluster's administrator.
func (b *Box) Kubeconfig() string { return filepath.Join(b.dir, "admin.kubeconfig") }

// Kubectl runs it as the administrator, with stdin, and returns what it printed.
func (b *Box) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+b.Kubeconfig(), "HOME="+b.dir)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out), err
}

// Logs is the directory of what all programs of the cluster say.
func (b *Box) Logs() string { return filepath.Join(b.dir, "log") }

// daemon starts a part of the control plane. Nobody ends it but the box's end.
func (b *Box) daemon(name string, args ...string) error {
	log, err := create(filepath.Join(b.Logs(), name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(b.bin, name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	go cmd.Wait()
	return nil
}

// Until asks until there is no error, which is returned when the time is over.
func Until(ctx context.Context, d time.Duration, what string, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not in %v: %w", what, d, err)
		case <-tick.C:
		}
	}
}

func run(args ...string) error {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func create(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
}
