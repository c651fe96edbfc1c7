// Package e2e tests the whole: the real binary, several daemons on this host,
// real mounts.
package e2e
