package fusefs

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// queued are the names that wait, in order; those in upper case go.
func queued(q *workQueue) string {
	var names []string
	for _, w := range q.items {
		names = append(names, w.key.name)
	}
	return strings.Join(names, " ")
}

func goesIfUpper(k nameKey) bool { return k.name == strings.ToUpper(k.name) }

func pushAll(q *workQueue, names string) {
	var keys []nameKey
	for _, name := range strings.Fields(names) {
		keys = append(keys, nameKey{1, name})
	}
	q.pushNames(keys, goesIfUpper)
}

// P3: what changes again while it waits is shown behind what was there before
// that, and before what was removed after it had changed first.
func TestP3QueueOrder(t *testing.T) {
	for _, c := range []struct {
		name    string
		commits []string
		pops    int // before the last commit
		want    string
	}{
		{"each once", []string{"a B", "c D"}, 0, "a B c D"},
		{"again", []string{"a s", "b", "c s"}, 0, "a b c s"},
		{"what went since comes behind it", []string{"a s", "A2 b", "c s"}, 0, "a b c s A2"},
		{"what went before stays before it", []string{"A1 s", "A2 b", "c s"}, 0, "A1 b c s A2"},
		{"also what goes with the same change", []string{"s", "A2 b s C"}, 0, "b s A2 C"},
		{"in the order in which it went", []string{"s", "A2", "B2", "C s D"}, 0, "s A2 B2 C D"},
		{"while it is being shown", []string{"s", "A2", "b s"}, 1, "b s A2"},
		{"when it has been shown", []string{"s", "A2 b", "c s"}, 2, "b c s"},
		{"named twice", []string{"s", "A2", "b s A2 s"}, 0, "b s A2"},
		{"named twice while it is shown", []string{"s", "A2", "s b s"}, 1, "s b A2"},
		{"two of them", []string{"s r", "A2", "r b s"}, 0, "r b s A2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := newWorkQueue()
			for n, names := range c.commits {
				if n == len(c.commits)-1 {
					for range c.pops {
						q.pop()
					}
				}
				pushAll(q, names)
			}
			if got := queued(q); got != c.want {
				t.Errorf("%q, not %q", got, c.want)
			}
		})
	}
}

// A name that changes for ever is shown all the same, and so is what waits for it.
func TestP3QueueMovesBackForSomeTimeOnly(t *testing.T) {
	now := time.Now()
	q := newWorkQueue()
	q.now = func() time.Time { return now }
	var shown []string
	for round := range 100 {
		pushAll(q, "x"+strings.Repeat("x", round)+" GONE s")
		now = now.Add(maxDeferred / 10)
		if w, ok := q.pop(); ok {
			shown = append(shown, w.key.name)
		}
	}
	if !slices.Contains(shown, "s") || !slices.Contains(shown, "GONE") {
		t.Errorf("not shown: %q", shown)
	}
}
