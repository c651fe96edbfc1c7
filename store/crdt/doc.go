// Package crdt holds the merge rules of a replicated tree as pure functions:
// no I/O, no goroutine, no clock, no randomness of its own. Local and remote
// operations go through the same [Apply], so that convergence (P4) is a
// property of this package alone.
//
// # The state
//
// The replicated state is a set of versions and removals. An [Op] adds a few
// of them, all or none; nothing is overwritten. What users see, the view, is a
// function of that set. The state is kept in a compact form: an [Inode] record
// holds only the leaves of each version set (the versions that no other
// version replaced), and each leaf the removals that name it. A file that
// nobody contests is one record with one link, one place and one content.
//
// What stops being a leaf, and a link that dies, is handed to the state's [Past]
// and never read again to decide the view. Conflict records are derived from
// the leaves that lost; the state's [Contests] say where to look for them, and
// [EachRecord] finds them. Dismissing one marks a leaf and changes no view.
//
// Ops must be applied in causal order and each once; the store's version
// vector and the gossip protocol's wait-for-deps buffer see to that.
//
// # Words
//
// A link is one name of an inode: what rename moves and unlink removes. A
// place is where a link is (parent, name). A leaf is open for a link if no
// removal of that link names it. A link is live if it has an open place leaf,
// or an open content leaf published through it, or is a directory in which a
// live link is placed. A claim is a live link seen from the name it stands at.
// All live directories at one name form a directory set and show as one; the
// set's head is the member with the oldest place.
//
// The places of directories are a fold of all directory moves in stamp order,
// a move that would put a directory under itself being skipped together with
// the other moves of its op (Kleppmann, Mulligan, Gomes, Beresford: "A
// highly-available move operation for replicated trees", 2021).
package crdt
