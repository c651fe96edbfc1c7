// Package sim is a deterministic simulator: one seed, one run. It drives the
// real store and the real replication protocol of several nodes on a virtual
// clock, loses, doubles and delays messages, cuts links, kills nodes at any
// write and sets clocks wrong, while a random program works on the trees; then
// it lets all settle and checks the promises P2 to P8.
//
// A world holds nodes and wires and a queue of events; every source of
// randomness and time is drawn from the seed. A program is a list of 64-bit
// words, each of which is a step: a program that fails is made smaller by
// leaving steps out, and fuzzing and rapid draw the same words.
//
// The reference model (model.go) is written apart from store/crdt: it keeps all
// versions and removals, and computes the view from them, without increments.
package sim
