// Package keeper holds mounts so that they outlive their daemon (P9): a tiny
// process that has a copy of each mount's /dev/fuse descriptor and what the next
// daemon must know to go on, and that daemon's side of the talk with it. It
// knows nothing of what is mounted and reads nothing from the kernel.
//
// # The process
//
// "synapsefs keeper --socket PATH", a mode of the same program, started by Start
// when there is none. It is nobody's child and leads a session of its own, so
// that signals for the daemon's group miss it; SIGINT and SIGHUP mean nothing to
// it, SIGTERM ends it only when it holds nothing. It ends by itself when it has
// held nothing and nobody has been connected for IdleTime. One lives per socket:
// a lock on PATH.lock says which. What it logs goes to PATH.log.
//
// It lives in the mount namespace of who starts it, and must be started before
// the mounts are made: a copy of the namespace would hold copies of the mounts,
// which no umount outside ends. It uses no mount: its directory is the root.
//
// Were keeper and daemon both killed, the mounts would end as without a keeper.
// If the keeper alone dies, Client.Gone tells; a new one is given all mounts
// again by Put.
//
// # Who serves
//
// At most one process serves the mounts, since two would do each request twice.
// That is the owner: who has sent attach, from when it is answered until the
// process has ended, which its pidfd says (SO_PEERPIDFD, Linux 6.5). The end
// of the connection says less: a process may close it and go on, and one that
// waits in the kernel for a disk may answer yet when its connection is gone. It
// also is right in another pid namespace, where a number would mean nothing.
// Without pidfds the end of the connection has to do. The next attach waits. One
// process may attach again, after it lost the connection or became another
// program by exec.
//
// # Messages
//
// Each is one packet of a SOCK_SEQPACKET socket: JSON, of at most MaxMessage
// bytes, and for get and put one descriptor beside it. Each request is answered
// by one packet, when the keeper has what it was told.
//
//	attach               epochs of all mounts, once the caller is the owner
//	list                 the same, for anybody
//	get     epoch        one mount, with its descriptor for the owner
//	put     mount, fd    keep it; owner, as all below but the last
//	init    epoch, data  INIT was read
//	reply   epoch, data  its reply is made
//	done    epoch        its reply is written
//	drop    epoch        forget it; refused as long as the connection lives
//	release dir          close the descriptors of the mounts on dir; for the owner,
//	                     or for anybody if there is none
//
// Only processes of the keeper's own user may connect (SO_PEERCRED). The keeper
// looks itself whether connections have ended and forgets those that have.
package keeper
