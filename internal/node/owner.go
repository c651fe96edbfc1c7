package node

import (
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/synapsefs/synapsefs/gossip"
	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/internal/keys"
)

// ownerFile, in the state directory, says with whose key its replicas are
// written: the node's name and its public key in hex. gossip knows as much from
// the identities of the replicas; but when it looks, the store is open and may
// have signed, with a wrong key, what a killed daemon left unsigned.
const ownerFile = "owner"

// loadKeys returns the node's keys. known says that its state is written with them.
func loadKeys(cfg *config.Config) (pair *keys.Keys, known bool, err error) {
	pair, err = keys.Load(cfg.Keys)
	if err != nil {
		return nil, false, err
	}
	if pair.Node != cfg.Node {
		return nil, false, fmt.Errorf("the keys in %s are those of node %q, and this is %q: issue it its own", cfg.Keys, pair.Node, cfg.Node)
	}
	known, err = checkOwner(cfg, pair)
	return pair, known, err
}

// checkOwner refuses a state directory that is written with another key. known
// says that it is written with this one.
func checkOwner(cfg *config.Config, k *keys.Keys) (known bool, err error) {
	path := filepath.Join(cfg.StateDir, ownerFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("whose state directory it is: %w", err)
	}
	node, key, ok := strings.Cut(strings.TrimSpace(string(b)), " ")
	switch {
	case !ok:
		return false, fmt.Errorf("%s: want a node's name and public key, not %q: remove the file to have it made again", path, b)
	case key != publicKey(k):
		return false, fmt.Errorf("state directory %s is written with a key of node %q, and %s holds another, of node %q: %w",
			cfg.StateDir, node, cfg.Keys, k.Node, gossip.ErrForeignState)
	}
	return true, nil
}

func writeOwner(stateDir string, k *keys.Keys) error {
	path := filepath.Join(stateDir, ownerFile)
	err := os.WriteFile(path+".new", fmt.Appendf(nil, "%s %s\n", k.Node, publicKey(k)), 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("note whose state directory it is: %w", err)
	}
	return nil
}

func publicKey(k *keys.Keys) string {
	return hex.EncodeToString(k.Cert.Leaf.PublicKey.(ed25519.PublicKey))
}
