package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A Listing is what the catalogue says of one volume.
type Listing struct {
	Name    string            `json:"-"` // the file's name
	ID      store.VolumeID    `json:"-"` // in the file as text
	Options map[string]string `json:"options"`
	Created time.Time         `json:"created"`
	By      string            `json:"by"` // the node that created it
}

// listingFile is the content of /volumes/NAME.
type listingFile struct {
	ID string `json:"id"`
	Listing
}

// root is the node id of a volume's root directory.
const root = store.NodeID(crdt.RootIno)

// The directories of the catalogue.
const (
	volumesDir = "volumes"
	deletedDir = "deleted"
	// leavingDir has an empty file for each node that was drained.
	leavingDir = "leaving"
	// attachedDir has a file ID.NODE for each volume that an orchestrator lets a
	// node use.
	attachedDir = "attached"
)

// catalogue reads and writes the list of all volumes.
type catalogue struct {
	v *store.Volume

	mu sync.Mutex // serialises writers; leaf but for the store's own locks
}

// find returns the listing of a name, or store.ErrNoVolume. That of a deleted
// volume is none: a change of it that did not know of the deletion may have
// brought the file back.
func (c *catalogue) find(name string) (Listing, error) {
	l, err := c.entry(name)
	if err != nil {
		return Listing{}, err
	}
	gone, err := c.deleted(l.ID)
	if err == nil && gone {
		err = store.ErrNoVolume
	}
	if err != nil {
		return Listing{}, err
	}
	return l, nil
}

// entry returns what the file of a name says, of a deleted volume too.
func (c *catalogue) entry(name string) (Listing, error) {
	dir, _, err := c.v.Lookup(root, volumesDir)
	if err == nil {
		var file store.Attr
		if file, _, err = c.v.Lookup(dir.Node, name); err == nil {
			return c.read(name, file)
		}
	}
	if errors.Is(err, crdt.ErrNotExist) {
		err = store.ErrNoVolume
	}
	return Listing{}, err
}

// list returns all volumes by name. One that cannot be read is an error: a
// listing is complete or none.
func (c *catalogue) list() ([]Listing, error) {
	dir, _, err := c.v.Lookup(root, volumesDir)
	if errors.Is(err, crdt.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var entries []store.DirEntry
	err = c.v.ReadDir(dir.Node, 0, func(e store.DirEntry) bool {
		entries = append(entries, e)
		return true
	})
	if err != nil {
		return nil, err
	}
	var all []Listing
	for _, e := range entries {
		if config.CheckLabel(e.Name) != nil {
			continue // not yet renamed into place
		}
		l, err := c.find(e.Name)
		if errors.Is(err, store.ErrNoVolume) {
			continue // deleted meanwhile
		} else if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b Listing) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

func (c *catalogue) read(name string, file store.Attr) (Listing, error) {
	data := make([]byte, file.Size)
	n, err := c.v.ReadAt(file.Node, data, 0)
	if err != nil && n < len(data) {
		return Listing{}, fmt.Errorf("catalogue entry %q: %w", name, err)
	}
	var f listingFile
	if err := json.Unmarshal(data[:n], &f); err != nil {
		return Listing{}, fmt.Errorf("catalogue entry %q: %w", name, err)
	}
	if f.Listing.ID, err = store.ParseVolumeID(f.ID); err != nil {
		return Listing{}, fmt.Errorf("catalogue entry %q: %w", name, err)
	}
	f.Name = name
	return f.Listing, nil
}

// add lists a volume. It returns once the entry is on disk and on its way.
func (c *catalogue) add(l Listing) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	mode := crdt.RenameNoReplace
	if there, err := c.entry(l.Name); err == nil {
		gone, err := c.deleted(there.ID)
		if err != nil {
			return err
		} else if gone {
			mode = crdt.RenameReplace
		}
	}
	return c.putLocked(l, mode)
}

// replace changes what is said of a volume that is listed, or else returns
// store.ErrNoVolume.
func (c *catalogue) replace(l Listing) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	listed, err := c.find(l.Name)
	if err == nil && listed.ID != l.ID {
		err = store.ErrNoVolume
	}
	if err != nil {
		return err
	}
	return c.putLocked(l, crdt.RenameReplace)
}

func (c *catalogue) putLocked(l Listing, mode crdt.RenameMode) error {
	data, err := json.Marshal(listingFile{ID: l.ID.String(), Listing: l})
	if err != nil {
		return err
	}
	dir, err := c.dir(volumesDir)
	if err != nil {
		return err
	}
	// Written aside and renamed: nobody, this node after a crash included,
	// ever sees a name without its whole entry.
	aside := "." + store.NewVolumeID().String()
	if err := c.write(dir, aside, data); err != nil {
		return err
	}
	err = c.v.Rename(store.Request{}, dir, aside, dir, l.Name, mode)
	if err != nil {
		return errors.Join(err, c.v.Unlink(store.Request{}, dir, aside))
	}
	return c.v.Sync()
}

