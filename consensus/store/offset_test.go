package store

import (
	"testing"
	"time"
)

func TestAheadOf(t *testing.T) {
	clock := func(ahead time.Duration) ClockOffset { return ClockOffset{Ahead: ahead} }
	median := func(ahead time.Duration) ClockOffset { return ClockOffset{Ahead: ahead, Median: true} }
	const wrong = time.Hour
	for name, c := range map[string]struct {
		offsets []ClockOffset
		want    time.Duration
		known   bool
	}{
		"nobody answers":                               {nil, 0, false},
		"of two clocks the earlier is right":           {[]ClockOffset{clock(wrong)}, wrong, true},
		"a clock that is behind the other":             {[]ClockOffset{clock(-wrong)}, 0, true},
		"two others agree":                             {[]ClockOffset{clock(wrong), clock(wrong)}, wrong, true},
		"one of two others is wrong":                   {[]ClockOffset{clock(-wrong), clock(time.Second)}, 0, true},
		"who knows the median is believed":             {[]ClockOffset{clock(0), clock(0), median(wrong)}, wrong, true},
		"of two medians the one of the earlier clocks": {[]ClockOffset{median(0), median(wrong)}, wrong, true},
	} {
		if got, known := AheadOf(c.offsets); got != c.want || known != c.known {
			t.Errorf("%s: %s, %t", name, got, known)
		}
	}
}
