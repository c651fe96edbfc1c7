package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/synapsefs/synapsefs/fusefs/kernel"
	"github.com/synapsefs/synapsefs/internal/wire"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A spot is a path within a volume that this node holds.
type spot struct {
	v    *store.Volume
	path string
}

// spot finds what a target means: an absolute path in a mount of this node, or
// a volume's name.
func (n *Node) spot(target string) (spot, error) {
	if !filepath.IsAbs(target) {
		for _, v := range n.db.Volumes() {
			if v.Name() == target && v.ID() != store.CatalogueID {
				return spot{v: v}, nil
			}
		}
		return spot{}, fmt.Errorf("volume %q: %w on this node", target, store.ErrNoVolume)
	}
	target = filepath.Clean(target)
	n.mu.Lock()
	defer n.mu.Unlock()
	best := ""
	for dir, m := range n.mounts {
		if m.fs != nil && store.Below(target, strings.TrimSuffix(dir, "/")) && len(dir) > len(best) {
			best = dir
		}
	}
	if best == "" {
		return spot{}, fmt.Errorf("%s: %w", target, kernel.ErrNotMounted)
	}
	v := n.db.Volume(n.mounts[best].volume)
	if v == nil {
		return spot{}, fmt.Errorf("%s: %w", target, store.ErrNoVolume)
	}
	return spot{v, strings.Trim(strings.TrimPrefix(target, best), "/")}, nil
}

// within is a target that must lie in a volume; "" stays "".
func (n *Node) within(v *store.Volume, target string) (string, error) {
	if target == "" {
		return "", nil
	}
	s, err := n.spot(target)
	if err != nil {
		return "", err
	}
	if s.v != v || s.path == "" {
		return "", fmt.Errorf("%w: %s is no path in volume %q", ErrBadName, target, v.Name())
	}
	return s.path, nil
}

// recordVolume finds the volume that has a conflict.
func (n *Node) recordVolume(id string) (*store.Volume, crdt.VersionID, error) {
	version, err := crdt.ParseVersionID(id)
	if err != nil {
		return nil, version, fmt.Errorf("%w: conflict id: %w", ErrBadName, err)
	}
	for _, v := range n.db.Volumes() {
		all, err := v.Records()
		if err != nil {
			return nil, version, err
		}
		for _, r := range all {
			if r.ID == version {
				return v, version, nil
			}
		}
	}
	return nil, version, fmt.Errorf("%w: %s", store.ErrNoRecord, id)
}

func (s *adminServer) Conflicts(_ context.Context, r *wire.ConflictsRequest) (*wire.ConflictsReply, error) {
	spots := []spot{}
	if len(r.Target) > 0 {
		at, err := s.n.spot(string(r.Target))
		if err != nil {
			return nil, err
		}
		spots = append(spots, at)
	} else {
		for _, v := range s.n.db.Volumes() {
			spots = append(spots, spot{v: v})
		}
	}
	reply := &wire.ConflictsReply{}
	for _, at := range spots {
		all, err := at.v.Records()
		if err != nil {
			return nil, fmt.Errorf("list conflicts of volume %q: %w", at.v.Name(), err)
		}
		for _, c := range all {
			if !store.Below(c.Path, at.path) {
				continue
			}
			w, err := s.n.conflictToWire(at.v, c)
			if err != nil {
				return nil, err
			}
			reply.Conflicts = append(reply.Conflicts, w)
		}
	}
	return reply, nil
}

var (
	whatLost = map[crdt.RecordKind]string{
		crdt.RecordContent: "content", crdt.RecordHidden: "hidden", crdt.RecordPlace: "place",
	}
	kinds = map[crdt.Kind]string{
		crdt.KindFile: "file", crdt.KindDir: "directory", crdt.KindSymlink: "symlink", crdt.KindFifo: "fifo",
		crdt.KindSocket: "socket", crdt.KindChar: "device", crdt.KindBlock: "device",
	}
)

