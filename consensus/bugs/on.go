//go:build deliberatebugs

package bugs

import "sync/atomic"

var (
	current atomic.Pointer[Bug]
	asked   atomic.Int64
)

// On tells whether a mistake is made.
func On(bug Bug) bool {
	now := current.Load()
	return now != nil && *now == bug
}

// Often tells whether a mistake is made that is made every so many times.
func Often(bug Bug, times int64) bool { return On(bug) && asked.Add(1)%times == 0 }

// Make makes a mistake from now on, and no other.
func Make(bug Bug) { current.Store(&bug) }

// Stop makes no mistake any more.
func Stop() { current.Store(nil) }
