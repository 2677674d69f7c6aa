package model

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Swarm adds so many faults, each on a node drawn from the seed and ended after a drawn time.
type Swarm struct {
	Faults      int
	From, Until time.Duration // when they begin; the last may end up to longestFault later
}

const longestFault = 25 * time.Second

// Draw draws the faults from the seed. They have a source of chance of their own, so that a run in which they are written down instead is the
// same run.
func (s Swarm) Draw(seed uint64, nodes int) []Fault {
	chance := rand.New(rand.NewPCG(seed, 0xfa17))
	between := func(least, most time.Duration) time.Duration {
		return least + time.Duration(chance.Int64N(int64((most-least)/time.Millisecond)+1))*time.Millisecond
	}
	pairs := [][2]FaultKind{{Crash, Restart}, {Freeze, Thaw}, {Cut, Heal}}
	var faults []Fault
	for range s.Faults {
		pair := pairs[chance.IntN(len(pairs))]
		target := fmt.Sprintf("n%d", 1+chance.IntN(nodes))
		at := between(s.From, s.Until)
		faults = append(faults, Fault{At: at, Kind: pair[0], Target: target},
			Fault{At: at + between(time.Second, longestFault), Kind: pair[1], Target: target})
	}
	return faults
}

// AllFaults are the named faults and those that are drawn from the seed, in order of time.
func (c Config) AllFaults() []Fault {
	faults := append(slices.Clone(c.Faults), c.Random.Draw(c.Seed, c.Nodes)...)
	slices.SortStableFunc(faults, func(a, b Fault) int { return cmp.Compare(a.At, b.At) })
	return faults
}

// planFaults puts every fault into the queue.
func (m *Model) planFaults() error {
	if s := m.cfg.Random; s.Faults > 0 && s.Until <= s.From {
		return fmt.Errorf("random faults between %s and %s leave no time", s.From, s.Until)
	}
	for _, f := range m.cfg.AllFaults() {
		if err := f.Check(m.cfg.Nodes, m.cfg.Zones, m.cfg.Shards); err != nil {
			return fmt.Errorf("at %s: %w", f.At, err)
		}
		m.schedule(f)
	}
	return nil
}

func (m *Model) schedule(f Fault) {
	m.lastHeal = max(m.lastHeal, f.At)
	m.after(f.At-m.now, "fault", func() { m.inflict(f) })
}

func (m *Model) targets(name string) []*node {
	if zone, ok := strings.CutPrefix(name, "zone "); ok {
		var all []*node
		for _, n := range m.nodes {
			if n.zone == zone {
				all = append(all, n)
			}
		}
		return all
	}
	if n := m.byName[name]; n != nil {
		return []*node{n}
	}
	return nil
}

// inflict does it. What does not apply (a second crash, a restart of what runs) does nothing, so random faults may overlap.
func (m *Model) inflict(f Fault) {
	m.note("%s %s%s", f.Kind, f.Target, strings.Repeat(" nodes", min(f.Count, 1)))
	m.emit(Event{Kind: EventFault, Fault: f, Nodes: befallen(m.targets(f.Target))})
	if f.Kind == Join {
		for range f.Count {
			m.addNode().boot()
		}
		return
	}
	if f.Kind == Cut {
		m.sides++
	}
	for _, n := range m.targets(f.Target) {
		n.suffer(f.Kind, m.sides)
	}
	m.review()
}

func (n *node) suffer(kind FaultKind, side int) {
	n.changed()
	switch kind {
	case Crash:
		if n.up {
			n.up, n.frozen, n.life = false, false, n.life+1
			clear(n.pods)
		}
	case Restart:
		if !n.up {
			n.boot()
		}
	case Freeze:
		if n.up && !n.frozen {
			n.frozen, n.stale = true, true
			n.watch()
		}
	case Thaw:
		if n.frozen {
			n.frozen = false
			waited := slices.Clone(n.deferred)
			n.deferred = nil
			for _, s := range waited {
				n.do(0, s.kind, s.do)
			}
		}
	case Cut:
		n.side, n.stale = side, true
		if n.up {
			n.watch()
		}
	case Heal:
		n.side, n.stale = 0, true
	}
}
