//go:build !clockskew

package peer

import "time"

// wallClock is the host's clock.
func wallClock() time.Time { return time.Now() }
