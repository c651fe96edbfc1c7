package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// ErrNoVersion says that history has no such version, or no longer.
var ErrNoVersion = errors.New("no such version")

// A Past is one version of what stands, or stood, at a path.
type Past struct {
	ID      crdt.VersionID
	Ino     crdt.Ino
	Kind    crdt.Kind
	Version *crdt.Version // nil for what is no file
	Current bool          // it shows now
	// Until is when it was replaced or deleted; zero if it is current.
	Until   crdt.VersionID
	Deleted bool
	Path    string // of the listing of a directory
}

// SplitPath parts a path within a volume. The root has no parts.
func SplitPath(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// at returns the directory that a path's last name stands in, which may be
// deleted: then the one deleted last.
func (t *tree) at(path string) (dir crdt.Ino, name string, err error) {
	parts := SplitPath(path)
	if len(parts) == 0 {
		return 0, "", crdt.ErrIsDir
	}
	dir = crdt.RootIno
	for _, name := range parts[:len(parts)-1] {
		if dir, err = t.dirAt(dir, name); err != nil {
			return 0, "", err
		}
	}
	return dir, parts[len(parts)-1], nil
}

// dirAt is the directory that stands, or stood last, at a name.
func (t *tree) dirAt(dir crdt.Ino, name string) (crdt.Ino, error) {
	c, ok, err := crdt.Lookup(t, dir, name)
	if err != nil {
		return 0, err
	}
	if ok && c.Dir() {
		return c.Ino, nil
	}
	dead, err := t.gravesIn(dir, name)
	if err != nil {
		return 0, err
	}
	for _, g := range dead {
		if g.Kind == crdt.KindDir {
			return g.Ino, nil
		}
	}
	return 0, fmt.Errorf("%w: %q", crdt.ErrNotExist, name)
}

// set returns the directories that show as one with dir.
func (t *tree) set(dir crdt.Ino) ([]crdt.Ino, error) {
	head, err := t.Head(dir)
	if err != nil {
		return nil, err
	}
	return t.Members(head)
}

// gravesIn are the links that died at a name of a directory set, the latest first.
func (t *tree) gravesIn(dir crdt.Ino, name string) ([]grave, error) {
	members, err := t.set(dir)
	if err != nil {
		return nil, err
	}
	var gone []crdt.Gone
	for _, m := range members {
		g, err := t.goneAt(m, name)
		if err != nil {
			return nil, err
		}
		gone = append(gone, g...)
	}
	return t.dig(gone)
}

// History returns what stands at a path and the versions that stood there
// before, the newest first: as many as the limits keep.
func (v *Volume) History(path string) (out []Past, err error) {
	err = v.read(func(t *tree) error {
		dir, name, err := t.at(path)
		if err == nil {
			out, err = v.history(t, dir, name)
		}
		return err
	})
	if err == nil && len(out) == 0 {
		err = crdt.ErrNotExist
	}
	return out, err
}

func (v *Volume) history(t *tree, dir crdt.Ino, name string) ([]Past, error) {
	var current, old []Past
	shown, ok, err := crdt.Lookup(t, dir, name)
	if err != nil {
		return nil, err
	}
	if ok {
		i, err := t.Inode(shown.Ino)
		if err != nil {
			return nil, err
		}
		if version := i.Shown(); version != nil {
			current = append(current, Past{ID: version.ID, Ino: i.Ino, Kind: i.Kind, Version: version, Current: true})
		} else if !i.Unpublished() {
			current = append(current, Past{ID: shown.At, Ino: i.Ino, Kind: i.Kind, Current: true})
		}
		if old, err = t.pastOf(i, old, current); err != nil {
			return nil, err
		}
	}
	dead, err := t.gravesIn(dir, name)
	if err != nil {
		return nil, err
	}
	for _, g := range dead {
		if g.inode == nil || g.Ino == shown.Ino && ok || slices.ContainsFunc(old, func(p Past) bool { return p.Ino == g.Ino }) {
			continue
		}
		last := Past{ID: g.at, Ino: g.Ino, Kind: g.Kind, Deleted: true, Until: g.at, Version: g.inode.Latest()}
		if last.Version != nil {
			last.ID = last.Version.ID
		}
		old = append(old, last)
		if old, err = t.pastOf(g.inode, old, []Past{last}); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(old, func(a, b Past) int { return b.ID.Compare(a.ID) })
	limits, out := v.Limits(), current
	for _, p := range old {
		if len(out) == len(current)+limits.History {
			break
		}
		if there, err := t.there(p); err != nil {
			return nil, err
		} else if there && !v.expired(p.Until) {
			out = append(out, p)
		}
	}
	return out, nil
}

// expired reports whether what was replaced or deleted then is too old.
func (v *Volume) expired(at crdt.VersionID) bool {
	return int64(at.Stamp) < v.db.opts.Now().Add(-v.Limits().HistoryAge).UnixNano()
}

// there reports whether a version's bytes were not forgotten.
func (t *tree) there(p Past) (bool, error) {
	if p.Version == nil || p.Version.Manifest {
		return true, nil
	}
	b, err := t.t.get(t.keys.version('c', p.Ino, p.Version.ID))
	return b != nil || p.Version.Size == 0, err
}

// pastOf appends the versions of an inode that are no leaves, and the leaves
// that lost and were dismissed. after is what came after the newest of them.
func (t *tree) pastOf(i *crdt.Inode, out, after []Past) ([]Past, error) {
	versions, err := t.historyOf(i.Ino)
	if err != nil {
		return nil, err
	}
	for n := range i.Contents {
		leaf := &i.Contents[n]
		if leaf.Dismissed && !slices.ContainsFunc(after, func(p Past) bool { return p.ID == leaf.ID }) {
			versions = append(versions, leaf)
		}
	}
	slices.SortFunc(versions, func(a, b *crdt.Version) int { return a.ID.Compare(b.ID) })
	until := crdt.VersionID{}
	if len(after) > 0 {
		until = after[0].ID
	}
	for _, old := range slices.Backward(versions) {
		// One that lost may be newer than what shows.
		if until.Compare(old.ID) < 0 {
			until = old.ID
		}
		out = append(out, Past{ID: old.ID, Ino: i.Ino, Kind: i.Kind, Version: old, Until: until})
		until = old.ID
	}
	return out, nil
}

// Deleted returns what was deleted in a directory and stands there no more, by
// name: of each the last version.
func (v *Volume) Deleted(path string) (out []Past, err error) {
	err = v.read(func(t *tree) error {
		dir := crdt.RootIno
		for _, name := range SplitPath(path) {
			if dir, err = t.dirAt(dir, name); err != nil {
				return err
			}
		}
		dead, err := t.deadNames(dir)
		if err != nil {
			return err
		}
		for _, g := range dead {
			if _, ok, err := crdt.Lookup(t, dir, g.Name); err != nil {
				return err
			} else if ok || v.expired(g.at) {
				continue
			}
			p := Past{ID: g.at, Ino: g.Ino, Kind: g.Kind, Version: g.inode.Latest(), Deleted: true, Until: g.at, Path: g.Name}
			if p.Version != nil {
				p.ID = p.Version.ID
			}
			out = append(out, p)
		}
		return nil
	})
	return out, err
}

// deadNames are the links that died in a directory set, of each name the last,
// by name.
func (t *tree) deadNames(dir crdt.Ino) ([]grave, error) {
	members, err := t.set(dir)
	if err != nil {
		return nil, err
	}
	var gone []crdt.Gone
	for _, m := range members {
		if err := t.eachGone(t.keys.key('o', uint64(m)), nil, func(g crdt.Gone) bool {
			gone = append(gone, g)
			return true
		}); err != nil {
			return nil, err
		}
	}
	dead, err := t.dig(gone)
	if err != nil {
		return nil, err
	}
	dead = slices.DeleteFunc(dead, func(g grave) bool { return g.inode == nil })
	slices.SortStableFunc(dead, func(a, b grave) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(dead, func(a, b grave) bool { return a.Name == b.Name }), nil
}

// A Reading is the bytes of one version, current or not.
type Reading struct {
	io.ReaderAt
	Size int64
}

// ReadVersion gives the bytes of a version. ErrNoVersion if they are gone,
// ErrNoContent if this node never had them.
func (v *Volume) ReadVersion(ino crdt.Ino, version *crdt.Version) (Reading, error) {
	if version.Manifest {
		m, err := v.db.manifests.get(version.Hash, v.db.manifest)
		if err != nil {
			return Reading{}, unreadable(err)
		}
		return Reading{readerAt(func(p []byte, off int64) (int, error) {
			n, err := v.db.content.ReadAt(m, p, off)
			return n, unreadable(err)
		}), version.Size}, nil
	}
	var b []byte
	err := v.read(func(t *tree) (err error) {
		b, err = t.oldBytes(ino, version)
		return err
	})
	return Reading{bytes.NewReader(b), version.Size}, err
}

// oldBytes reads inline bytes that may have been forgotten.
func (t *tree) oldBytes(ino crdt.Ino, version *crdt.Version) ([]byte, error) {
	b, err := t.t.get(t.keys.version('c', ino, version.ID))
	if err == nil && b == nil && version.Size > 0 {
		err = fmt.Errorf("%w: the bytes of %v are forgotten", ErrNoVersion, version.ID)
	}
	return b, err
}

type readerAt func(p []byte, off int64) (int, error)

func (f readerAt) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }
