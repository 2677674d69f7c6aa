package placement

import (
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// failure is what is known of a controller whose pods were refused by quota or admission.
type failure struct {
	message string
	allowed int // pods that the next plan may create
	strikes int // how often a single pod was refused in a row
	until   time.Time
}

const (
	// unlimited is the number of pods from which on an allowance is no limit any more.
	unlimited = 512
	// firstRefusal and lastRefusal bound how long nothing is tried after a single pod was refused.
	firstRefusal, lastRefusal = time.Second, 30 * time.Second
)

// Refuse records that a plan with that many new pods of a controller was refused, and why. A plan
// commits as a whole, so the next one tries half as many: as many pods come to be as quota has room
// for. When a single one is refused, plans create none for a while, so that they can at least say so.
// The leader that applies plans calls it.
func (v *View) Refuse(controller types.UID, pods int, message string, now time.Time) {
	f := v.failures[controller]
	f.message, f.allowed = message, pods/2
	if f.allowed > 0 {
		f.strikes = 0
	} else {
		f.until = now.Add(min(firstRefusal<<min(f.strikes, 10), lastRefusal))
		f.strikes++
	}
	v.failures[controller] = f
}

// Accept records that a plan with that many new pods of a controller was committed.
func (v *View) Accept(controller types.UID, pods int) {
	f, failed := v.failures[controller]
	if !failed {
		return
	}
	if pods < f.allowed || 2*pods >= unlimited {
		delete(v.failures, controller) // all that was wanted has come to be
		return
	}
	f.allowed, f.strikes = 2*pods, 0
	v.failures[controller] = f
}

// Allowance is how many pods a plan may create for a controller after refusals; if none, the second
// result is when to ask again. Without refusals it is false.
func (v *View) Allowance(controller types.UID, now time.Time) (pods int, again time.Time, limited bool) {
	f, failed := v.failures[controller]
	switch {
	case !failed:
		return 0, time.Time{}, false
	case f.allowed > 0:
		return f.allowed, time.Time{}, true
	case now.Before(f.until):
		return 0, f.until, true
	default:
		return 1, time.Time{}, true
	}
}

// Failure is why the last attempt to create pods for a controller was refused, "" if it was not.
func (v *View) Failure(controller types.UID) string { return v.failures[controller].message }
