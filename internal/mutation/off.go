//go:build !mutation

package mutation

// Off reports whether a rule is switched off.
func Off(Rule) bool { return false }
