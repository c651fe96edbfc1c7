// Command load works on a directory without end: it replaces, reads, appends and
// lists files. Each half second it says in a line of JSON how that went: a Report.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// A Report is of all the time but Longest, which is of the time since the one before.
type Report struct {
	Ops, Errors int
	Last        string        // error
	Longest     time.Duration // that a call has taken, or takes
}

func main() {
	dir := os.Args[1]
	var mu sync.Mutex
	var r Report
	var longest time.Duration
	began := time.Now()
	did := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		r.Ops++
		longest = max(longest, time.Since(began))
		if err != nil {
			r.Errors++
			r.Last = err.Error()
		}
		began = time.Now()
	}
	go func() {
		for range time.Tick(500 * time.Millisecond) {
			mu.Lock()
			r.Longest = max(longest, time.Since(began))
			longest = 0
			line, _ := json.Marshal(r)
			mu.Unlock()
			fmt.Println(string(line))
		}
	}()
	if err := os.MkdirAll(dir, 0o777); err != nil {
		did(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		did(err)
	}
	for i := 0; ; i++ {
		path := filepath.Join(dir, fmt.Sprint("file", i%50))
		content := bytes.Repeat([]byte{byte('a' + i%26)}, 100+i%20000)
		did(os.WriteFile(path+".new", content, 0o666))
		did(os.Rename(path+".new", path))
		got, err := os.ReadFile(path)
		if err == nil && !bytes.Equal(got, content) {
			err = fmt.Errorf("%s is not what was written", path)
		}
		did(err)
		_, err = fmt.Fprintln(log, i)
		did(err)
		entries, err := os.ReadDir(dir)
		if err == nil && len(entries) < min(i+2, 51) {
			err = errors.New("files are missing")
		}
		did(err)
		time.Sleep(5 * time.Millisecond) // a pace
	}
}
