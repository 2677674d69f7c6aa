// Package lease holds what follows from leases and clocks, as values without a clock of their own: which nodes are late, how far a peer's
// clock is off the others', and when a peer that is cut off stops what must never run twice (D7, D8).
//
// Package peer feeds it with the real clocks, sim/model with simulated ones.
package lease

import (
	"maps"
	"slices"
	"time"

	"shoal/runtime/containerd/fence"
)

// Times of the lease. A node is lost when the meta leader has not heard of it for repair.Options.LeaseTimeout.
const (
	// RenewInterval is the pause between two renewals.
	RenewInterval = 500 * time.Millisecond
	// RenewTimeout bounds one attempt.
	RenewTimeout = 700 * time.Millisecond
	// JudgeInterval is how often leases are looked at. It bounds how late a loss is noticed.
	JudgeInterval = 200 * time.Millisecond
	// TakeoverGrace is what nodes are given, on top of the lease, to find a new meta leader. Too little would take all of them for lost
	// at once, which stops evictions; a node that is really lost is not waited for, because gossip says so.
	TakeoverGrace = 3 * time.Second
)

// readingAge is how long a node's clock counts without being heard of.
const readingAge = 10 * time.Second

// Table is when each node last renewed its lease with a peer, by that peer's clock, and how far the node's clock was ahead then. Liveness
// lives here and in no log (D7). The zero Table is empty.
type Table struct {
	at      map[string]time.Time
	offsets map[string]reading
	median  median
}

// reading is how far a node's clock was ahead of the table's, and when that was read.
type reading struct {
	ahead time.Duration
	at    Moment
}

// Renew notes a renewal, and that the node's clock was ahead of this one then.
func (t *Table) Renew(node string, at time.Time, ahead time.Duration, now Moment) {
	if t.at == nil {
		t.at, t.offsets = map[string]time.Time{}, map[string]reading{}
	}
	t.at[node], t.offsets[node] = at, reading{ahead, now}
	t.median.heard++
}

// median is the middle one of all clocks, as it was found a moment ago.
type median struct {
	known bool
	clock time.Duration // see Moment.base
	at    time.Duration // Up, when it was found
	heard int           // renewals since
}

// stale tells whether the median of so many clocks has to be found again. That costs as much as there are clocks, and is asked for with every
// renewal of each, so it is done when an eighth of them have been heard of anew: a median cannot have moved far by those. Few are always asked.
func (m *median) stale(now Moment, clocks int) bool {
	return !m.known || m.heard > clocks/8 || clocks < 16 || now.Up-m.at > JudgeInterval
}

// Ahead is how far this peer's clock is ahead of the median of all clocks that the table has heard of. It takes into account that this
// peer's own clock may have jumped since the others were heard of. Of an even number the earlier one of the middle is taken: two peers
// cannot tell which of them is wrong, and a clock that is behind does no lasting harm.
func (t *Table) Ahead(now Moment) time.Duration {
	if t.median.stale(now, len(t.offsets)) {
		t.findMedian(now)
	}
	if !t.median.known {
		return 0
	}
	return now.base() - t.median.clock
}

// Verdict is Ahead, of so many nodes; 0 if their number is not known.
func (t *Table) Verdict(now Moment, nodes int) Verdict {
	ahead := t.Ahead(now)
	return Verdict{Ahead: ahead, Clocks: len(t.offsets), Nodes: nodes}
}

// findMedian forgets clocks that were not heard of for long, and finds the middle one of the others.
func (t *Table) findMedian(now Moment) {
	clocks := make([]time.Duration, 0, len(t.offsets))
	for node, read := range t.offsets {
		if now.Up-read.at.Up > readingAge {
			delete(t.offsets, node)
		} else {
			clocks = append(clocks, read.ahead+read.at.base())
		}
	}
	if len(clocks) == 1 {
		// A table that has just begun may have heard of nobody but the one whose clock is wrong, so this peer's own has a say as well.
		clocks = append(clocks, now.base())
	}
	t.median = median{at: now.Up}
	if len(clocks) > 0 {
		slices.Sort(clocks)
		t.median.known, t.median.clock = true, clocks[(len(clocks)-1)/2]
	}
}

// Offsets is how far every node's clock that was heard of lately is ahead of the median.
func (t *Table) Offsets(now Moment) map[string]time.Duration {
	ahead, offsets := t.Ahead(now), map[string]time.Duration{}
	for node, read := range t.offsets {
		offsets[node] = read.ahead - now.jumped(read.at) + ahead
	}
	return offsets
}

// Renewed is when a node last renewed; false if it never did.
func (t *Table) Renewed(node string) (time.Time, bool) {
	at, ok := t.at[node]
	return at, ok
}

// Times copies the table.
func (t *Table) Times() map[string]time.Time {
	at := make(map[string]time.Time, len(t.at))
	maps.Copy(at, t.at)
	return at
}

// Takeover says what a meta leader knows besides the table.
type Takeover struct {
	// Since is when it took over.
	Since time.Time
	// Patience are nodes that have announced their restart.
	Patience map[string]bool
	// Failed are nodes that gossip has given up. It is a hint: with it, a node that this leader has never heard of need not be waited for.
	Failed map[string]bool
	// LeaseTimeout is repair's.
	LeaseTimeout time.Duration
}

// Complete fills in, in times, the nodes that have not renewed with this leader yet: they are given time from when it took over, unless
// gossip has given up on them already. Nodes that restart count as renewed just now.
//
// When a zone is lost together with the leader, gossip gives its nodes up one by one. The first must not be lost for so much longer than
// the others that its pods are evicted before enough are lost to stop that: gossip is believed once nobody else is waited for, or when a
// node that lives would have been heard.
func (o Takeover) Complete(times map[string]time.Time, nodes []string, now time.Time) {
	heard := func(node string) bool { return times[node].After(o.Since) }
	believed := now.Sub(o.Since) > HeardWithin || now.Sub(o.Since) > JudgeInterval && !slices.ContainsFunc(nodes, func(node string) bool {
		return !o.Patience[node] && !heard(node) && !o.Failed[node]
	})
	for _, node := range nodes {
		switch {
		case o.Patience[node]:
			times[node] = now
		case heard(node):
		case o.Failed[node] && believed:
			times[node] = now.Add(-o.LeaseTimeout - JudgeInterval)
		default:
			times[node] = o.Since.Add(TakeoverGrace)
		}
	}
}

// Action is what a peer does about its own lease.
type Action int

const (
	// Nothing is to be done.
	Nothing Action = iota
	// Fence stops what must never run twice, and starts none of it.
	Fence
	// Unfence goes on, once it is known what is still this node's.
	Unfence
)

// Next says what a peer does whose last renewal that succeeded was begun so long ago. The lease counts from before the request: the
// leader cannot have noted it earlier.
func Next(age time.Duration, fenced bool) Action {
	switch late := age > fence.After; {
	case late && !fenced:
		return Fence
	case !late && fenced:
		return Unfence
	}
	return Nothing
}
