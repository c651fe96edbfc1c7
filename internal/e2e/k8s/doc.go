// Package k8s tests the driver on a real Kubernetes: see package box for how that
// comes to be on one machine. The objects are those of deploy/manifests, with no
// more changed than where the cluster is founded, and the sidecars are the real ones
// but for two that are not published as Go modules (see sidecar). Needs root; run
// by "make e2e-k8s".
package k8s
