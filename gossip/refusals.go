package gossip

import (
	"maps"
	"slices"
	"sync"
	"time"
)

const maxRefusals = 64

// A Refusal is why a node was not taken as a peer, or a conflict with it.
type Refusal struct {
	Node    string // "" if it is known by its address alone
	Address string // of the membership gossip, if that was refused
	Reason  string
	Count   uint64
	Last    time.Time

	logged  time.Time
	expires time.Time // forgotten then; zero: when the node is a peer
}

// refusals keeps the last refusal of each node, for status. It is safe for
// concurrent use.
type refusals struct {
	now func() time.Time

	mu     sync.Mutex         // guards what follows
	byNode map[string]Refusal // or by what else it is about
}

func newRefusals(now func() time.Time) *refusals {
	return &refusals{now: now, byNode: map[string]Refusal{}}
}

// add counts a refusal; fresh says that it should be logged: it has another
// reason than the last one of the node, or that was logged a minute ago.
func (r *refusals) add(node, reason string) (fresh bool) {
	return r.put(node, Refusal{Node: node, Reason: reason}, 0)
}

// put is add for a refusal that is forgotten after a time, unless that is 0.
// Its key need not be the node.
func (r *refusals) put(key string, f Refusal, lasts time.Duration) (fresh bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	old, ok := r.byNode[key]
	if !ok && len(r.byNode) >= maxRefusals {
		delete(r.byNode, r.oldestLocked())
	}
	f.Count, f.Last = old.Count+1, now
	if f.logged = old.logged; !ok || old.Reason != f.Reason || now.Sub(old.logged) > time.Minute {
		f.logged, fresh = now, true
	}
	if lasts > 0 {
		f.expires = now.Add(lasts)
	}
	r.byNode[key] = f
	return fresh
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

// drop forgets a refusal, as that of a node that is a peer now.
func (r *refusals) drop(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byNode, key)
}

// all returns the refusals by node.
func (r *refusals) all() []Refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	maps.DeleteFunc(r.byNode, func(_ string, f Refusal) bool { return !f.expires.IsZero() && f.expires.Before(now) })
	out := make([]Refusal, 0, len(r.byNode))
	for _, key := range slices.Sorted(maps.Keys(r.byNode)) {
		out = append(out, r.byNode[key])
	}
	return out
}
