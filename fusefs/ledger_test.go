package fusefs

import (
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/synapsefs/synapsefs/store/crdt"
)

func openedLedger(t *testing.T, path string) *ledger {
	t.Helper()
	l, err := openLedger(path, slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// P9: wherever a daemon dies, the next reads what was said in whole lines, also
// after the file was written anew.
func TestP9LedgerIsReadAsItWasWritten(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	path := filepath.Join(t.TempDir(), "ledger")
	l := openedLedger(t, path)
	for range 30 {
		for range r.IntN(40) {
			k := toldName{Dir: crdt.Ino(r.IntN(3) + 1), Name: fmt.Appendf(nil, "n\xff%d", r.IntN(5)), At: r.IntN(3)}
			switch r.IntN(6) {
			case 0, 1:
				l.seq++
				k.Was = crdt.Entry{Ino: crdt.Ino(r.IntN(4)), Link: crdt.LinkID(r.IntN(9)), Kind: crdt.KindFile}
				l.put(ledgerLine{Seq: l.seq, Names: []toldName{k}, Inodes: []toldInode{{crdt.Ino(r.IntN(4) + 1), r.IntN(2) == 0, r.IntN(2) == 0}}})
			case 2:
				l.put(ledgerLine{Seq: uint64(r.IntN(int(l.seq + 1))), Name: &k})
			case 3:
				l.put(ledgerLine{Seq: uint64(r.IntN(int(l.seq + 1))), Inode: crdt.Ino(r.IntN(4) + 1)})
			case 4:
				l.put(ledgerLine{Node: &ledgerNode{Node: rootNode + 1, Ino: crdt.Ino(r.IntN(2)), Born: uint32(r.IntN(2))}})
			case 5:
				l.put(ledgerLine{Helpers: []uint32{r.Uint32(), r.Uint32()}[:1+r.IntN(2)], Mode: &mountMode{ReadOnly: r.IntN(2) == 0}})
			}
		}
		want := l.know
		l.close()
		if r.IntN(2) == 0 { // a line that was being written
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(f, `{"s":99,"n":[{"d":1,"n":"`)
			f.Close()
		}
		l = openedLedger(t, path)
		if got := l.know; !maps.Equal(got.names, want.names) || !maps.Equal(got.inodes, want.inodes) || !maps.Equal(got.nodes, want.nodes) ||
			!slices.Equal(got.helpers, want.helpers) || !reflect.DeepEqual(got.mode, want.mode) {
			t.Fatalf("read\n%+v, written\n%+v", got, want)
		}
	}
	if err := l.remove(); err != nil {
		t.Fatal(err)
	}
}

// P13: a ledger does not grow with what is over.
func TestP13LedgerIsBounded(t *testing.T) {
	l := openedLedger(t, filepath.Join(t.TempDir(), "ledger"))
	defer l.close()
	for range 40_000 {
		l.seq++
		k := toldName{Dir: 1, Name: []byte("name")}
		l.put(ledgerLine{Seq: l.seq, Names: []toldName{k}})
		l.put(ledgerLine{Seq: l.seq, Name: &k})
	}
	if l.size > ledgerLimit+1024 {
		t.Errorf("it has %d bytes", l.size)
	}
}

// What a remote change of one name costs to promise and to keep.
func BenchmarkLedger(b *testing.B) {
	l, err := openLedger(filepath.Join(b.TempDir(), "ledger"), slog.Default())
	if err != nil {
		b.Fatal(err)
	}
	defer l.close()
	for b.Loop() {
		l.seq++
		k := toldName{Dir: 1, Name: []byte("name")}
		l.put(ledgerLine{Seq: l.seq, Names: []toldName{k}})
		l.put(ledgerLine{Seq: l.seq, Name: &k})
	}
}
