package fusefs

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// aliasNode marks node ids of directories made here because the directory's
// own number means another one to the kernel.
const aliasNode store.NodeID = 1 << 62

const rootNode = store.NodeID(crdt.RootIno)

// nameKey is a name of a directory set, which its head names.
type nameKey struct {
	dir  crdt.Ino
	name string
}

// pendingName is a name whose change is merged and not shown yet.
type pendingName struct {
	shown, merged crdt.Entry
	// by is a name at which merged was made before it went on to this one;
	// none if it is zero.
	by nameKey
}

// knownNode is what the kernel has of us: a node id it has looked up.
type knownNode struct {
	ino      crdt.Ino
	lookups  uint64
	before   bool // known since before this daemon: how often it was looked up is not known
	dir      bool
	born     uint32 // generation, as last told
	mode     uint32 // as last told, for telling what a change changed
	uid, gid uint32
	size     int64 // as last told
}

// shown is what the kernel knows and what programs see, as against what the
// store has merged. It is the mount's [store.Viewer].
type shown struct {
	mount store.MountID
	queue *workQueue
	vol   *store.Volume // Node, Kept and Drafted only: they take leaf locks

	aliased atomic.Int64 // directories whose node id is not their number
	anyDead atomic.Bool  // dead is not empty

	mu      sync.Mutex // guards what follows
	settled *sync.Cond // on mu: a change is committed
	gen     uint64     // counts the beginnings and ends of changes
	// changing are the inodes touched by the change that is being
	// committed; nil if there is none.
	changing map[crdt.Ino]struct{}
	touched  map[crdt.Ino]uint64 // gen at the end of the last change of each
	floor    uint64              // gen at which touched was emptied
	// ledger is what a successor would need; committed, how much of it is of
	// changes that are.
	ledger    *ledger
	committed uint64
	undo      []func()                           // takes the change back, last first
	switched  []switchedFile                     // by the change
	adopted   []crdt.Ino                         // by the change: directories that took over a node
	placed    []nameKey                          // by the change
	fixed     map[crdt.Ino]map[string]crdt.Entry // what names show that the change is about

	nodes   map[store.NodeID]knownNode
	current map[crdt.Ino]store.NodeID   // the node of an inode's present version
	frozen  map[store.NodeID]struct{}   // nodes that keep an old version
	oldOf   map[crdt.Ino][]store.NodeID // those of an inode
	born    map[store.NodeID]uint32     // next generation of a directory that was removed
	dead    map[store.NodeID]struct{}   // directories removed without the kernel being told
	aliases store.NodeID                // last one given

	pending  map[crdt.Ino]map[string]pendingName
	doubtful map[nameKey]crdt.Entry             // what a dead daemon may have shown, and not told
	shows    map[crdt.Ino]int                   // by how many pending names
	shownAt  map[crdt.LinkID]nameKey            // of pending names
	mergedAt map[crdt.LinkID]nameKey            // of pending names
	listings map[crdt.Ino]map[*listing]struct{} // in progress

	own      map[nameKey]int        // names that calls in progress change themselves
	writers  map[crdt.Ino]int       // write handles
	recent   map[crdt.Ino]time.Time // of the last reply that the kernel takes as it is
	expected []*expectation         // of the helpers' calls in progress
}

type switchedFile struct {
	ino crdt.Ino
	old store.NodeID
}

func newShown(id store.MountID, queue *workQueue, v *store.Volume) *shown {
	s := &shown{
		mount: id, queue: queue, vol: v,
		nodes:    make(map[store.NodeID]knownNode),
		current:  make(map[crdt.Ino]store.NodeID),
		touched:  make(map[crdt.Ino]uint64),
		frozen:   make(map[store.NodeID]struct{}),
		oldOf:    make(map[crdt.Ino][]store.NodeID),
		born:     make(map[store.NodeID]uint32),
		dead:     make(map[store.NodeID]struct{}),
		pending:  make(map[crdt.Ino]map[string]pendingName),
		doubtful: make(map[nameKey]crdt.Entry),
		shows:    make(map[crdt.Ino]int),
		shownAt:  make(map[crdt.LinkID]nameKey),
		mergedAt: make(map[crdt.LinkID]nameKey),
		listings: make(map[crdt.Ino]map[*listing]struct{}),
		own:      make(map[nameKey]int),
		writers:  make(map[crdt.Ino]int),
		recent:   make(map[crdt.Ino]time.Time),
	}
	s.settled = sync.NewCond(&s.mu)
	return s
}

