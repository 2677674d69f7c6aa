package vip

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
)

// Memory is a Ruleset without a kernel: for simulation, and the meaning of the real one in a page.
type Memory struct {
	mu    sync.Mutex
	node  Node
	state State
	set   bool
}

// Replace makes s the state.
func (m *Memory) Replace(_ context.Context, node Node, s State) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	fresh := NewState()
	if err := fresh.Apply(Diff(fresh, s)); err != nil {
		return err
	}
	m.node, m.state, m.set = node, fresh, true
	return nil
}

// Apply changes the state.
func (m *Memory) Apply(_ context.Context, c Changes) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.set {
		return errors.New("nothing is installed")
	}
	return m.state.Apply(c)
}

// Dump returns the state as text.
func (m *Memory) Dump(context.Context) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.String(), nil
}

// Remove empties the state.
func (m *Memory) Remove(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state, m.set = State{}, false
	return nil
}

// Fate is what becomes of a new connection.
type Fate int

// The fates: not an address of ours, sent to one of the targets, dropped without a word, refused.
const (
	Passed Fate = iota
	Sent
	Dropped
	Refused
)

// Lookup says what becomes of a new connection from client to key, and among which targets chance would pick.
// Affinity is not considered.
func (m *Memory) Lookup(client netip.Addr, key FrontKey) (Fate, []netip.AddrPort) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, guarded := m.state.Guarded[key]; guarded && !slices.Contains(m.node.IPs, client) && !m.admits(client, key) {
		return Dropped, nil
	}
	verdict, found := Verdict{}, false
	inside := m.node.ClusterCIDR.Contains(client) || slices.Contains(m.node.IPs, client)
	if !inside {
		verdict, found = m.state.Outside[key]
	}
	if !found {
		verdict, found = m.state.Vips[key]
	}
	switch _, refused := m.state.Refused[key]; {
	case found && verdict.Drop:
		return Dropped, nil
	case !found && (refused || m.node.ServiceCIDR.Contains(key.Addr)):
		return Refused, nil
	case !found:
		return Passed, nil
	}
	start := 0
	if verdict.Chain.Local {
		start = localIndex
	}
	targets := make([]netip.AddrPort, verdict.Chain.Count)
	for i := range targets {
		targets[i] = m.state.Endpoints[EndpointKey{key, uint32(start + i)}]
	}
	return Sent, targets
}

func (m *Memory) admits(client netip.Addr, key FrontKey) bool {
	for source := range m.state.Sources {
		if source.Front == key && source.Source.Contains(client) {
			return true
		}
	}
	return false
}

var _ Ruleset = (*Memory)(nil)
