package model

import (
	"slices"
	"time"
)

// network is what faults have done to messages. Without faults it is empty, and costs nothing.
type network struct {
	links []*link
}

// link is one fault of the network, which is on.
type link struct {
	kind  FaultKind
	a, b  map[*node]bool // b is nil for everybody else
	by    time.Duration
	rate  float64
	flaps bool // of Flap: whether it is cut just now
}

// concerns tells whether messages from one node to another are affected.
func (l *link) concerns(from, to *node) bool {
	switch l.kind {
	case Cut:
		return l.a[from] != l.a[to]
	case Flap:
		return l.flaps && l.a[from] != l.a[to]
	case Part:
		return l.a[from] && l.b[to] || l.a[to] && l.b[from]
	case Block:
		return l.a[from] && l.b[to]
	case Deaf:
		return l.a[to] && !l.a[from]
	case Mute:
		return l.a[from] && !l.a[to]
	}
	return l.a[from] || l.a[to]
}

// closes tells whether nothing passes at all.
func (l *link) closes() bool {
	switch l.kind {
	case Cut, Flap, Part, Block, Deaf, Mute:
		return true
	}
	return false
}

// heal takes nodes out of every fault of the network, and ends those that are left with nobody.
func (net *network) heal(nodes []*node) {
	net.links = slices.DeleteFunc(net.links, func(l *link) bool {
		for _, n := range nodes {
			delete(l.a, n)
		}
		return len(l.a) == 0
	})
}

// troubled tells whether a node's messages suffer.
func (net *network) troubled(n *node) bool {
	return slices.ContainsFunc(net.links, func(l *link) bool { return l.a[n] || l.b[n] })
}

// passes tells whether a message from one peer may arrive at another.
func (m *Model) passes(from, to *node) bool {
	if from == to {
		return true
	}
	for _, l := range m.network.links {
		if l.closes() && l.concerns(from, to) {
			return false
		}
	}
	return true
}

// reaches tells whether two peers can talk: both run, and messages pass both ways.
func (m *Model) reaches(a, b *node) bool {
	if a == b {
		return a.active()
	}
	return a.active() && b.active() && m.passes(a, b) && m.passes(b, a)
}

// deadLoss is the share of lost messages at which a connection is as good as dead: of ten in a row, hardly one arrives.
const deadLoss = 0.8

// hears tells whether one peer would notice within an election timeout that another lives.
func (m *Model) hears(from, to *node) bool {
	if !from.active() || !m.passes(from, to) {
		return false
	}
	for _, l := range m.network.links {
		if l.concerns(from, to) && (l.kind == Lose && l.rate >= deadLoss || l.kind == Delay && l.by >= electionTimeout) {
			return false
		}
	}
	return true
}

// send carries a message from one peer to another: it takes its time, and may be lost, come twice or be overtaken. A peer that stands
// still gets it when it goes on.
func (m *Model) send(from, to *node, kind string, do func()) {
	if !m.passes(from, to) {
		return
	}
	delay, copies := m.oneWay(), 1
	for _, l := range m.network.links {
		if from == to || l.closes() || !l.concerns(from, to) {
			continue
		}
		switch l.kind {
		case Lose:
			if m.chance.Float64() < l.rate {
				return
			}
		case Delay:
			delay += l.by
		case Reorder:
			delay += m.between(0, l.by)
		case Duplicate:
			if m.chance.Float64() < l.rate {
				copies++
			}
		}
	}
	for range copies {
		to.do(delay, kind, do)
		delay += m.oneWay()
	}
}

// stream is an ordered connection between two peers: what is sent arrives in order or not at all, and after a loss nothing does, until
// it is made anew.
type stream struct {
	from, to *node
	last     time.Duration // when the last message arrives
	waiting  []func()      // messages under way
}

// send tells whether the message is under way; if not, the connection is broken.
func (c *stream) send(m *Model, kind string, least time.Duration, do func()) bool {
	if !m.reaches(c.from, c.to) {
		return false
	}
	delay := least
	for _, l := range m.network.links {
		if c.from == c.to || l.closes() || !l.concerns(c.from, c.to) {
			continue
		}
		switch l.kind {
		case Lose: // sent again by the connection
			for tries := 0; m.chance.Float64() < l.rate && tries < 6; tries++ {
				delay += 200 * time.Millisecond << tries
			}
		case Delay:
			delay += l.by
		case Reorder:
			delay += m.between(0, l.by)
		}
	}
	c.last = max(c.last, m.now+delay)
	c.waiting = append(c.waiting, do)
	// Whichever step comes first, also when the machine that receives becomes faster meanwhile: messages keep their order.
	c.to.do(c.last-m.now, kind, func() {
		next := c.waiting[0]
		c.waiting = c.waiting[1:]
		next()
	})
	return true
}

// isolated tells whether packets do not get to a machine and back.
func (net *network) isolated(n *node) bool {
	return slices.ContainsFunc(net.links, func(l *link) bool {
		return l.a[n] && (l.kind == Cut || l.kind == Flap && l.flaps || l.kind == Deaf || l.kind == Mute)
	})
}
