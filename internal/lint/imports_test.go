package lint

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/synapsefs/synapsefs/"

// mayImport says which of our own packages a package may import. A key or a
// value that ends in "/..." stands for what is below it, too. What is not here
// may import nothing of ours. Test files are free.
var mayImport = map[string][]string{
	"cmd/synapsefs": {"csi", "internal/node", "internal/wire", "internal/admin", "internal/config",
		"internal/keeper", "internal/keys", "internal/playground", "internal/version", "fusefs/kernel"},
	"csi":             {"internal/node", "internal/version", "store"},
	"internal/node":   {"fusefs/...", "gossip", "store/...", "internal/wire", "internal/admin", "internal/config", "internal/keeper", "internal/keys", "internal/version"},
	"fusefs/...":      {"fusefs/...", "store", "store/crdt"},
	"gossip/...":      {"internal/mutation", "gossip/...", "store", "store/crdt", "store/content", "internal/wire", "internal/keys", "internal/version"},
	"store":           {"store/crdt", "store/content", "internal/wire", "internal/mutation"},
	"store/crdt":      {"internal/mutation"},
	"store/content":   {"store/crdt"},
	"internal/admin":  {"internal/wire"},
	"internal/config": {},
	"internal/wire":   {},
	"internal/keys":   {},
	"internal/keeper": {}, // small, and almost never a reason to start another
	// Nobody's product: see onlyTestsUse.
	"internal/playground": {"internal/...", "fusefs/kernel"},
	"internal/fstest":     {"internal/...", "fusefs/...", "gossip", "store/..."},
	"internal/sim":        {"internal/...", "fusefs/...", "gossip", "store/..."},
	"internal/e2e":        {"internal/...", "store", "store/crdt"},
	"internal/bench":      {"internal/...", "fusefs/...", "gossip", "store/..."},
}

// onlyHere says which packages, or whole trees of ours, may import a foreign
// module. Test files are free.
var onlyHere = map[string][]string{
	"github.com/hanwen/go-fuse":              {"fusefs/..."},
	"github.com/hashicorp":                   {"gossip/..."},
	"github.com/container-storage-interface": {"csi"},
	"github.com/dgraph-io":                   {"store"},
	"github.com/google/btree":                {"store"},
	"github.com/klauspost":                   {"store/content"},
	"github.com/spf13/cobra":                 {"cmd/synapsefs"},
	"github.com/spf13/pflag":                 {"internal/config"},
	"go.yaml.in/yaml":                        {"internal/config", "internal/playground"},
	"google.golang.org/grpc":                 {"gossip/...", "internal/wire", "internal/admin", "internal/node", "csi", "cmd/synapsefs"},
	"google.golang.org/protobuf":             {"gossip/...", "internal/wire", "csi"},
	"github.com/zeebo/blake3":                {"store", "store/content", "store/crdt", "internal/playground", "internal/sim", "gossip/..."},
	"pgregory.net/rapid":                     {"internal/sim"},
	"go.uber.org/goleak":                     {"internal/fstest"},
	"golang.org/x/sys":                       {"store", "store/content", "fusefs/...", "internal/node", "internal/keeper", "internal/playground", "internal/fstest"},
	"golang.org/x/net":                       {"gossip/..."},
	"golang.org/x/sync":                      {"store", "store/content", "gossip/...", "fusefs/...", "internal/node", "internal/playground", "cmd/synapsefs"},
	"github.com/cespare/xxhash/v2":           {"store", "store/content"},
}

// pure packages use of the standard library neither I/O nor clock nor
// goroutines.
var impure = map[string][]string{
	"store/crdt": {"os", "net", "time", "sync", "context", "log", "io/fs", "path/filepath", "math/rand", "crypto/rand"},
}

// matches reports whether pkg is pattern, or below it if it ends in "/...".
func matches(pkg, pattern string) bool {
	tree, below := strings.CutSuffix(pattern, "/...")
	return pkg == tree || below && strings.HasPrefix(pkg, tree+"/")
}

func matchesAny(pkg string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(pkg, p) })
}

// allowed returns what pkg may import of ours.
func allowed(pkg string) []string {
	var all []string
	for key := range maps.Keys(mayImport) {
		if matches(pkg, key) {
			all = append(all, mayImport[key]...)
		}
	}
	return all
}

// foreign returns the row of onlyHere for an import path.
func foreign(path string) (users []string, known bool) {
	for prefix, users := range onlyHere {
		if path == prefix || strings.HasPrefix(path, prefix+"/") {
			return users, true
		}
	}
	return nil, false
}

// verdict says what is wrong with pkg importing path, or "".
func verdict(pkg, path string) string {
	if ours, ok := strings.CutPrefix(path, module); ok {
		if !matchesAny(ours, allowed(pkg)) {
			return "the table mayImport does not let it"
		}
		return ""
	}
	first, _, _ := strings.Cut(path, "/")
	if !strings.Contains(first, ".") {
		if slices.Contains(impure[pkg], path) {
			return "the package is pure: no I/O, no clock, no goroutine"
		}
		return ""
	}
	users, known := foreign(path)
	switch {
	case !known:
		return "the module is not in the table onlyHere"
	case !matchesAny(pkg, users):
		return "only " + strings.Join(users, ", ") + " may"
	}
	return ""
}

func TestImports(t *testing.T) {
	root := filepath.Join("..", "..")
	seen := 0
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && path != root && (strings.HasPrefix(e.Name(), ".") || e.Name() == "testdata") {
			return fs.SkipDir
		}
		if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != root {
			return fs.SkipDir // a module of its own: nothing of it gets into the program
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		seen++
		return checkFile(t, root, path)
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen == 0 {
		t.Error("no source was found")
	}
}

func checkFile(t *testing.T, root, path string) error {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		return err
	}
	dir, err := filepath.Rel(root, filepath.Dir(path))
	if err != nil {
		return err
	}
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return err
		}
		if problem := verdict(filepath.ToSlash(dir), imported); problem != "" {
			t.Errorf("%s imports %s: %s", path, imported, problem)
		}
	}
	return nil
}

// The table itself: the arrows that must never be.
func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		pkg, path string
		ok        bool
	}{
		{"store", module + "store/crdt", true},
		{"store/crdt", module + "store", false},
		{"store", module + "gossip", false},
		{"store", module + "fusefs", false},
		{"fusefs", module + "gossip", false},
		{"gossip", module + "fusefs", false},
		{"fusefs/kernel", module + "store", true},
		{"internal/wire", module + "store", false},
		{"internal/node", module + "gossip", true},
		{"cmd/synapsefs", module + "store", false},
		{"gossip", "github.com/hashicorp/memberlist", true},
		{"store", "github.com/hashicorp/memberlist", false},
		{"gossip", "github.com/dgraph-io/badger/v4", false},
		{"gossip", "github.com/hanwen/go-fuse/v2/fuse", false},
		{"store/crdt", "time", false},
		{"store", "time", true},
		{"store", "example.com/unheard/of", false},
	} {
		if got := verdict(tt.pkg, tt.path); (got == "") != tt.ok {
			t.Errorf("%s imports %s: %q, want allowed: %v", tt.pkg, tt.path, got, tt.ok)
		}
	}
}
