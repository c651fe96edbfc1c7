package store

// txn is one transaction on the node's database: get, set, delete, scan.
// Keys and values handed to fn are valid only during the call; values returned
// by get are copies.
type txn interface {
	get(key []byte) ([]byte, error) // nil if absent
	set(key, value []byte) error
	del(key []byte) error
	// scan calls fn for each key with the prefix, from the given key on, in
	// order, until fn returns false.
	scan(prefix, from []byte, fn func(key, value []byte) (bool, error)) error
}

// kv is the node's database.
type kv interface {
	view(fn func(txn) error) error
	// pin begins a view that any number of goroutines may read from until
	// release.
	pin() (t txn, release func(), err error)
	// update runs fn in a transaction that is committed if fn returns nil.
	// Acknowledged means written to the operating system, not to the disk.
	update(fn func(txn) error) error
	// sync returns when everything committed before the call is on disk.
	sync() error
	// size is what the database's files take, in bytes.
	size() int64
	// compacting reports whether close would wait for a large compaction.
	compacting() bool
	close() error
}
