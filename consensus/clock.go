package consensus

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"shoal/consensus/store"
)

// clock is the hybrid logical clock: the wall clock, lifted over every revision
// this host has seen.
type clock struct {
	seen   atomic.Int64
	wall   func() time.Time
	offset func(ctx context.Context) (time.Duration, bool)
}

func (c *clock) now() store.Revision {
	wall := store.At(c.wall())
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

// fit says by how much this peer's clock is too far off the others' to stamp: a
// revision in the future would hold every later one up there, and times written down
// by a clock that is hours behind would be wrong.
func (c *clock) fit(ctx context.Context) error {
	ahead, ok := c.offset(ctx)
	switch {
	case ok && ahead > MaxClockOffset:
		return fmt.Errorf("it is %v ahead", ahead.Round(time.Millisecond))
	case ok && ahead < -MaxClockLag:
		return fmt.Errorf("it is %v behind", (-ahead).Round(time.Millisecond))
	}
	return nil
}

// admit refuses a stamp from elsewhere that lies further ahead than clocks may. The
// measure is the others' time where it is known: a clock that is behind must not take
// everybody else for ahead.
func (c *clock) admit(ctx context.Context, stamp store.Revision) error {
	wall := c.wall()
	if ahead, ok := c.offset(ctx); ok {
		wall = wall.Add(-ahead)
	}
	if limit := max(c.now(), store.At(wall.Add(MaxClockOffset))); stamp > limit {
		return fmt.Errorf("%w: a stamp is %v ahead of this peer", ErrClockSkew, stamp.Time().Sub(wall).Round(time.Millisecond))
	}
	return nil
}
