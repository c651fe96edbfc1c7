// Package version says which build this is.
package version

import "runtime/debug"

// set by the linker: -X .../internal/version.set=v1.2.3
var set string

// String is the version: what the Makefile found, else the module's.
func String() string {
	if set != "" {
		return set
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
