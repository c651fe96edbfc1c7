package store

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// ErrNoRecord says that there is no conflict record of that id.
var ErrNoRecord = errors.New("no such conflict")

// A Record is what lost a conflict, with where it stood.
type Record struct {
	crdt.Record
	Path string // within the volume; for a place, where it would stand
	Size int64  // of the content at stake
	Kind crdt.Kind
	What crdt.RecordKind
}

// Records returns what lost conflicts and was not dismissed, the oldest first.
// It costs by their number, not by that of the files.
func (v *Volume) Records() (out []Record, err error) {
	err = v.read(func(t *tree) error {
		out, err = t.records()
		return err
	})
	return out, err
}

func (t *tree) records() (out []Record, err error) {
	err = crdt.EachRecord(t, func(r crdt.Record) error {
		path, err := t.pathOf(r.Dir, r.Name)
		if err != nil {
			return err
		}
		i, err := t.Inode(r.Ino)
		if err != nil {
			return err
		}
		rec := Record{Record: r, Path: path, Kind: i.Kind, What: r.Kind}
		if r.Version != nil {
			rec.Size = r.Version.Size
		}
		out = append(out, rec)
		return nil
	})
	slices.SortFunc(out, func(a, b Record) int { return a.ID.Compare(b.ID) })
	return out, err
}

// record returns one record.
func (t *tree) record(id crdt.VersionID) (Record, error) {
	all, err := t.records()
	if err != nil {
		return Record{}, err
	}
	n := slices.IndexFunc(all, func(r Record) bool { return r.ID == id })
	if n < 0 {
		return Record{}, fmt.Errorf("%w: %v", ErrNoRecord, id)
	}
	return all[n], nil
}

// pathOf is the path of a name. That of a directory which is gone is where it
// stood; unknown parts are left out.
func (t *tree) pathOf(dir crdt.Ino, name string) (string, error) {
	parts, err := t.parts(dir)
	if err != nil {
		return "", err
	}
	if name != "" {
		parts = append(parts, name)
	}
	return strings.Join(parts, "/"), nil
}

// parts are the names on the way from the root to a directory.
func (t *tree) parts(dir crdt.Ino) (out []string, err error) {
	for dir != crdt.RootIno && dir != 0 {
		i, err := t.Inode(dir)
		if err != nil {
			return nil, err
		}
		if i == nil {
			break
		}
		out = append(out, i.Standing.Name)
		if dir, err = t.Head(i.Standing.Parent); err != nil {
			return nil, err
		}
	}
	slices.Reverse(out)
	return out, nil
}

// Dismiss takes records off the list, everywhere. ErrNoRecord if one of them
// is not on it; then none is.
func (v *Volume) Dismiss(ids ...crdt.VersionID) error {
	return v.change(0, func(c *change) error {
		p := c.plan()
		for _, id := range ids {
			r, err := c.record(id)
			if err != nil {
				return err
			}
			if err := p.Dismiss(r.Record); err != nil {
				return err
			}
		}
		return c.commit(p.Writes, hold{})
	})
}

// DismissAll takes the records at and below a path off the list, and says how
// many.
func (v *Volume) DismissAll(under string) (n int, err error) {
	for {
		all, err := v.Records()
		if err != nil {
			return n, err
		}
		all = slices.DeleteFunc(all, func(r Record) bool { return !Below(r.Path, under) })
		if len(all) == 0 {
			return n, nil
		}
		all = all[:min(len(all), 500)] // an op fits in a batch
		if err := v.dismissRecords(all); err != nil {
			return n, err
		}
		n += len(all)
	}
}

// dismissRecords dismisses what is still a record of what was listed.
func (v *Volume) dismissRecords(records []Record) error {
	return v.change(0, func(c *change) error {
		p := c.plan()
		for _, r := range records {
			if err := p.Dismiss(r.Record); err != nil {
				return err
			}
		}
		return c.commit(p.Writes, hold{})
	})
}

// Below reports whether a path within a volume is under another, or that one.
func Below(path, under string) bool {
	return under == "" || path == under || strings.HasPrefix(path, under+"/")
}

// forceOut dismisses the oldest records while all together take more than the
// limit (P5).
func (v *Volume) forceOut() error {
	all, err := v.Records()
	if err != nil {
		return err
	}
	var bytes int64
	for _, r := range all {
		bytes += r.Size
	}
	limit, n := v.Limits().ConflictBytes, 0
	for ; n < len(all) && bytes > limit; n++ {
		bytes -= all[n].Size
	}
	if n == 0 {
		return nil
	}
	v.forcedOut.Add(uint64(n))
	v.db.opts.Log.Warn("conflict-limit reached: the oldest conflicts are dismissed; their content stays in the history for now",
		"volume", v.Name(), "limit", limit, "dismissed", n)
	for part := range slices.Chunk(all[:n], 500) {
		if err := v.dismissRecords(part); err != nil {
			return err
		}
	}
	return nil
}

// ReadRecord gives the bytes that a conflict is about, or of what it lost to.
// ErrNoVersion if they are none: a place lost, or a directory won.
func (v *Volume) ReadRecord(id crdt.VersionID, against bool) (Reading, error) {
	var ino crdt.Ino
	var version *crdt.Version
	if err := v.read(func(t *tree) error {
		r, err := t.record(id)
		if err != nil {
			return err
		}
		ino, version = r.Ino, r.Version
		if !against {
			return nil
		}
		if r.What == crdt.RecordHidden {
			shown, _, err := crdt.Lookup(t, r.Dir, r.Name)
			if err != nil {
				return err
			}
			ino = shown.Ino
		}
		i, err := t.Inode(ino)
		if err != nil {
			return err
		}
		if version = i.Shown(); version == nil {
			version = i.Latest()
		}
		return nil
	}); err != nil {
		return Reading{}, err
	}
	if version == nil {
		return Reading{}, fmt.Errorf("%w: it is no content of a file", ErrNoVersion)
	}
	return v.ReadVersion(ino, version)
}

// PlaceOf is the path where an inode's link stands now.
func (v *Volume) PlaceOf(ino crdt.Ino, link crdt.LinkID) (path string, err error) {
	err = v.read(func(t *tree) error {
		i, err := t.Inode(ino)
		if err != nil || i == nil {
			return err
		}
		p, ok := i.PlaceOf(link)
		if !ok {
			return nil
		}
		path, err = t.pathOf(p.Parent, p.Name)
		return err
	})
	return path, err
}