func (n *Node) conflictToWire(v *store.Volume, r store.Record) (*wire.Conflict, error) {
	c := &wire.Conflict{
		Id: r.ID.String(), Volume: v.Name(), Kind: whatLost[r.What], Path: []byte(r.Path), What: kinds[r.Kind],
		Size: r.Size, Lost: n.originToWire(v, r.ID), Against: n.originToWire(v, r.Against),
	}
	if r.Version != nil {
		c.Lost = n.originToWire(v, r.Version.ID) // who wrote it, not who put it there
	}
	if r.What == crdt.RecordPlace {
		path, err := v.PlaceOf(r.Ino, r.Link)
		if err != nil {
			return nil, err
		}
		c.ShownPath = []byte(path)
	}
	return c, nil
}

func (n *Node) originToWire(v *store.Volume, id crdt.VersionID) *wire.Origin {
	if id.IsZero() || id.Local() {
		return nil
	}
	return &wire.Origin{
		Version: id.String(), Node: n.cluster.NodeOf(v, id.Replica), Replica: id.Replica.String(), UnixNs: int64(id.Stamp),
	}
}

func (s *adminServer) DismissConflicts(_ context.Context, r *wire.DismissConflictsRequest) (*wire.DismissConflictsReply, error) {
	if len(r.Ids) == 0 {
		at, err := s.n.spot(string(r.Target))
		if err != nil {
			return nil, err
		}
		n, err := at.v.DismissAll(at.path)
		return &wire.DismissConflictsReply{Dismissed: uint64(n)}, err
	}
	// All are known, or none is dismissed.
	chosen, err := s.n.recordsOf(r.Ids)
	if err != nil {
		return nil, err
	}
	reply := &wire.DismissConflictsReply{}
	for v, ids := range chosen {
		if err := v.Dismiss(ids...); err != nil {
			return nil, fmt.Errorf("dismiss conflicts of volume %q: %w", v.Name(), err)
		}
		reply.Dismissed += uint64(len(ids))
	}
	return reply, nil
}

// recordsOf finds the conflicts, each once, by their volumes.
func (n *Node) recordsOf(ids []string) (map[*store.Volume][]crdt.VersionID, error) {
	out := map[*store.Volume][]crdt.VersionID{}
	for _, id := range ids {
		v, version, err := n.recordVolume(id)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out[v], version) {
			out[v] = append(out[v], version)
		}
	}
	return out, nil
}

func (s *adminServer) History(_ context.Context, r *wire.HistoryRequest) (*wire.HistoryReply, error) {
	at, err := s.n.spot(string(r.Target))
	if err != nil {
		return nil, err
	}
	var past []store.Past
	if r.Deleted {
		past, err = at.v.Deleted(at.path)
	} else {
		past, err = at.v.History(at.path)
	}
	if err != nil {
		return nil, fmt.Errorf("history of %s: %w", r.Target, err)
	}
	reply := &wire.HistoryReply{Volume: at.v.Name(), Path: []byte(at.path)}
	for _, p := range past {
		w := &wire.PastVersion{
			Written: s.n.originToWire(at.v, p.ID), Path: []byte(at.path), What: kinds[p.Kind],
			Current: p.Current, Until: s.n.originToWire(at.v, p.Until), Deleted: p.Deleted,
		}
		if r.Deleted {
			w.Path = []byte(strings.TrimPrefix(at.path+"/"+p.Path, "/"))
		}
		if p.Version != nil {
			w.Size = p.Version.Size
		}
		reply.Versions = append(reply.Versions, w)
	}
	return reply, nil
}

// readChunk is how much of a version goes in one message.
const readChunk = 256 << 10

func (s *adminServer) ReadVersion(r *wire.ReadVersionRequest, stream grpc.ServerStreamingServer[wire.ReadVersionReply]) error {
	return toStatus(s.readVersion(r, stream))
}

func (s *adminServer) readVersion(r *wire.ReadVersionRequest, stream grpc.ServerStreamingServer[wire.ReadVersionReply]) error {
	reading, err := s.reading(r)
	if err != nil {
		return err
	}
	in := io.NewSectionReader(reading, 0, reading.Size)
	buf := make([]byte, min(readChunk, reading.Size))
	for {
		n, err := in.Read(buf)
		if n > 0 {
			if err := stream.Send(&wire.ReadVersionReply{Data: bytes.Clone(buf[:n])}); err != nil {
				return err
			}
		}
		if err == io.EOF || n == 0 && err == nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read version: %w", err)
		}
	}
}

