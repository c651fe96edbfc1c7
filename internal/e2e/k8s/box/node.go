package box

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Node is one of the cluster's machines.
type Node struct {
	Name string

	box    *Box
	number int
	images []string
	init   *exec.Cmd     // its first process
	off    chan struct{} // closed when that has ended
}

// nodeVar has a node's number.
const nodeVar = "SYNAPSEFS_BOX_NODE"

// Disk is the directory of all that the node keeps when it is off.
func (n *Node) Disk() string { return filepath.Join(n.box.dir, n.Name) }

// Start switches the node on, with the disk that it had.
func (n *Node) Start(ctx context.Context) error {
	if err := n.configure(); err != nil {
		return err
	}
	n.init = again(roleNode, unix.CLONE_NEWPID|unix.CLONE_NEWNS|unix.CLONE_NEWNET|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC,
		nodeVar+"="+strconv.Itoa(n.number))
	n.init.SysProcAttr.Pdeathsig = 0 // not the thread's matter; the box's end ends it
	n.init.Stdin = nil
	cable, err := n.init.StdinPipe()
	if err != nil {
		return err
	}
	if err := n.init.Start(); err != nil {
		return err
	}
	n.off = make(chan struct{})
	go func() { n.init.Wait(); close(n.off) }()
	if err := n.connect(); err != nil {
		return err
	}
	if err := cable.Close(); err != nil { // the node goes on
		return err
	}
	if err := Until(ctx, time.Minute, n.Name+"'s containerd", func() error {
		return n.Exec("ctr", "version").Run()
	}); err != nil {
		return err
	}
	for _, i := range n.images {
		if out, err := n.Exec("ctr", "-n", "k8s.io", "images", "import", i).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: import %s: %w: %s", n.Name, i, err, out)
		}
	}
	return nil
}

// connect lays the cable from the box's bridge to that of the node.
func (n *Node) connect() error {
	pid, port := strconv.Itoa(n.init.Process.Pid), n.port()
	in := "nsenter --net --target " + pid + " "
	for _, c := range []string{
		"ip link add " + port + " type veth peer name eth0 netns " + pid,
		"ip link set " + port + " master " + bridge + " up",
		in + "ip link set lo up",
		in + "ip link add " + bridge + " type bridge",
		in + "ip link set eth0 master " + bridge + " up",
		in + "ip link set " + bridge + " up",
		in + "ip addr add " + n.IP() + "/16 dev " + bridge,
		in + "ip route add default via " + gateway,
	} {
		if err := run(strings.Fields(c)...); err != nil {
			return err
		}
	}
	return nil
}

// IP is the node's own address.
func (n *Node) IP() string { return nodeIP(n.number) }

func nodeName(number int) string { return "node" + strconv.Itoa(number) }

func nodeIP(number int) string { return "10.213.0." + strconv.Itoa(10+number) }

// Off switches the node off: everything on it dies at once.
func (n *Node) Off() {
	n.init.Process.Kill()
	<-n.off
	run("ip", "link", "del", n.port()) // it goes by itself, but later
}

// port is where the node's cable is in the box's bridge.
func (n *Node) port() string { return "port" + strconv.Itoa(n.number) }

// WaitReady returns when the node takes pods.
func (n *Node) WaitReady(ctx context.Context) error {
	return Until(ctx, 2*time.Minute, n.Name, func() error {
		node, err := n.box.Client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
				return errors.New(c.Message)
			}
		}
		return nil
	})
}

// Exec is a program run on the node, in all its namespaces.
func (n *Node) Exec(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--all", "--target", strconv.Itoa(n.init.Process.Pid), "--"}, args...)...)
}

// Path is how a file of the node is called outside of it.
func (n *Node) Path(file string) string {
	return filepath.Join("/proc", strconv.Itoa(n.init.Process.Pid), "root", file)
}

// Signal sends one to the node's kubelet or containerd, which starts again if it ends.
func (n *Node) Signal(name string, s os.Signal) error {
	pid, err := n.Find(name, "")
	if err != nil {
		return err
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return p.Signal(s)
}

// Find returns the process of the node with a program and its first argument; "": any.
func (n *Node) Find(program, first string) (int, error) {
	entries, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		text, err := os.ReadFile(e)
		args := strings.Split(string(text), "\x00")
		if err != nil || filepath.Base(args[0]) != program || first != "" && (len(args) < 2 || args[1] != first) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(e)))
		if err == nil && descends(pid, n.init.Process.Pid) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("%s: %s %s does not run", n.Name, program, first)
}

// descends tells whether a process has another one as an ancestor.
func descends(pid, from int) bool {
	for pid > 1 && pid != from {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		// Behind the name, which may have anything in it, are state and parent.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if pid, err = strconv.Atoi(fields[1]); err != nil {
			return false
		}
	}
	return pid == from
}

// configure writes what the node's programs read.
func (n *Node) configure() error {
	name := "system:node:" + n.Name
	if _, err := n.box.kubeconfig(name, "system:nodes"); err != nil {
		return err
	}
	kubeconfig, err := os.ReadFile(filepath.Join(n.box.dir, name+".kubeconfig"))
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(n.box.pki.ca())
	if err != nil {
		return err
	}
	for path, text := range map[string]string{
		"etc/kubeconfig":                    string(kubeconfig),
		"etc/ca.crt":                        string(ca),
		"etc/kubelet.yaml":                  fmt.Sprintf(kubeletConfig, cgroup+"/"+n.Name, dnsIP),
		"etc/containerd.toml":               fmt.Sprintf(containerdConfig, n.snapshotter()),
		"etc/cni/10-box.conflist":           fmt.Sprintf(cniConfig, bridge, subnet, n.number, gateway),
		"etc/sys/vm/panic_on_oom":           "0\n",
		"etc/sys/vm/overcommit_memory":      "1\n",
		"etc/sys/kernel/panic":              "10\n",
		"etc/sys/kernel/panic_on_oops":      "1\n",
		"etc/sys/kernel/keys/root_maxkeys":  "1000000\n",
		"etc/sys/kernel/keys/root_maxbytes": "25000000\n",
	} {
		path = filepath.Join(n.Disk(), path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return os.MkdirAll(filepath.Join(n.Disk(), "lib"), 0o755)
}

// snapshotter: overlayfs does not go on itself, as in a container.
func (n *Node) snapshotter() string {
	var st unix.Statfs_t
	if err := unix.Statfs(n.box.dir, &st); err == nil && st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return "native"
	}
	return "overlayfs"
}

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, x509: {clientCAFile: /run/node/etc/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /%s
clusterDNS: [%s]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
evictionHard: {memory.available: 50Mi, nodefs.available: 1%%, imagefs.available: 1%%, nodefs.inodesFree: 1%%}
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
makeIPTablesUtilChains: false
nodeStatusUpdateFrequency: 5s
resolvConf: ""
volumePluginDir: /var/lib/kubelet/volumeplugins
`

// A process may lower its oom_score_adj only with a capability that root lacks in
// some virtual machines: hence restrict_oom_score_adj.
const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "` + Busybox + `"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "%s"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/run/node/etc/cni"
`

const cniConfig = `{"cniVersion": "0.4.0", "name": "box", "plugins": [{"type": "bridge", "bridge": "%s", "ipam": {
	"type": "host-local", "ranges": [[{"subnet": "%s", "rangeStart": "10.213.%d.1", "rangeEnd": "10.213.%[3]d.250", "gateway": "%[4]s"}]],
	"routes": [{"dst": "0.0.0.0/0", "gw": "%[4]s"}]}}]}
`
