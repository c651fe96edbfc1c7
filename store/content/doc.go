// Package content keeps the bytes of a replica's files: immutable files that
// hold hashed blocks, manifests that list a version's blocks, and drafts, the
// bytes of a file while somebody writes it.
//
// # On disk
//
//	files/xx/<id>   immutable; xx is the first byte of the id in hex
//	drafts/<name>   sparse, each byte at its own offset in the file
//	tmp/            being written; emptied by [Open]
//	held            what kernels have open without us, see [Held]
//
// A block is 1 MiB of a file at an offset that is a multiple of 1 MiB; a
// file's last block may be shorter. Where a block lives is told by an [Index],
// which the store keeps. The order of publishing is: file in place, blocks
// into the index, manifest into the index. A file that is in place is taken away
// only by [Store.Reclaim], which is told what the index names.
//
// # Manifest, encoded
//
//	byte     version, 1
//	uvarint  size of the file in bytes
//	runs     uvarint blocks skipped (holes), uvarint blocks listed (> 0),
//	         32 bytes of BLAKE3-256 for each
//
// Blocks after the last run are holes. A block of zeros is always a hole, runs
// that touch are one run and uvarints are minimal: equal content has one
// encoding, and the BLAKE3-256 of it names the content.
//
// # Drafts and crashes
//
// A hole in a draft file, at the granularity of the file system's blocks,
// shows the base below the draft's base limit and zeros above it. So a block
// that has base bytes under it holds zeros only as written bytes, never as a
// hole. Before the first write to such a block the whole block is copied from
// the base, merged with the write, in one pwrite (copy-up). A copy-up that a
// crash cuts short leaves data where it got to and holes elsewhere, and holes
// still mean the base: [Store.OpenDraft] fills them, and nothing is lost. The
// file's size is the draft's size.
//
// A draft that was published as a whole shares its inode with the immutable
// file (a hard link) until [Draft.Remove]. If the caller died before it
// recorded the publication, [Store.OpenDraft] sees the second link and gives
// the draft a file of its own.
//
// A [DirectDraft] is written by kernels, which do not say when: what it holds is
// asked of its file. It has no base, and whether it was closed after its last
// write is told by its mtime, which the caller records at the close.
//
// # Locks
//
// Lock order: DirectDraft.mu, Draft.publishing, Draft.mu, Incoming.mu, placed.mu, then
// fileCache.mu, which is a leaf and not held during I/O other than open and close. The Index is called with Draft.mu held.
package content
