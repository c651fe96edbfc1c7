package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

func init() { children["memory"] = memoryChild }

// heapTarget is what the daemon gives the garbage collector as its goal.
const heapTarget = 64 << 20

// memoryChild fills a store, opens it again and reads all, and says what is
// resident.
func memoryChild(dir string) error {
	debug.SetMemoryLimit(heapTarget)
	db, err := Open(Options{Dir: dir})
	if err != nil {
		return err
	}
	const volumes, files = 10, 10_000
	for n := range volumes {
		v, err := db.CreateReplica(NewVolumeID(), fmt.Sprint("v", n), true)
		if err != nil {
			return err
		}
		for f := range files {
			if err := writeWhole(v, fmt.Sprintf("endpoint-%05d.xml", f), noise(uint64(f), 1000)); err != nil {
				return err
			}
		}
	}
	sayMemory("written")
	if err := db.Close(); err != nil {
		return err
	}
	if db, err = Open(Options{Dir: dir}); err != nil {
		return err
	}
	sayMemory("reopened")
	for _, v := range db.Volumes() {
		if err := readAll(v); err != nil {
			return err
		}
	}
	sayMemory("read")
	return db.Close()
}

func readAll(v *Volume) (err error) {
	p := make([]byte, 2000)
	return errors.Join(v.ReadDir(root, 0, func(e DirEntry) bool {
		var a Attr
		if a, err = v.AttrOf(e.Entry); err == nil {
			_, err = v.ReadAt(a.Node, p, 0)
		}
		return err == nil
	}), err)
}

// sayMemory prints what /proc says of this process, without the pages of the
// database's files, which the system takes back when it needs them.
func sayMemory(when string) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		fmt.Println(err)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	fmt.Printf("%s: heap in use %d MiB", when, m.HeapInuse>>20)
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "RssAnon") || strings.HasPrefix(line, "RssFile") {
			fmt.Print(", ", strings.Join(strings.Fields(line), " "))
		}
	}
	fmt.Println()
}

// BenchmarkP13Memory prints what a node of 10 volumes of 10,000 small files
// takes.
func BenchmarkP13Memory(b *testing.B) {
	for range b.N {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"=memory:"+b.TempDir())
		out, err := cmd.CombinedOutput()
		if err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		b.Log("\n" + string(out))
	}
}
