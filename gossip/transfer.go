package gossip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/zeebo/blake3"

	"github.com/synapsefs/synapsefs/internal/wire"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/content"
	"github.com/synapsefs/synapsefs/store/crdt"
)

const (
	// blocksAtOnce is how many blocks are asked for in one request.
	blocksAtOnce = 32
	// blocksAFile is after how many blocks a file is put in place, so that a
	// transfer that is cut goes on from there.
	blocksAFile = 256
	// maxManifest bounds a manifest, in bytes: a file of 2 TiB.
	maxManifest = 64 << 20
)

// ErrAbsent says that who has a batch has not the content that it names.
var ErrAbsent = fmt.Errorf("it has that not: %w", store.ErrNoContent)

// A Transfer brings content here.
type Transfer interface {
	// Fetch returns when the manifest and all its blocks are in the content
	// store. Any of the peers may have them; the first is the likeliest. What
	// came before an error is kept. ErrAbsent if all say that they have it not.
	Fetch(ctx context.Context, volume store.VolumeID, peers []string, manifest crdt.Hash) error
}

// blockTransfer asks one peer after the other for what is missing.
type blockTransfer struct {
	db     *store.DB
	client func(node string) (wire.ReplicaClient, error)
}

// Fetch implements Transfer.
func (t *blockTransfer) Fetch(ctx context.Context, volume store.VolumeID, peers []string, manifest crdt.Hash) error {
	err := ErrAbsent
	for _, node := range peers {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e := t.fetchFrom(ctx, volume, node, manifest)
		if e == nil {
			return nil
		}
		if e = fmt.Errorf("from peer %q: %w", node, e); errors.Is(err, ErrAbsent) {
			err = e // one that may be over sooner
		}
	}
	return fmt.Errorf("fetch content %x: %w", manifest[:8], err)
}

