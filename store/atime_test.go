package store

import (
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/store/crdt"
)

// Access times outlive the daemon, those of reads if it was stopped in order.
func TestAccessTimesAreKept(t *testing.T) {
	now := time.Unix(1000, 0)
	v := volumeWith(t, NewVolumeID(), Options{Now: func() time.Time { return now }})
	read, set := create(t, v, root, "read"), create(t, v, root, "set")
	read.add("x").close()
	set.add("x").close()
	now = now.Add(time.Minute)
	check(t, v.Accessed(read.node), nil)
	at := crdt.Time{Sec: -7, Nsec: 8}
	must(v.SetAttr(Request{}, set.node, SetAttr{Atime: &at}))
	v = reopen(t, v)
	for name, want := range map[string]crdt.Time{"read": crdt.TimeOf(now.UnixNano()), "set": at} {
		a, _, err := v.Lookup(root, name)
		check(t, err, nil)
		if a.Atime != want {
			t.Errorf("%s: atime %v, want %v", name, a.Atime, want)
		}
	}
}

// A read renews an access time that is not younger than the last change, or a
// day old; many are written together.
func TestRelatime(t *testing.T) {
	now := time.Unix(1e9, 0)
	v := volumeWith(t, NewVolumeID(), Options{Now: func() time.Time { return now }})
	w := create(t, v, root, "f")
	w.add("x").close()
	for _, c := range []struct {
		after time.Duration
		set   bool
	}{{time.Second, true}, {time.Second, false}, {23 * time.Hour, false}, {time.Hour, true}, {24 * time.Hour, false}, {1, true}} {
		now = now.Add(c.after)
		before := must(v.Attr(w.node)).Atime
		check(t, v.Accessed(w.node), nil)
		if after := must(v.Attr(w.node)).Atime; (after == crdt.TimeOf(now.UnixNano())) != c.set || !c.set && after != before {
			t.Errorf("%v later: atime went from %v to %v", c.after, before, after)
		}
	}
	var nodes []NodeID
	for range maxRecent + 10 {
		a := must(v.Mknod(Request{}, root, string(rune(0x4e00+len(nodes))), NewNode{Kind: crdt.KindDir, Mode: 0o755}))
		nodes = append(nodes, a.Node)
	}
	now = now.Add(time.Second)
	for _, n := range nodes {
		check(t, v.Accessed(n), nil)
	}
	if n := len(v.atimes.recent); n >= maxRecent {
		t.Errorf("%d access times are not written", n)
	}
	for _, n := range nodes {
		if a := must(v.Attr(n)); a.Atime != crdt.TimeOf(now.UnixNano()) {
			t.Fatalf("atime %v", a.Atime)
		}
	}
}
