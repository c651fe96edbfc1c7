package store

import (
	"errors"
	"strings"
	"testing"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// TestP4RestoreOverAFileStillWritten: what is not published is in no op, or
// peers would refuse that op and all that follow. A restore that would replace
// such a file is refused.
func TestP4RestoreOverAFileStillWritten(t *testing.T) {
	a, b := pair(t, Options{})
	script(t, a, "write x old; unlink x")
	w := create(t, a, root, "x").write("new", 0)
	past := must(a.History("x"))
	if err := a.RestoreVersion("x", past[len(past)-1].ID, ""); !errors.Is(err, crdt.ErrExist) {
		t.Errorf("restore of a version: %v", err)
	}
	check(t, a.RestoreVersion("x", past[len(past)-1].ID, "y"), nil)
	exchange(t, a, b)
	w.close()
	exchange(t, a, b)
	same(t, a, b)
	if x, y := read(t, b, root, "x"), read(t, b, root, "y"); x != "new" || y != "old" {
		t.Errorf("%q %q", x, y)
	}
}

// TestP4RestoreOfAHiddenFileOverOneStillWritten is the same for conflicts.
func TestP4RestoreOfAHiddenFileOverOneStillWritten(t *testing.T) {
	id := NewVolumeID()
	a, b, c := volumeWith(t, id, Options{}), volumeWith(t, id, Options{}), volumeWith(t, id, Options{})
	w := create(t, a, root, "x").write("mine", 0)
	script(t, b, "write x theirs")
	script(t, c, "write x others")
	exchange(t, a, b, c)
	for _, r := range must(a.Records()) {
		if _, err := a.RestoreRecord(r.ID, ""); !errors.Is(err, crdt.ErrExist) {
			t.Errorf("restore of %s: %v", r.Path, err)
		}
	}
	w.close()
	exchange(t, a, b, c)
	same(t, a, b, c)
	if got := read(t, c, root, "x"); got != "mine" {
		t.Errorf("%q shows", got)
	}
	if got := len(must(a.Records())); got != 2 {
		t.Errorf("%d conflicts", got)
	}
}

// A file without a name leaves nothing behind when its writer has gone.
func TestUnnamedIsNotKept(t *testing.T) {
	v := volumeWith(t, NewVolumeID(), Options{})
	for _, text := range []string{"", "small", strings.Repeat("large", 1<<16)} {
		a, h, err := v.CreateUnnamed(Request{}, root, NewNode{Mode: 0o600})
		check(t, err, nil)
		w := writing{t, v, a.Node, h}
		if text != "" {
			w.add(text)
		}
		if text == "small" {
			w.flush()
		}
	}
	v = reopen(t, v)
	if s := v.Stats(); s.Unfinished > 0 || s.OpenDrafts > 0 {
		t.Errorf("%d unfinished, %d open", s.Unfinished, s.OpenDrafts)
	}
	names, err := v.db.content.Drafts()
	check(t, err, nil)
	if drafts, err := v.draftRecords(); err != nil || len(drafts)+len(names) > 0 {
		t.Errorf("%d records, files %v, %v", len(drafts), names, err)
	}
}
