// Package store is the truth of one node: the journal of ops, the replicated
// trees, drafts, and what is not yet published. It knows neither the kernel
// nor the network: a local change leaves as a sealed [Batch] to whoever called
// OnSeal (gossip), a remote one enters by [Volume.Merge] and leaves as
// [Changes] to every [Viewer] (a mount).
//
// Commit is a local change, Merge a remote one; both call crdt.Apply in one
// Badger transaction together with the journal.
//
// # Lock order
//
// pruning.turn; Volume.joinMu; draft.mu, draft.io; Volume.sealMu; Volume.mu; Volume.setsMu;
// the transaction. DB.backingMu comes after draft.io and before Volume.draftsMu.
// Volume.nodesMu and Volume.draftsMu are leaves and guard maps
// only; viewers may take them. Viewers are called with Volume.mu held, merge callbacks with no lock,
// seal callbacks with Volume.sealMu: they must not seal.
//
// # State directory
//
//	lock, format          one daemon at a time; the version, outside the database
//	db                    the database; manifest.mark in it says how far its
//	                      manifest reached, so that damage is found
//	content               large content and drafts, see package content
//
// # Key space
//
// One Badger database a node. Integers are big-endian. Values stay below
// Badger's ValueThreshold, so its value log is never used.
//
//	B                       boot id of the machine, whether the last stop was clean, and where;
//	                        written when all replicas have the ids that they need
//	O                       set by every transaction, see kv_badger_power.go
//	V <volume>              replica record: name, replica id, ready
//	b <block hash>          where a block of content lives in this replica's files
//	M <manifest hash> <n>   chunk n of an encoded manifest
//	v <volume> <tag> ...    a volume's own:
//	  i <ino>               crdt.Inode
//	  e <dir> <hash> <name> claims of a name; hash orders the listing and is its cookie
//	  g <head>              directory set
//	  m <stamp> <replica> <n>  directory move
//	  c <ino> <version>     inline bytes of a version
//	  h <ino> <version>     crdt.Version that others replaced: history
//	  o <dir> <hash> <name> <ino> <link>  link that died at a name
//	  l 0 <ino>, l 1 <dir> <hash> <name>  where conflict records may be
//	  u <seq>               own op that is in no batch yet
//	  j <replica> <first>   sealed batch
//	  a <replica>           version vector entry
//	  k <replica>           identity record, opaque here
//	  t <ino>               the inode has something removed, to be collected one day
//	  z                     what was collected, and which replicas are out
//	  y <replica>           roster: what a replica last said of itself, signed
//	  n <node>              switched node id
//	  d <node>              draft
//	  r <ino>               removals that wait for an inode's publication
//	  w <handle>            write handle: its node and mount
//	  x <slot>              request done (exactly-once)
//	  A <ino>               access time, of this node alone
//	  s r <position>        staged range of a snapshot, by where it ends
//	  s t <n>               staged batches of its tail
//	  S                     all of it is here, and how much is joined
package store
