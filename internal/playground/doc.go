// Package playground runs a cluster of real daemons on loopback, with real
// mounts: for the demo, the tests of the whole, and the benchmarks. It also
// compares trees: see Sum.
package playground