func (t *blockTransfer) fetchFrom(ctx context.Context, volume store.VolumeID, node string, manifest crdt.Hash) error {
	client, err := t.client(node)
	if err != nil {
		return err
	}
	f := &fetcher{ctx: ctx, client: client, volume: volume, db: t.db}
	index := t.db.Index()
	encoded, have, err := index.Manifest(manifest)
	if err != nil {
		return err
	}
	if !have {
		if encoded, err = f.manifest(manifest); err != nil {
			return fmt.Errorf("manifest: %w", err)
		}
	}
	m, err := content.DecodeManifest(encoded)
	if err != nil {
		return err
	}
	missing, err := t.db.Content().Missing(m)
	if err != nil {
		return err
	}
	if !have { // first: it names the blocks that come, should they take hours
		if err := index.PutManifest(manifest, encoded); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(missing, blocksAFile) {
		if err := f.file(part); err != nil {
			return fmt.Errorf("blocks: %w", err)
		}
	}
	return nil
}

// A fetcher fetches from one peer.
type fetcher struct {
	ctx    context.Context // of one Fetch
	client wire.ReplicaClient
	volume store.VolumeID
	db     *store.DB
}

// file fetches blocks into one new immutable file. Those that came before an
// error are kept.
func (f *fetcher) file(hashes []crdt.Hash) (err error) {
	in, err := f.db.Content().NewIncoming()
	if err != nil {
		return err
	}
	for part := range slices.Chunk(hashes, blocksAtOnce) {
		if err = f.each(false, part, content.BlockSize, in.Put); err != nil {
			break
		}
	}
	if e := in.Commit(); e != nil {
		in.Abort()
		err = errors.Join(err, e)
	}
	return err
}

func (f *fetcher) manifest(h crdt.Hash) (encoded []byte, err error) {
	err = f.each(true, []crdt.Hash{h}, maxManifest, func(_ crdt.Hash, b []byte) error {
		if blake3.Sum256(b) != h {
			return content.ErrCorrupt
		}
		encoded = b
		return nil
	})
	return encoded, err
}

// each asks for hashes and gives their bytes, as they come and unverified, to
// put.
func (f *fetcher) each(manifests bool, hashes []crdt.Hash, limit int, put func(crdt.Hash, []byte) error) error {
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	stream, err := f.client.Fetch(ctx, &wire.FetchRequest{
		Volume: f.volume[:], Manifests: manifests, Hashes: hashesToWire(hashes),
	})
	if err != nil {
		return err
	}
	for _, h := range hashes {
		b, err := onePiece(stream, h, limit)
		if err != nil {
			return fmt.Errorf("%x: %w", h[:8], err)
		}
		if err := put(h, b); err != nil {
			return err
		}
	}
	return nil
}

// onePiece puts the pieces of one hash together.
func onePiece(stream interface {
	Recv() (*wire.FetchChunk, error)
}, h crdt.Hash, limit int) ([]byte, error) {
	var out []byte
	for {
		c, err := stream.Recv()
		switch {
		case err == io.EOF:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		case !slices.Equal(c.GetHash(), h[:]) || len(out)+len(c.GetData()) > limit:
			return nil, errMalformed
		case c.GetAbsent():
			return nil, ErrAbsent
		}
		if out == nil && c.GetLast() {
			return c.GetData(), nil
		}
		out = append(out, c.GetData()...)
		if c.GetLast() {
			return out, nil
		}
	}
}

// takeSnapshot makes a peer's state this replica's. No merge runs meanwhile.
func (c *Cluster) takeSnapshot(hv *heldVolume, node string, anew bool) {
	hv.log.Info("taking a snapshot", "peer", node, "anew", anew)
	take, as := hv.v.JoinSnapshot, hv.v.Replica()
	if anew {
		take, as = hv.v.BeginAnew, hv.v.Next()
	}
	ctx, cancel := context.WithCancel(hv.ctx)
	err := take(ctx, &snapshotPeer{c, hv, node, as})
	cancel()
	if err == nil {
		hv.log.Info("took a snapshot", "peer", node)
	}
	if _, err := c.introduce(hv, hv.v.Replica()); err != nil { // before it is told of
		hv.log.Error("identity of this replica: peers will refuse its changes", "err", err)
	}
	c.step(SnapshotTaken{
		Volume: hv.v.ID(), Peer: node, Vector: hv.v.Vector(), Err: err,
		Anew: anew, Self: hv.v.Replica(), Collected: hv.v.Collected(),
	})
	if err == nil {
		c.speak(hv)
	}
}

// A snapshotPeer is a peer that a snapshot, or the rest of one, is taken from.
type snapshotPeer struct {
	cluster *Cluster
	hv      *heldVolume
	node    string
	as      crdt.ReplicaID // that will have it
}

// Node implements store.SnapshotSource.
func (s *snapshotPeer) Node() string { return s.node }

// Read implements store.SnapshotSource.
func (s *snapshotPeer) Read(ctx context.Context, r store.SnapshotRequest) (func() ([]byte, error), error) {
	client, err := s.cluster.client(s.node)
	if err != nil {
		return nil, err
	}
	id := s.hv.v.ID()
	stream, err := client.Snapshot(ctx, &wire.SnapshotRequest{
		Volume: id[:], After: r.After, Until: r.Until, Tail: r.Tail, Since: vectorToWire(r.Since), Replica: uint64(s.as),
		Identity: NewIdentity(s.cluster.opts.Keys, id, s.as).Encode(),
	})
	if err != nil {
		return nil, err
	}
	return func() ([]byte, error) {
		chunk, err := stream.Recv()
		switch {
		case err == io.EOF:
			return nil, io.ErrUnexpectedEOF // without its end
		case err != nil:
			return nil, err
		case chunk.GetEnd():
			return nil, io.EOF
		}
		return chunk.GetData(), nil
	}, nil
}

// Content implements store.SnapshotSource.
func (s *snapshotPeer) Content(ctx context.Context, manifest crdt.Hash) error {
	return s.cluster.transfer.Fetch(ctx, s.hv.v.ID(), []string{s.node}, manifest)
}

// Verify implements store.SnapshotSource.
func (s *snapshotPeer) Verify(b *store.Batch) error {
	return s.cluster.identities.check(s.hv.v, b)
}
