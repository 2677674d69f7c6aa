//go:build clockskew

package peer

import (
	"os"
	"strings"
	"time"
)

// wallClock is the host's clock, shifted by the duration that stands in the file $SHOAL_CLOCK_SKEW, which may change at any time. One
// machine has one clock, so this is how a test of real processes gives them different ones; no released peer is built with it.
func wallClock() time.Time {
	now := time.Now()
	text, err := os.ReadFile(os.Getenv("SHOAL_CLOCK_SKEW"))
	if err != nil {
		return now
	}
	skew, err := time.ParseDuration(strings.TrimSpace(string(text)))
	if err != nil {
		return now
	}
	return now.Round(0).Add(skew)
}
