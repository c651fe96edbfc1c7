package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/internal/playground"
)

// A cost is what a process has used since it started. Unlike the time that
// passes, it tells two builds apart on a machine that others use too.
type cost struct {
	cpu      time.Duration
	switches int // that its threads made by waiting
}

func (c cost) since(d cost) cost { return cost{c.cpu - d.cpu, c.switches - d.switches} }

// costOf reads a daemon's cost. Threads that have ended count no switches.
func costOf(pid int) (c cost, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return c, err
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	for _, ticks := range fields[11:13] { // user, system
		n, err := strconv.Atoi(ticks)
		if err != nil {
			return c, err
		}
		c.cpu += time.Duration(n) * time.Second / 100 // USER_HZ
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, t := range threads {
		text, _ := os.ReadFile(t) // the thread may have ended
		_, after, _ := strings.Cut(string(text), "\nvoluntary_ctxt_switches:")
		line, _, _ := strings.Cut(after, "\n")
		n, _ := strconv.Atoi(strings.TrimSpace(line))
		c.switches += n
	}
	return c, err
}

// ownCost is that of the test process, which is the writer.
func ownCost() (c cost, err error) {
	var u syscall.Rusage
	err = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return cost{time.Duration(u.Utime.Nano() + u.Stime.Nano()), int(u.Nvcsw)}, err
}

// costs are those of the test process and of each daemon.
func costs(b *testing.B, nodes []*playground.Node) []cost {
	b.Helper()
	own, err := ownCost()
	if err != nil {
		b.Fatal(err)
	}
	out := []cost{own}
	for _, nd := range nodes {
		c, err := costOf(nd.PID())
		if err != nil {
			b.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

// reportCosts reports what each of n files cost: the origin's daemon, the
// others on average, and the writer until its last call returned.
func reportCosts(b *testing.B, n int, before, written, after []cost) {
	b.Helper()
	report := func(what string, c cost, n int) {
		b.ReportMetric(float64(c.cpu.Microseconds())/1000/float64(n), what+"-cpu-ms/file")
		b.ReportMetric(float64(c.switches)/float64(n), what+"-switches/file")
	}
	report("writer", written[0].since(before[0]), n)
	report("origin", after[1].since(before[1]), n)
	var peers cost
	for i := range after[2:] {
		c := after[2+i].since(before[2+i])
		peers.cpu, peers.switches = peers.cpu+c.cpu, peers.switches+c.switches
	}
	report("peer", peers, n*len(after[2:]))
}
