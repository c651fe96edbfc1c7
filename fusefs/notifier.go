package fusefs

import (
	"fmt"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// notifier is the kernel's ear: kernel.Conn, or a recorder in tests. Every
// method may block on locks that a request in progress holds.
type notifier interface {
	InvalInode(node uint64, offset, length int64) error
	InvalEntry(parent uint64, name string) error
	Delete(parent, child uint64, name string) error
	Prune(nodes ...uint64) error
	KernelKnows(node uint64) (bool, error)
}

var _ notifier = (*kernel.Conn)(nil)

// dropName makes the kernel forget a name. It silently unmounts what is
// mounted below a directory, so a directory's name must never come here.
func dropName(n notifier, dir kernel.Dir, name string, shown crdt.Entry) error {
	if shown.Kind == crdt.KindDir {
		panic(fmt.Sprintf("assertion failed: invalidation of the directory %d at %q", shown.Ino, name))
	}
	return n.InvalEntry(dir.Node, name)
}

// dropVersion makes the kernel forget that a name is a file's old version, and
// tells the watchers of the old version that it is gone.
func dropVersion(n notifier, dir kernel.Dir, name string, old store.NodeID) error {
	return n.Delete(dir.Node, uint64(old), name)
}
