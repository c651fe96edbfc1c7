package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// Forked reports whether the own op numbered seq is another one than a peer
// has, whose hash of the batch that ends there same knows. What the journal no
// longer has is taken to be the same.
func (v *Volume) Forked(seq crdt.Seq, same func(hash [32]byte) bool) (forked bool, err error) {
	self := v.Replica()
	err = v.db.kv.view(func(t txn) error {
		return t.scan(v.keys.key('j', uint64(self)), nil, func(_, value []byte) (bool, error) {
			b, err := DecodeBatch(value)
			if err != nil {
				return false, fmt.Errorf("%w: journal: %w", ErrDamaged, err)
			}
			switch {
			case b.Last < seq:
				return true, nil
			case b.Last == seq:
				forked = !same(b.Digest())
			default: // a batch of ours ends elsewhere
				forked = b.First <= seq
			}
			return false, nil
		})
	})
	return forked, err
}

// BeginAnew takes a peer's state in the place of the present one.
func (v *Volume) BeginAnew(ctx context.Context, source SnapshotSource) error {
	return errors.New("not yet")
}
