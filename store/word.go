package store

import (
	"encoding/binary"
	"log/slog"

	"github.com/zeebo/blake3"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// wordContext keeps what is signed of a word apart from all else that a node
// signs.
const wordContext = "synapsefs member v1"

// Signed is what a replica's node signs of its word: wordContext and the BLAKE3
// hash of volume, replica, At, Committed (64 bit, big endian), the length of the
// node's name and the name, the number of Out and Out, and Acked as
// [crdt.AppendVector] writes it.
func (m *Member) Signed(v VolumeID) []byte {
	b := make([]byte, 0, 128+len(m.Node)+8*len(m.Out)+64*len(m.Acked))
	b = append(b, v[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(m.Replica))
	b = binary.BigEndian.AppendUint64(b, uint64(m.At))
	b = binary.BigEndian.AppendUint64(b, uint64(m.Committed))
	b = binary.BigEndian.AppendUint64(b, uint64(len(m.Node)))
	b = append(b, m.Node...)
	b = binary.BigEndian.AppendUint64(b, uint64(len(m.Out)))
	for _, id := range m.Out {
		b = binary.BigEndian.AppendUint64(b, uint64(id))
	}
	digest := blake3.Sum256(crdt.AppendVector(b, m.Acked))
	return append([]byte(wordContext), digest[:]...)
}

// Bounds of what others can put into the roster.
const (
	// maxOfNode is how many replicas of one node are known: it has one, and
	// for a while those that it was before.
	maxOfNode = 16
	// maxOut is how many replicas others can put out, so that this one's own
	// word, which names them all, stays one that peers take.
	maxOut = 4096
	// maxUnknown is how many replicas that nobody here has heard of are looked
	// up for one word.
	maxUnknown = 64
)

// makeRoom drops a replica of a node that has as many as are known of one: one
// that is out and only listed, else one that never spoke, else the one heard of
// longest ago.
func (r *roster) makeRoom(node string, volume string, log *slog.Logger) {
	var least *member
	n := 0
	for _, m := range r.members {
		if m.Node != node {
			continue
		}
		if n++; least == nil || r.before(m, least) {
			least = m
		}
	}
	if n < maxOfNode {
		return
	}
	if !r.out[least.Replica] && !r.crowded[node] {
		if r.crowded == nil {
			r.crowded = map[string]bool{}
		}
		r.crowded[node] = true
		log.Error("a node has more replicas of a volume than are counted: those that it spoke for longest ago do not any more",
			"volume", volume, "node", node, "limit", maxOfNode)
	}
	delete(r.members, least.Replica)
}

// before reports whether m is dropped before w.
func (r *roster) before(m, w *member) bool {
	switch {
	case r.out[m.Replica] != r.out[w.Replica]:
		return r.out[m.Replica]
	case (m.At == 0) != (w.At == 0):
		return m.At == 0
	case !m.heard.Equal(w.heard):
		return m.heard.Before(w.heard)
	}
	return m.Replica < w.Replica
}

// putOutLocked takes a member's word that replicas are out. Of one that nothing
// is known of, no identity either, it is taken when that has come: a member
// cannot make up replicas and fill the list with them.
func (v *Volume) putOutLocked(by *member) error {
	r := &v.roster
	unknown := 0
	for _, id := range by.Out {
		if id == v.replica || r.out[id] {
			continue
		}
		m := r.members[id]
		if m == nil && v.vector[id].Seq == 0 {
			if unknown++; unknown > maxUnknown {
				continue // those come with the next word
			}
			if record, err := v.Identity(id); err != nil || record == nil {
				if err != nil {
					return err
				}
				continue
			}
		}
		if len(r.out) >= maxOut {
			if !r.full {
				r.full = true
				v.db.opts.Log.Error("too many replicas are out: no more are put out by others, and nothing is collected",
					"volume", v.name, "limit", maxOut, "by", by.Replica, "node", by.Node)
			}
			return nil
		}
		node := ""
		if m != nil {
			node = m.Node
		}
		v.db.opts.Log.Warn("replica is out, as another says: it must take a snapshot when it comes back",
			"volume", v.name, "replica", id, "node", node, "by", by.Replica, "by node", by.Node)
		r.out[id], r.news = true, true
	}
	return nil
}
