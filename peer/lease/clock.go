package lease

import (
	"time"

	"shoal/consensus/store"
)

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

// Verdict is how far a clock is ahead of the median of the clocks that a table has heard of lately, how many those are, and of how many nodes;
// 0 if the table's peer does not know that yet.
type Verdict struct {
	Ahead  time.Duration `json:"ahead"`
	Clocks int           `json:"clocks"`
	Nodes  int           `json:"nodes"`
}

// empty tells whether the only clock the verdict rests on may be the one that is judged: whoever has just begun to lead hears itself first.
func (v Verdict) empty() bool { return v.Clocks <= 1 && v.Nodes != 1 }

// byMost tells whether most nodes have been heard.
func (v Verdict) byMost() bool { return 2*v.Clocks > v.Nodes && v.Nodes > 0 }

// Clock is how far a peer's clock is ahead of the peers' median, as the lease's exchange shows it, to within a round trip. Between two
// exchanges it follows jumps of the peer's own clock, so that not one stamp is made by a clock that was just set wrong.
type Clock struct {
	verdict Verdict
	at      Moment
	known   bool
	heard   time.Duration // Up at the last exchange
	asked   bool          // there was one
}

// Note takes in what an exchange has shown, and tells whether it counts. Where most nodes are cut off, the few that are left may hear a wrong
// clock and little else: they do not overturn what more of them have said, that a clock is right or is not.
func (c *Clock) Note(v Verdict, at Moment) bool {
	c.heard, c.asked = at.Up, true
	if v.empty() {
		return false
	}
	if before, known := c.Ahead(at); known && !v.byMost() && v.Clocks < c.verdict.Clocks {
		if right(before) != right(v.Ahead) {
			return false
		}
		v.Clocks = c.verdict.Clocks // they agree with more of them
	}
	c.verdict, c.at, c.known = v, at, true
	return true
}

func right(ahead time.Duration) bool { return store.CheckOffset(ahead) == nil }

// Ahead is how far the clock is ahead; known is false before the first exchange that counts.
func (c *Clock) Ahead(now Moment) (by time.Duration, known bool) {
	if !c.known {
		return 0, false
	}
	return c.verdict.Ahead + now.jumped(c.at), true
}

// HeardWithin is how old the last exchange may be at which a peer takes itself for heard.
const HeardWithin = RenewInterval + RenewTimeout

// Heard tells whether the holder of the table has answered a moment ago. A node that was judged lost does not call itself ready before: as
// long as it is not heard it would be judged again, several times a second, and each time as if it had been lost only then.
func (c *Clock) Heard(now Moment) bool { return c.asked && now.Up-c.heard <= HeardWithin }

// Exchange is what a renewal tells a peer of its clock: asked and answered are moments of its own, renewed is the table's time at which the
// renewal was noted, told what the table says of its own peer's clock.
func Exchange(asked, answered Moment, renewed time.Time, told Verdict) Verdict {
	middle := asked.Wall.Add((answered.Up - asked.Up) / 2)
	told.Ahead += middle.Sub(renewed)
	return told
}
