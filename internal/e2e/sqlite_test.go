package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// The two kinds of journal that SQLite has.
var sqliteModes = []string{"delete", "wal"}

// Writers at once.
const sqliteWriters = 3

func sqliteRows() int { return ci(40, 500) }

// runSQLite has some processes write one database at a time, by small
// transactions that each read what the others did, and roll some back.
func runSQLite(t *testing.T, dir string) {
	for _, mode := range sqliteModes {
		db := filepath.Join(dir, mode+".db")
		sqlite(t, db, fmt.Sprintf("PRAGMA journal_mode=%s; CREATE TABLE rows(writer, n, text, PRIMARY KEY(writer, n)); CREATE TABLE sum(n);"+
			"INSERT INTO sum VALUES(0);", mode))
		var writers sync.WaitGroup
		for writer := range sqliteWriters {
			writers.Go(func() { sqlite(t, db, sqliteWriter(writer)) })
		}
		writers.Wait()
		sqlite(t, db, "DELETE FROM rows WHERE n % 3 = 0; VACUUM; PRAGMA wal_checkpoint(TRUNCATE);")
	}
	checkSQLite(t, dir)
}

func sqliteWriter(writer int) string {
	var s strings.Builder
	s.WriteString("PRAGMA mmap_size=1000000; PRAGMA cache_size=10;\n")
	for n := range sqliteRows() {
		fmt.Fprintf(&s, "BEGIN IMMEDIATE; INSERT INTO rows VALUES(%d, %d, hex(randomblob(%d))); UPDATE sum SET n = n+1; COMMIT;\n",
			writer, n, 10+n*7%2000)
		if n%10 == 0 {
			s.WriteString("BEGIN IMMEDIATE; UPDATE sum SET n = 0; DELETE FROM rows; ROLLBACK;\n")
		}
	}
	return s.String()
}

func checkSQLite(t *testing.T, dir string) {
	left := 0
	for n := range sqliteRows() {
		if n%3 != 0 {
			left += sqliteWriters
		}
	}
	want := fmt.Sprintf("ok\n%d|%d\n", left, sqliteRows()*sqliteWriters)
	for _, mode := range sqliteModes {
		got := sqlite(t, filepath.Join(dir, mode+".db"), "PRAGMA integrity_check; SELECT (SELECT count(*) FROM rows), n FROM sum;")
		if got != want {
			t.Errorf("%s: got %q, want %q", mode, got, want)
		}
	}
}

// sqlite gives a script to the shell of SQLite. A writer may starve while others
// never pause.
func sqlite(t *testing.T, db, script string) string {
	t.Helper()
	return toolWith(t, script, "", "sqlite3", "-batch", "-bail", "-cmd", ".timeout 600000", db)
}
