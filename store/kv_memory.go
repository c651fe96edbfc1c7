package store

import (
	"bytes"
	"slices"
	"sync"

	"github.com/google/btree"
)

// A Memory is a database in memory, for a simulator, which hands it to Open in
// Options.Memory. It outlives the DB that uses it, as a disk does.
type Memory struct {
	// Hook, if set, is called before and after each commit. It may panic: a
	// process that is killed goes no further either.
	Hook func(committed bool)
	// BootID is that of the pretended machine.
	BootID string

	writing sync.Mutex // one update at a time

	mu             sync.Mutex // guards what follows
	items, durable *items     // never changed in place
}

type item struct{ key, value []byte }

type items = btree.BTreeG[item]

// NewMemory returns an empty database.
func NewMemory() *Memory {
	none := btree.NewG(16, func(a, b item) bool { return bytes.Compare(a.key, b.key) < 0 })
	return &Memory{items: none, durable: none}
}

// AfterKill returns what a killed process leaves.
func (m *Memory) AfterKill() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Memory{BootID: m.BootID, items: m.items, durable: m.durable}
}

// AfterPowerLoss returns what is left, at least, on a machine that is booted
// again: what was synced.
func (m *Memory) AfterPowerLoss(bootID string) *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Memory{BootID: bootID, items: m.durable, durable: m.durable}
}

// Each calls fn for each key with the prefix, in order. Neither slice may be changed.
func (m *Memory) Each(prefix []byte, fn func(key, value []byte)) {
	memoryTxn{m.now()}.scan(prefix, nil, func(key, value []byte) (bool, error) { //nolint:errcheck // fn returns none
		fn(key, value)
		return true, nil
	})
}

func (m *Memory) now() *items {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.items
}

func (m *Memory) pin() (txn, func(), error) { return memoryTxn{m.now()}, func() {}, nil }

func (m *Memory) view(fn func(txn) error) error { return fn(memoryTxn{m.now()}) }

func (m *Memory) update(fn func(txn) error) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	next := m.now().Clone()
	if err := fn(memoryTxn{next}); err != nil {
		return err
	}
	if m.Hook != nil {
		m.Hook(false)
	}
	m.mu.Lock()
	m.items = next
	m.mu.Unlock()
	if m.Hook != nil {
		m.Hook(true)
	}
	return nil
}

func (m *Memory) sync() error {
	m.Writeback()
	return nil
}

// Writeback makes what was committed so far outlive a loss of power.
func (m *Memory) Writeback() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.durable = m.items
}

func (m *Memory) size() int64      { return 0 }
func (m *Memory) compacting() bool { return false }
func (m *Memory) close() error     { return nil }

type memoryTxn struct{ items *items }

func (t memoryTxn) get(key []byte) ([]byte, error) {
	p, ok := t.items.Get(item{key: key})
	if !ok {
		return nil, nil
	}
	return append([]byte{}, p.value...), nil
}

func (t memoryTxn) set(key, value []byte) error {
	t.items.ReplaceOrInsert(item{slices.Clone(key), append([]byte{}, value...)})
	return nil
}

func (t memoryTxn) del(key []byte) error {
	t.items.Delete(item{key: key})
	return nil
}

func (t memoryTxn) scan(prefix, from []byte, fn func(key, value []byte) (bool, error)) (err error) {
	if from == nil {
		from = prefix
	}
	t.items.AscendGreaterOrEqual(item{key: from}, func(p item) (more bool) {
		if !bytes.HasPrefix(p.key, prefix) {
			return false
		}
		more, err = fn(p.key, p.value)
		return more && err == nil
	})
	return err
}
