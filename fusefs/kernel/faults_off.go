//go:build !faults

package kernel

// beforeReply is called when a request is done and not answered yet.
func beforeReply([]byte) {}
