package model

import (
	"time"

	"shoal/consensus/store"
)

// clockBound is how far a revision may be ahead of time: what a peer's clock may be ahead of the others' before the peer must not write, and
// what the others' may be.
const clockBound = store.MaxAhead + rightClock

const (
	// rightClock is how far a clock may be ahead and still count as right.
	rightClock = time.Second
	// clockMemory is for how long a peer's clock counts after it was heard of (peer/lease).
	clockMemory = 10 * time.Second
)

// checkStamp holds revisions to the time: one from the future would keep every later one up there (D3). Nothing is promised where most of the
// clocks that hear each other are wrong: then the right ones are taken for wrong. What they have stamped reaches other shards later, because
// peers stamp above what they have heard of.
func (m *Model) checkStamp(s *shard, at store.Revision) {
	ahead := at.Time().Sub(m.time())
	if ahead <= clockBound || s.early {
		return
	}
	if m.misledTo > 0 && at.Time().Sub(m.misledTo.Time()) <= clockBound {
		m.misledTo = max(m.misledTo, at)
		return
	}
	s.early = true
	for _, n := range m.nodes {
		if n.clock.misled || n.clock.misledUntil > 0 && m.now-n.clock.misledUntil <= proposeTimeout+clientTimeout {
			s.early, m.misledTo = false, max(m.misledTo, at)
			m.note("shard %d has reached a revision that is %s ahead, by clocks most of which are wrong", s.number, ahead)
			return
		}
	}
	m.violate(checkerClock, "shard %d has reached a revision that is %s ahead", s.number, ahead)
}
