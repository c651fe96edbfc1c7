package crdt

import "slices"

// Shown picks the claim that shows among all claims at one name of one
// directory set: directories before files, of directories the oldest, of files
// the newest. ok is false if there is none.
func Shown(claims []Claim) (shown Claim, ok bool) {
	for n, c := range claims {
		if n == 0 || c.showsBefore(shown) {
			shown = c
		}
	}
	return shown, len(claims) > 0
}

func (c Claim) showsBefore(d Claim) bool {
	if c.Dir() != d.Dir() {
		return c.Dir()
	}
	if c.Dir() {
		return c.At.older(d.At)
	}
	return c.At.newer(d.At)
}

// ClaimsAt returns all claims at a name of the directory set that dir heads or
// belongs to.
func ClaimsAt(s State, dir Ino, name string) ([]Claim, error) {
	head, err := s.Head(dir)
	if err != nil {
		return nil, err
	}
	members, err := s.Members(head)
	if err != nil {
		return nil, err
	}
	if len(members) == 1 {
		return s.Claims(members[0], name)
	}
	var all []Claim
	for _, m := range members {
		claims, err := s.Claims(m, name)
		if err != nil {
			return nil, err
		}
		all = append(all, claims...)
	}
	return all, nil
}

// Lookup returns the claim that shows at a name.
func Lookup(s State, dir Ino, name string) (Claim, bool, error) {
	claims, err := ClaimsAt(s, dir, name)
	if err != nil {
		return Claim{}, false, err
	}
	c, ok := Shown(claims)
	return c, ok, nil
}

// IsEmpty reports whether no member of the directory's set has a live name.
func IsEmpty(s State, dir Ino) (bool, error) {
	head, err := s.Head(dir)
	if err != nil {
		return false, err
	}
	members, err := s.Members(head)
	if err != nil {
		return false, err
	}
	for _, m := range members {
		empty, err := childless(s, m)
		if err != nil || !empty {
			return false, err
		}
	}
	return true, nil
}

// childless reports whether no live link is placed in the directory itself.
func childless(s State, dir Ino) (bool, error) {
	err := s.EachName(dir, func(string, []Claim) error { return errStop })
	if err == errStop {
		return false, nil
	}
	return true, err
}

// Live reports whether a link is live.
func Live(s State, i *Inode, l *Link) (bool, error) {
	if i.Ino.fixed() || i.liveBySelf(l) {
		return true, nil
	}
	if i.Kind != KindDir {
		return false, nil
	}
	empty, err := childless(s, i.Ino)
	return !empty, err
}

// LiveLinks returns the inode's live links: its link count, for all but
// directories.
func LiveLinks(s State, i *Inode) ([]LinkID, error) {
	var out []LinkID
	for n := range i.Links {
		live, err := Live(s, i, &i.Links[n])
		if err != nil {
			return nil, err
		}
		if live {
			out = append(out, i.Links[n].ID)
		}
	}
	return out, nil
}

// PlaceOf returns where a link of the inode shows.
func (i *Inode) PlaceOf(link LinkID) (Place, bool) {
	l := i.Link(link)
	if l == nil {
		return Place{}, false
	}
	if i.Kind == KindDir {
		return i.Standing, true
	}
	p := l.shownPlace()
	if p == nil {
		return Place{}, false
	}
	return *p, true
}

// leaves returns the ids of a link's place leaves.
func (l *Link) leaves() []VersionID {
	ids := make([]VersionID, len(l.Places))
	for n, p := range l.Places {
		ids[n] = p.ID
	}
	return ids
}

// contentLeaves returns the ids of the inode's content leaves.
func (i *Inode) contentLeaves() []VersionID {
	var ids []VersionID
	for _, v := range i.Contents {
		ids = append(ids, v.ID)
	}
	return ids
}

// removalsOf returns the removals that name a link's places or, for the link,
// the inode's contents.
func (i *Inode) removalsOf(l *Link) []VersionID {
	var ids []VersionID
	for _, p := range l.Places {
		ids = append(ids, p.Closed...)
	}
	for _, v := range i.Contents {
		for _, c := range v.Closed {
			if c.Link == l.ID {
				ids = append(ids, c.Removal)
			}
		}
	}
	slices.SortFunc(ids, VersionID.compare)
	return slices.Compact(ids)
}
