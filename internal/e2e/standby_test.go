package e2e

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/synapsefs/synapsefs/internal/playground"
)

// onStandby starts another daemon and returns it when it waits.
func onStandby(t *testing.T, nd *playground.Node) *playground.Node {
	t.Helper()
	waits := func() int {
		log, err := os.ReadFile(nd.Log)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(log, []byte("on standby"))
	}
	before := waits()
	next, err := nd.Standby()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if nd.PID() != next.PID() {
			next.Kill() //nolint:errcheck // it may have ended
		}
	})
	until(t, "the daemon on standby", func() bool { return waits() > before })
	return next
}

// P9: a daemon on standby disturbs nothing, and goes on with the mounts when the one
// before ends, in whatever way: no call fails.
func TestP9Standby(t *testing.T) {
	c := keptCluster(t, 2)
	nd := c.Nodes[0]
	w := startWorkload(t, nd.Mount, seedOf(t))
	generation := uint64(1)
	served := func(by int) {
		t.Helper()
		if m, err := mountOf(t, nd); err != nil || m.Generation != generation || nd.PID() != by {
			t.Fatalf("by process %d: %v %v", nd.PID(), m, err)
		}
	}
	for _, end := range []func() error{nd.HandOver, nd.Kill, nd.HandOver} {
		next, was := onStandby(t, nd), nd.PID()
		served(was)
		if err := end(); err != nil {
			t.Fatal(err)
		}
		generation++
		if err := nd.Succeed(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		served(next.PID())
	}

	// One that is told to stop while it waits, as when a rollout is taken back.
	next := onStandby(t, nd)
	if err := next.HandOver(); err != nil {
		t.Error(err)
	}
	served(nd.PID())

	// The keeper dies while one waits: the mounts are still the first one's.
	next = onStandby(t, nd)
	old := keeperOf(t, nd)
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	renewed := func() bool {
		log, err := os.ReadFile(nd.Log)
		return err == nil && bytes.Contains(log, []byte("another keeper has the mounts"))
	}
	until(t, "another keeper", renewed)
	if err := nd.HandOver(); err != nil {
		t.Fatal(err)
	}
	if err := nd.Succeed(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	used := w.finish(t)
	t.Logf("%d calls, the longest took %v", used.Calls, used.Longest)
	equal(t, c.Nodes...)
}

// A daemon that could not go on says so at once, and not when it is its turn.
func TestStandbyRefuses(t *testing.T) {
	c := keptCluster(t, 2)
	nd := c.Nodes[0]
	mine, err := os.ReadFile(nd.Config)
	if err != nil {
		t.Fatal(err)
	}
	text := bytes.Replace(mine, []byte("/node1/keys"), []byte("/node2/keys"), 1)
	if bytes.Equal(text, mine) {
		t.Fatalf("no keys in\n%s", mine)
	}
	other := *nd
	other.Config = nd.Config + ".other"
	if err := os.WriteFile(other.Config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	next, err := other.Standby()
	if err != nil {
		t.Fatal(err)
	}
	<-next.Exited()
	if log := nd.LogTail(); !strings.Contains(log, "stand by") || !strings.Contains(log, "keys") {
		t.Errorf("log:\n%s", log)
	}
	if m, err := mountOf(t, nd); err != nil || m.Generation != 1 {
		t.Errorf("%v %v", m, err)
	}
}
