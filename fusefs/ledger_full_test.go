package fusefs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

func told(seq uint64, name string, was crdt.Ino) ledgerLine {
	return ledgerLine{Seq: seq, Names: []toldName{{Dir: 1, Name: []byte(name), Was: crdt.Entry{Ino: was}}}}
}

// P9: what a name shows until then is what it showed when that was said last,
// also if it was to be shown as something else before.
func TestP9LedgerOfAChangeDuringAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	l := openedLedger(t, path)
	l.put(told(1, "f", 0))
	l.put(told(2, "f", 7)) // shown in the meantime, as 7
	l.put(ledgerLine{Seq: 1, Name: &toldName{Dir: 1, Name: []byte("f")}})
	for range 2 { // the second one is read from what was written anew
		l = openedLedger(t, path)
		if got := l.know.names[nameKey{1, "f"}]; got.was.Ino != 7 || got.seq != 2 || len(l.know.names) != 1 {
			t.Errorf("the ledger says %+v", l.know.names)
		}
	}
}

// P9: the next daemon tells watchers of a directory's names as this one would
// have, and not of the directory, whose attributes nobody has changed.
func TestP9LedgerSaysWhatWouldBeTold(t *testing.T) {
	const dir, other = crdt.Ino(7), crdt.Ino(8)
	s := newShown(1, newWorkQueue(), nil)
	s.ledger = openedLedger(t, filepath.Join(t.TempDir(), "ledger"))
	s.current[dir], s.current[other] = 7, 8
	s.promiseLocked(&store.Changes{
		Names:  []crdt.NameChange{{Dir: dir, Name: "f", After: crdt.Entry{Ino: 9}}},
		Inodes: []crdt.InodeChange{{Ino: dir}, {Ino: other}},
	})
	if told := s.ledger.know.inodes; told[dir].Attrib || !told[other].Attrib {
		t.Errorf("the ledger says %+v", told)
	}
}

// P9: on a full disk a ledger loses no more than what there was no room for, and
// not even that once there is.
func TestP9LedgerOnAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("test", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path, filler := filepath.Join(dir, "ledger"), filepath.Join(dir, "filler")
	l := openedLedger(t, path)
	l.put(told(1, "before", 0))
	os.WriteFile(filler, make([]byte, 1<<20), 0o600) //nolint:errcheck // as much as there is room for
	n := uint64(1)
	for !l.torn {
		n++
		l.put(told(n, fmt.Sprint("full", n), 0))
	}
	if b, err := os.ReadFile(path); err != nil || bytes.HasSuffix(b, []byte("\n")) {
		t.Fatalf("no line is torn: %v", err)
	}
	l.put(told(n+1, "still full", 0))
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	l.put(told(n+2, "after", 0))
	if got := openedLedger(t, path).know.names; len(got) != int(n)+2 {
		t.Errorf("of %d names %d are known", n+2, len(got))
	}
}
