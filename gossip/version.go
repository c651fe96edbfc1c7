package gossip

import "fmt"

// Versions of the replica protocol that this build speaks. A node of the
// previous minor release can always be a peer.
const (
	minVersion = 2
	maxVersion = 2
)

// commonVersion picks the version to speak with a peer.
func commonVersion(theirMin, theirMax uint32) (uint32, error) {
	v := min(theirMax, uint32(maxVersion))
	if v < theirMin || v < minVersion {
		return 0, fmt.Errorf("%w: it speaks protocol versions %d to %d, this node %d to %d: upgrade the older one",
			ErrIncompatible, theirMin, theirMax, minVersion, maxVersion)
	}
	return v, nil
}
