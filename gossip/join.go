package gossip

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// run joins, and joins again, the configured and remembered peers until ctx
// ends: memberlist alone never heals a long partition.
func (m *membership) run(ctx context.Context) {
	delay, news := rejoinFirst, false
	for {
		// The second of its name asks the members whether the first is still
		// there, and when that has changed, shows itself to all of them.
		answered := m.joinRound(ctx, news || m.second.Load())
		m.save()
		news = answered && m.settleName()
		switch {
		case news:
			delay = rejoinFirst
		case m.second.Load():
			delay = rejoinSecond
		case m.alone():
			delay = min(delay*2, rejoinAlone)
		default:
			delay = rejoinSteady
		}
		jitter := time.Duration(rand.Int64N(int64(delay)/4 + 1))
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay - jitter):
		}
	}
}

func (m *membership) alone() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.members) == 0
}

// joinRound tries all addresses at which a member may be that is not known, or
// is, if all is true, and reports whether one answered.
func (m *membership) joinRound(ctx context.Context, all bool) bool {
	var g errgroup.Group
	var answered atomic.Bool
	m.clashed.Store(false)
	g.SetLimit(rejoinAtOnce)
	for _, address := range m.targets(all) {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			_, err := m.list.Join([]string{address})
			m.tried(address, err)
			if err == nil {
				answered.Store(true)
			}
			return nil
		})
	}
	_ = g.Wait() // it carries no error
	return answered.Load()
}

// foreignKey and an address are the key of a refusal.
const foreignKey = "foreign key of "

// tried notes what came of joining an address.
func (m *membership) tried(address string, err error) {
	if !isForeignKey(err) {
		m.refusals.drop(foreignKey + address)
		if err != nil && m.alone() {
			m.log.Debug("join", "address", address, "err", err)
		}
		return
	}
	reason := fmt.Sprintf("the node at %s answers under another gossip key: one of the two has a wrong gossip.key; "+
		"copy the cluster's into this node's directory of keys and start it again", address)
	if m.refusals.put(foreignKey+address, Refusal{Address: address, Reason: reason}, 2*rejoinSteady) {
		m.log.Error("join", "address", address, "err", reason)
	}
}

// isForeignKey reports whether a node's answer to a join could not be read with
// any of this node's gossip keys. memberlist tells that by the text alone.
func isForeignKey(err error) bool {
	return err != nil && strings.Contains(err.Error(), "no installed keys could decrypt the message")
}

func (m *membership) targets(all bool) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	live := map[string]bool{}
	for _, p := range m.members {
		live[p.address] = true
	}
	var out, old []string
	for _, address := range m.join {
		if all || !live[address] {
			out = append(out, address)
		}
	}
	for _, p := range m.remembered {
		if _, ok := m.members[p.Node]; (all || !ok && !live[p.Address]) && !slices.Contains(out, p.Address) {
			old = append(old, p.Address)
		}
	}
	rand.Shuffle(len(old), func(i, j int) { old[i], old[j] = old[j], old[i] })
	return append(out, old[:min(len(old), rejoinRound)]...)
}
