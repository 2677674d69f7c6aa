package identity

import (
	"net/netip"
	"sync"
	"time"
)

const (
	attemptWindow     = time.Minute
	attemptsPerSource = 10   // failed joins per window from one address
	attemptsInAll     = 200  // failed joins per window from everywhere
	attemptSources    = 4096 // addresses remembered at once
)

// attempts counts failed joins in fixed windows, so that guessing a token is
// hopeless and a flood costs a map lookup each.
type attempts struct {
	mu      sync.Mutex
	since   time.Time
	total   int
	sources map[netip.Addr]int
}

// allowed tells whether source may try again at now.
func (a *attempts) allowed(source netip.Addr, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.turn(now)
	return a.total < attemptsInAll && a.sources[source] < attemptsPerSource
}

// failed counts one failed attempt of source at now.
func (a *attempts) failed(source netip.Addr, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.turn(now)
	a.total++
	if _, known := a.sources[source]; known || len(a.sources) < attemptSources {
		a.sources[source]++
	}
}

// turn begins a new window when the old one is over or the clock went back.
func (a *attempts) turn(now time.Time) {
	if age := now.Sub(a.since); a.sources == nil || age >= attemptWindow || age < 0 {
		a.since, a.total, a.sources = now, 0, map[netip.Addr]int{}
	}
}
