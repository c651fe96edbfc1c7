package e2e

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/internal/admin"
	"github.com/synapsefs/synapsefs/internal/playground"
	"github.com/synapsefs/synapsefs/internal/wire"
)

// P9: a node whose daemon is killed again and again while another one changes
// the tree shows in the end just what that one shows, to who has looked all the
// time, tells watchers what they have not heard yet, keeps old versions for who
// has them open, and authors nothing.
func TestP9KillsUnderRemoteChanges(t *testing.T) {
	seed := seedOf(t)
	r := rand.New(rand.NewPCG(seed, 97))
	cluster := keptCluster(t, 2)
	a, b := cluster.Nodes[0], cluster.Nodes[1]
	config, err := os.OpenFile(b.Config, os.O_WRONLY|os.O_APPEND, 0) // to be read at the next start
	if err == nil {
		_, err = config.WriteString("log-level: debug\n")
		config.Close()
	}
	if err = errors.Join(err, b.Kill(), b.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	c := &changer{dir: a.Mount, r: r, events: map[string]string{}}
	if err := c.prepareShow(); err != nil {
		t.Fatal(err)
	}
	equal(t, cluster.Nodes...)
	reader := startLooker(t, b)
	reader.view(t) // it watches
	end := make(chan struct{})
	changed := make(chan error)
	go func() {
		for {
			select {
			case <-end:
				changed <- nil
				return
			default:
			}
			err := c.change()
			if err == nil && c.r.IntN(4) == 0 {
				err = c.show()
			}
			if err != nil {
				changed <- err
				return
			}
			if c.r.IntN(20) == 0 { // so that not all is shown in a rush
				time.Sleep(time.Duration(c.r.IntN(60)) * time.Millisecond)
			}
		}
	}()
	moments := rand.New(rand.NewPCG(seed, 96))
	for range *kills {
		time.Sleep(time.Duration(moments.IntN(200)) * time.Millisecond) // any moment is to be hit
		authored(t, b)
		if err := b.Kill(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(moments.IntN(2)*moments.IntN(200)) * time.Millisecond)
		if err := b.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	close(end)
	if err := <-changed; err != nil {
		t.Fatal(err)
	}
	barrier(t, a)
	want := startLooker(t, a).view(t)
	var got lookerView
	deadline := time.Now().Add(20 * time.Second)
	for {
		got = reader.view(t)
		if maps.Equal(got.Names, want.Names) || time.Now().After(deadline) {
			break
		}
	}
	for _, path := range slices.Sorted(maps.Keys(want.Names)) {
		if got.Names[path] != want.Names[path] {
			t.Errorf("%s shows as %s, not as %s", path, got.Names[path], want.Names[path])
		}
	}
	for _, e := range append(got.Errors, want.Errors...) {
		t.Error(e)
	}
	unheard := func() (names []string) {
		for name, events := range c.events {
			if !heardAll(got.Events[name], events) {
				names = append(names, fmt.Sprintf("of %s was heard %q, not %q", name, got.Events[name], events))
			}
		}
		return names
	}
	for deadline = time.Now().Add(10 * time.Second); len(unheard()) > 0 && time.Now().Before(deadline); {
		got = reader.view(t)
	}
	if names := unheard(); len(names) > 0 || got.Events[""] != "" {
		t.Errorf("%d names, %q: %s", len(names), got.Events[""], strings.Join(names[:min(len(names), 20)], "\n"))
		log, err := os.ReadFile(b.Log)
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "no event for a change") || strings.Contains(line, "shown without an event") {
				t.Log(line)
			}
		}
		if err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d changes, %d names with events, %d looks", c.n, len(c.events), got.Looks)
	authored(t, b)
	equal(t, cluster.Nodes...)
}

// heardAll reports whether got has the events of want, in order. R is a
// replacement, which the kill of a daemon that was at it makes a rewrite.
func heardAll(got, want string) bool {
	for i := 0; i < len(got) && want != ""; i++ {
		if got[i] == want[0] || want[0] == 'R' && (got[i] == 'T' || got[i] == 'W') {
			want = want[1:]
		}
	}
	return want == ""
}

// authored fails if a node whose mount nobody changes has made changes.
func authored(t *testing.T, nd *playground.Node) {
	t.Helper()
	err := nd.Call(func(c *admin.Client) error {
		s, err := c.Status(t.Context(), &wire.NodeStatusRequest{})
		if err == nil {
			for _, v := range s.Volumes {
				if v.Name == volume && v.Ops+v.OpenDrafts+v.Unfinished > 0 {
					t.Errorf("%s made %d changes of its own, has %d drafts and %d unfinished", nd.Name, v.Ops, v.OpenDrafts, v.Unfinished)
				}
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
