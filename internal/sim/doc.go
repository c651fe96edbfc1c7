// Package sim is a deterministic simulator: one seed, one run. It drives the
// real store and the real replication protocol of several nodes on a virtual
// clock, loses, doubles and delays messages, cuts links, kills nodes at any
// write and sets clocks wrong, while a random program works on the trees; then
// it lets all settle and checks the promises P2 to P8.
//
// In a third of the worlds the retention is a few seconds: nodes are away for
// longer, are put out, are restored from backups, collect and begin anew. The
// model never collects and never rebases: it takes the ops that all have by the
// end, those made again included, so that a tree which collected must look like
// one that did not. Of what was made again is checked, besides, that each content
// comes from one that was not known, and that each one not known comes. Checked
// again when the retention has passed over all: nothing is unstable, the journal
// is within its limit, and the trees are the same.
//
// Not simulated: work on a replica while it takes a snapshot; that two replicas
// took different ops of one that was restored; backups of machines that lost
// power.
//
// A world holds nodes and wires and a queue of events; every source of
// randomness and time is drawn from the seed. A program is a list of 64-bit
// words, each of which is a step: a program that fails is made smaller by
// leaving steps out, and fuzzing and rapid draw the same words.
//
// The reference model (model.go) is written apart from store/crdt: it keeps all
// versions and removals, and computes the view from them, without increments.
package sim
