package workload

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"shoal/placement"
)

const (
	// maxBurst bounds how many pods one pass creates or deletes for one owner. What is left follows
	// in the next pass, which the committed changes trigger; a million replicas stay bounded work.
	maxBurst = 500
	// maxWaiting bounds how many pods of one owner wait for a node. More would not run any sooner, but
	// would have to be stored, watched and looked at with every change of the cluster.
	maxWaiting = 1000
)

// quotaOf is how many pods a plan may create for an owner of which that many wait for a node. If it is
// less than a whole burst, the plan says why and when to ask again.
func quotaOf(v *placement.View, owner types.UID, waiting int, plan *placement.Plan, now time.Time) int {
	quota := maxBurst
	if waiting+quota > maxWaiting {
		quota = max(maxWaiting-waiting, 0)
	}
	if pods, again, limited := v.Allowance(owner, now); limited {
		quota = min(quota, pods)
		plan.RecheckAt(again)
	}
	return quota
}

// shortage says why an owner has fewer pods than it wants although it could create more; "" if nothing
// is in the way.
func shortage(v *placement.View, owner types.UID, missing, waiting int) string {
	switch {
	case missing <= 0:
		return ""
	case waiting >= maxWaiting:
		return fmt.Sprintf("%d pods wait for a node; no more are created until some of them have one", waiting)
	default:
		return v.Failure(owner)
	}
}
