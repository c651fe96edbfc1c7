package sim

import (
	"errors"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// settleRecord dismisses a conflict, or brings back what lost it.
func (n *node) settleRecord(s step) error {
	records, err := n.vol.Records()
	if err != nil || len(records) == 0 {
		return err
	}
	r := records[int(s.word>>4)%len(records)]
	if s.verb == "dismiss" {
		return n.vol.Dismiss(r.ID)
	}
	if a, err := n.vol.Attr(n.vol.Node(r.Ino)); err == nil && a.Kind == crdt.KindFile {
		n.see(a)
	}
	past, err := n.vol.History(r.Path)
	if !expected(err) {
		return err
	}
	n.knowPast(past)
	to := ""
	if s.n == 0 {
		to = s.to
	}
	return second(n.vol.RestoreRecord(r.ID, to))
}

// undelete brings back what was at a path.
func (n *node) undelete(s step) error {
	if s.n == 0 {
		_, err := n.vol.RestoreTree(s.path, s.to, 0)
		return unlessForgotten(err)
	}
	past, err := n.vol.History(s.path)
	if err != nil {
		return err
	}
	n.knowPast(past)
	p := past[int(s.word>>4)%len(past)]
	if a, err := n.lookup(s.path); err == nil && a.Kind == crdt.KindFile {
		n.see(a)
	}
	return unlessForgotten(n.vol.RestoreVersion(s.path, p.ID, ""))
}

// knowPast notes that the user knows what shows and what was: of a file that is
// open that is what was published.
func (n *node) knowPast(past []store.Past) {
	for _, p := range past {
		if p.Version == nil {
			continue
		}
		if h, err := n.plainHash(&p.Version.Content); err == nil {
			n.user.knows(p.Ino, h)
		}
	}
}

// unlessForgotten allows that what was is beyond the limits, or large, and did not
// come with a snapshot.
func unlessForgotten(err error) error {
	if errors.Is(err, store.ErrNoVersion) || errors.Is(err, store.ErrNoContent) {
		return nil
	}
	return err
}
