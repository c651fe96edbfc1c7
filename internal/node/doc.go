// Package node puts store, gossip and fusefs together for one host, and serves
// the admin API on a unix socket.
//
// # Volumes and the catalogue
//
// Which volumes exist is itself a replicated tree, the catalogue: the volume
// store.CatalogueID, held by every node and mounted by none. Its files are
//
//	/volumes/NAME   JSON: id, options, created, by
//	/deleted/ID     empty; the id is refused for ever
//
// They are read and written through the store's own calls, so the catalogue
// has the merge rules, the durability and the transport of every other volume.
// A name that two nodes created at once is two files: the newest shows.
//
// The node that founds the cluster creates the catalogue ready; every other
// one becomes ready by catching up with a ready one, as with any volume.
//
// # Lock order
//
// Node.creations before Node.replicas before Node.mu. None is held during a call that waits for
// the network or the kernel, with one exception: Node.replicas is held while a
// replica is created or dropped.
package node
