// Package mutation names the rules that a test can switch off, one at a time,
// to see that the simulator notices. In all builds without the tag "mutation"
// every rule is on, and the questions cost nothing.
package mutation

// A Rule is one that can be switched off.
type Rule string

// The rules.
const (
	CausalWait      Rule = "causal-wait"       // an op waits for what it depends on
	Via             Rule = "via"               // a version revives only the link it was published through
	UnionOfRemovals Rule = "union-of-removals" // removals add up
	Leaves          Rule = "leaves"            // versions that nobody replaced are kept
	Base            Rule = "base"              // a version replaces what its draft began from
	HiddenLinks     Rule = "hidden-links"      // a rename removes what was hidden at its source
	WholeSet        Rule = "whole-set"         // a rename moves all directories that show as one
	Confirm         Rule = "confirm"           // who works in what lives by others makes it live by itself
	DroppedDrafts   Rule = "dropped-drafts"    // a close does not bring back what was unlinked here
	CycleSkip       Rule = "cycle-skip"        // a move under itself is skipped
	SkipTogether    Rule = "skip-together"     // with the other moves of its op
	MoveOrder       Rule = "move-order"        // moves count in the order of their stamps
	NewID           Rule = "new-id"            // after an unclean boot
	Idempotence     Rule = "idempotence"       // a batch is merged once
	Retention       Rule = "retention"         // a tombstone waits until all know it, and for the retention
)

// Rules lists them.
var Rules = []Rule{
	CausalWait, Via, UnionOfRemovals, Leaves, Base, HiddenLinks, WholeSet, Confirm, DroppedDrafts, CycleSkip, SkipTogether,
	MoveOrder, NewID, Idempotence, Retention,
}
