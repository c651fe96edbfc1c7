// Package gossip is the peers' side of a node: who the members of the cluster
// are, and how their replicas of a volume come to hold the same operations.
//
// # Members and links
//
// Membership and failure detection are memberlist's (SWIM: Das, Gupta,
// Motivala, 2002), always encrypted with the cluster's keyring. It carries only
// small metadata: cluster id, protocol versions, the address of the replica
// service. Each node dials the replica service of every other member over
// mutually authenticated TLS 1.3: two links for a pair of nodes, each carrying
// the dialer's frames. Up to about eight nodes the broadcast tree of Plumtree
// (Leitão, Pereira, Rodrigues, 2007) is everybody, and so it is here.
//
// A name belongs to the live node that the members knew first. A second one is
// kept out, without harm to the first, until the first is gone (names.go).
//
// # The protocol
//
// [Protocol] is a state machine: events in, effects out, no clock, goroutine,
// socket or store inside. [Cluster] is the machinery around it, and so is the
// simulator.
//
// Eager push: a batch that the store sealed goes at once to every linked peer
// that holds the volume. A batch that comes is merged if it is the next of its
// origin and what it depends on is applied; else it waits in a bounded buffer.
//
// Anti-entropy: peers tell each other their version vectors ([Digest]) when a
// link comes up, after merges (at most every 20 ms), and again a few times
// after the last change. What a peer has and this node lacks for more than a
// moment is pulled ([Pull]) in bounded portions. Any loss, duplication or
// reordering of pushes is healed by that, and a node relays what it merged to
// those who cannot reach its origin. A gap that the journal does not cover, and
// a joiner with nothing at all, take a snapshot.
//
// Content larger than travels in an op is fetched before its batch is merged;
// batches that do not depend on it go on.
//
// Readiness (P11): a replica that was never ready becomes ready when it has
// applied all that one ready peer had when it said so. Peers that are not ready
// do not count, so two empty joiners never satisfy each other.
//
// # Trust
//
// A batch is signed by its origin's node, over a hash chain, and a replica id
// is bound to a node by an identity record under the cluster's CA: relays need
// not be trusted. So is what a replica says of itself in the roster (word.go). A
// batch or a word whose signature is wrong, or a replica shown by a node that it
// is not of, ends the link it came by.
//
// # Locks
//
// Lock order: Cluster.mu (around each step of the protocol and its effects),
// then link.mu, then queue.mu, worker.mu, membership.mu and refusals.mu, which
// are leaves. Nothing blocks under Cluster.mu: no store call, no I/O, no
// memberlist call. Callbacks of
// memberlist come with its locks held and take membership.mu only. The store's
// OnSeal callback takes Cluster.mu.
package gossip
