package store

import (
	"fmt"
	"slices"
	"time"
)

// MaxAhead is how far a peer's clock may be ahead of the other peers' before it stops stamping revisions, and how far ahead of its own
// clock it believes another's stamp.
const MaxAhead = 2 * time.Second

// MaxBehind is how far a peer's clock may be behind the other peers' before it stops stamping revisions. It is larger than MaxAhead,
// because a late clock is lifted over all revisions that are known and makes no lasting harm; but what it writes down as times would be
// wrong.
const MaxBehind = time.Minute

// CheckOffset says in words why a peer must not stamp revisions whose clock is so far ahead of the other peers', nil if it may. A revision stamped in
// the future would hold every later one up there, and times written down by a clock that is far behind would be wrong.
func CheckOffset(ahead time.Duration) error {
	switch {
	case ahead > MaxAhead:
		return fmt.Errorf("%v ahead of the other peers'", ahead.Round(time.Millisecond))
	case ahead < -MaxBehind:
		return fmt.Errorf("%v behind the other peers'", (-ahead).Round(time.Millisecond))
	}
	return nil
}

// ClockOffset is how far a peer's clock is ahead of another's, or of the median of all clocks, if the other knows that.
type ClockOffset struct {
	Ahead  time.Duration
	Median bool
}

// AheadOf is how far a peer is ahead of the median of all clocks, its own among them, as the others say; not known if none does. Peers that
// know the median already have asked more clocks than this one, so then they alone count. Of an even number the earlier clock of the middle
// is taken: two peers cannot tell which of them is wrong, and a clock that is behind does no lasting harm.
func AheadOf(offsets []ClockOffset) (ahead time.Duration, known bool) {
	if len(offsets) == 0 {
		return 0, false
	}
	var clocks, medians []time.Duration
	for _, o := range offsets {
		clocks = append(clocks, o.Ahead)
		if o.Median {
			medians = append(medians, o.Ahead)
		}
	}
	if len(medians) == 0 {
		medians = append(clocks, 0)
	}
	slices.Sort(medians)
	return medians[len(medians)/2], true // the greatest lead is over the earliest clock
}
