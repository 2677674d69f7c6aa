// Package vip makes Services answer at their addresses, on every node, by rewriting packets in the kernel (nftables).
//
// Compile turns one Service into Fronts, a Table keeps all of them and tells the Changes of a batch, a Ruleset applies
// these in one transaction. The number of rules is constant; Services are elements of maps, so changing one of 10,000
// costs what changing one of ten costs.
package vip

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"shoal/mesh/services"
)

// Ruleset is where packets are rewritten: the host's kernel, or Memory.
type Ruleset interface {
	// Replace installs the rules for node with the elements of s, in one transaction, whatever was there before.
	Replace(ctx context.Context, node Node, s State) error
	// Apply changes elements, in one transaction. After an error nothing of c is in effect, or the ruleset is not what
	// it was thought to be: Replace it.
	Apply(ctx context.Context, c Changes) error
	// Dump returns what is installed as text, for people and for tests.
	Dump(ctx context.Context) (string, error)
	// Remove takes everything away.
	Remove(ctx context.Context) error
}

// Config is what Open needs.
type Config struct {
	Node    Node
	Ruleset Ruleset // nil means this host's kernel, in the network namespace of the calling thread
	Logger  *slog.Logger
}

// Proxy keeps a Ruleset in step with Services, their endpoints and the pods' host ports.
type Proxy struct {
	ruleset Ruleset
	logger  *slog.Logger

	mu        sync.Mutex
	node      Node
	index     *services.Index
	hostPorts map[string][]HostPort // by pod UID
	table     *Table
	installed bool // the ruleset is what table says; false: the next Sync replaces it
}

// Open prepares a proxy. Rules of a predecessor stay in force until the first Sync replaces them in one step.
func Open(_ context.Context, c Config) (*Proxy, error) {
	if err := c.Node.check(); err != nil {
		return nil, err
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Ruleset == nil {
		var err error
		if c.Ruleset, err = hostRuleset(); err != nil {
			return nil, err
		}
	}
	return &Proxy{
		ruleset: c.Ruleset, logger: c.Logger, node: c.Node,
		index: services.NewIndex(), hostPorts: map[string][]HostPort{}, table: NewTable(),
	}, nil
}

// Sync takes in a batch and brings the ruleset up to date in one transaction. The first one should be Full. After an
// error the next Sync, which may be empty, installs everything anew.
func (p *Proxy) Sync(ctx context.Context, b services.Batch) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range p.index.Update(b) {
		var fronts []Front
		if s, ok := p.index.Get(key); ok {
			fronts = Compile(s, p.node)
		}
		p.table.Set(serviceOwner+key.String(), fronts)
	}
	return p.flush(ctx)
}

// Owners of fronts. A host port belongs to the machine: it goes before a Service that wants the same address and port.
const (
	hostPortOwner = "a host port of pod "
	serviceOwner  = "service "
)

// SetHostPorts makes ports all that a pod has; none removes them.
func (p *Proxy) SetHostPorts(ctx context.Context, podUID string, ports []HostPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(ports) == 0 {
		delete(p.hostPorts, podUID)
	} else {
		p.hostPorts[podUID] = ports
	}
	p.table.Set(hostPortOwner+podUID, CompileHostPorts(ports, p.node))
	return p.flush(ctx)
}

// SetNode compiles everything anew for a node whose addresses or zone have changed.
func (p *Proxy) SetNode(ctx context.Context, node Node) error {
	if err := node.check(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.node, p.table, p.installed = node, NewTable(), false
	for _, key := range p.index.Keys() {
		if s, ok := p.index.Get(key); ok {
			p.table.Set(serviceOwner+key.String(), Compile(s, node))
		}
	}
	for podUID, ports := range p.hostPorts {
		p.table.Set(hostPortOwner+podUID, CompileHostPorts(ports, node))
	}
	return p.flush(ctx)
}

func (p *Proxy) flush(ctx context.Context) error {
	changes := p.table.Flush()
	if !p.installed {
		if err := p.ruleset.Replace(ctx, p.node, p.table.State()); err != nil {
			return fmt.Errorf("install service addresses: %w", err)
		}
		p.installed = true
		return nil
	}
	if changes.Empty() {
		return nil
	}
	if err := p.ruleset.Apply(ctx, changes); err != nil {
		p.installed = false
		return fmt.Errorf("change service addresses: %w", err)
	}
	return nil
}

// Dump returns what the kernel has, as text.
func (p *Proxy) Dump(ctx context.Context) (string, error) { return p.ruleset.Dump(ctx) }

// Close removes the rules: for a peer that leaves for good. A peer that merely stops leaves them in force.
func (p *Proxy) Close(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.installed = false
	return p.ruleset.Remove(ctx)
}