func (s *adminServer) reading(r *wire.ReadVersionRequest) (store.Reading, error) {
	if r.Conflict != "" {
		v, id, err := s.n.recordVolume(r.Conflict)
		if err != nil {
			return store.Reading{}, err
		}
		return v.ReadRecord(id, r.Against)
	}
	at, p, err := s.n.past(string(r.Target), r.Version)
	if err != nil {
		return store.Reading{}, err
	}
	if p.Version == nil {
		return store.Reading{}, fmt.Errorf("%w: %s was no file", store.ErrNoVersion, r.Target)
	}
	return at.v.ReadVersion(p.Ino, p.Version)
}

// past finds a version of a path.
func (n *Node) past(target, version string) (spot, store.Past, error) {
	at, err := n.spot(target)
	if err != nil {
		return at, store.Past{}, err
	}
	id, err := crdt.ParseVersionID(version)
	if err != nil {
		return at, store.Past{}, fmt.Errorf("%w: %w", ErrBadName, err)
	}
	all, err := at.v.History(at.path)
	if err != nil {
		return at, store.Past{}, fmt.Errorf("history of %s: %w", target, err)
	}
	for _, p := range all {
		if p.ID == id {
			return at, p, nil
		}
	}
	return at, store.Past{}, fmt.Errorf("%w: %s of %s", store.ErrNoVersion, version, target)
}

func (s *adminServer) Restore(_ context.Context, r *wire.RestoreRequest) (*wire.RestoreReply, error) {
	if r.Conflict != "" {
		return s.restoreConflict(r)
	}
	at, err := s.n.spot(string(r.Target))
	if err != nil {
		return nil, err
	}
	if err := s.n.mayWrite(at.v.ID()); err != nil {
		return nil, fmt.Errorf("restore %s: %w", r.Target, err)
	}
	to, err := s.n.within(at.v, string(r.To))
	if err != nil {
		return nil, err
	}
	reply := &wire.RestoreReply{Volume: at.v.Name(), Path: []byte(at.path), Made: 1}
	if to != "" {
		reply.Path = []byte(to)
	}
	if r.Version != "" {
		id, err := crdt.ParseVersionID(r.Version)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBadName, err)
		}
		return reply, at.v.RestoreVersion(at.path, id, to)
	}
	made, err := at.restoreDeleted(to, time.Duration(r.SinceNs))
	if err != nil {
		return nil, fmt.Errorf("restore %s: %w", r.Target, err)
	}
	reply.Made = uint64(made)
	return reply, nil
}

func (s *adminServer) restoreConflict(r *wire.RestoreRequest) (*wire.RestoreReply, error) {
	v, id, err := s.n.recordVolume(r.Conflict)
	if err != nil {
		return nil, err
	}
	to, err := s.n.within(v, string(r.To))
	if err != nil {
		return nil, err
	}
	path, err := v.RestoreRecord(id, to)
	if err != nil {
		return nil, fmt.Errorf("restore conflict %s: %w", r.Conflict, err)
	}
	return &wire.RestoreReply{Volume: v.Name(), Path: []byte(path), Made: 1}, nil
}

// restoreDeleted brings back what was deleted last at a path.
func (s spot) restoreDeleted(to string, since time.Duration) (made int, err error) {
	all, err := s.v.History(s.path)
	if err != nil {
		return 0, err
	}
	switch {
	case all[0].Current:
		return 0, fmt.Errorf("%w: it stands there; name the version to go back to", crdt.ErrExist)
	case all[0].Kind == crdt.KindDir:
		return s.v.RestoreTree(s.path, to, since)
	}
	return 1, s.v.RestoreVersion(s.path, all[0].ID, to)
}

// countRecords is for status: the number of conflicts, or none if they cannot
// be listed now.
func countRecords(v *store.Volume) uint64 {
	all, err := v.Records()
	if err != nil && !errors.Is(err, store.ErrClosed) {
		return 0
	}
	return uint64(len(all))
}
