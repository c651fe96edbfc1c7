package gossip

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	rememberedFile = "peers.json"
	maxRemembered  = 256
)

// A rememberedPeer is a member seen once: tried for ever, so that a long
// partition heals.
type rememberedPeer struct {
	Node    string    `json:"node"`
	Address string    `json:"address"` // of the membership gossip
	Seen    time.Time `json:"seen"`
}

// readRemembered reads the peers remembered in dir. A file that cannot be
// understood is an error, but none that should stop a node.
func readRemembered(dir string) ([]rememberedPeer, error) {
	b, err := os.ReadFile(filepath.Join(dir, rememberedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var peers []rememberedPeer
	if err == nil {
		err = json.Unmarshal(b, &peers)
	}
	if err != nil {
		return nil, fmt.Errorf("read remembered peers: %w", err)
	}
	return peers[:min(len(peers), maxRemembered)], nil
}

// writeRemembered keeps the peers seen last, newest first.
func writeRemembered(dir string, peers []rememberedPeer) error {
	slices.SortFunc(peers, func(a, b rememberedPeer) int { return b.Seen.Compare(a.Seen) })
	b, err := json.MarshalIndent(peers[:min(len(peers), maxRemembered)], "", "  ")
	if err != nil {
		return fmt.Errorf("remember peers: %w", err)
	}
	path := filepath.Join(dir, rememberedFile)
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("remember peers: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("remember peers: %w", err)
	}
	return nil
}
