package sim

import (
	"slices"

	"github.com/zeebo/blake3"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// inlineLimit is small, so that some contents are files of their own.
const inlineLimit = 256

// A user is the programs on one node, and what they were promised.
type user struct {
	drafts []*draft
	saw    map[crdt.Ino]map[crdt.Hash]bool // contents read before they were replaced
	doing  string                          // the step under way

	replica   crdt.ReplicaID
	beginning crdt.ReplicaID // it is about to become, from a snapshot
	acked     crdt.Seq       // own ops whose call returned
	synced    crdt.Seq       // of these, those that a sync came after
	vector    crdt.Vector
	lost      bool // the machine lost power since
	promises  []promise
}

// A promise is a content that was closed and must be published.
type promise struct {
	Ino  crdt.Ino
	Hash crdt.Hash
}

func hashOf(b []byte) crdt.Hash { return crdt.Hash(blake3.Sum256(b)) }

func (u *user) forgetHandles() { u.drafts = nil }

// died keeps what was promised of the open files.
func (u *user) died(power bool) {
	if harmless(u.doing) {
		for _, d := range u.drafts {
			if d.linked && (d.synced || d.flushed && !power) {
				u.promises = append(u.promises, promise{d.ino, hashOf(d.bytes)})
			}
		}
	}
	u.drafts, u.doing, u.lost = nil, "", u.lost || power
}

// harmless reports whether a step leaves open files as they are.
func harmless(verb string) bool {
	return slices.Contains([]string{"", "mkdir", "symlink", "xattr", "unxattr", "chmod", "chown", "read", "fsync"}, verb)
}

// pledges are the promises that a kill now would leave.
func (u *user) pledges() (out []promise) {
	for _, d := range u.drafts {
		if d.linked && (d.flushed || d.synced) {
			out = append(out, promise{d.ino, hashOf(d.bytes)})
		}
	}
	return append(out, u.promises...)
}

// checkRestart compares what a restart finds with what was promised (P8).
func (n *node) checkRestart() {
	u := &n.user
	if u.replica == 0 {
		return
	}
	if u.beginning != 0 && (n.vol.Replica() == u.beginning || u.lost) {
		if n.vol.Replica() == u.beginning {
			n.begunAnew() // and was killed then
		}
		u.lost, u.beginning = false, 0
		return
	}
	v := n.vol.Vector()
	least := u.acked
	if u.lost {
		least = u.synced
	}
	got := v[u.replica].Seq
	if n.vol.Replica() == u.replica {
		got += crdt.Seq(n.vol.Stats().Unsealed)
	}
	if got < least {
		n.w.fail("P8: %s has %d own ops after a restart, %d were acknowledged", n.name, got, least)
	}
	if !u.lost && !v.Contains(u.vector) {
		n.w.fail("P8: %s forgot merges at a restart", n.name)
	}
	u.lost = false
	n.acknowledged()
}

// acknowledged notes what must survive from now on.
func (n *node) acknowledged() {
	u := &n.user
	u.vector = n.vol.Vector()
	if r := n.vol.Replica(); r != u.replica {
		u.replica, u.synced = r, 0
	}
	u.acked = u.vector[u.replica].Seq + crdt.Seq(n.vol.Stats().Unsealed)
	for _, d := range u.drafts {
		n.checkLinks(d, true)
	}
}

// checkLinks sees whether a draft has a name, and who took it.
func (n *node) checkLinks(d *draft, byUser bool) {
	a, err := n.vol.Attr(d.node)
	was := d.linked
	d.linked = err == nil && a.Nlink > 0
	d.gone = !d.linked && (d.gone || was && byUser)
}

func (u *user) sees(ino crdt.Ino, b []byte) { u.knows(ino, hashOf(b)) }

func (u *user) knows(ino crdt.Ino, h crdt.Hash) {
	if u.saw == nil {
		u.saw = map[crdt.Ino]map[crdt.Hash]bool{}
	}
	if u.saw[ino] == nil {
		u.saw[ino] = map[crdt.Hash]bool{}
	}
	u.saw[ino][h] = true
}

func (u *user) sawAnywhere(h crdt.Hash) bool {
	for _, saw := range u.saw {
		if saw[h] {
			return true
		}
	}
	return false
}

func (u *user) draftOf(node store.NodeID) *draft {
	for _, d := range u.drafts {
		if d.node == node {
			return d
		}
	}
	return nil
}
