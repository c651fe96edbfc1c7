// Package fusefs is the kernel's side of synapsefs: FUSE requests become calls
// of a [store.Volume], and what the volume learned from elsewhere becomes
// invalidations and genuine inotify events. The plumbing (mounting, the device
// loop, notifications, the process that makes system calls for us) is in
// fusefs/kernel.
//
// # What the kernel caches
//
// Everything, for ever: entries, negative entries, attributes, pages and
// listings are given out with timeouts of years, so a quiet tree is read
// without asking us. Whatever changes behind the kernel's back must therefore
// be revealed. Three rules keep it from caching the old state for ever:
//
//   - First the state, then the notification. Never the other way.
//   - What the kernel knows is counted (lookups) in the same critical section
//     that checks that nothing changed since the reply was computed. See
//     shown.know.
//   - The content behind a node id that the kernel knows never changes from
//     outside. The new version gets a new node id, the old one keeps the old
//     version whole until the kernel forgets it (0 torn reads, measured; in
//     place: up to 12 %). attr.Ino stays the inode number. A writer on this
//     node is not outside, whatever his mount: he changes the file in place, as
//     on a local disk, and the other mounts drop their pages when he closes.
//
// # What the kernel reads and writes itself
//
// New files, files that are rewritten from nothing or appended to, and large
// files that are one file of the store, are opened by passthrough: the kernel
// reads and writes a [store.Backing] and we hear of open, flush and release
// alone. From a node's first open to its last release there is one way, and one
// file, for all (FS.enter); a version from elsewhere is another node. What is
// written so is found by the file's times, at flush, release and stat, and is
// published when nobody has it open or mapped for writing any more. Who opens for
// writing what others read so, and cannot map it, gets FOPEN_DIRECT_IO besides:
// his calls come to us, and we know what he changed.
//
// On a read-only mount the kernel refuses writers by itself (kernel.Conn.Remount),
// so it is not asked for opens at all, and there is no passthrough.
//
// # Shown and merged
//
// What the store has merged is not yet what programs on this node see. A name
// that a peer changed in a directory that the kernel knows is pending: lookups
// and listings answer with what was shown before, until the revealer has made
// the helper process do the same system call on the mount (create, mkdir,
// rename, unlink ...). Inside the handler of that call, under the kernel's own
// locks, the name becomes shown: dcache, listing and inotify event change at
// once. What the kernel does not know is shown as soon as it is merged.
//
// A name at which one thing takes the place of another is at no moment without
// both, whatever is to be shown elsewhere too and in whatever order: what comes
// is renamed over what was or, where that goes on to another name or one of the
// two is a directory, exchanged with it (plan). Where the helper is not to be
// had, the state changes at once and the kernel is notified.
//
// A local system call acts on the merged state. Its own names are revealed by
// the call itself. If it meets a name that is still pending, it either means
// the same thing (unlink of what is removed already: done), or the name is
// shown now and the call is answered ESTALE, at which the kernel looks the
// name up again and repeats the call once.
//
// # Who may wait for whom
//
// Each of these was provoked as a deadlock:
//
//   - A handler that waits for a notification or a reveal in the same directory:
//     both wait for the directory's lock, which the kernel holds during the
//     handler's request. Hence handlers only ever queue work; one goroutine, the
//     revealer, tells the kernel.
//   - A lock held during a notification or reveal and taken by a handler: the
//     same, in two steps. Hence the revealer holds no lock while it calls the
//     kernel.
//   - A peer that acknowledges a change only after its reveal: deadlock through
//     two nodes. Merge never waits for us.
//   - The daemon using its own mount: only the helper process does.
//   - InvalEntry of a directory's name silently unmounts what is mounted below
//     it: directories change by helper calls only. See notifier.
//
// A helper call that does not return within a second is left to itself. What
// concerns its directory waits for it; a spare helper, of which there are up to
// three, makes the calls for others (caller). Renames between directories exclude
// each other in the kernel: while one is blocked, others are shown by a
// notification. So is everything if no helper is left, which is counted.
// A handler may wait for a commit in progress (shown.know): commits wait for
// no kernel.
//
// # Lock order
//
// store.Volume's locks, then shown.mu, then workQueue.mu or a leaf of the
// volume (Volume.Node, Volume.Kept). shown.mu is never
// held during a call of the volume or the kernel. revealer.mu is a leaf.
// openFile.mu comes before all of these, and FS.mu is a leaf.
package fusefs
