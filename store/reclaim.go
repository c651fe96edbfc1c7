package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// Large content is named by its hash, from anywhere: versions, old ones too,
// batches of the journal, drafts. Nobody counts the names. Batches that all have
// and whose content only they name go first. A turn of the reclaimer
// marks what is named and condemns the rest; what is still not named an
// interval later, and was not looked up in between, goes. So nobody needs to
// keep out of its way who finds a block here and is about to name it.
//
// What is found and named an interval later, or not at all, may be gone by then:
// a merge looks again. Content that a batch waits for is named by that
// ([Volume.Wants]), as it may take long to come.

const (
	reclaimInterval = time.Hour
	// reclaimNear is the interval while the disk is nearly full.
	reclaimNear = 10 * time.Minute
)

// reclaimer is the state between two turns.
type reclaimer struct {
	turn sync.Mutex      // one turn at a time; taken before all others
	ctx  context.Context // ends when the store is about to close

	mu        sync.Mutex // guards what follows; a leaf, but for the transaction that removes
	condemned map[indexed]struct{}
	some      atomic.Bool // condemned is not empty
}

// indexed is an entry of the content's index.
type indexed struct {
	manifest bool
	hash     crdt.Hash
}

// spare says that somebody looks an entry up, or writes it. If the entry is
// being removed, it returns when it is.
func (r *reclaimer) spare(es ...indexed) {
	if !r.some.Load() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range es {
		delete(r.condemned, e)
	}
}

// reclaimTurn is a turn of the background.
func (db *DB) reclaimTurn() time.Duration {
	if _, err := db.Reclaim(); err != nil && !errors.Is(err, ErrClosed) && db.reclaimer.ctx.Err() == nil {
		db.opts.Log.Error("reclaim content", "err", err)
	}
	if db.free.Load() < nearlyFull && db.opts.Memory == nil {
		return reclaimNear
	}
	return reclaimInterval
}

// Reclaim gives the disk back of large content that nothing has named since the
// last call or before, and returns how many bytes that were. While some volume
// takes a snapshot, everything counts as named.
func (db *DB) Reclaim() (freed int64, err error) {
	db.reclaimer.turn.Lock()
	defer db.reclaimer.turn.Unlock()
	removed, err := db.removeUnnamed()
	if err != nil {
		return 0, err
	}
	db.content.BeginReclaim()
	live, err := db.placedBlocks()
	if err != nil {
		return 0, err
	}
	// What removed the names, or has another place for a block, must not be lost
	// with the power when the bytes are gone.
	if err := db.kv.sync(); err != nil {
		return 0, err
	}
	if freed, err = db.content.Reclaim(db.reclaimer.ctx, live, db.backedBy()); freed > 0 {
		db.opts.Log.Debug("reclaimed content", "entries", removed, "bytes", freed)
	}
	return freed, err
}

// removeUnnamed takes entries out of the index that nothing names, unless some
// volume takes a snapshot.
func (db *DB) removeUnnamed() (removed int, err error) {
	volumes := db.Volumes()
	for _, v := range volumes {
		if !v.joinMu.TryLock() {
			return 0, nil
		}
		defer v.joinMu.Unlock()
	}
	named, whole, err := db.named(volumes)
	if err != nil {
		return 0, err
	}
	if !whole {
		db.opts.Log.Info("content is not reclaimed: a snapshot is being taken, or was begun and not finished")
		return 0, nil
	}
	return db.condemn(named)
}

