package node

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/synapsefs/synapsefs/store"
)

// An Attachment says that an orchestrator lets a node use a volume. It is kept in
// the catalogue for the orchestrator alone: whoever has the keys can mount.
type Attachment struct {
	ReadOnly bool   `json:"read_only,omitempty"`
	Mode     string `json:"mode"` // as the orchestrator calls it
}

// Attachments returns the attachments of all volumes, by node.
func (n *Node) Attachments() (map[store.VolumeID]map[string]Attachment, error) {
	marks, err := n.catalogue.marks(attachedDir)
	if err != nil {
		return nil, fmt.Errorf("list attachments: %w", err)
	}
	all := map[store.VolumeID]map[string]Attachment{}
	for name, data := range marks {
		text, node, _ := strings.Cut(name, ".")
		id, err := store.ParseVolumeID(text)
		var a Attachment
		if err == nil {
			err = json.Unmarshal(data, &a)
		}
		if err != nil {
			return nil, fmt.Errorf("attachment %q: %w", name, err)
		}
		if all[id] == nil {
			all[id] = map[string]Attachment{}
		}
		all[id][node] = a
	}
	return all, nil
}

// Attach lets a node use a volume, as the orchestrator has decided.
func (n *Node) Attach(ctx context.Context, id store.VolumeID, node string, a Attachment) error {
	data, err := json.Marshal(a)
	if err == nil {
		err = n.catalogue.mark(attachedDir, attachmentName(id, node), data)
	}
	if err != nil {
		return fmt.Errorf("attach volume %v to node %q: %w", id, node, err)
	}
	n.spread(ctx)
	return nil
}

// Detach undoes Attach, which need not have been.
func (n *Node) Detach(ctx context.Context, id store.VolumeID, node string) error {
	if err := n.catalogue.unmark(attachedDir, attachmentName(id, node)); err != nil {
		return fmt.Errorf("detach volume %v from node %q: %w", id, node, err)
	}
	n.spread(ctx)
	return nil
}

func attachmentName(id store.VolumeID, node string) string { return id.String() + "." + node }
