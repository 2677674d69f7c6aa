package workload

import (
	"cmp"
	"math"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// bounds resolves size, maxSurge and maxUnavailable. Percentages of surge round up, of
// unavailability down; if both come out as zero nothing could ever move, so one pod may be
// unavailable. Values that do not parse count as zero (validation refuses them).
func (r *rollout) bounds() {
	r.size = ptr.Deref(r.seen.Spec.Replicas, 1)
	if r.seen.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType {
		return
	}
	var surge, unavailable *intstr.IntOrString
	if s := r.seen.Spec.Strategy.RollingUpdate; s != nil {
		surge, unavailable = s.MaxSurge, s.MaxUnavailable
	}
	r.maxSurge = resolve(surge, r.size, true)
	r.maxUnavailable = resolve(unavailable, r.size, false)
	if r.maxSurge == 0 && r.maxUnavailable == 0 {
		r.maxUnavailable = 1
	}
	r.maxUnavailable = min(r.maxUnavailable, r.size)
}

func resolve(value *intstr.IntOrString, of int32, roundUp bool) int32 {
	n, err := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(value, intstr.FromInt32(0)), int(of), roundUp)
	if err != nil {
		return 0
	}
	// Sums with the size must stay in int32.
	return int32(min(max(n, 0), math.MaxInt32-int(of)))
}

func (r *rollout) minAvailable() int32 { return r.size - r.maxUnavailable }

// totalSize is the sum of the sets' sizes, bounded so that absurd ones cannot overflow.
func (r *rollout) totalSize() int32 {
	var n int64
	for _, set := range r.sets {
		n += int64(set.size())
	}
	return int32(min(n, math.MaxInt32))
}

func (r *rollout) available() int32 {
	var n int32
	for _, set := range r.sets {
		n += set.now.available
	}
	return n
}

// roll moves pods from the old sets to the current one within maxSurge and maxUnavailable. What
// shrinking frees is used in the same pass.
func (r *rollout) roll() {
	if r.current == nil && !r.createSet() {
		return
	}
	r.growCurrent()
	r.shrinkOld()
	r.growCurrent()
}

func (r *rollout) growCurrent() {
	size := r.current.size()
	switch {
	case size > r.size:
		r.resize(r.current, r.size)
	case size < r.size:
		r.resize(r.current, size+r.room())
	}
}

// room is how many pods the current set may get now.
func (r *rollout) room() int32 {
	return max(min(r.size+r.maxSurge-r.totalSize(), r.size-r.current.size()), 0)
}

// shrinkOld takes pods off the old sets, oldest first: first those that are not available anyway
// and may block the rollout, then available ones as far as minAvailable allows.
//
// Pods of the current set that are not available yet count against the room to shrink. Otherwise,
// behind a new template that never gets ready, old pods that are unready for a moment would be
// deleted one by one instead of coming back.
func (r *rollout) shrinkOld() {
	notYet := r.current.size() - r.current.now.available
	budget := r.totalSize() - r.minAvailable() - notYet
	if budget <= 0 {
		return
	}
	for _, set := range r.old {
		unhealthy := min(set.size()-set.now.available, budget)
		if unhealthy > 0 {
			budget -= unhealthy
			r.resize(set, set.size()-unhealthy)
		}
	}
	spare := r.available() - r.minAvailable()
	for _, set := range r.old {
		n := min(set.size(), spare)
		if n > 0 {
			spare -= n
			r.resize(set, set.size()-n)
		}
	}
}

// recreate removes all old pods before it makes new ones.
func (r *rollout) recreate() {
	for _, set := range r.old {
		if set.size() > 0 {
			r.resize(set, 0)
		}
	}
	if r.oldPodsRemain() {
		return
	}
	if r.current == nil && !r.createSet() {
		return
	}
	r.resize(r.current, r.size)
}

// oldPodsRemain tells whether pods of an older template are still there, terminating ones included.
func (r *rollout) oldPodsRemain() bool {
	for _, set := range r.old {
		if len(set.pods.active) > 0 || set.pods.terminating > 0 {
			return true
		}
	}
	return false
}