// condemn removes of what is not named what was condemned before, and condemns
// the rest.
func (db *DB) condemn(named map[indexed]struct{}) (removed int, err error) {
	r := &db.reclaimer
	next, doomed := map[indexed]struct{}{}, []indexed(nil)
	err = db.kv.view(func(t txn) error {
		return db.eachIndexed(t, func(e indexed, _ []byte) error {
			if _, ok := named[e]; ok {
				return nil
			}
			next[e] = struct{}{}
			return nil
		})
	})
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	for e := range r.condemned {
		if _, ok := next[e]; ok {
			doomed = append(doomed, e)
		}
	}
	r.mu.Unlock()
	for part := range slices.Chunk(doomed, 500) {
		n, err := db.remove(part)
		removed += n
		if err != nil {
			return removed, err
		}
		for _, e := range part {
			delete(next, e)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.condemned = next
	r.some.Store(len(next) > 0)
	return removed, nil
}

// remove takes entries out of the index that are condemned still.
func (db *DB) remove(es []indexed) (n int, err error) {
	r := &db.reclaimer
	r.mu.Lock()
	defer r.mu.Unlock()
	err = db.kv.update(func(t txn) error {
		n = 0
		for _, e := range es {
			if _, ok := r.condemned[e]; !ok {
				continue
			}
			n++
			if !e.manifest {
				if err := t.del(blockKey(e.hash)); err != nil {
					return err
				}
				continue
			}
			var chunks [][]byte
			if err := t.scan(manifestKey(e.hash), nil, func(key, _ []byte) (bool, error) {
				chunks = append(chunks, slices.Clone(key))
				return true, nil
			}); err != nil {
				return err
			}
			for _, key := range chunks {
				if err := t.del(key); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err == nil {
		for _, e := range es {
			delete(r.condemned, e)
		}
	}
	return n, err
}

// eachIndexed calls fn for each entry of the content's index, with its value if
// it is a block. A manifest comes once for each of its chunks.
func (db *DB) eachIndexed(t txn, fn func(e indexed, value []byte) error) error {
	for _, tag := range []byte{'b', 'M'} {
		if err := t.scan([]byte{tag}, nil, func(key, value []byte) (bool, error) {
			e := indexed{manifest: tag == 'M'}
			if copy(e.hash[:], key[1:]) < len(e.hash) {
				return false, fmt.Errorf("%w: key %x of the index of content", ErrDamaged, key)
			}
			return true, fn(e, value)
		}); err != nil {
			return err
		}
	}
	return nil
}

// placedBlocks says which blocks are in which file.
func (db *DB) placedBlocks() (map[content.FileID][]content.Location, error) {
	out := map[content.FileID][]content.Location{}
	err := db.kv.view(func(t txn) error {
		return t.scan([]byte{'b'}, nil, func(key, value []byte) (bool, error) {
			loc, err := decodeLocation(key[1:], value)
			out[loc.File] = append(out[loc.File], loc)
			return err == nil, err
		})
	})
	return out, err
}

// backedBy reports by inode number whether kernels may have a file of the disk
// that backs a node.
func (db *DB) backedBy() func(inode uint64) bool {
	volumes := db.Volumes()
	return func(inode uint64) bool {
		db.backingMu.Lock()
		defer db.backingMu.Unlock()
		for _, v := range volumes {
			for _, b := range v.backings {
				var st unix.Stat_t
				if err := unix.Fstat(int(b.file.Fd()), &st); err != nil || st.Ino == inode {
					return true
				}
			}
		}
		return false
	}
}

// named returns what of the index is named. whole is false if that cannot be
// told now, as some state is not state yet.
func (db *DB) named(volumes []*Volume) (named map[indexed]struct{}, whole bool, err error) {
	named = map[indexed]struct{}{}
	manifests := map[crdt.Hash]struct{}{}
	for _, v := range volumes {
		if whole, err := v.namedContent(manifests); err != nil || !whole {
			return nil, false, err
		}
	}
	for _, v := range volumes {
		if err := v.namedByJournal(manifests); err != nil {
			return nil, false, err
		}
	}
	for h := range manifests {
		m, ok, err := db.content.Manifest(h)
		if err != nil {
			return nil, false, err
		}
		if ok {
			named[indexed{true, h}] = struct{}{}
			addBlocks(named, m)
		}
	}
	for _, v := range volumes {
		for _, m := range v.draftBases() {
			addBlocks(named, m)
		}
	}
	return named, true, nil
}

func addBlocks(named map[indexed]struct{}, m *content.Manifest) {
	for _, h := range m.Blocks() {
		named[indexed{false, h}] = struct{}{}
	}
}

// namedContent adds the manifests that the volume names, but for its journal. It
// returns false if it takes a snapshot, whose content is named nowhere yet.
func (v *Volume) namedContent(out map[crdt.Hash]struct{}) (whole bool, err error) {
	add := func(c *crdt.Content) {
		if c != nil && c.Manifest {
			out[c.Hash] = struct{}{}
		}
	}
	whole = true
	err = v.read(func(t *tree) error {
		for _, gen := range []byte{0, genBit} {
			for _, tag := range []byte{'s', 'S'} {
				prefix := append(slices.Clone(v.keys.prefix[:]), tag|gen)
				if err := t.t.scan(prefix, nil, func(_, _ []byte) (bool, error) {
					whole = false
					return false, nil
				}); err != nil || !whole {
					return err
				}
			}
		}
		for _, r := range []struct {
			tag  byte
			read func(value []byte) error
		}{
			{'i', func(value []byte) error {
				i, err := crdt.DecodeInode(value)
				if err != nil {
					return err
				}
				return t.eachKept(i, add)
			}},
			{'h', func(value []byte) error {
				version, err := crdt.DecodeVersion(value)
				if err == nil {
					add(&version.Content)
				}
				return err
			}},
			{'u', func(value []byte) error {
				op, err := crdt.DecodeOp(value)
				if err == nil {
					for _, h := range contentsOf([]*crdt.Op{op}) {
						out[h] = struct{}{}
					}
				}
				return err
			}},
		} {
			if err := t.t.scan(v.keys.key(r.tag), nil, func(key, value []byte) (bool, error) {
				if err := v.db.reclaimer.ctx.Err(); err != nil {
					return false, err
				}
				if err := r.read(value); err != nil {
					return false, fmt.Errorf("%w: key %x of volume %q: %w", ErrDamaged, key, v.Name(), err)
				}
				return true, nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || !whole {
		return false, err
	}
	v.draftsMu.Lock()
	for _, d := range v.drafts {
		if h := d.published.Load(); h != nil {
			out[*h] = struct{}{}
		}
	}
	v.draftsMu.Unlock()
	drafts, err := v.draftRecords()
	if err != nil {
		return false, err
	}
	for _, d := range drafts {
		if d.Manifest != nil {
			out[*d.Manifest] = struct{}{}
		}
	}
	v.nodesMu.RLock()
	for _, n := range v.nodes {
		if n.Frozen != nil {
			add(&n.Frozen.Content)
		}
	}
	v.nodesMu.RUnlock()
	v.wanted.each(v.Vector(), func(h crdt.Hash) { out[h] = struct{}{} })
	return true, nil
}

// namedByJournal adds the manifests that the journal names, after batches have
// gone from it that all have and that name others than those.
func (v *Volume) namedByJournal(out map[crdt.Hash]struct{}) error {
	var until crdt.Stamp // of the newest batch that names others
	if err := v.eachJournaled(func(b *Batch, h crdt.Hash) {
		if _, ok := out[h]; !ok {
			until = max(until, b.Stamp)
		}
	}); err != nil {
		return err
	}
	if until > 0 {
		if err := v.compactJournalTo(until); err != nil {
			return err
		}
	}
	return v.eachJournaled(func(_ *Batch, h crdt.Hash) { out[h] = struct{}{} })
}

// eachJournaled calls fn with each manifest that a batch of the journal names.
func (v *Volume) eachJournaled(fn func(b *Batch, h crdt.Hash)) error {
	return v.read(func(t *tree) error {
		return t.t.scan(v.keys.key('j'), nil, func(_, value []byte) (bool, error) {
			b, err := DecodeBatch(value)
			if err != nil {
				return false, err
			}
			ops, err := b.decodeOps()
			for _, h := range contentsOf(ops) {
				fn(b, h)
			}
			return err == nil, err
		})
	})
}

// eachKept calls fn for the contents of an inode that are kept: all but those of
// one that nothing leads to any more, as with small ones. See change.pruneInode.
func (t *tree) eachKept(i *crdt.Inode, fn func(*crdt.Content)) error {
	if !slices.ContainsFunc(i.Contents, func(v crdt.Version) bool { return v.Manifest }) {
		return nil
	}
	held, err := t.held(i)
	if err != nil {
		return err
	}
	var spent []crdt.VersionID
	if !held {
		spent = i.Spent()
	}
	for n := range i.Contents {
		if !slices.Contains(spent, i.Contents[n].ID) {
			fn(&i.Contents[n].Content)
		}
	}
	return nil
}

// draftBases are the contents that drafts were begun from and that only they know.
func (v *Volume) draftBases() (out []*content.Manifest) {
	v.draftsMu.Lock()
	drafts := slices.Collect(maps.Values(v.drafts))
	v.draftsMu.Unlock()
	for _, d := range drafts {
		if dd := d.directly.Load(); dd != nil {
			if m := dd.Base(); m != nil {
				out = append(out, m)
			}
		}
	}
	return out
}

// wanted is the content of batches that wait for some of it.
type wanted struct {
	mu sync.Mutex // a leaf
	by map[crdt.Dot][]crdt.Hash
}

func (w *wanted) add(last crdt.Dot, hashes []crdt.Hash) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by == nil {
		w.by = map[crdt.Dot][]crdt.Hash{}
	}
	w.by[last] = hashes
}

// each calls fn for what is wanted by batches that are not merged yet, and
// forgets the others.
func (w *wanted) each(merged crdt.Vector, fn func(crdt.Hash)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for last, hashes := range w.by {
		if merged[last.Replica].Seq >= last.Seq {
			delete(w.by, last)
			continue
		}
		for _, h := range hashes {
			fn(h)
		}
	}
}
