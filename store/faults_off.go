//go:build !faults

package store

// checkOpened is called when the store is open, before anybody uses it.
func (*DB) checkOpened() error { return nil }
