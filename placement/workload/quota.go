package workload

import (
	"fmt"
	"slices"
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

// replicaFailure is the condition that tells why pods are missing. Kubernetes knows it from ReplicaSets and Deployments; StatefulSets,
// DaemonSets and Jobs have the same words for it here.
const replicaFailure = "ReplicaFailure"

// failedCreate is its reason.
const failedCreate = "FailedCreate"

// withFailure is a list of conditions with the one that tells of a failure as long as there is one. A condition that is there already
// stays as it is: its text may count pods, and need not be written with each of them.
func withFailure[C any](have []C, failure string, condition C, is func(C) bool) []C {
	has := slices.ContainsFunc(have, is)
	switch {
	case failure == "" && has:
		return slices.DeleteFunc(slices.Clone(have), is)
	case failure != "" && !has:
		return append(slices.Clone(have), condition)
	default:
		return have
	}
}
