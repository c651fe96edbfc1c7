package fusefs

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A ledger is a file that tells a successor what it can ask neither the kernel
// nor the store: what was merged and not shown yet when this daemon died, and
// what a few node ids mean (P9). Its lines are written before what they say can
// be seen by anybody; a torn last one says nothing.
//
// shown.mu is held by all callers. A nil ledger keeps nothing.
type ledger struct {
	path string
	log  *slog.Logger
	f    *os.File
	size int64
	torn bool   // what was written last may be a part of a line
	seq  uint64 // of the last line that says what is to be shown
	know heritage
}

// ledgerLimit is the size in bytes at which a ledger is written anew, with what
// still matters.
const ledgerLimit = 1 << 20

// ledgerLine is one line. Each field stands for a kind of line.
type ledgerLine struct {
	Seq     uint64      `json:"s,omitempty"`
	Names   []toldName  `json:"n,omitempty"` // about to be merged
	Inodes  []toldInode `json:"i,omitempty"`
	Name    *toldName   `json:"dn,omitempty"` // shown, as of line Seq
	Inode   crdt.Ino    `json:"di,omitempty"`
	Node    *ledgerNode `json:"a,omitempty"`
	Helpers []uint32    `json:"hs,omitempty"` // all that run
	Mode    *mountMode  `json:"m,omitempty"`
}

// mountMode is what Mounted.Remount changes, and the group.
type mountMode struct {
	ReadOnly bool `json:"ro,omitempty"`
	NoAtime  bool `json:"noatime,omitempty"`
	Sealed   bool `json:"sealed,omitempty"` // the kernel does not ask for opens
	// Group is what was mounted with, and does not change.
	Group *group `json:"group,omitempty"`
}

// toldName is a name that is to be shown, and what it shows until then.
type toldName struct {
	Dir  crdt.Ino   `json:"d"`
	Name []byte     `json:"n"` // need not be text
	Was  crdt.Entry `json:"e,omitzero"`
	At   int        `json:"o,omitempty"` // its place in the change
}

func (n *toldName) key() nameKey { return nameKey{n.Dir, string(n.Name)} }

// toldInode is an inode of which the kernel is to be told.
type toldInode struct {
	Ino     crdt.Ino `json:"i"`
	Content bool     `json:"c,omitempty"`
	Attrib  bool     `json:"a,omitempty"`
}

// ledgerNode says what a directory's node id stands for.
type ledgerNode struct {
	Node store.NodeID `json:"n"`
	Ino  crdt.Ino     `json:"i,omitempty"` // 0: its own number
	Born uint32       `json:"b,omitempty"` // the generation that comes next
}

// heritage is what a ledger says.
type heritage struct {
	names   map[nameKey]toldEntry
	inodes  map[crdt.Ino]toldChange
	nodes   map[store.NodeID]ledgerNode
	helpers []uint32 // thread ids of the reveal helpers
	mode    *mountMode
}

type toldEntry struct {
	was crdt.Entry
	seq uint64
	at  int
}

type toldChange struct {
	toldInode
	seq uint64
}

func newHeritage() heritage {
	return heritage{
		names: map[nameKey]toldEntry{}, inodes: map[crdt.Ino]toldChange{}, nodes: map[store.NodeID]ledgerNode{},
	}
}

// openLedger reads a ledger, or makes an empty one.
func openLedger(path string, log *slog.Logger) (*ledger, error) {
	l := &ledger{path: path, log: log, know: newHeritage()}
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read what was not shown yet: %w", err)
	}
	for line := range bytes.Lines(b) {
		var read ledgerLine
		if json.Unmarshal(line, &read) != nil || !bytes.HasSuffix(line, []byte("\n")) {
			break // torn, and so nothing that was said later was seen
		}
		l.know.take(&read)
		l.seq = max(l.seq, read.Seq)
	}
	if err := l.rewrite(); err != nil {
		return nil, fmt.Errorf("keep what is not shown yet: %w", err)
	}
	return l, nil
}

