package model

import (
	"time"

	"shoal/consensus/store"
)

// clockBound is how far a revision may be ahead of time: what a peer's clock may be ahead before the peer must not write, what it takes to
// notice, and the ticks of a large transaction.
const clockBound = store.MaxAhead + time.Second

// checkStamp holds revisions to the time: one from the future would keep every later one up there (D3).
func (m *Model) checkStamp(s *shard, at store.Revision) {
	if ahead := at.Time().Sub(m.time()); ahead > clockBound && !s.early {
		s.early = true
		m.violate(checkerClock, "shard %d has reached a revision that is %s ahead", s.number, ahead)
	}
}
