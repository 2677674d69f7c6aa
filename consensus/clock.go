package consensus

import (
	"fmt"
	"sync/atomic"
	"time"

	"shoal/consensus/store"
)

// clock is the hybrid logical clock: the wall clock, lifted over every revision
// this host has seen.
type clock struct {
	seen   atomic.Int64
	offset func() (time.Duration, bool)
}

func (c *clock) now() store.Revision {
	wall := store.At(time.Now())
	seen := store.Revision(c.seen.Load())
	if rest := seen % store.Tick; rest != 0 {
		seen += store.Tick - rest
	}
	return max(wall, seen)
}

func (c *clock) observe(rev store.Revision) {
	for {
		seen := c.seen.Load()
		if int64(rev) <= seen || c.seen.CompareAndSwap(seen, int64(rev)) {
			return
		}
	}
}

// stamp is now, unless this peer's clock is ahead of the others': a revision
// stamped in the future would hold every later one up there.
func (c *clock) stamp() (store.Revision, error) {
	if ahead, ok := c.offset(); ok && ahead > MaxClockOffset {
		return 0, fmt.Errorf("%w: by %v", ErrClockSkew, ahead.Round(time.Millisecond))
	}
	return c.now(), nil
}

// admit refuses a stamp from elsewhere that lies further ahead than clocks may.
func (c *clock) admit(stamp store.Revision) error {
	if limit := max(c.now(), store.At(time.Now().Add(MaxClockOffset))); stamp > limit {
		return fmt.Errorf("%w: the stamp is %v ahead of this peer", ErrClockSkew,
			time.Until(stamp.Time()).Round(time.Millisecond))
	}
	return nil
}
