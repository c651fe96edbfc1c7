package crdt

import "slices"

// settle brings the claims and directory sets in line with the inodes touched,
// stores all, and says what changed in the view.
func (a *applier) settle() (*Effects, error) {
	for _, ino := range a.order {
		if err := a.s.PutInode(a.inodes[ino]); err != nil {
			return nil, err
		}
		if err := a.retire(ino); err != nil {
			return nil, err
		}
		if err := a.contestInode(ino); err != nil {
			return nil, err
		}
	}
	// A link's claim may bring its parent to life or take it away, and so
	// on upwards: a.links grows while it is walked.
	for n := 0; n < len(a.links); n++ {
		if err := a.reclaim(a.links[n]); err != nil {
			return nil, err
		}
	}
	if err := a.resetSets(); err != nil {
		return nil, err
	}
	e := &Effects{}
	if err := a.nameChanges(e); err != nil {
		return nil, err
	}
	if err := a.contestNames(); err != nil {
		return nil, err
	}
	a.inodeChanges(e)
	for _, ino := range a.dropped {
		if err := a.s.DeleteInode(ino); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// reclaim moves one link's claim from where it stood to where it stands.
func (a *applier) reclaim(k linkKey) error {
	i := a.inodes[k.ino]
	l := i.Link(k.link)
	live, err := Live(a.s, i, l)
	if err != nil {
		return err
	}
	now := standing{live: live}
	now.place, _ = i.PlaceOf(k.link)
	was := a.stood[k]
	if err := a.mourn(i, k.link, was, now); err != nil {
		return err
	}
	if now.live == was.live && (!now.live || now.place.same(was.place)) {
		a.stood[k] = now
		return nil
	}
	a.stood[k] = now
	if was.live {
		if err := a.claim(was.place, func(cs []Claim) []Claim {
			return slices.DeleteFunc(cs, func(c Claim) bool { return c.Ino == k.ino && c.Link == k.link })
		}); err != nil {
			return err
		}
	}
	if now.live {
		if err := a.claim(now.place, func(cs []Claim) []Claim {
			return append(cs, Claim{Ino: k.ino, Link: k.link, Kind: i.Kind, At: now.place.ID})
		}); err != nil {
			return err
		}
	}
	for _, p := range []standing{was, now} {
		if p.live {
			if err := a.revisit(p.place.Parent); err != nil {
				return err
			}
		}
	}
	return nil
}

// same reports whether two places are one. Places that are not published share
// ids.
func (p Place) same(q Place) bool {
	return p.ID == q.ID && p.Parent == q.Parent && p.Name == q.Name
}

// claim edits the claims at one name.
func (a *applier) claim(p Place, edit func([]Claim) []Claim) error {
	k := nameKey{p.Parent, p.Name}
	if _, ok := a.claims[k]; !ok {
		cs, err := a.s.Claims(p.Parent, p.Name)
		if err != nil {
			return err
		}
		a.claimed[k], a.claims[k] = cs, slices.Clone(cs)
		a.names = append(a.names, k)
	}
	a.claims[k] = edit(a.claims[k])
	return a.s.PutClaims(p.Parent, p.Name, a.claims[k])
}

// revisit looks again at a directory that lives, or lived, only by its
// children, after one of them came or went.
func (a *applier) revisit(dir Ino) error {
	if dir.fixed() {
		return nil
	}
	i, ok := a.inodes[dir]
	if !ok {
		old, err := a.s.Inode(dir)
		if err != nil || old == nil || old.hasOpenPlace() {
			return err
		}
		i = old.clone()
		a.before[dir], a.inodes[dir] = old, i
		a.order = append(a.order, dir)
		k := linkKey{dir, i.Links[0].ID}
		// Its liveness before is in the claims, which it alone decides.
		cs, err := a.s.Claims(i.Standing.Parent, i.Standing.Name)
		if err != nil {
			return err
		}
		a.stood[k] = standing{
			live:  slices.ContainsFunc(cs, func(c Claim) bool { return c.Ino == dir }),
			place: i.Standing,
		}
	}
	if !i.hasOpenPlace() && len(i.Links) > 0 {
		a.links = append(a.links, linkKey{dir, i.Links[0].ID})
	}
	return nil
}

// resetSets forms the directory sets anew at every name touched.
func (a *applier) resetSets() error {
	a.heads, a.sets = map[Ino]Ino{}, map[Ino][]Ino{}
	// a.names grows while it is walked; a name may come again.
	for n := 0; n < len(a.names); n++ {
		k := a.names[n]
		dirsBefore, dirsNow := dirs(a.claimed[k]), dirs(a.claims[k])
		if len(dirsBefore)+len(dirsNow) == 0 {
			continue
		}
		if err := a.resetSet(k); err != nil {
			return err
		}
		// One that left and stands nowhere else is a set of its own again.
		for _, d := range dirsBefore {
			if !slices.Contains(dirsNow, d) && !a.claimedNow(d) {
				if err := a.leaveSet(d); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func dirs(cs []Claim) []Ino {
	var out []Ino
	for _, c := range cs {
		if c.Dir() {
			out = append(out, c.Ino)
		}
	}
	return out
}

// claimedNow reports whether the directory has a claim at some touched name.
func (a *applier) claimedNow(dir Ino) bool {
	for _, cs := range a.claims {
		if slices.Contains(dirs(cs), dir) {
			return true
		}
	}
	return false
}

// resetSet forms the set at one name.
func (a *applier) resetSet(k nameKey) error {
	head, err := a.s.Head(k.dir)
	if err != nil {
		return err
	}
	claims, err := ClaimsAt(a.s, head, k.name)
	if err != nil {
		return err
	}
	claims = slices.DeleteFunc(slices.Clone(claims), func(c Claim) bool { return !c.Dir() })
	slices.SortFunc(claims, func(c, d Claim) int {
		if c.At.older(d.At) {
			return -1
		}
		return 1
	})
	return a.putSet(dirs(claims))
}

func (a *applier) leaveSet(dir Ino) error {
	head, err := a.s.Head(dir)
	if err != nil {
		return err
	}
	members, err := a.s.Members(head)
	if err != nil || len(members) < 2 {
		return err
	}
	rest := slices.DeleteFunc(slices.Clone(members), func(m Ino) bool { return m == dir })
	if err := a.putSet([]Ino{dir}); err != nil {
		return err
	}
	return a.putSet(rest)
}

// putSet makes members (oldest first) one set. Those that were in another set
// before leave it; the children of all of them are looked at again.
func (a *applier) putSet(members []Ino) error {
	if len(members) == 0 {
		return nil
	}
	old, err := a.s.Members(members[0])
	if err != nil {
		return err
	}
	if h, err := a.s.Head(members[0]); err != nil {
		return err
	} else if h == members[0] && slices.Equal(old, members) {
		return nil
	}
	disturbed := slices.Clone(members)
	for _, m := range members {
		h, err := a.s.Head(m)
		if err != nil {
			return err
		}
		set, err := a.s.Members(h)
		if err != nil {
			return err
		}
		for _, x := range set {
			if !slices.Contains(disturbed, x) {
				disturbed = append(disturbed, x)
			}
		}
	}
	for _, d := range disturbed {
		if err := a.rememberSet(d); err != nil {
			return err
		}
	}
	for _, d := range disturbed {
		if err := a.s.PutSet(d, nil); err != nil {
			return err
		}
	}
	var rest []Ino
	for _, d := range disturbed {
		if !slices.Contains(members, d) {
			rest = append(rest, d)
		}
	}
	if err := a.s.PutSet(members[0], members); err != nil {
		return err
	}
	if len(rest) > 1 { // what others left behind stays together
		if err := a.s.PutSet(rest[0], rest); err != nil {
			return err
		}
	}
	for _, d := range disturbed {
		if err := a.s.EachName(d, func(name string, cs []Claim) error {
			k := nameKey{d, name}
			if _, ok := a.claims[k]; !ok {
				a.claimed[k], a.claims[k] = cs, cs
			}
			a.names = append(a.names, k)
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// rememberSet keeps the head and set of a directory as they were.
func (a *applier) rememberSet(dir Ino) error {
	if _, ok := a.heads[dir]; ok {
		return nil
	}
	head, err := a.s.Head(dir)
	if err != nil {
		return err
	}
	members, err := a.s.Members(head)
	if err != nil {
		return err
	}
	a.heads[dir] = head
	if _, ok := a.sets[head]; !ok {
		a.sets[head] = slices.Clone(members)
	}
	return nil
}

// nameChanges compares what shows at each name touched, before and after.
func (a *applier) nameChanges(e *Effects) error {
	seen := map[nameKey]bool{}
	for _, k := range a.names {
		now, err := a.s.Head(k.dir)
		if err != nil {
			return err
		}
		was, ok := a.heads[k.dir]
		if !ok {
			was = now
		}
		for _, head := range []Ino{was, now} {
			v := nameKey{head, k.name}
			if seen[v] {
				continue
			}
			seen[v] = true
			after, err := a.shownAfter(v)
			if err != nil {
				return err
			}
			before, err := a.shownBefore(v)
			if err != nil {
				return err
			}
			if before != after {
				e.Names = append(e.Names, NameChange{Dir: head, Name: k.name, Before: before, After: after})
			}
		}
	}
	return nil
}

// shownAfter is what shows now at a name of a set, if dir is a head now.
func (a *applier) shownAfter(k nameKey) (Entry, error) {
	head, err := a.s.Head(k.dir)
	if err != nil || head != k.dir {
		return Entry{}, err
	}
	c, _, err := Lookup(a.s, k.dir, k.name)
	return Entry{c.Ino, c.Link, c.Kind}, err
}

// shownBefore is what showed before the op, if dir was a head then.
func (a *applier) shownBefore(k nameKey) (Entry, error) {
	head, touched := a.heads[k.dir]
	if touched && head != k.dir {
		return Entry{}, nil
	}
	members := a.sets[k.dir]
	if !touched {
		var err error
		if members, err = a.s.Members(k.dir); err != nil {
			return Entry{}, err
		}
	}
	var all []Claim
	for _, m := range members {
		cs, ok := a.claimed[nameKey{m, k.name}]
		if !ok {
			var err error
			if cs, err = a.s.Claims(m, k.name); err != nil {
				return Entry{}, err
			}
		}
		all = append(all, cs...)
	}
	c, _ := Shown(all)
	return Entry{c.Ino, c.Link, c.Kind}, nil
}

func (a *applier) inodeChanges(e *Effects) {
	for _, ino := range a.order {
		before, after := a.before[ino], a.inodes[ino]
		if before == nil || a.quiet[ino] {
			continue
		}
		c := InodeChange{Ino: ino}
		if was, now := before.Shown(), after.Shown(); was != nil && (now == nil || was.ID != now.ID) {
			c.Content, c.Before = true, was
		} else if was == nil && now != nil {
			c.Content = true
		}
		e.Inodes = append(e.Inodes, c)
	}
}
