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
	// wrong is when it was last ahead by more than a right one may be. misled says that what the peer knows came from clocks most of which
	// were, and until when it was so.
	wrong       time.Duration
	misled      bool
	misledUntil time.Duration
}

// real is how far the clock is really ahead.
func (c *wallClock) real(now time.Duration) time.Duration {
	return c.offset + time.Duration(c.rate*float64(now-c.since))
}

// isWrong tells whether the clock is, or was a moment ago, ahead by more than a right one may be.
func (c *wallClock) isWrong(now time.Duration) bool {
	return c.real(now) > rightClock || c.wrong > 0 && now-c.wrong <= clockMemory
}

// set sets the clock, and how fast it runs.
func (c *wallClock) set(now, offset time.Duration, rate float64) {
	if c.real(now) > rightClock {
		c.wrong = now
	}
	c.offset, c.rate, c.since = offset, rate, now
}

// wall is what the machine's clock shows.
func (n *node) wall() time.Time { return n.model.time().Add(n.clock.real(n.model.now)) }

// monotonic is the machine's other clock, which nobody can set, as a time of no particular origin.
func (n *node) monotonic() time.Time { return n.model.time() }

func (n *node) moment() lease.Moment { return lease.Moment{Wall: n.wall(), Up: n.model.now} }

// stampable says why the peer must not write, as far as it knows its clock; nil if it may. Until its lease has told it, it asks the others.
func (n *node) stampable() error {
	if n.model.cfg.bug == bugAnyClock {
		return nil
	}
	ahead, known := n.clock.lease.Ahead(n.moment())
	if !known {
		ahead, known = n.askClocks()
	}
	if known {
		return store.CheckOffset(ahead)
	}
	return nil
}

// observe notes a revision that the peer has heard of.
func (n *node) observe(at store.Revision) { n.seen = max(n.seen, at) }

// stamp is what a peer stamps a transaction with: its clock, lifted over every revision that it has heard of, as consensus does.
func (n *node) stamp() store.Revision {
	seen := n.seen
	if rest := seen % store.Tick; rest != 0 {
		seen += store.Tick - rest
	}
	return max(store.At(n.wall()), seen)
}

// askClocks is consensus.Host.ClockAhead, whose questions take no time here.
func (n *node) askClocks() (ahead time.Duration, known bool) {
	m := n.model
	if !m.clocksSet {
		return 0, true // which everybody would say
	}
	var offsets []store.ClockOffset
	asked, wrong := 1, 0
	if n.clock.isWrong(m.now) {
		wrong++
	}
	for _, other := range m.nodes {
		if other == n || !m.reaches(n, other) {
			continue
		}
		offset := store.ClockOffset{Ahead: n.wall().Sub(other.wall())}
		if by, known := other.clock.lease.Ahead(other.moment()); known {
			offset.Ahead, offset.Median = offset.Ahead+by, true
		}
		offsets = append(offsets, offset)
		if asked++; other.clock.isWrong(m.now) || offset.Median && other.clock.misled {
			wrong++
		}
	}
	n.told(2*wrong > asked)
	return store.AheadOf(offsets)
}

// told notes whether what the peer knows of its clock comes from clocks most of which are wrong.
func (n *node) told(misled bool) {
	if n.clock.misled && !misled {
		n.clock.misledUntil = n.model.now
	}
	n.clock.misled = misled
}

// forgetClock is what a new process knows of its clock.
func (n *node) forgetClock() {
	n.clock.lease = lease.Clock{}
	n.told(false)
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
