package peer

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"shoal/consensus"
)

// moment is a point in time by both clocks of this process: the wall's, which may jump, and the one since its start, which does not.
type moment struct {
	wall time.Time // without monotonic reading
	up   time.Duration
}

var processStart = time.Now()

func thisMoment() moment { return moment{wall: time.Now().Round(0), up: time.Since(processStart)} }

// jumped is how far the wall clock was set forward (or, negative, back) between two moments.
func (m moment) jumped(since moment) time.Duration {
	return m.wall.Sub(since.wall) - (m.up - since.up)
}

// clock is how far this peer's clock is ahead of the peers' median, as the lease's exchange shows it, to within a round trip. Between two
// exchanges it follows jumps of this peer's own clock, so that not one stamp is made by a clock that was just set wrong.
type clock struct {
	lock  sync.Mutex
	by    time.Duration
	at    moment
	known bool
	off   bool // was reported as too far off
	// wentOff tells whoever hands leaderships over.
	wentOff chan struct{}
}

func newClock() *clock { return &clock{wentOff: make(chan struct{}, 1)} }

func (c *clock) note(by time.Duration, at moment) {
	c.lock.Lock()
	defer c.lock.Unlock()
	c.by, c.at, c.known = by, at, true
}

// ahead is consensus.Config.Offset.
func (c *clock) ahead() (time.Duration, bool) { return c.aheadAt(thisMoment()) }

func (c *clock) aheadAt(now moment) (time.Duration, bool) {
	c.lock.Lock()
	defer c.lock.Unlock()
	if !c.known {
		return 0, false
	}
	return c.by + now.jumped(c.at), true
}

// problem is one sentence on a clock that keeps this peer from writing, "" if it does not.
func (c *clock) problem() string {
	if ahead, known := c.ahead(); known && offBy(ahead) != "" {
		return "this peer's clock is " + offBy(ahead) + " the other peers': it takes no writes until the clock is set right"
	}
	return ""
}

// offBy says how far a clock that keeps its peer from writing is off the others', "" if it does not.
func offBy(ahead time.Duration) string {
	switch {
	case ahead > consensus.MaxClockOffset:
		return fmt.Sprintf("%v ahead of", ahead.Round(time.Millisecond))
	case ahead < -consensus.MaxClockLag:
		return fmt.Sprintf("%v behind", (-ahead).Round(time.Millisecond))
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
