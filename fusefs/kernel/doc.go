// Package kernel is the plumbing between a FUSE filesystem and Linux: it
// mounts and unmounts, moves requests from /dev/fuse to a
// fuse.RawFileSystem and replies back, writes notifications, registers
// backing files for passthrough, and runs the helper process whose real
// system calls make inotify fire for changes that came from elsewhere.
//
// It knows nothing of what the filesystem stores.
//
// # Who may wait for whom
//
// A notification and a helper's call block on locks of the kernel that a
// request in progress may hold (the directory's lock during CREATE, the
// page's lock during READ). Hence two rules for callers:
//
//   - A handler, that is a method called by Serve's goroutines, never waits
//     for a notification or for Helper.Do.
//   - No lock held while calling either is ever taken in a handler.
//
// # The process that serves a mount does not use it
//
// Except for one open at the start (see Conn.Serve), which makes the kernel
// stop sending POLL; without it Go's own poller can wait for itself.
//
// # Lock order
//
// Conn.mu, Helper.mu and Helper.sendMu are leaves: none is held while another is
// taken. Conn.fdMu is held for reading during a system call on the
// descriptor, so only its closing waits for a blocked notification.
package kernel
