package e2e

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/synapsefs/synapsefs/internal/config"
	"github.com/synapsefs/synapsefs/internal/node"
	"github.com/synapsefs/synapsefs/internal/playground"
	"github.com/synapsefs/synapsefs/store"
	"github.com/synapsefs/synapsefs/store/crdt"
)

// A source is a node within the test, the first of a cluster, that has a volume
// and no mount: it changes files by the store's own calls, at a rate that no
// program reaches by a mount on the same host. The others hear of it by gossip.
type source struct {
	volume *store.Volume
	dir    store.NodeID
	text   map[string]string // what is in the files
	done   int
}

// startSource starts a cluster of which the first node is a source, and makes a
// directory in its volume, for it to change.
func startSource(t *testing.T, nodes int, dir string) (*source, *playground.Cluster) {
	t.Helper()
	c := prepare(t, nodes)
	first := c.Nodes[0]
	address, err := playground.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	cfg.Node, cfg.Cluster, cfg.StateDir, cfg.Keys = first.Name, c.Name, first.State, filepath.Join(filepath.Dir(first.State), "keys")
	cfg.AdminSocket, cfg.Bind, cfg.ReplicaBind, cfg.Advertise = first.Socket, first.Bind, address, "127.0.0.1"
	cfg.Bootstrap, cfg.Keeper = true, false
	n, err := node.Start(t.Context(), cfg, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	info, err := n.CreateVolume(t.Context(), volume, nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := info.Replica.Mknod(store.Request{}, store.NodeID(crdt.RootIno), dir, store.NewNode{Kind: crdt.KindDir, Mode: 0o755})
	if err != nil {
		t.Fatal(err)
	}
	for _, nd := range c.Nodes[1:] {
		if err := nd.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		mount(t, nd, false)
	}
	return &source{volume: info.Replica, dir: a.Node, text: map[string]string{}}, c
}

// make makes a file.
func (s *source) make(name, text string) error {
	a, h, err := s.volume.Create(store.Request{}, s.dir, name, store.NewNode{Kind: crdt.KindFile, Mode: 0o644})
	if err != nil {
		return err
	}
	s.text[name] = text
	return s.fill(a.Node, h, text)
}

// rewrite gives a file other content.
func (s *source) rewrite(name, text string) error {
	a, _, err := s.volume.Lookup(s.dir, name)
	if err != nil {
		return err
	}
	h, err := s.volume.OpenWrite(store.Request{}, a.Node, true)
	if err != nil {
		return err
	}
	s.text[name] = text
	return s.fill(a.Node, h, text)
}

func (s *source) fill(node store.NodeID, h store.Handle, text string) error {
	_, err := s.volume.WriteAt(node, h, []byte(text), 0, false)
	return errors.Join(err, s.volume.Release(store.Request{}, node, h))
}

// replace puts another file at a name.
func (s *source) replace(name, text string) error {
	tmp := name + ".tmp"
	err := errors.Join(s.make(tmp, text), s.volume.Rename(store.Request{}, s.dir, tmp, s.dir, name, crdt.RenameReplace))
	delete(s.text, tmp)
	s.text[name] = text
	return err
}

func (s *source) move(from, to string) error {
	s.text[to] = s.text[from]
	delete(s.text, from)
	return s.volume.Rename(store.Request{}, s.dir, from, s.dir, to, crdt.RenameReplace)
}

// remove removes a file and makes another one in its place.
func (s *source) remove(name, text string) error {
	return errors.Join(s.volume.Unlink(store.Request{}, s.dir, name), s.make(name, text))
}

func (s *source) chmod(name string, mode uint32) error {
	a, _, err := s.volume.Lookup(s.dir, name)
	if err == nil {
		_, err = s.volume.SetAttr(store.Request{}, a.Node, store.SetAttr{Mode: &mode})
	}
	return err
}

// change changes one of several files in one of the ways that programs do.
func (s *source) change(files int) error {
	n, round := s.done%files, s.done/files
	name, text := fmt.Sprint(n), stormText(n, s.done)
	s.done++
	other := name + ".moved"
	if _, moved := s.text[other]; moved {
		name, other = other, name
	}
	switch way := (n + round) % 10; {
	case way < 4:
		return s.chmod(name, uint32(0o600+round%8))
	case way < 6:
		return s.rewrite(name, text)
	case way < 7:
		return s.replace(name, text)
	case way < 8:
		return s.remove(name, text)
	}
	return s.move(name, other)
}

// atRate makes changes at a rate a second, or as many as go, and returns the rate
// that it reached.
func atRate(length time.Duration, rate float64, change func() error) (reached float64, err error) {
	begin, n := time.Now(), 0
	for ; time.Since(begin) < length && err == nil; n++ {
		if ahead := time.Duration(float64(n)/rate*1e9) - time.Since(begin); ahead > time.Millisecond {
			time.Sleep(ahead)
		}
		err = change()
	}
	return float64(n) / time.Since(begin).Seconds(), err
}
