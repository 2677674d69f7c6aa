// Package fence stops the pods that must never run twice when their peer has
// died and its containers live on.
//
// A peer that cannot renew its lease stops these pods itself. One that was
// killed cannot, and nobody may wait for it: the cluster replaces them once the
// lease has run out. So a Watchdog runs in the daemon beside the peer
// (runtime/containerd/daemon), which outlives it. It reads small files and
// kills processes of cgroups, nothing else: it works when containerd hangs.
//
// # Files, below the peer's state folder
//
//	heartbeat       when the lease was renewed last, rewritten at each renewal;
//	                in the future when the peer has announced its restart
//	fence/<podUID>  cgroups of one pod that must not run twice; written before
//	                its first process starts, removed after its last has ended
//
// Without a heartbeat file nothing is ever killed: whoever uses an Engine
// without leases has no watchdog.
//
// # Time
//
// All times are the machine's CLOCK_BOOTTIME: all its processes share it, nobody
// can set it, and it counts while the machine sleeps. A restarted watchdog thus
// knows the age of the last renewal as well as its predecessor did.
//
// # What this does not cover
//
// A peer and its containerd that die at once on a machine that lives on leave
// nobody who fences, and neither does a machine that is frozen and continues
// later, nor a peer that uses the system's containerd; then a replaced pod may
// run twice until the peer is back.
package fence

import (
	"math"
	"strconv"
	"time"
)

const (
	// After is the age of the last renewal at which a peer stops by itself what
	// must not run twice, and starts no more of it.
	After = 6 * time.Second
	// Grace is what it gives those pods to end.
	Grace = 2 * time.Second
	// KillAfter is the age at which the Watchdog kills: not before a peer that
	// lives, but is cut off, has had its chance to stop them gracefully, and long
	// before repair.Options.LeaseTimeout and Fencing (12 s) are over.
	KillAfter = After + Grace
	// Kept is the age of the last renewal up to which the node cannot have been judged lost: less than repair.Options.LeaseTimeout.
	Kept = 1500 * time.Millisecond
	// pollEvery is how often the Watchdog looks. It adds to KillAfter.
	pollEvery = 500 * time.Millisecond
)

// aheadMost is how far in the future a renewal may lie: a peer that announces its
// restart has been granted patience.
const aheadMost = 30 * time.Second

// never is a renewal longer ago than any limit.
const never = time.Duration(math.MinInt64 / 2)

// sight is what was seen of the heartbeat.
type sight struct {
	armed   bool          // there is one
	text    string        // its content
	renewed time.Duration // since boot
}

// next is the sight after the file was read at now. found is false when there
// is none. Content that makes no sense counts as a renewal of now: it is new, so
// somebody is alive.
func (s sight) next(now time.Duration, text string, found bool) sight {
	if !found {
		return sight{}
	}
	if s.armed && s.text == text {
		return s
	}
	renewed := now
	if stamp, err := strconv.ParseInt(text, 10, 64); err == nil {
		renewed = min(now+aheadMost, time.Duration(stamp))
	}
	return sight{armed: true, text: text, renewed: renewed}
}

// overdue decides: the last renewal is limit or more ago.
func (s sight) overdue(now, limit time.Duration) bool {
	return s.armed && now-s.renewed >= limit
}