// take takes a line over.
func (h *heritage) take(line *ledgerLine) {
	for _, n := range line.Names {
		h.names[n.key()] = toldEntry{n.Was, line.Seq, n.At}
	}
	for _, i := range line.Inodes {
		old := h.inodes[i.Ino]
		i.Content, i.Attrib = i.Content || old.Content, i.Attrib || old.Attrib
		h.inodes[i.Ino] = toldChange{i, line.Seq}
	}
	if n := line.Name; n != nil && h.names[n.key()].seq <= line.Seq {
		delete(h.names, n.key())
	}
	if line.Inode != 0 && h.inodes[line.Inode].seq <= line.Seq {
		delete(h.inodes, line.Inode)
	}
	if n := line.Node; n != nil {
		if n.Ino == 0 && n.Born == 0 {
			delete(h.nodes, n.Node)
		} else {
			h.nodes[n.Node] = *n
		}
	}
	if len(line.Helpers) > 0 {
		h.helpers = line.Helpers
	}
	if line.Mode != nil {
		h.mode = line.Mode
	}
}

// inOrder are the names in the order in which they were told.
func (h *heritage) inOrder() []nameKey {
	return slices.SortedFunc(maps.Keys(h.names), func(a, b nameKey) int {
		x, y := h.names[a], h.names[b]
		return cmp.Or(cmp.Compare(x.seq, y.seq), cmp.Compare(x.at, y.at))
	})
}

// lines are what a new ledger begins with.
func (h *heritage) lines() []ledgerLine {
	lines := []ledgerLine{{Helpers: h.helpers, Mode: h.mode}}
	for _, key := range h.inOrder() {
		n := h.names[key]
		lines = append(lines, ledgerLine{Seq: n.seq, Names: []toldName{{key.dir, []byte(key.name), n.was, n.at}}})
	}
	for _, i := range h.inodes {
		lines = append(lines, ledgerLine{Seq: i.seq, Inodes: []toldInode{i.toldInode}})
	}
	slices.SortStableFunc(lines[1:], func(a, b ledgerLine) int { return int(a.Seq) - int(b.Seq) })
	for _, node := range slices.Sorted(maps.Keys(h.nodes)) {
		n := h.nodes[node]
		lines = append(lines, ledgerLine{Node: &n})
	}
	return lines
}

// rewrite makes the file anew.
func (l *ledger) rewrite() error {
	var b []byte
	for _, line := range l.know.lines() {
		one, err := json.Marshal(&line)
		if err != nil {
			return err
		}
		b = append(append(b, one...), '\n')
	}
	if err := os.WriteFile(l.path+".new", b, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(l.path+".new", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), l.path); err != nil {
		f.Close()
		return err
	}
	if l.f != nil {
		l.f.Close()
	}
	l.f, l.size = f, int64(len(b))
	return nil
}

// heritage is what the ledger says now.
func (l *ledger) heritage() *heritage {
	if l == nil {
		return &heritage{}
	}
	return &l.know
}

// put adds a line. Should the disk be full, a crash now would cost events, not
// data: it is told and borne, and the ledger is whole again with the next line
// for which there is room.
func (l *ledger) put(line ledgerLine) {
	if l == nil || l.f == nil {
		return
	}
	l.know.take(&line)
	err := l.write(&line)
	if err != nil {
		l.log.Warn("what is not shown yet is not kept", "err", err)
	}
	l.torn = err != nil
}

// write writes a line that is taken, or all that still matters.
func (l *ledger) write(line *ledgerLine) error {
	if l.torn || l.size > ledgerLimit && l.size > 4*l.know.size() {
		return l.rewrite()
	}
	b, err := json.Marshal(line)
	if err != nil {
		return err
	}
	l.size += int64(len(b)) + 1
	_, err = l.f.Write(append(b, '\n'))
	return err
}

// size is about what a new ledger would take.
func (h *heritage) size() int64 {
	return 200 * int64(len(h.names)+len(h.inodes)+len(h.nodes))
}

// remove ends a ledger whose mount has ended.
func (l *ledger) remove() error {
	if l == nil || l.f == nil {
		return nil
	}
	l.f.Close()
	l.f = nil
	return os.Remove(l.path)
}

