package lease

import "time"

// Moment is a point in time by both clocks of a process: the wall's, which may jump, and the one since its start, which does not.
type Moment struct {
	Wall time.Time // without monotonic reading
	Up   time.Duration
}

// jumped is how far the wall clock was set forward (or, negative, back) between two moments.
func (m Moment) jumped(since Moment) time.Duration { return m.Wall.Sub(since.Wall) - (m.Up - since.Up) }

// base is what the clock showed when the machine started. It changes only when the clock is set, so bases read at different moments can be
// compared.
func (m Moment) base() time.Duration { return time.Duration(m.Wall.UnixNano()) - m.Up }

// Clock is how far a peer's clock is ahead of the peers' median, as the lease's exchange shows it, to within a round trip. Between two
// exchanges it follows jumps of the peer's own clock, so that not one stamp is made by a clock that was just set wrong.
type Clock struct {
	by    time.Duration
	at    Moment
	known bool
}

// Note takes in what an exchange has shown.
func (c *Clock) Note(by time.Duration, at Moment) { c.by, c.at, c.known = by, at, true }

// Ahead is how far the clock is ahead; known is false before the first exchange.
func (c *Clock) Ahead(now Moment) (by time.Duration, known bool) {
	if !c.known {
		return 0, false
	}
	return c.by + now.jumped(c.at), true
}

// HeardWithin is how old the last exchange may be at which a peer takes itself for heard.
const HeardWithin = RenewInterval + RenewTimeout

// Heard tells whether the holder of the table has answered a moment ago. A node that was judged lost does not call itself ready before: as
// long as it is not heard it would be judged again, several times a second, and each time as if it had been lost only then.
func (c *Clock) Heard(now Moment) bool { return c.known && now.Up-c.at.Up <= HeardWithin }

// Exchange is what a renewal tells a peer of its clock: asked and answered are moments of its own, renewed is the table's time at which the
// renewal was noted, ahead how far the table's clock is ahead of the median.
func Exchange(asked, answered Moment, renewed time.Time, ahead time.Duration) time.Duration {
	middle := asked.Wall.Add((answered.Up - asked.Up) / 2)
	return middle.Sub(renewed) + ahead
}
