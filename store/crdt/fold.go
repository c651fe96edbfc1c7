package crdt

import (
	"slices"

	"github.com/synapsefs/synapsefs/internal/mutation"
)

// fold merges the directory moves of one op into the log of moves: newer entries
// are undone, the op's done, the newer ones done again.
func (a *applier) fold() error {
	if len(a.moves) == 0 {
		return nil
	}
	later, err := a.s.MovesAfter(a.moves[0].ID)
	if err != nil {
		return err
	}
	if mutation.Off(mutation.MoveOrder) {
		later = nil
	}
	for _, m := range slices.Backward(later) {
		if err := a.undo(m); err != nil {
			return err
		}
	}
	all := append(slices.Clone(a.moves), later...)
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].ID.CompareOp(all[0].ID) == 0 {
			n++
		}
		if err := a.move(all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

func (a *applier) undo(m Move) error {
	if m.Skipped {
		return nil
	}
	i, err := a.known(m.Ino)
	if err != nil {
		return err
	}
	i.Standing = m.Prev
	return nil
}

// move does all moves of one op, or none if one would put a directory under
// itself, and records them.
func (a *applier) move(moves []Move) error {
	skip, before := false, slices.Clone(moves)
	for n := range moves {
		m := &moves[n]
		i, err := a.known(m.Ino)
		if err != nil {
			return err
		}
		under, err := a.under(m.Parent, m.Ino)
		if err != nil {
			return err
		}
		if under && !mutation.Off(mutation.CycleSkip) {
			skip = true
			for _, done := range slices.Backward(moves[:n]) {
				if mutation.Off(mutation.SkipTogether) {
					break
				}
				if err := a.undo(done); err != nil {
					return err
				}
			}
			break
		}
		m.Prev, m.Skipped = i.Standing, false
		i.Standing = Place{ID: m.ID, Parent: m.Parent, Name: m.Name}
	}
	for n := range moves {
		moves[n].Skipped = skip
		if skip {
			moves[n].Prev = Place{}
		}
		m, was := &moves[n], &before[n]
		if m.Skipped == was.Skipped && m.Prev.same(was.Prev) {
			continue // in the log already: a new one has no Prev yet
		}
		if err := a.s.PutMove(*m); err != nil {
			return err
		}
	}
	return nil
}

// under reports whether dir is top or below it.
func (a *applier) under(dir, top Ino) (bool, error) {
	for !dir.fixed() {
		if dir == top {
			return true, nil
		}
		i, err := a.peek(dir)
		if err != nil || i == nil {
			return false, err
		}
		dir = i.Standing.Parent
	}
	return top == dir, nil
}