// close leaves a ledger to a successor.
func (l *ledger) close() {
	if l != nil && l.f != nil {
		l.f.Close()
		l.f = nil
	}
}

// inherit takes over what a ledger says of the mount itself.
func (fs *FS) inherit(l *ledger) {
	fs.shown.ledger = l
	if mode := l.know.mode; mode != nil {
		fs.readOnly.Store(mode.ReadOnly)
		fs.noAtime.Store(mode.NoAtime)
		fs.sealed.Store(mode.Sealed)
		fs.group = mode.Group
	}
	fs.helpers.follow(l.know.helpers, func(threads []uint32) { fs.shown.bequeath(ledgerLine{Helpers: threads}) })
}

// bequeathMode tells a successor how the mount is.
func (fs *FS) bequeathMode() {
	fs.shown.bequeath(ledgerLine{Mode: &mountMode{fs.readOnly.Load(), fs.noAtime.Load(), fs.sealed.Load(), fs.group}})
}

// bequeath tells a successor something of the mount itself.
func (s *shown) bequeath(line ledgerLine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ledger.put(line)
}

// promiseLocked notes what a change that is being prepared will make pending.
func (s *shown) promiseLocked(c *store.Changes) {
	if s.ledger == nil {
		return
	}
	line := ledgerLine{Seq: s.ledger.seq + 1}
	for _, k := range s.placed {
		if p, ok := s.getLocked(k); ok {
			line.Names = append(line.Names, toldName{k.dir, []byte(k.name), p.shown, len(line.Names)})
		}
	}
	named := namedIn(c)
	for _, i := range c.Inodes {
		if _, known := s.current[i.Ino]; known && c.By != s.mount {
			line.Inodes = append(line.Inodes, toldInode{i.Ino, i.Content && i.Before != nil, !i.Content && !named[i.Ino]})
		}
	}
	if len(line.Names)+len(line.Inodes) > 0 {
		s.ledger.put(line)
		s.ledger.seq = line.Seq
	}
}

// kept says that work was done which had been taken from the queue when
// upTo was what shown.promised returned.
func (s *shown) kept(w *work, upTo uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ledger == nil {
		return
	}
	switch w.kind {
	case workName, workDrop:
		s.keptNameLocked(w.key, upTo)
	case workInode:
		s.keptInodeLocked(w.ino, upTo)
	}
}

func (s *shown) keptNameLocked(k nameKey, upTo uint64) {
	if _, told := s.ledger.know.names[k]; told {
		s.ledger.put(ledgerLine{Seq: upTo, Name: &toldName{Dir: k.dir, Name: []byte(k.name)}})
	}
}

func (s *shown) keptInodeLocked(ino crdt.Ino, upTo uint64) {
	if _, told := s.ledger.know.inodes[ino]; told {
		s.ledger.put(ledgerLine{Seq: upTo, Inode: ino})
	}
}

// promised is how far the ledger has what is committed.
func (s *shown) promised() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.committed
}

// meansLocked notes what a directory's node id stands for.
func (s *shown) meansLocked(node store.NodeID) {
	if s.ledger == nil {
		return
	}
	n := ledgerNode{Node: node, Born: s.born[node]}
	if k, ok := s.nodes[node]; ok && store.NodeID(k.ino) != node {
		n.Ino = k.ino
	}
	told, ok := s.ledger.know.nodes[node]
	if means := n.Ino != 0 || n.Born != 0; means != ok || means && told != n {
		s.ledger.put(ledgerLine{Node: &n})
	}
}

func (l *ledger) promised(k nameKey) bool {
	_, ok := l.heritage().names[k]
	return ok
}

func (l *ledger) promisedInode(ino crdt.Ino) bool {
	_, ok := l.heritage().inodes[ino]
	return ok
}

// brokenLocked takes back what was promised for a change that was not made.
func (s *shown) brokenLocked(c *store.Changes) {
	if s.ledger == nil {
		return
	}
	for _, k := range s.placed {
		s.keptNameLocked(k, s.ledger.seq)
	}
	for _, i := range c.Inodes {
		s.keptInodeLocked(i.Ino, s.ledger.seq)
	}
}
