package content

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/synapsefs/synapsefs/store/crdt"
	"github.com/zeebo/blake3"
)

// A Published is what a draft held when it was published.
type Published struct {
	// Size is that of the file in bytes.
	Size int64
	// Hash is the BLAKE3-256 of Inline, or of Encoded if there is a manifest.
	Hash crdt.Hash
	// Inline holds the bytes if Manifest is nil.
	Inline []byte
	// Manifest lists the blocks, all of which the index knows or the base had.
	Manifest *Manifest
	// Encoded is Manifest's encoding.
	Encoded []byte
}

// Publish stores what the draft holds: as inline bytes if it is no longer than
// inlineLimit bytes, else as blocks and a manifest in the index. Only blocks
// written since the last Publish of this Draft value are read. The new files
// are durable.
//
// If final is false the draft goes on, and writers wait only while a block is
// read or the last changes are gathered; the result is the draft as it was at
// one moment.
//
// If final is true the draft is closed, and its file may have become an
// immutable file. It keeps its name until [Draft.Remove], so that a crash
// before the caller recorded the publication loses nothing.
//
// If Publish fails the draft is as it was, open and complete, and Publish may
// be tried again.
func (d *Draft) Publish(final bool, inlineLimit int) (Published, error) {
	d.publishing.Lock()
	defer d.publishing.Unlock()
	p := &publication{draft: d, inlineLimit: int64(inlineLimit)}
	defer p.dropPack()
	publish := p.publishOpen
	if final {
		publish = p.publishFinal
	}
	done, err := publish()
	if err != nil {
		return Published{}, fmt.Errorf("publish draft %q: %w", d.name, err)
	}
	return done, nil
}

// A publication is one call of Publish.
type publication struct {
	draft       *Draft
	inlineLimit int64
	pack        *Incoming     // blocks copied out of the draft; nil if there are none
	hashed      []*draftBlock // whose changes this publication took
}

// publishOpen publishes a draft that goes on.
func (p *publication) publishOpen() (Published, error) {
	d := p.draft
	if err := p.hashAhead(); err != nil {
		p.giveBack()
		return Published{}, err
	}
	d.mu.Lock()
	done, err := p.gatherLocked()
	d.mu.Unlock()
	if err == nil && done.Manifest != nil {
		err = p.commitPack()
		if err == nil {
			err = p.putManifest(&done)
		}
	}
	if err != nil || done.Manifest == nil {
		// The blocks hashed ahead were not stored.
		p.giveBack()
	}
	if err != nil {
		return Published{}, err
	}
	return done, nil
}

// hashAhead hashes and packs what is changed now, letting writers in between
// blocks. What they change again is left to gatherLocked.
func (p *publication) hashAhead() error {
	d := p.draft
	buf := blockBuffers.Get().(*[]byte)
	defer blockBuffers.Put(buf)
	d.mu.RLock()
	small := d.size <= p.inlineLimit
	changed := d.changedLocked()
	d.mu.RUnlock()
	if small {
		return nil
	}
	for _, index := range changed {
		d.mu.Lock()
		block := d.blocks[index]
		if block == nil || !block.changed {
			d.mu.Unlock()
			continue
		}
		b, err := p.takeLocked(index, block, *buf)
		d.mu.Unlock()
		if err != nil {
			return err
		}
		h := hashBlock(b)
		if err := p.packBlock(h, b); err != nil {
			return err
		}
		d.mu.Lock()
		block.hash = h
		d.mu.Unlock()
	}
	return nil
}

// gatherLocked publishes the rest at one moment.
func (p *publication) gatherLocked() (Published, error) {
	d := p.draft
	if d.f == nil {
		return Published{}, ErrClosed
	}
	if d.size <= p.inlineLimit {
		return d.inlineLocked()
	}
	if err := d.settleEdgeLocked(); err != nil {
		return Published{}, err
	}
	buf := blockBuffers.Get().(*[]byte)
	defer blockBuffers.Put(buf)
	for _, index := range d.changedLocked() {
		block := d.blocks[index]
		b, err := p.takeLocked(index, block, *buf)
		if err != nil {
			return Published{}, err
		}
		block.hash = hashBlock(b)
		if err := p.packBlock(block.hash, b); err != nil {
			return Published{}, err
		}
	}
	return d.describeLocked(), nil
}

