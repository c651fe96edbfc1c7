package crdt

import "fmt"

// Covers says whether a state knew an op when the record of an inode, or its
// absence, was read from it.
type Covers func(ino Ino, op VersionID) bool

// ApplyTail adds an op to a state that was joined from records read at different
// moments: writes on inodes whose record knew the op are in it already. Moves
// of directories are left to [FoldMoves]; see [MovesIn].
func ApplyTail(s State, op *Op, covers Covers) (*Effects, error) {
	a := newApplier(s)
	a.covers = covers
	for n := range op.Writes {
		if err := a.write(op, n, &op.Writes[n]); err != nil {
			return nil, fmt.Errorf("apply op %v write %d: %w", op.Dot, n, err)
		}
	}
	return a.settle()
}

// covered reports whether a write is in the record of its inode already. What
// is written to an inode that nobody knows any more is lost in any case.
func (a *applier) covered(id VersionID, w *Write) (bool, error) {
	if a.covers == nil {
		return false, nil
	}
	if a.covers(w.Ino, id) {
		return true, nil
	}
	i, err := a.peek(w.Ino)
	return i == nil && w.Kind != WriteInode, err
}

// around does what a write that is covered does to the directories it names,
// whose own records may be older.
func (a *applier) around(op *Op, id VersionID, w *Write) error {
	if w.Kind != WritePlace && w.Kind != WriteRemove {
		return nil
	}
	if err := a.named(op, id, w.From, w.Time); err != nil || w.Kind == WriteRemove {
		return err
	}
	return a.named(op, id, w.Parent, w.Time)
}

// MovesIn appends the places that an op gives to directories. The first place
// of a directory is among them; [FoldMoves] knows it.
func MovesIn(s State, op *Op, moves []Move) ([]Move, error) {
	for n := range op.Writes {
		w := &op.Writes[n]
		if w.Kind != WritePlace {
			continue
		}
		ok, err := areDirs(s, w.Ino)
		if err != nil {
			return nil, err
		}
		if ok {
			moves = append(moves, Move{ID: op.ID(n), Ino: w.Ino, Parent: w.Parent, Name: w.Name})
		}
	}
	return moves, nil
}