// target is the node by which the store knows what the kernel calls node.
func (s *shown) target(node uint64) store.NodeID {
	n := store.NodeID(node)
	if s.aliased.Load() == 0 {
		return n
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if k, ok := s.nodes[n]; ok && k.dir {
		return store.NodeID(k.ino)
	}
	return n
}

// dir is the directory that the kernel calls node.
func (s *shown) dir(node uint64) crdt.Ino { return crdt.Ino(s.target(node)) }

// generation is to be taken before the state is read for a reply that is to be
// counted by know.
func (s *shown) generation() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gen
}

// know counts a reply that tells the kernel a node, and fills in the node's
// number. It returns false if the state may have changed since gen: the reply
// must be computed again, as no notification will follow for that change.
func (s *shown) know(gen uint64, a *store.Attr, out *fuse.EntryOut) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	ok := s.knowLocked(gen, a, out)
	if ok {
		delete(s.dead, store.NodeID(out.NodeId))
	}
	return ok
}

// knowNode is know for a reply that is not about a name: it says nothing of
// the names under which the kernel has the node.
func (s *shown) knowNode(gen uint64, a *store.Attr, out *fuse.EntryOut) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.knowLocked(gen, a, out)
}

// knowListed is know for a reply that can do without: it is false, too, while a
// change of the inode is being committed.
func (s *shown) knowListed(gen uint64, a *store.Attr, out *fuse.EntryOut) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, busy := s.changing[a.Ino]; busy || !s.knowLocked(gen, a, out) {
		return false
	}
	delete(s.dead, store.NodeID(out.NodeId))
	return true
}

func (s *shown) knowLocked(gen uint64, a *store.Attr, out *fuse.EntryOut) bool {
	if s.changedSinceLocked(a.Ino, gen) {
		return false
	}
	node := s.nodeOfLocked(a)
	k := s.nodes[node]
	k.ino, k.dir = a.Ino, a.Kind == crdt.KindDir
	k.mode, k.uid, k.gid, k.size = a.Mode, a.UID, a.GID, a.Size
	k.lookups++
	k.born = s.born[node]
	s.nodes[node] = k
	if k.dir && store.NodeID(k.ino) != node {
		s.meansLocked(node)
	}
	if _, old := s.frozen[node]; !old {
		s.current[a.Ino] = node
	}
	out.NodeId, out.Generation = uint64(node), uint64(k.born)
	return true
}

// steady runs read, which reads of one node, until no change of it came
// between: what was read may be of either side of it.
func (s *shown) steady(node store.NodeID, read func() error) error {
	for {
		ino, gen := s.settledAt(node)
		err := read()
		if !s.changedSince(ino, gen) {
			return err
		}
	}
}

// settledAt waits for the end of a change of the node that is being committed.
func (s *shown) settledAt(node store.NodeID) (crdt.Ino, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ino := crdt.Ino(node)
	if k, ok := s.nodes[node]; ok {
		ino = k.ino
	}
	s.waitLocked(ino)
	return ino, s.gen
}

func (s *shown) changedSince(ino crdt.Ino, gen uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changedSinceLocked(ino, gen)
}

func (s *shown) changedSinceLocked(ino crdt.Ino, gen uint64) bool {
	s.waitLocked(ino)
	return s.touched[ino] > gen || s.floor > gen
}

// waitLocked returns when no change of the inode is being committed. Commits
// wait for nothing that a handler holds.
func (s *shown) waitLocked(ino crdt.Ino) {
	for {
		if _, busy := s.changing[ino]; !busy {
			return
		}
		s.settled.Wait()
	}
}

// nodeOfLocked is the node id that the kernel has or is to have for a. A
// directory keeps the one it has, whatever became of its inode number, so that
// watches and working directories stay.
func (s *shown) nodeOfLocked(a *store.Attr) store.NodeID {
	if a.Kind != crdt.KindDir || a.Ino == crdt.RootIno {
		return a.Node
	}
	if node, ok := s.current[a.Ino]; ok {
		return node
	}
	node := store.NodeID(a.Ino)
	if other, taken := s.nodes[node]; taken && other.ino != a.Ino {
		s.aliases++
		node = aliasNode | s.aliases
		s.aliased.Add(1)
	}
	return node
}