// takeLocked reads a changed block into buf and takes its mark off.
func (p *publication) takeLocked(index int64, block *draftBlock, buf []byte) ([]byte, error) {
	b, err := p.draft.readDirty(index, buf)
	if err != nil {
		return nil, err
	}
	block.changed = false
	p.hashed = append(p.hashed, block)
	return b, nil
}

// giveBack marks as changed again what this publication hashed in vain.
func (p *publication) giveBack() {
	p.draft.mu.Lock()
	defer p.draft.mu.Unlock()
	p.giveBackLocked()
}

func (p *publication) giveBackLocked() {
	for _, b := range p.hashed {
		b.changed = true
	}
}

// packBlock copies a block into the pack unless this replica has it.
func (p *publication) packBlock(h crdt.Hash, b []byte) error {
	if h == (crdt.Hash{}) {
		return nil
	}
	_, ok, err := p.draft.store.index.Block(h)
	if err != nil {
		return fmt.Errorf("look up block %x: %w", h[:], err)
	}
	if ok {
		return nil
	}
	if p.pack == nil {
		if p.pack, err = p.draft.store.NewIncoming(); err != nil {
			return err
		}
	}
	return p.pack.append(h, b)
}

func (p *publication) commitPack() error {
	if p.pack == nil {
		return nil
	}
	return p.pack.Commit()
}

func (p *publication) dropPack() {
	if p.pack != nil {
		p.pack.Abort()
	}
}

func (p *publication) putManifest(done *Published) error {
	if err := p.draft.store.index.PutManifest(done.Hash, done.Encoded); err != nil {
		return fmt.Errorf("store manifest %x: %w", done.Hash[:], err)
	}
	return nil
}

// publishFinal publishes a draft that ends.
func (p *publication) publishFinal() (Published, error) {
	d := p.draft
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.f == nil {
		return Published{}, ErrClosed
	}
	done, linked, err := p.storeFinalLocked()
	if err != nil {
		p.giveBackLocked()
		return Published{}, err
	}
	if linked {
		d.freeZerosLocked()
	}
	d.closeLocked() //nolint:errcheck // all that was written is stored; a failed close loses nothing
	return done, nil
}

// storeFinalLocked stores the draft, either as it is, by a link to its file,
// or by packing the few blocks that are new. A file that is linked already has
// only got longer.
func (p *publication) storeFinalLocked() (done Published, linked bool, err error) {
	d := p.draft
	if d.size <= p.inlineLimit {
		done, err = d.inlineLocked()
		return done, false, err
	}
	if err := d.settleEdgeLocked(); err != nil {
		return Published{}, false, err
	}
	changed := d.changedLocked()
	for _, index := range changed {
		p.hashed = append(p.hashed, d.blocks[index])
	}
	if err := d.hashLocked(changed); err != nil {
		return Published{}, false, err
	}
	missing, err := d.missingLocked(changed)
	if err != nil {
		return Published{}, false, err
	}
	if len(missing) > 0 {
		linked = d.link != nil || d.mostlyLocked(missing)
		if linked {
			err = d.linkLocked(missing)
		} else {
			err = p.packLocked(missing)
		}
		if err != nil {
			return Published{}, false, err
		}
	}
	done = d.describeLocked()
	return done, linked, p.putManifest(&done)
}

// packLocked copies hashed blocks out of the draft.
func (p *publication) packLocked(indexes []int64) error {
	buf := blockBuffers.Get().(*[]byte)
	defer blockBuffers.Put(buf)
	for _, index := range indexes {
		b, err := p.draft.readDirty(index, *buf)
		if err != nil {
			return err
		}
		if err := p.packBlock(p.draft.blocks[index].hash, b); err != nil {
			return err
		}
	}
	return p.commitPack()
}

