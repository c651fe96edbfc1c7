package store

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Whatever of the logs reaches the disk without a sync, what is read then is
// how the database was at some moment.
func TestP8TornLogsAreAMoment(t *testing.T) {
	const n = 40
	for name, tear := range map[string]func(t *testing.T, logs []string){
		"nothing":             func(*testing.T, []string) {},
		"the first log's end": func(t *testing.T, logs []string) { cutLog(t, logs[0]) },
		"the last log's end":  func(t *testing.T, logs []string) { cutLog(t, logs[len(logs)-1]) },
		"the first log":       func(t *testing.T, logs []string) { check(t, os.Remove(logs[0]), nil) },
		"the first's bytes":   func(t *testing.T, logs []string) { check(t, os.Truncate(logs[0], 0), nil) },
		"the last's bytes":    func(t *testing.T, logs []string) { check(t, os.Truncate(logs[len(logs)-1], 0), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			from := t.TempDir()
			k := must(openBadger(from, "boot 1", slog.New(slog.DiscardHandler)))
			for i := range n {
				check(t, k.update(func(tx txn) error { return tx.set(fmt.Appendf(nil, "k%02d", i), make([]byte, 900<<10)) }), nil)
			}
			to := copyAtRest(t, from)
			check(t, k.close(), nil)
			logs := must(filepath.Glob(filepath.Join(to, "*.mem")))
			slices.Sort(logs)
			tear(t, logs)
			k = must(openBadger(to, "boot 2", slog.New(slog.DiscardHandler)))
			defer k.close()
			seen := 0
			check(t, k.view(func(tx txn) error {
				return tx.scan([]byte("k"), nil, func(key, _ []byte) (bool, error) {
					if string(key) != fmt.Sprintf("k%02d", seen) {
						t.Errorf("%s follows %d others", key, seen)
					}
					seen++
					return true, nil
				})
			}), nil)
			t.Logf("%d logs, %d of %d left", len(logs), seen, n)
			if name == "nothing" && seen != n {
				t.Errorf("%d left", seen)
			}
		})
	}
}

// copyAtRest copies a database's directory at a moment at which no log becomes
// a table: one that has is emptied, and then removed.
func copyAtRest(t *testing.T, from string) (to string) {
	t.Helper()
	names := func() (out []string) {
		for _, e := range must(os.ReadDir(from)) {
			size := int64(-1)
			if i, err := e.Info(); err == nil {
				size = i.Size()
			}
			out = append(out, fmt.Sprint(e.Name(), " ", size))
		}
		return out
	}
	for {
		before := names()
		to = filepath.Join(t.TempDir(), "copy")
		err := os.CopyFS(to, os.DirFS(from))
		emptied := slices.ContainsFunc(before, func(s string) bool { return strings.HasSuffix(s, ".mem 0") })
		if err == nil && !emptied && slices.Equal(before, names()) {
			return to
		}
		check(t, os.RemoveAll(to), nil)
	}
}

// cutLog takes the second half of a log's records away.
func cutLog(t *testing.T, path string) {
	t.Helper()
	b := must(os.ReadFile(path))
	end := logHeader
	for r, ok := parseRecord(b[end:]); ok; r, ok = parseRecord(b[end:]) {
		end += r.size
	}
	clear(b[end/2:])
	check(t, os.WriteFile(path, b, 0o600), nil)
}
