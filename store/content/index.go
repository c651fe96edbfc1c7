package content

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// An Index maps block hashes to where they live in this replica's immutable
// files, and keeps manifests. It must be safe for concurrent use.
type Index interface {
	// Block tells where a block is; false if this replica does not have it.
	Block(h crdt.Hash) (Location, bool, error)

	// PutBlocks records blocks of files that are in place. It may do so in
	// several transactions, and is called again with the same entries if it
	// failed. An entry for a hash that is known may replace the old one.
	PutBlocks(entries []IndexEntry) error

	// Manifest returns an encoded manifest by its hash.
	Manifest(h crdt.Hash) ([]byte, bool, error)

	// PutManifest records a manifest, which may be some MiB long. All its
	// blocks that were written here are in the index by then.
	PutManifest(h crdt.Hash, encoded []byte) error
}

// An IndexEntry says where one block is.
type IndexEntry struct {
	Hash     crdt.Hash
	Location Location
}

// A Location is a range of bytes in an immutable file.
type Location struct {
	File   FileID
	Offset int64 // bytes
	Length int32 // bytes, 1 to BlockSize
}

// A FileID names an immutable file of this replica. It is random and means
// nothing to other replicas.
type FileID [16]byte

// String returns the id as 32 hex digits.
func (id FileID) String() string { return hex.EncodeToString(id[:]) }

// A MissingBlockError says that this replica does not have a block it was
// asked for.
type MissingBlockError struct {
	Hash crdt.Hash
}

func (e *MissingBlockError) Error() string {
	return fmt.Sprintf("block %x is not in this replica", e.Hash[:])
}

var (
	// ErrCorrupt says that bytes do not have the hash they are known by, on
	// this disk or from a peer.
	ErrCorrupt = errors.New("bytes do not match their hash")

	// ErrBadManifest says that bytes are no manifest.
	ErrBadManifest = errors.New("malformed manifest")

	// ErrClosed says that a draft or incoming file was used after its end.
	ErrClosed = errors.New("content is closed")
)
