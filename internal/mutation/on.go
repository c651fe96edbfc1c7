//go:build mutation

package mutation

import "os"

var off = Rule(os.Getenv("SYNAPSEFS_MUTATION"))

// Off reports whether a rule is switched off: by the environment.
func Off(r Rule) bool { return r == off }