// scaleInProportion spreads a changed size, or the size of a paused Deployment, over its sets
// without moving the rollout on: every set keeps its share, so that a bad template does not gain
// from scaling. ("Proportional scaling", kubernetes.io/docs/concepts/workloads/controllers/deployment.)
func (r *rollout) scaleInProportion() {
	if only := r.onlyOrLatest(); only != nil {
		r.annotateSizes(only)
		r.resize(only, r.size)
		return
	}
	if r.saturated() {
		for _, set := range r.old {
			if set.size() > 0 {
				r.resize(set, 0)
			}
		}
		return
	}
	if r.seen.Spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		r.distribute()
	}
}

// onlyOrLatest is the only set that has a size, or the newest if none has one; nil if several
// have one or there is no set at all.
func (r *rollout) onlyOrLatest() *replicaSet {
	active := r.activeSets()
	switch {
	case len(active) == 1:
		return active[0]
	case len(active) > 1 || len(r.sets) == 0:
		return nil
	case r.current != nil:
		return r.current
	default:
		return r.old[len(r.old)-1]
	}
}

func (r *rollout) activeSets() []*replicaSet {
	var active []*replicaSet
	for _, set := range r.sets {
		if set.size() > 0 {
			active = append(active, set)
		}
	}
	return active
}

// saturated tells whether the current set alone can carry the whole Deployment.
func (r *rollout) saturated() bool {
	if r.current == nil {
		return false
	}
	desired, ok := sizeAnnotation(r.current.want, desiredAnnotation)
	return ok && desired == r.size && r.current.size() == r.size && r.current.now.available == r.size
}

func (r *rollout) distribute() {
	active := r.activeSets()
	if len(active) == 0 {
		return
	}
	allowed := int32(0)
	if r.size > 0 {
		allowed = r.size + r.maxSurge
	}
	change := allowed - r.totalSize()
	if change == 0 {
		for _, set := range active {
			r.annotateSizes(set)
		}
		return
	}
	// Larger sets first; of equal ones the newer gains first and the older loses first.
	slices.SortStableFunc(active, func(a, b *replicaSet) int {
		byAge := olderSet(a, b)
		if change > 0 {
			byAge = -byAge
		}
		return cmp.Or(cmp.Compare(b.size(), a.size()), byAge)
	})
	left := change
	sizes := make([]int32, len(active))
	for i, set := range active {
		share := r.share(set)
		if change > 0 {
			share = max(min(share, left), 0)
		} else {
			share = min(max(share, left), 0)
		}
		left -= share
		sizes[i] = set.size() + share
	}
	// Rounding leaves something over: the largest set takes it.
	sizes[0] = max(sizes[0]+left, 0)
	for i, set := range active {
		r.annotateSizes(set)
		r.resize(set, sizes[i])
	}
}

// share is how much a set's size should change so that it keeps its proportion.
func (r *rollout) share(set *replicaSet) int32 {
	if r.size == 0 {
		return -set.size()
	}
	before, ok := sizeAnnotation(set.want, maxAnnotation)
	if !ok || before == 0 {
		before = r.seen.Status.Replicas
	}
	if before == 0 {
		return 0
	}
	size := float64(set.size()) * float64(r.size+r.maxSurge) / float64(before)
	return int32(math.Round(min(size, math.MaxInt32))) - set.size()
}

// conditionOf finds a Deployment condition, nil without one.
func conditionOf(status *appsv1.DeploymentStatus, kind appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range status.Conditions {
		if status.Conditions[i].Type == kind {
			return &status.Conditions[i]
		}
	}
	return nil
}

// setCondition sets a condition as upstream does: nothing if status and reason stand already,
// and the transition time only moves with the status.
func (r *rollout) setCondition(kind appsv1.DeploymentConditionType, is corev1.ConditionStatus, reason, message string) {
	status := &r.want.Status
	c := appsv1.DeploymentCondition{
		Type: kind, Status: is, Reason: reason, Message: message,
		LastUpdateTime: r.timestamp(), LastTransitionTime: r.timestamp(),
	}
	if present := conditionOf(status, kind); present != nil {
		if present.Status == is && present.Reason == reason {
			return
		}
		if present.Status == is {
			c.LastTransitionTime = present.LastTransitionTime
		}
	}
	r.dropCondition(kind)
	status.Conditions = append(status.Conditions, c)
}

func (r *rollout) dropCondition(kind appsv1.DeploymentConditionType) {
	r.want.Status.Conditions = slices.DeleteFunc(r.want.Status.Conditions, func(c appsv1.DeploymentCondition) bool {
		return c.Type == kind
	})
}
