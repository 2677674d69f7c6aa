package consensus

import (
	"sync/atomic"
	"time"
)

const (
	// detourAfter is how long an attempt at a local replica may have taken when it fails for others to be led past it.
	detourAfter = 500 * time.Millisecond
	// detourFor is how long they are before one of them tries it again.
	detourFor = 2 * time.Second
)

// detour leads requests past a local replica that has not answered: it may be cut off from its leader while others here can be reached that
// are not. Without it each request would find that out by itself, at the price of one or two attempts, and each write that ends so may have
// been applied.
type detour struct {
	// until is when one request tries the replica again, by the host's Elapsed; 0 without a detour.
	until atomic.Int64
	// term is that of the leader whom the replica followed, if any, when it did not answer.
	term atomic.Uint64
}

// begin notes that an attempt has failed, after so long.
func (d *detour) begin(now, took time.Duration, term uint64) {
	if took < detourAfter {
		return
	}
	d.term.Store(term)
	d.until.Store(int64(now + detourFor))
}

// end notes that the replica has answered.
func (d *detour) end() {
	if d.set() {
		d.until.Store(0)
	}
}

func (d *detour) set() bool { return d.until.Load() != 0 }

// taken tells a request whether to go elsewhere first. term is that of the leader whom the replica follows now, 0 without one: with another
// than before, the replica is worth a try.
func (d *detour) taken(now time.Duration, term uint64) bool {
	until := d.until.Load()
	if until == 0 {
		return false
	}
	if term != 0 && term != d.term.Load() {
		d.end()
		return false
	}
	return int64(now) < until || !d.until.CompareAndSwap(until, int64(now+detourFor))
}
