package store

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// crashModel is the tree by path; directories have a nil file.
type crashModel map[string]*crashFile

type crashFile struct {
	published *string
	draft     *string
	flushed   bool       // the draft counts as closed
	synced    bool       // it does, whatever is written to it after, but for O_TRUNC
	torn      *string    // what the last write, cut short, may have left a part of
	stuck     int        // handles that stay open
	under     *crashFile // what it was renamed over before it was published
}

func (f *crashFile) shown() string {
	switch {
	case f.draft != nil:
		return *f.draft
	case f.published != nil:
		return *f.published
	}
	return ""
}

// mayBe reports whether the text is what a write that was cut short left.
func (f *crashFile) mayBe(text string) bool {
	if f.torn == nil {
		return false
	}
	n, whole, old := 0, f.shown(), *f.torn
	for n < min(len(text), len(whole)) && text[n] == whole[n] {
		n++
	}
	return text[n:] == old[min(n, len(old)):]
}

func (f *crashFile) unpublished() bool { return f.published == nil }

func (m crashModel) clone() crashModel {
	var file func(*crashFile) *crashFile
	file = func(f *crashFile) *crashFile {
		if f == nil {
			return nil
		}
		c := *f
		c.under = file(f.under)
		return &c
	}
	out := crashModel{}
	for p, f := range m {
		out[p] = file(f)
	}
	return out
}

// restarted is what the tree is after a kill.
func (m crashModel) restarted() crashModel {
	out := crashModel{}
	for p, f := range m {
		if f == nil {
			out[p] = nil
			continue
		}
		for ; f != nil; f = f.under {
			switch {
			case f.draft != nil && (f.flushed || f.synced):
				out[p] = &crashFile{published: f.draft, torn: f.torn}
			case f.published != nil:
				out[p] = &crashFile{published: f.published}
			default:
				continue
			}
			break
		}
	}
	return out
}

func (m crashModel) hasDir(path string) bool {
	d, _, ok := strings.Cut(path, "/")
	_, there := m[d]
	return !ok || there
}

// How far a write got.
const (
	written = iota
	synced
	flushed
)

// apply does a whole call, but of a write only as far as it got.
func (m crashModel) apply(e crashEvent, far int) {
	if !m.hasDir(e.From) {
		return
	}
	switch e.Op {
	case "mkdir":
		if _, ok := m[e.From]; !ok {
			m[e.From] = nil
		}
	case "unlink":
		delete(m, e.From)
	case "rename":
		f := m[e.From]
		if f == nil || !m.hasDir(e.To) || e.From == e.To {
			return
		}
		target := m[e.To]
		delete(m, e.From) // with what lay under it
		f.under = nil
		if target != nil && f.unpublished() {
			if f.under = target; target.unpublished() {
				f.under = target.under
			}
		}
		m[e.To] = f
	default:
		m.write(e, far)
	}
}

func (m crashModel) write(e crashEvent, far int) {
	f := m[e.From]
	if f == nil && e.Op == "patch" {
		return
	}
	if f == nil {
		f = &crashFile{}
		m[e.From] = f
	}
	text := noise(e.Seed, e.Size)
	if old := f.shown(); e.Op == "patch" && len(old) > len(text) {
		text += old[len(text):]
	}
	closes := e.Op != "leave" && e.Op != "patch"
	f.torn = nil
	if old := f.shown(); e.Op == "patch" && far == written {
		f.torn = &old
	}
	f.draft, f.flushed = &text, closes && far == flushed
	f.synced = f.synced && e.Op == "patch" || closes && e.syncs() && far >= synced
	switch {
	case e.Op != "write":
		f.stuck++
	case f.stuck == 0 && far == flushed:
		f.published, f.draft, f.under, f.synced = f.draft, nil, nil, false
	}
}

// follow returns the model after a run, or ends the test if the volume is as no
// moment of the kill explains.
func (m crashModel) follow(t *testing.T, v *Volume, events []crashEvent) crashModel {
	t.Helper()
	m = m.clone()
	var doing *crashEvent
	closed := false
	for _, e := range events {
		switch e.What {
		case "begin":
			doing, closed = &e, false
		case "flushed":
			closed = true
		case "done":
			m.apply(e, flushed)
			doing, closed = nil, false
		}
	}
	candidates := []crashModel{}
	if !closed {
		candidates = append(candidates, m)
	}
	if doing != nil {
		for _, far := range []int{flushed, synced, written} {
			if far == flushed || !closed {
				c := m.clone()
				c.apply(*doing, far)
				candidates = append(candidates, c)
			}
		}
	}
	var diffs []string
	for _, c := range candidates {
		c = c.restarted()
		diff := c.compare(t, v)
		if diff == "" {
			return c
		}
		diffs = append(diffs, diff)
	}
	for n, e := range events[max(0, len(events)-60):] {
		t.Logf("%d %+v", n, e)
	}
	if doing != nil {
		t.Logf("killed in %+v, closed %v", *doing, closed)
	}
	t.Fatalf("the tree is not what was completed:\n%s", strings.Join(diffs, "\nor\n"))
	return nil
}

func (m crashModel) compare(t *testing.T, v *Volume) string {
	t.Helper()
	var diff []string
	seen := map[string]bool{}
	var walk func(dir NodeID, prefix string)
	walk = func(dir NodeID, prefix string) {
		for _, name := range list(t, v, dir) {
			a, _, err := v.Lookup(dir, name)
			check(t, err, nil)
			p := prefix + name
			seen[p] = true
			f, ok := m[p]
			switch {
			case !ok:
				diff = append(diff, p+": is there")
			case f == nil:
				walk(a.Node, p+"/")
			default:
				if got, want := readNode(t, v, a.Node), f.shown(); got != want && !f.mayBe(got) {
					diff = append(diff, fmt.Sprintf("%s: %d bytes, want %d", p, len(got), len(want)))
				}
			}
		}
	}
	walk(root, "")
	for _, p := range slices.Sorted(maps.Keys(m)) {
		if !seen[p] {
			diff = append(diff, p+": is missing")
		}
	}
	return strings.Join(diff, "\n")
}
