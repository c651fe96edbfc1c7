package crdt

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/synapsefs/synapsefs/internal/mutation"
)

// A folder folds directory moves. It keeps in a map where directories stand at
// one point of the log, so that going back and forth in it costs no record.
type folder struct {
	peek   func(Ino) (*Inode, error)
	at     map[Ino]*Place // nil of what is not known
	before []Move         // scratch
}

func newFolder(peek func(Ino) (*Inode, error)) *folder {
	return &folder{peek: peek, at: map[Ino]*Place{}}
}

// stands returns where a directory stands at this point of the log, nil if it
// is not known.
func (f *folder) stands(dir Ino) (*Place, error) {
	if p, ok := f.at[dir]; ok {
		return p, nil
	}
	i, err := f.peek(dir)
	if err != nil || i == nil {
		return nil, err
	}
	f.at[dir] = &i.Standing
	return &i.Standing, nil
}

// under reports whether dir is top or below it.
func (f *folder) under(dir, top Ino) (bool, error) {
	for !dir.fixed() {
		if dir == top {
			return true, nil
		}
		p, err := f.stands(dir)
		if err != nil || p == nil {
			return false, err
		}
		dir = p.Parent
	}
	return top == dir, nil
}

func (f *folder) undo(m *Move) {
	if !m.Skipped {
		prev := m.Prev
		f.at[m.Ino] = &prev
	}
}

// do does all moves of one op, or none if one would put a directory under
// itself.
func (f *folder) do(moves []Move) error {
	for n := range moves {
		m := &moves[n]
		under, err := f.under(m.Parent, m.Ino)
		if err != nil {
			return err
		}
		if under && !mutation.Off(mutation.CycleSkip) {
			for n := range slices.Backward(moves[:n]) {
				if mutation.Off(mutation.SkipTogether) {
					break
				}
				f.undo(&moves[n])
			}
			for n := range moves {
				moves[n].Skipped, moves[n].Prev = true, Place{}
			}
			return nil
		}
		prev, err := f.stands(m.Ino)
		if err != nil {
			return err
		}
		if prev == nil {
			return fmt.Errorf("%w: inode %d is not known", ErrMalformed, m.Ino)
		}
		m.Prev, m.Skipped = *prev, false
		f.at[m.Ino] = &Place{ID: m.ID, Parent: m.Parent, Name: m.Name}
	}
	return nil
}

// redo is do for an op of the log; it appends those of its moves that come out
// otherwise than before.
func (f *folder) redo(moves, changed []Move) ([]Move, error) {
	f.before = append(f.before[:0], moves...)
	if err := f.do(moves); err != nil {
		return changed, err
	}
	for n := range moves {
		if m, was := &moves[n], &f.before[n]; m.Skipped != was.Skipped || !m.Prev.same(was.Prev) {
			changed = append(changed, *m)
		}
	}
	return changed, nil
}

// opsOf parts a log of moves into those of one op each.
func opsOf(moves []Move) func(yield func([]Move) bool) {
	return func(yield func([]Move) bool) {
		for len(moves) > 0 {
			n := 1
			for n < len(moves) && moves[n].ID.CompareOp(moves[0].ID) == 0 {
				n++
			}
			if !yield(moves[:n]) {
				return
			}
			moves = moves[n:]
		}
	}
}

// fold merges the directory moves of one op into the log of moves: newer entries
// are undone, the op's done, the newer ones done again until nothing stands
// elsewhere than it did. Only what comes out otherwise is written.
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
	f := newFolder(a.peek)
	for n := range slices.Backward(later) {
		f.undo(&later[n])
	}
	for _, m := range a.moves { // the first of a directory's moves in the log, perhaps
		i, err := a.known(m.Ino)
		if err != nil {
			return err
		}
		if !i.moved() {
			i.Origin = i.Standing
		}
	}
	was := map[Ino]*Place{} // where directories that stand elsewhere stood
	for _, m := range a.moves {
		if was[m.Ino], err = f.stands(m.Ino); err != nil {
			return err
		}
	}
	changed := slices.Clone(a.moves)
	if err := f.do(changed); err != nil {
		return err
	}
	f.settled(was)
	var above map[Ino]bool
	for moves := range opsOf(later) {
		if len(was) == 0 {
			break
		}
		if above == nil {
			if above, err = f.above(was); err != nil {
				return err
			}
		}
		if f.again(moves, above) {
			continue
		}
		if changed, err = f.redoLater(moves, changed, was); err != nil {
			return err
		}
		above = nil
	}
	for n := range changed {
		if err := a.s.PutMove(changed[n]); err != nil {
			return err
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(was)) {
		i, err := a.known(dir)
		if err != nil {
			return err
		}
		i.Standing = *f.at[dir]
	}
	return nil
}

// above returns the directories in was and all that they stand below.
func (f *folder) above(was map[Ino]*Place) (map[Ino]bool, error) {
	out := map[Ino]bool{}
	for dir := range was {
		for !dir.fixed() && !out[dir] {
			out[dir] = true
			p, err := f.stands(dir)
			if err != nil {
				return nil, err
			}
			if p == nil {
				break
			}
			dir = p.Parent
		}
	}
	return out, nil
}

// again redoes an op of the log that comes out as before: none of its
// directories stands elsewhere, or above one that does, so none can be put under
// itself by that. False if that is not plain.
func (f *folder) again(moves []Move, above map[Ino]bool) bool {
	for n := range moves {
		if moves[n].Skipped || above[moves[n].Ino] {
			return false
		}
	}
	for n := range moves {
		m := &moves[n]
		f.at[m.Ino] = &Place{ID: m.ID, Parent: m.Parent, Name: m.Name}
	}
	return true
}

// redoLater redoes an op of the log and keeps up what stands elsewhere.
func (f *folder) redoLater(moves, changed []Move, was map[Ino]*Place) ([]Move, error) {
	for n := range moves {
		m := &moves[n]
		if _, ok := was[m.Ino]; ok {
			continue
		}
		p, err := f.stands(m.Ino)
		if err != nil {
			return nil, err
		}
		was[m.Ino] = p
	}
	changed, err := f.redo(moves, changed)
	for n := range f.before {
		if m := &f.before[n]; !m.Skipped {
			was[m.Ino] = &Place{ID: m.ID, Parent: m.Parent, Name: m.Name}
		}
	}
	f.settled(was)
	return changed, err
}

// settled takes out of was what stands there again.
func (f *folder) settled(was map[Ino]*Place) {
	for dir, p := range was {
		if p != nil && p.same(*f.at[dir]) {
			delete(was, dir)
		}
	}
}

// A Fold is the log of moves after others were merged into it, for [Fold.Write].
type Fold struct {
	moves []Move // that differ from those in the log
	dirs  []Ino  // that may stand elsewhere
	at    map[Ino]*Place
}

// FoldMoves merges moves, each known already or not and in any order, into the
// log. Nothing is written yet. It starts from the origins of the directories,
// so that it gives the same after a part was written. Moves of what is no
// directory here, or to no directory, do not count, nor those that the origin
// comes after.
func FoldMoves(s State, moves []Move) (*Fold, error) {
	log, err := s.MovesAfter(VersionID{})
	if err != nil {
		return nil, err
	}
	known := make(map[VersionID]bool, len(log))
	for n := range log {
		known[log[n].ID] = true
	}
	out, f := &Fold{}, newFolder(s.Inode)
	for _, m := range moves {
		if known[m.ID] {
			continue
		}
		if ok, err := areDirs(s, m.Ino, m.Parent); err != nil {
			return nil, err
		} else if !ok {
			continue
		}
		i, err := s.Inode(m.Ino)
		if err != nil {
			return nil, err
		}
		if i.First().ID.compare(m.ID) < 0 {
			log = append(log, Move{ID: m.ID, Ino: m.Ino, Parent: m.Parent, Name: m.Name})
		}
	}
	// Of directories that are collected nobody asks where they stand.
	if log, err = ofDirs(s, log); err != nil {
		return nil, err
	}
	slices.SortFunc(log, func(m, w Move) int { return m.ID.compare(w.ID) })
	log = slices.CompactFunc(log, func(m, w Move) bool { return m.ID == w.ID })
	for n := range log {
		dir := log[n].Ino
		if _, ok := f.at[dir]; ok {
			continue
		}
		i, err := s.Inode(dir)
		if err != nil || i == nil {
			return nil, cmp.Or(err, ErrMalformed)
		}
		f.at[dir] = i.First()
		out.dirs = append(out.dirs, dir)
	}
	for moves := range opsOf(log) {
		fresh := slices.ContainsFunc(moves, func(m Move) bool { return !known[m.ID] })
		if fresh {
			if err = f.do(moves); err == nil {
				out.moves = append(out.moves, moves...)
			}
		} else {
			out.moves, err = f.redo(moves, out.moves)
		}
		if err != nil {
			return nil, err
		}
	}
	out.at = f.at
	return out, nil
}

func ofDirs(s State, log []Move) (out []Move, err error) {
	for _, m := range log {
		ok, err := areDirs(s, m.Ino)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, m)
		}
	}
	return out, nil
}

func areDirs(s State, inos ...Ino) (bool, error) {
	for _, ino := range inos {
		i, err := s.Inode(ino)
		if err != nil || i == nil || i.Kind != KindDir {
			return false, err
		}
	}
	return true, nil
}

// Write writes up to n moves and n directories of the fold to the state; more
// says that there are more.
func (f *Fold) Write(s State, n int) (e *Effects, more bool, err error) {
	a := newApplier(s)
	part := f.moves[:min(n, len(f.moves))]
	f.moves = f.moves[len(part):]
	for _, m := range part {
		if err := s.PutMove(m); err != nil {
			return nil, false, err
		}
	}
	dirs := f.dirs[:min(n, len(f.dirs))]
	f.dirs = f.dirs[len(dirs):]
	for _, dir := range dirs {
		i, err := s.Inode(dir)
		if err != nil || i == nil {
			return nil, false, cmp.Or(err, ErrMalformed)
		}
		p := f.at[dir]
		if i.moved() && i.Standing.same(*p) {
			continue
		}
		if i, err = a.known(dir); err != nil {
			return nil, false, err
		}
		if !i.moved() {
			i.Origin = i.Standing
		}
		i.Standing = *p
	}
	e, err = a.settle()
	return e, len(f.moves)+len(f.dirs) > 0, err
}
