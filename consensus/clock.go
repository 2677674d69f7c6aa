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

// hearsay is how far ahead of the wall clock a revision may be that this host has
// only been told of. A cluster founded by a clock that is ahead lives with it, so it
// is long; whoever speaks nonsense must not use up the revisions that there are.
const hearsay = 365 * 24 * time.Hour

// Exchange takes in the highest revision that another peer has seen, and returns the
// highest that this host has seen. What exists somewhere is no stamp from the future,
// even if it is hours ahead: where everybody knows of it, it is not refused (admit).
func (h *Host) Exchange(seen store.Revision) store.Revision {
	if seen <= store.At(h.clock.wall().Add(hearsay)) {
		h.clock.observe(seen)
	}
	return store.Revision(h.clock.seen.Load())
}

// fit says by how much this peer's clock is too far off the others' to stamp.
func (c *clock) fit(ctx context.Context) error {
	if ahead, ok := c.offset(ctx); ok {
		if err := store.CheckOffset(ahead); err != nil {
			return fmt.Errorf("it is %w", err)
		}
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
	if limit := max(c.now(), store.At(wall.Add(store.MaxAhead))); stamp > limit {
		return fmt.Errorf("%w: a stamp is %v ahead of this peer", ErrClockSkew, stamp.Time().Sub(wall).Round(time.Millisecond))
	}
	return nil
}
