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
			case f.draft != nil && f.flushed:
				out[p] = &crashFile{published: f.draft}
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

// apply does a whole call; flushed = false stops a write before its flush.
func (m crashModel) apply(e crashEvent, flushed bool) {
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
		m.write(e, flushed)
	}
}

func (m crashModel) write(e crashEvent, flushed bool) {
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
	f.draft, f.flushed = &text, flushed && e.Op != "leave" && e.Op != "patch"
	switch {
	case e.Op != "write":
		f.stuck++
	case f.stuck == 0 && flushed:
		f.published, f.draft, f.under = f.draft, nil, nil
	}
}

// follow returns the model after a run, or ends the test if the volume is as no
// moment of the kill explains.
func (m crashModel) follow(t *testing.T, v *Volume, events []crashEvent) crashModel {
	t.Helper()
	m = m.clone()
	var doing *crashEvent
	flushed := false
	for _, e := range events {
		switch e.What {
		case "begin":
			doing, flushed = &e, false
		case "flushed":
			flushed = true
		case "done":
			m.apply(e, true)
			doing, flushed = nil, false
		}
	}
	candidates := []crashModel{}
	if !flushed {
		candidates = append(candidates, m)
	}
	if doing != nil {
		for _, whole := range []bool{true, false} {
			if whole || !flushed {
				c := m.clone()
				c.apply(*doing, whole)
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
		t.Logf("killed in %+v, flushed %v", *doing, flushed)
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
				if got, want := readNode(t, v, a.Node), f.shown(); got != want {
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
