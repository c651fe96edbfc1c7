// Package bench measures synapsefs as its users meet it: real daemons, real
// mounts, readers that poll through their own mount. Its benchmarks are run by
// "make bench"; nothing in them is an assertion about time.
package bench
