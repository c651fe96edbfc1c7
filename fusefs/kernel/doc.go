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
// Except for one open at the start (see Conn.Serve) of a mount that nobody
// keeps, which makes the kernel stop sending POLL; without it Go's own poller
// can wait for itself.
//
// # A mount outlives the process that serves it
//
// With Options.Keeper another process holds the mount's descriptor, too. The
// connection then goes on when this process dies: callers wait, and the next
// one, by Attach and Serve, answers INIT to itself as it was answered before,
// has the kernel send again what was read and not answered, and reads on. What
// it has to obey:
//
//   - Never while the one before may still answer (Drain, or its end).
//   - A request with bit 63 of Unique set was sent again and may have been done:
//     (Epoch, Unique without that bit) is how to find out.
//   - What was answered must have left the process before. Node ids, handles
//     and readdir cookies mean the same in the next one. FORGET is never sent
//     again.
//   - It does not use its mounts at all. A process that is killed in a call on a
//     mount of its own does not end before somebody answers, and nobody may
//     before it has ended.
//
// INTERRUPT is refused for good before INIT is answered: see refuseInterrupts.
//
// # Lock order
//
// Conn.mu, Helper.mu and Helper.sendMu are leaves: none is held while another is
// taken. Conn.fdMu is held for reading during a system call on the
// descriptor, so only its closing waits for a blocked notification.
package kernel