// mark makes a small file in a directory of the catalogue, in place of any of
// that name.
func (c *catalogue) mark(dir, name string, data []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	node, err := c.dir(dir)
	if err != nil {
		return err
	}
	aside := "." + store.NewVolumeID().String()
	if err := c.write(node, aside, data); err != nil {
		return err
	}
	if err := c.v.Rename(store.Request{}, node, aside, node, name, crdt.RenameReplace); err != nil {
		return errors.Join(err, c.v.Unlink(store.Request{}, node, aside))
	}
	return c.v.Sync()
}

// unmark removes such a file, if it is there.
func (c *catalogue) unmark(dir, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	node, err := c.dir(dir)
	if err != nil {
		return err
	}
	if err := c.v.Unlink(store.Request{}, node, name); err != nil && !errors.Is(err, crdt.ErrNotExist) {
		return err
	}
	return c.v.Sync()
}

// unmarkAll removes the files that begin so; c.mu is held.
func (c *catalogue) unmarkAll(dir, prefix string) error {
	all, err := c.marks(dir)
	if len(all) == 0 || err != nil {
		return err
	}
	node, err := c.dir(dir)
	for name := range all {
		if err == nil && strings.HasPrefix(name, prefix) {
			err = c.v.Unlink(store.Request{}, node, name)
		}
	}
	return err
}

// marks returns the files of such a directory with their content.
func (c *catalogue) marks(dir string) (map[string][]byte, error) {
	at, _, err := c.v.Lookup(root, dir)
	if errors.Is(err, crdt.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var names []string
	err = c.v.ReadDir(at.Node, 0, func(e store.DirEntry) bool {
		if !strings.HasPrefix(e.Name, ".") {
			names = append(names, e.Name)
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	all := make(map[string][]byte, len(names))
	for _, name := range names {
		file, _, err := c.v.Lookup(at.Node, name)
		if errors.Is(err, crdt.ErrNotExist) {
			continue // removed meanwhile
		} else if err != nil {
			return nil, err
		}
		data := make([]byte, file.Size)
		if n, err := c.v.ReadAt(file.Node, data, 0); err != nil && n < len(data) {
			return nil, fmt.Errorf("catalogue entry %s/%s: %w", dir, name, err)
		}
		all[name] = data
	}
	return all, nil
}

// remove unlists a volume and refuses its id for ever.
func (c *catalogue) remove(l Listing) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	deleted, err := c.dir(deletedDir)
	if err != nil {
		return err
	}
	// The marker first: no replica may ever see the name free and the id
	// still welcome (P3 keeps the order everywhere).
	if err := c.write(deleted, l.ID.String(), nil); err != nil && !errors.Is(err, crdt.ErrExist) {
		return err
	}
	if err := c.unmarkAll(attachedDir, l.ID.String()+"."); err != nil {
		return err
	}
	if named, err := c.entry(l.Name); errors.Is(err, store.ErrNoVolume) || err == nil && named.ID != l.ID {
		return c.v.Sync() // another volume has the name
	} else if err != nil {
		return err
	}
	dir, err := c.dir(volumesDir)
	if err != nil {
		return err
	}
	err = c.v.Unlink(store.Request{}, dir, l.Name)
	if err != nil && !errors.Is(err, crdt.ErrNotExist) {
		return err
	}
	return c.v.Sync()
}

// deleted reports whether an id is refused.
func (c *catalogue) deleted(id store.VolumeID) (bool, error) {
	dir, _, err := c.v.Lookup(root, deletedDir)
	if err == nil {
		_, _, err = c.v.Lookup(dir.Node, id.String())
	}
	if errors.Is(err, crdt.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// dir finds or makes a directory of the catalogue.
func (c *catalogue) dir(name string) (store.NodeID, error) {
	a, _, err := c.v.Lookup(root, name)
	if errors.Is(err, crdt.ErrNotExist) {
		a, err = c.v.Mknod(store.Request{}, root, name, store.NewNode{Kind: crdt.KindDir, Mode: 0o755})
	}
	return a.Node, err
}

// write creates a file with the given content.
func (c *catalogue) write(dir store.NodeID, name string, data []byte) error {
	a, h, err := c.v.Create(store.Request{}, dir, name, store.NewNode{Kind: crdt.KindFile, Mode: 0o644})
	if err != nil {
		return err
	}
	if len(data) > 0 {
		_, err = c.v.WriteAt(a.Node, h, data, 0, false)
	}
	return errors.Join(err, c.v.Release(store.Request{}, a.Node, h))
}
