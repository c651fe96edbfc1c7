package crdt

import "maps"

// mapIndexes are [Past] and [Contests] in maps.
type mapIndexes struct {
	history  map[inlineKey]*Version
	gone     map[Gone]bool
	contests map[Contest]bool
}

func newMapIndexes() mapIndexes {
	return mapIndexes{map[inlineKey]*Version{}, map[Gone]bool{}, map[Contest]bool{}}
}

func (x *mapIndexes) clone() mapIndexes {
	return mapIndexes{maps.Clone(x.history), maps.Clone(x.gone), maps.Clone(x.contests)}
}

// PutHistory implements [Past].
func (x *mapIndexes) PutHistory(ino Ino, v *Version) error {
	x.history[inlineKey{ino, v.ID}] = v
	return nil
}

// History implements [Past].
func (x *mapIndexes) History(ino Ino, id VersionID) (*Version, error) {
	return x.history[inlineKey{ino, id}], nil
}

// PutGone implements [Past].
func (x *mapIndexes) PutGone(g Gone, keep bool) error {
	put(x.gone, g, keep)
	return nil
}

// PutContest implements [Contests].
func (x *mapIndexes) PutContest(c Contest, keep bool) error {
	put(x.contests, c, keep)
	return nil
}

// EachContest implements [Contests].
func (x *mapIndexes) EachContest(fn func(Contest) error) error {
	for c := range x.contests {
		if err := fn(c); err != nil {
			return err
		}
	}
	return nil
}

func put[K comparable](set map[K]bool, k K, keep bool) {
	if keep {
		set[k] = true
	} else {
		delete(set, k)
	}
}