// linkLocked makes the draft file an immutable file that has the given blocks
// at their natural offsets.
func (d *Draft) linkLocked(indexes []int64) error {
	if d.link == nil {
		id := newFileID()
		if err := d.store.place(os.Link, d.store.draftPath(d.name), id); err != nil {
			return fmt.Errorf("link to immutable file: %w", err)
		}
		d.link = &id
	} else if err := d.syncFile(); err != nil { // it may have got longer
		return fmt.Errorf("sync immutable file: %w", err)
	}
	entries := make([]IndexEntry, len(indexes))
	for i, index := range indexes {
		entries[i] = IndexEntry{d.blocks[index].hash, Location{
			File:   *d.link,
			Offset: index * BlockSize,
			Length: int32(blockLength(d.size, index)),
		}}
	}
	if err := d.store.putBlocks(entries); err != nil {
		return fmt.Errorf("index blocks of file %s: %w", d.link, err)
	}
	return nil
}

// freeZerosLocked gives back the disk of blocks that were written as zeros and
// of what was reserved behind the end. That nobody reads it makes errors
// harmless. A block over a base keeps its zeros: the draft may be reopened.
func (d *Draft) freeZerosLocked() {
	for index, b := range d.blocks {
		if b.hash == (crdt.Hash{}) && !d.baseUnder(index) {
			punch(d.f, index*BlockSize, BlockSize) //nolint:errcheck // only gives disk back
		}
	}
	d.f.Truncate(d.size) //nolint:errcheck // only gives disk back
}

// mostlyLocked reports whether the given blocks are at least half of the data
// in the draft file, which is then worth keeping as a whole.
func (d *Draft) mostlyLocked(indexes []int64) bool {
	var data int64
	for index, b := range d.blocks {
		if b.hash != (crdt.Hash{}) {
			data += int64(blockLength(d.size, index))
		}
	}
	for _, index := range indexes {
		data -= 2 * int64(blockLength(d.size, index))
	}
	return data <= 0
}

// missingLocked returns those of the given blocks that this replica does not
// have yet, each content once.
func (d *Draft) missingLocked(indexes []int64) ([]int64, error) {
	var missing []int64
	seen := map[crdt.Hash]struct{}{{}: {}}
	for _, index := range indexes {
		h := d.blocks[index].hash
		if _, ok := seen[h]; ok {
			continue
		}
		seen[h] = struct{}{}
		_, ok, err := d.store.index.Block(h)
		if err != nil {
			return nil, fmt.Errorf("look up block %x: %w", h[:], err)
		}
		if !ok {
			missing = append(missing, index)
		}
	}
	return missing, nil
}

// settleEdgeLocked copies up the block in which the base's bytes end, if it is
// clean but not as it is in the base: cut by a truncation, or longer.
func (d *Draft) settleEdgeLocked() error {
	index := max(0, d.baseLimit-1) / BlockSize
	if d.blocks[index] != nil || !d.baseUnder(index) || d.reusable(index) {
		return nil
	}
	if err := d.beginChangeLocked(); err != nil {
		return err
	}
	return d.copyUpLocked(index, nil, 0)
}

// reusable reports whether a clean block is byte for byte that of the base.
func (d *Draft) reusable(index int64) bool {
	n := blockLength(d.size, index)
	return n == d.base.BlockLength(index) && index*BlockSize+int64(n) <= d.baseLimit
}

// inlineLocked reads the whole draft.
func (d *Draft) inlineLocked() (Published, error) {
	b := make([]byte, d.size)
	if _, err := d.readAt(b, 0); err != nil && err != io.EOF {
		return Published{}, err
	}
	return Published{Size: d.size, Hash: blake3.Sum256(b), Inline: b}, nil
}

// describeLocked makes the manifest. No block is changed.
func (d *Draft) describeLocked() Published {
	var blocks []manifestBlock
	for index, b := range d.blocks {
		if b.hash != (crdt.Hash{}) {
			blocks = append(blocks, manifestBlock{index, b.hash})
		}
	}
	if d.base != nil {
		for index, h := range d.base.Blocks() {
			if index*BlockSize >= d.baseLimit {
				break
			}
			if d.blocks[index] == nil {
				blocks = append(blocks, manifestBlock{index, h})
			}
		}
	}
	slices.SortFunc(blocks, func(a, b manifestBlock) int { return cmp.Compare(a.index, b.index) })
	m := &Manifest{size: d.size}
	for _, b := range blocks {
		m.append(b)
	}
	encoded, h := m.Encode()
	return Published{Size: d.size, Hash: h, Manifest: m, Encoded: encoded}
}
