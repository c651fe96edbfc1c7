package crdt

import (
	"fmt"
	"pgregory.net/rapid"
	"testing"
)

func TestZZ(t *testing.T) {
	var n, ops, sets, skipped, multi, closures, dead, hidden, len2 int
	rapid.Check(t, func(t *rapid.T) {
		rs := program(t)
		n++
		for _, r := range rs {
			for _, o := range rs {
				r.pull(o)
			}
		}
		r := rs[0]
		ops += len(r.log)
		if len(r.log) > 8 {
			len2++
		}
		if len(r.st.sets) > 0 {
			sets++
		}
		for _, m := range r.st.moves {
			if m.Skipped {
				skipped++
				break
			}
		}
		for _, i := range r.st.inodes {
			if len(i.Contents) > 1 {
				multi++
				break
			}
		}
		for _, i := range r.st.inodes {
			if i.Ino != 1 && !i.hasOpenPlace() {
				l, _ := LiveLinks(r.st, i)
				if len(l) > 0 {
					closures++
					break
				}
			}
		}
	})
	fmt.Println(n, "ops", ops, "long", len2, "sets", sets, "skipped", skipped, "multi", multi, "liveclosed", closures, dead, hidden)
}
