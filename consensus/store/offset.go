package store

import (
	"fmt"
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
