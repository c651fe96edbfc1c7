package e2e

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/wire"
)

var restarts = flag.Int("restarts", 12, "how often a daemon without load is restarted")

// P9, P13: restarts leave nothing behind that grows with their number.
func TestP9RestartsLeaveNothing(t *testing.T) {
	c := keptCluster(t, 2)
	nd := c.Nodes[0]
	for i := range 300 {
		write(t, nd, fmt.Sprint("f", i), strings.Repeat("x", i*100))
	}
	equal(t, c.Nodes...)
	s := startShell(t)
	s.want("cd "+nd.Mount+" && exec 3<f1 4>>f2 5>new && echo x >&4 && echo ok", "ok")
	t.Cleanup(func() { s.says("cd /; exec 3<&- 4>&- 5>&-") })
	next := func(i int) {
		t.Helper()
		end := nd.Kill
		if i%2 == 0 {
			end = nd.HandOver
		}
		write(t, c.Nodes[1], "remote", fmt.Sprint(i))
		if err := errors.Join(end(), nd.Start(t.Context())); err != nil {
			t.Fatal(err)
		}
		until(t, "the change of the other node", shows(nd, "remote", fmt.Sprint(i)))
	}
	next(-1)
	next(-2)
	first := left(t, nd.PID(), keeperOf(t, nd), nd.State)
	for i := range *restarts {
		next(i)
	}
	last := left(t, nd.PID(), keeperOf(t, nd), nd.State)
	t.Logf("first %v\nlast %v\ndescriptors %v", first, last, descriptorsOf(t, nd.PID()))
	for what, n := range last {
		if limit := first[what]; n > limit+limit/4+slack[what] {
			t.Errorf("%s: %d after %d restarts, %d before", what, n, *restarts, first[what])
		}
	}
	if n := last["keeper's RSS KiB"]; n > keeperLimit {
		t.Errorf("the keeper takes %d KiB, and not %d", n, keeperLimit)
	}
	s.want("echo y >&4; cat <&3 | wc -c", "100")
	if err := nd.Call(func(c *admin.Client) error {
		status, err := c.Status(t.Context(), &wire.NodeStatusRequest{})
		if err == nil && (status.Volumes[0].OpenDrafts > 3 || status.Volumes[0].Unfinished > 0) {
			t.Errorf("%v", status.Volumes[0])
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// keeperLimit is what a keeper may have in memory, in KiB. The program as a whole,
// once started, takes 19,000.
const keeperLimit = 14 << 10

// slack is what may come and go.
var slack = map[string]int{"daemon's descriptors": 2, "keeper's RSS KiB": 1024, "daemon's RSS KiB": 40 << 10, "ledgers' bytes": 4096, "drafts": 2, "held": 1, "files of state": 60}

// left is what a daemon and its keeper have.
func left(t *testing.T, daemon, keeper int, state string) map[string]int {
	t.Helper()
	n := map[string]int{
		"daemon's descriptors": descriptors(t, daemon), "keeper's descriptors": descriptors(t, keeper),
		"daemon's RSS KiB": rss(t, daemon), "keeper's RSS KiB": rss(t, keeper),
	}
	err := filepath.WalkDir(state, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		n["files of state"]++
		switch dir := filepath.Base(filepath.Dir(path)); dir {
		case "mounts":
			if fi, err := d.Info(); err == nil {
				n["ledgers' bytes"] += int(fi.Size())
			}
		case "drafts", "held":
			n[dir]++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// descriptors are those of a process, but for the database's tables: of these
// there is one more after each kill, and in time one for several; they are among
// the files of its state.
func descriptors(t *testing.T, pid int) (n int) {
	t.Helper()
	for kind, some := range descriptorsOf(t, pid) {
		if kind != "*.sst" {
			n += some
		}
	}
	return n
}

// descriptorsOf counts a process's descriptors by what they are of.
func descriptorsOf(t *testing.T, pid int) map[string]int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, fd := range fds {
		target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name())) // it may be closed
		kind, _, _ := strings.Cut(target, ":[")
		if ext := filepath.Ext(target); filepath.IsAbs(target) && ext != "" {
			kind = "*" + ext
		}
		kinds[kind]++
	}
	return kinds
}

func rss(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