// told records what the kernel was told of a node's permissions.
func (s *shown) told(node uint64, a *store.Attr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k, ok := s.nodes[store.NodeID(node)]; ok {
		k.mode, k.uid, k.gid, k.size = a.Mode, a.UID, a.GID, a.Size
		s.nodes[store.NodeID(node)] = k
	}
}

// toldSize is the size of a file that the kernel was told last.
func (s *shown) toldSize(node store.NodeID) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[node].size
}

// onItsWay bounds how long a reply may take to reach the kernel.
const onItsWay = 50 * time.Millisecond

// replied notes a reply whose attributes the kernel takes without a look at the
// invalidations that overtook it: to SETATTR, LINK and whatever creates.
func (s *shown) replied(ino crdt.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if len(s.recent) >= maxTouched {
		maps.DeleteFunc(s.recent, func(_ crdt.Ino, at time.Time) bool { return now.Sub(at) > onItsWay })
	}
	s.recent[ino] = now
}

// replying reports whether such a reply may be on its way.
func (s *shown) replying(ino crdt.Ino) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.recent[ino]
	if ok && time.Since(at) > onItsWay {
		delete(s.recent, ino)
		ok = false
	}
	return ok
}

// forget takes n lookups back.
func (s *shown) forget(node, n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := store.NodeID(node)
	k, ok := s.nodes[id]
	if !ok {
		return
	}
	if k.lookups > n || k.before {
		k.lookups -= min(n, k.lookups)
		s.nodes[id] = k
		if k.before {
			s.queue.push(work{kind: workForgotten, node: id})
		}
		return
	}
	s.forgetLocked(id, k)
}

func (s *shown) forgetLocked(id store.NodeID, k knownNode) {
	delete(s.nodes, id)
	delete(s.born, id)
	delete(s.dead, id)
	s.meansLocked(id)
	if s.current[k.ino] == id {
		delete(s.current, k.ino)
	}
	if k.dir {
		if id != store.NodeID(k.ino) {
			s.aliased.Add(-1)
		}
		s.showAllLocked(k.ino)
	}
	if _, old := s.frozen[id]; old {
		delete(s.frozen, id)
		s.oldOf[k.ino] = slices.DeleteFunc(s.oldOf[k.ino], func(old store.NodeID) bool { return old == id })
		if len(s.oldOf[k.ino]) == 0 {
			delete(s.oldOf, k.ino)
		}
	}
	if s.vol.Kept(id) {
		s.queue.push(work{kind: workLetGo, node: id})
	}
}

// showAllLocked ends the pending of names in a directory that the kernel no
// longer knows, but for what goes: see waitsLocked.
func (s *shown) showAllLocked(dir crdt.Ino) {
	for name := range s.pending[dir] {
		if k := (nameKey{dir, name}); !s.goesLocked(k) {
			s.dropLocked(k)
		}
	}
}

// knowsDirLocked reports whether the kernel may have cached names of dir.
func (s *shown) knowsDirLocked(dir crdt.Ino) bool {
	_, ok := s.current[dir]
	return ok || dir == crdt.RootIno || dir == stagingIno
}

// movedLocked looks after a file's name that the kernel has just moved, or that
// stays after all: should it lead to an old version, it is to be dropped.
func (s *shown) movedLocked(ino crdt.Ino) {
	for _, node := range s.oldOf[ino] {
		s.queue.push(work{kind: workInode, ino: ino, old: node})
	}
}

func (s *shown) moved(ino crdt.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.movedLocked(ino)
}

// buriedLocked notes that the kernel has removed a directory. Its inode is
// marked dead there; should the directory come back, another generation makes
// the kernel take a fresh one.
func (s *shown) buriedLocked(dir crdt.Ino) {
	if node, ok := s.current[dir]; ok {
		s.born[node]++
		s.meansLocked(node)
	}
}

func (s *shown) buried(dir crdt.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buriedLocked(dir)
}

// begin declares the names that a call in progress changes by itself: the
// kernel will know without being told.
func (s *shown) begin(keys ...nameKey) (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		s.own[k]++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, k := range keys {
			if s.own[k]--; s.own[k] == 0 {
				delete(s.own, k)
			}
		}
	}
}

// opened and closed count write handles; the mount's content changes of an
// inode that has any are publications.
func (s *shown) opened(ino crdt.Ino) { s.countWriters(ino, 1) }
func (s *shown) closed(ino crdt.Ino) { s.countWriters(ino, -1) }

func (s *shown) countWriters(ino crdt.Ino, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writers[ino] += n; s.writers[ino] == 0 {
		delete(s.writers, ino)
	}
}
