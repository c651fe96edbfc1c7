package node

import (
	"errors"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store"
)

// The options of a volume hold on every node that has a replica, and after a
// restart.
func TestVolumeOptionsBoundWhatIsKept(t *testing.T) {
	c := newCluster(t)
	cfg := c.config()
	n, err := Start(t.Context(), cfg, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	want := store.Limits{History: 3, HistoryAge: time.Hour, ConflictBytes: 1 << 20}
	info, err := n.CreateVolume(t.Context(), "v", map[string]string{"history": "3", "history-age": "1h", "conflict-limit": "1MiB"})
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Replica.Limits(); got != want {
		t.Errorf("limits %+v", got)
	}
	for _, options := range []map[string]string{{"history": "-1"}, {"history-age": "soon"}, {"conflict-limit": "much"}, {"x": "1"}} {
		if _, err := n.CreateVolume(t.Context(), "w", options); !errors.Is(err, ErrBadName) {
			t.Errorf("%v: %v", options, err)
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = start(t, cfg)
	if got := n.db.Volume(info.ID).Limits(); got != want {
		t.Errorf("after a restart: limits %+v", got)
	}
}
