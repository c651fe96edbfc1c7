package gossip

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

const maxRefusals = 64

// A Refusal is why a node was not taken as a peer, or a conflict with it.
type Refusal struct {
	Node   string
	Reason string
	Count  uint64
	Last   time.Time
}

// refusals keeps the last refusal of each node, for status. It is safe for
// concurrent use.
type refusals struct {
	now func() time.Time

	mu     sync.Mutex // guards what follows
	byNode map[string]Refusal
}

func newRefusals(now func() time.Time) *refusals {
	return &refusals{now: now, byNode: map[string]Refusal{}}
}

// add counts a refusal; fresh says that it should be logged: it has another
// reason than the last one of the node, or that one is a minute old.
func (r *refusals) add(node, reason string) (fresh bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	old, ok := r.byNode[node]
	if !ok && len(r.byNode) >= maxRefusals {
		delete(r.byNode, r.oldestLocked())
	}
	r.byNode[node] = Refusal{Node: node, Reason: reason, Count: old.Count + 1, Last: now}
	return !ok || old.Reason != reason || now.Sub(old.Last) > time.Minute
}

func (r *refusals) oldestLocked() string {
	oldest, found := Refusal{}, false
	for _, f := range r.byNode {
		if !found || f.Last.Before(oldest.Last) {
			oldest, found = f, true
		}
	}
	return oldest.Node
}

// drop forgets the refusal of a node that is a peer now.
func (r *refusals) drop(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byNode, node)
}

// all returns the refusals by node.
func (r *refusals) all() []Refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Refusal, 0, len(r.byNode))
	for _, f := range r.byNode {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b Refusal) int { return cmp.Compare(a.Node, b.Node) })
	return out
}
