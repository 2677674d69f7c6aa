package peer

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"shoal/consensus/store"
	"shoal/peer/lease"
)

var processStart = time.Now()

// wall is the wall clock of the machine below; nil is the host's.
type wall func() time.Time

func (w wall) now() time.Time {
	if w == nil {
		return time.Now()
	}
	return w()
}

func (w wall) moment() lease.Moment {
	return lease.Moment{Wall: w.now().Round(0), Up: time.Since(processStart)}
}

// clock is lease.Clock behind a lock.
type clock struct {
	wall  wall
	lock  sync.Mutex
	clock lease.Clock
	off   bool // was reported as too far off
	// wentOff tells whoever hands leaderships over.
	wentOff chan struct{}
}

func newClock(w wall) *clock { return &clock{wall: w, wentOff: make(chan struct{}, 1)} }

func (c *clock) note(v lease.Verdict, at lease.Moment) {
	c.lock.Lock()
	defer c.lock.Unlock()
	c.clock.Note(v, at)
}

// ahead is consensus.Config.Offset.
func (c *clock) ahead() (time.Duration, bool) { return c.aheadAt(c.wall.moment()) }

func (c *clock) aheadAt(now lease.Moment) (time.Duration, bool) {
	c.lock.Lock()
	defer c.lock.Unlock()
	return c.clock.Ahead(now)
}

// now is the time of day by the peers' median, as far as it is known: what expires does so by that.
func (c *clock) now() time.Time {
	ahead, _ := c.ahead()
	return c.wall.now().Add(-ahead)
}

// heard tells whether the meta leader has answered a renewal a moment ago.
func (c *clock) heard() bool {
	c.lock.Lock()
	defer c.lock.Unlock()
	return c.clock.Heard(c.wall.moment())
}

// problem is one sentence on a clock that keeps this peer from writing, "" if it does not.
func (c *clock) problem() string {
	if ahead, known := c.ahead(); known {
		if off := store.CheckOffset(ahead); off != nil {
			return fmt.Sprintf("this peer's clock is %v: it takes no writes until the clock is set right", off)
		}
	}
	return ""
}

// report logs that the clock went wrong, or is right again, once each.
func (c *clock) report(log *slog.Logger) {
	problem := c.problem()
	c.lock.Lock()
	was := c.off
	c.off = problem != ""
	c.lock.Unlock()
	switch {
	case problem != "" && !was:
		log.Error(problem)
		select {
		case c.wentOff <- struct{}{}:
		default:
		}
	case problem == "" && was:
		log.Info("this peer's clock is right again")
	}
}
