package model

import (
	"time"

	"shoal/consensus/store"
	"shoal/peer/lease"
)

// active tells whether the peer's process runs.
func (n *node) active() bool { return n.up && !n.dead && !n.frozen }

// connected tells whether the peer runs and no fault of the network concerns it.
func (n *node) connected() bool { return n.active() && !n.model.network.troubled(n) }

// wallClock is a machine's clock as people set it. The one since boot is always right here.
type wallClock struct {
	offset time.Duration
	rate   float64 // seconds gained in each second
	since  time.Duration
	lease  lease.Clock // what the peer knows of it
}

// ahead is how far the clock is really ahead.
func (c *wallClock) real(now time.Duration) time.Duration {
	return c.offset + time.Duration(c.rate*float64(now-c.since))
}

// set sets the clock, and how fast it runs.
func (c *wallClock) set(now, offset time.Duration, rate float64) {
	c.offset, c.rate, c.since = offset, rate, now
}

// wall is what the machine's clock shows.
func (n *node) wall() time.Time { return n.model.time().Add(n.clock.real(n.model.now)) }

// monotonic is the machine's other clock, which nobody can set, as a time of no particular origin.
func (n *node) monotonic() time.Time { return n.model.time() }

func (n *node) moment() lease.Moment { return lease.Moment{Wall: n.wall(), Up: n.model.now} }

// stampable says why the peer must not write, as far as it knows its clock; nil if it may.
func (n *node) stampable() error {
	if ahead, known := n.clock.lease.Ahead(n.moment()); known && n.model.cfg.bug != bugAnyClock {
		return store.CheckOffset(ahead)
	}
	return nil
}

// syncDelay is what the disk takes to make something durable.
func (n *node) syncDelay() time.Duration {
	return n.model.between(300*time.Microsecond, 3*time.Millisecond) + n.disk.slower
}

// diskState is what a machine keeps its logs on.
type diskState struct {
	identity string        // of the data folder; another one after the disk was lost
	slower   time.Duration // every sync takes so much longer
	full     bool
}
