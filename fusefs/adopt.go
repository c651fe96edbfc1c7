package fusefs

import (
	"errors"
	"fmt"
	"time"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A mount that outlived its daemon is adopted by the next: the kernel is asked
// which nodes it knows, the store what is open, and the ledger the rest.

// prober is the kernel, asked what it knows: kernel.Conn.
type prober interface {
	KernelKnows(node uint64) (bool, error)
}

// adopt takes over what the daemon before has left, before anything is served.
func (m *Mounted) adopt() error {
	begin := time.Now()
	told, ok, err := m.takeKnown()
	if err != nil {
		return err
	}
	learn := m.fs.probe
	if ok {
		learn = func(kernel prober) error { return m.fs.adoptTold(kernel, told) }
	}
	err = m.fs.adopt(m.conn, learn)
	m.fs.log.Debug("adopted", "left by the last daemon", ok, "took", time.Since(begin))
	return err
}

// adopt learns what the kernel knows. Attributes that the kernel has cached and
// that may be out of date are dropped with it.
func (fs *FS) adopt(kernel prober, learn func(prober) error) error {
	if err := learn(kernel); err != nil {
		return fmt.Errorf("learn what the kernel knows: %w", err)
	}
	for _, node := range fs.vol.AllKept() {
		if !fs.shown.Knows(node) {
			fs.shown.queue.push(work{kind: workLetGo, node: node})
		}
	}
	for h, node := range fs.vol.Resumed(fs.mount) {
		ino, ok := fs.vol.Inode(node)
		if !ok {
			return fmt.Errorf("open file: %w: node %x", store.ErrStale, uint64(node))
		}
		fs.keepHandle(h, node, ino)
	}
	fs.resumeOpens()
	return fs.shown.inherit(fs.vol)
}

// probe asks the kernel about every node that it may know. Programs wait
// meanwhile, so it does little for each: there may be a million.
func (fs *FS) probe(kernel prober) error {
	nodes := fs.shown.ledger.heritage().nodes
	err := fs.vol.EachNode(func(node store.NodeID, ino crdt.Ino, inode func() (*crdt.Inode, error)) error {
		if node == rootNode || nodes[node].Ino != 0 { // known always, or as another one
			return nil
		}
		knows, err := kernel.KernelKnows(uint64(node))
		if err != nil {
			return err
		}
		if !knows {
			return nil
		}
		i, err := inode()
		if err != nil {
			return fmt.Errorf("node %x: %w", uint64(node), err)
		}
		fs.shown.adopt(node, knownNode{
			ino: ino, dir: i.Kind == crdt.KindDir, mode: i.Mode.Value, uid: i.Owner.Value.UID, gid: i.Owner.Value.GID,
		}, fs.vol)
		return nil
	})
	for node, means := range nodes {
		if means.Ino == 0 || err != nil {
			continue
		}
		var knows bool
		if knows, err = kernel.KernelKnows(uint64(node)); knows {
			a, _ := fs.vol.Attr(store.NodeID(means.Ino)) // one that is removed has none
			fs.shown.adopt(node, knownNode{ino: means.Ino, dir: true, mode: a.Mode, uid: a.UID, gid: a.GID}, fs.vol)
		}
	}
	return err
}

// adopt takes over a node that the kernel knows.
func (s *shown) adopt(node store.NodeID, k knownNode, v *store.Volume) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k.before, k.born = true, s.ledger.heritage().nodes[node].Born
	s.nodes[node] = k
	if k.born != 0 {
		s.born[node] = k.born
	}
	if node&aliasNode != 0 {
		s.aliases = max(s.aliases, node&^aliasNode)
	}
	if k.dir && node != store.NodeID(k.ino) {
		s.aliased.Add(1)
	}
	if _, frozen := v.FrozenOf(node); frozen {
		s.keepsOldLocked(node, k.ino)
		s.queue.push(work{kind: workInode, ino: k.ino, old: node, content: s.ledger.heritage().inodes[k.ino].Content})
		return
	}
	s.current[k.ino] = node
}

// inherit makes pending again what was not shown yet, to be shown in the order in
// which it changed last. What goes is shown when all that came is: it may have
// waited for that.
func (s *shown) inherit(v *store.Volume) error {
	var gone []work
	for _, key := range s.ledger.heritage().inOrder() {
		told := s.ledger.know.names[key]
		_, merged, err := v.Lookup(store.NodeID(key.dir), key.name)
		if errors.Is(err, crdt.ErrNotExist) || errors.Is(err, store.ErrStale) {
			merged, err = crdt.Entry{}, nil
		}
		if err != nil {
			return fmt.Errorf("name %q: %w", key.name, err)
		}
		s.mu.Lock()
		if s.knowsDirLocked(key.dir) {
			s.setLocked(key, pendingName{shown: told.was, merged: merged})
			s.doubtful[key] = merged // the kernel may have been told in the last moment
		}
		if w := (work{kind: workName, key: key}); merged.Ino == 0 {
			gone = append(gone, w)
		} else {
			s.queue.push(w)
		}
		s.mu.Unlock()
	}
	for _, w := range gone {
		s.queue.push(w)
	}
	for ino, told := range s.ledger.heritage().inodes {
		s.queue.push(work{kind: workInode, ino: ino, content: told.Content, attrib: told.Attrib, pages: told.Content})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ledger != nil {
		s.committed = s.ledger.seq
	}
	return nil
}

// doubt makes a name pending again that is shown as it is merged, for all this
// daemon knows, and perhaps as something else, which the last one had shown: a
// peer has taken it back since. It returns false if there is no doubt about it.
func (s *shown) doubt(k nameKey) bool {
	for {
		gen := s.generation()
		_, merged, err := s.vol.Lookup(store.NodeID(k.dir), k.name)
		if err != nil {
			merged = crdt.Entry{} // or it is told of what is there already
		}
		s.mu.Lock()
		if s.changedSinceLocked(k.dir, gen) {
			s.mu.Unlock()
			continue
		}
		shown, ok := s.doubtful[k]
		delete(s.doubtful, k)
		_, pending := s.getLocked(k)
		ok = ok && !pending && shown != merged && s.knowsDirLocked(k.dir)
		if ok {
			s.setLocked(k, pendingName{shown: shown, merged: merged})
		}
		s.mu.Unlock()
		return ok
	}
}

// certain says that a name was shown by this daemon.
func (s *shown) certain(k nameKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.doubtful, k)
}

// knownBefore reports whether the kernel has a node from the time before this
// daemon, and so may have it open.
func (s *shown) knownBefore(node store.NodeID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[node].before
}

// forgotten asks whether the kernel has forgotten a node whose lookups nobody
// counted.
func (r *revealer) forgotten(node store.NodeID) {
	k, ok := r.shown.knownNode(node)
	if !ok {
		return
	}
	r.tell("ask for a node", func(n notifier) error {
		knows, err := n.KernelKnows(uint64(node))
		if err == nil && !knows && r.shown.forgotten(node, k) {
			r.fs.forgotten(node)
		}
		return err
	})
}

func (s *shown) knownNode(node store.NodeID) (knownNode, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, ok := s.nodes[node]
	return k, ok
}

// forgotten drops a node of which the kernel said that it does not know it,
// unless it was told it again meanwhile.
func (s *shown) forgotten(node store.NodeID, asked knownNode) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, ok := s.nodes[node]
	if !ok || k.lookups != asked.lookups {
		return false
	}
	s.forgetLocked(node, k)
	return true
}
