// Package box is a Kubernetes cluster on one machine that leaves nothing behind:
// etcd, API server, controller manager and scheduler, and nodes, each with kubelet
// and containerd of its own.
//
// # Namespaces
//
// The box is one PID namespace, with network and mounts of its own. Its first
// process dies with whoever started it, and the kernel ends all others with it: so
// nothing outlives a test that fails, times out or is interrupted. What then is
// left, cgroups and the directory of state, the process outside removes.
//
// A node is such a namespace inside of it. Its first process starts containerd and
// kubelet, and starts them again when they end, as a service manager would. To
// kill it is to switch the node off; its disk, a directory, is there when it is
// started again.
//
// # Network
//
// All nodes and pods are on one Ethernet segment, a bridge of the box. Two service
// addresses exist, on the box itself, so that no kube-proxy is needed: that of the
// API server, and that of a name server that knows headless services.
package box
