package workload

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

const deploymentComponent = "deployment-controller"

// Annotations by which upstream's deployment controller, kubectl rollout and we remember
// revisions and sizes.
const (
	revisionAnnotation        = "deployment.kubernetes.io/revision"
	revisionHistoryAnnotation = "deployment.kubernetes.io/revision-history"
	desiredAnnotation         = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation             = "deployment.kubernetes.io/max-replicas"
)

// replicaSet is one of a Deployment's sets while it is being planned.
type replicaSet struct {
	seen *appsv1.ReplicaSet // nil if this plan creates it
	want *appsv1.ReplicaSet // own copy, modified as the plan proceeds
	pods *replicas
	// now is the state of the pods before the plan; all rollout decisions rest on it.
	now tally
}

func (s *replicaSet) size() int32 { return *s.want.Spec.Replicas }

// rollout is one Deployment being planned.
type rollout struct {
	view *placement.View
	seen *appsv1.Deployment
	want *appsv1.Deployment // own copy: only annotations and status are ever written
	now  time.Time
	plan *placement.Plan

	size           int32
	maxSurge       int32
	maxUnavailable int32

	sets    []*replicaSet // oldest first
	current *replicaSet   // the set of the present template, nil if there is none yet
	old     []*replicaSet // all others, oldest first
	created bool          // current is created by this plan
}

// PlanDeployment plans a Deployment, its ReplicaSets and their pods in one pass.
func PlanDeployment(v *placement.View, d *appsv1.Deployment, now time.Time) placement.Plan {
	var plan placement.Plan
	r := &rollout{view: v, seen: d, want: d.DeepCopy(), now: now, plan: &plan}
	if apiequality.Semantic.DeepEqual(d.Spec.Selector, &metav1.LabelSelector{}) {
		r.refuseEmptySelector()
		return plan
	}
	r.bounds()
	r.findSets()
	if d.DeletionTimestamp == nil {
		r.notePause()
		r.decide()
	}
	r.writeSets()
	r.writeStatus()
	return plan
}

func (r *rollout) refuseEmptySelector() {
	if r.seen.Status.ObservedGeneration >= r.seen.Generation {
		return
	}
	r.want.Status.ObservedGeneration = r.seen.Generation
	r.plan.Add(placement.Updating(placement.UpdateStatus, r.seen, r.want, placement.Event{
		Regarding: r.seen, Type: corev1.EventTypeWarning, Reason: "SelectingAll", Component: deploymentComponent,
		Message: "This deployment is selecting all pods. A non-empty selector is required.",
	}))
}

// findSets claims the Deployment's ReplicaSets and their pods, and finds the current one: of the
// sets whose template is the Deployment's, the oldest.
func (r *rollout) findSets() {
	o := newOwner(r.seen, deploymentKind, r.seen.Spec.Selector)
	// Of and Orphans, not all of the namespace: those are as many as its Deployments have had templates.
	for _, rs := range slices.Concat(r.view.ReplicaSets.Of(r.seen.UID), r.view.ReplicaSets.Orphans(r.seen.Namespace)) {
		mine, change := o.claim(rs)
		if rs.Namespace != r.seen.Namespace || !mine && !change {
			continue
		}
		want := rs.DeepCopy()
		if !mine {
			o.release(want)
			r.plan.Add(placement.Updating(placement.Update, rs, want))
			continue
		}
		if change {
			o.adopt(want)
		}
		if want.Spec.Replicas == nil {
			want.Spec.Replicas = ptr.To[int32](1)
		}
		set := &replicaSet{seen: rs, want: want, pods: newReplicaSetPods(want)}
		set.pods.claimPods(r.view, r.plan)
		set.now = set.pods.count(r.plan, r.now)
		r.sets = append(r.sets, set)
	}
	slices.SortStableFunc(r.sets, olderSet)
	for _, set := range r.sets {
		if r.current == nil && sameTemplate(&set.want.Spec.Template, &r.seen.Spec.Template) {
			r.current = set
		} else {
			r.old = append(r.old, set)
		}
	}
}

func olderSet(a, b *replicaSet) int {
	return cmp.Or(
		a.want.CreationTimestamp.Compare(b.want.CreationTimestamp.Time),
		cmp.Compare(a.want.Name, b.want.Name),
	)
}

// decide chooses the sizes of the sets.
func (r *rollout) decide() {
	r.syncRevision()
	switch {
	case r.seen.Spec.Paused:
		r.scaleInProportion()
	case r.scaled():
		r.scaleInProportion()
	case r.seen.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType:
		r.recreate()
	default:
		r.roll()
	}
}

// scaled tells whether the Deployment's size has changed since its sets were last sized.
func (r *rollout) scaled() bool {
	for _, set := range r.sets {
		if set.size() == 0 {
			continue
		}
		if desired, ok := sizeAnnotation(set.want, desiredAnnotation); ok && desired != r.size {
			return true
		}
	}
	return false
}

// writeSets adds the changes of the sets and of their pods to the plan.
func (r *rollout) writeSets() {
	var related []*placement.Pod
	for _, set := range r.sets {
		related = append(related, set.pods.active...)
	}
	for _, set := range r.sets {
		set.pods.want = set.size()
		respecified := false
		switch {
		case set.seen == nil:
			r.plan.Add(placement.Change{Verb: placement.Create, Object: set.want, Events: r.scalingEvents(set)})
		case set.changed():
			respecified = !apiequality.Semantic.DeepEqual(set.seen.Spec, set.want.Spec)
			r.plan.Add(placement.Updating(placement.Update, set.seen, set.want, r.scalingEvents(set)...))
		}
		set.pods.scale(r.view, r.plan, related, r.now)
		status := replicaSetStatus(r.view, set.want, set.pods, r.plan, r.now)
		if respecified {
			// The write above moves the generation by one, and the pods of this plan are already
			// those of the new specification.
			status.ObservedGeneration++
		}
		if set.seen != nil && !apiequality.Semantic.DeepEqual(status, set.seen.Status) {
			want := set.want.DeepCopy()
			want.Status = status
			change := placement.Updating(placement.UpdateStatus, set.seen, want)
			if set.changed() {
				change.ResourceVersion = ""
			}
			r.plan.Add(change)
		}
		set.want.Status = status
	}
}

func (s *replicaSet) changed() bool {
	return !apiequality.Semantic.DeepEqual(s.seen.Spec, s.want.Spec) ||
		!apiequality.Semantic.DeepEqual(s.seen.Annotations, s.want.Annotations) ||
		!apiequality.Semantic.DeepEqual(s.seen.OwnerReferences, s.want.OwnerReferences)
}

// resize sets a set's size and the annotations that remember what the size was derived from.
func (r *rollout) resize(set *replicaSet, size int32) {
	if set.size() == size {
		return
	}
	*set.want.Spec.Replicas = size
	r.annotateSizes(set)
}

// scalingEvents says how a set's size changes by the whole plan.
func (r *rollout) scalingEvents(set *replicaSet) []placement.Event {
	before := int32(0)
	if set.seen != nil {
		before = ptr.Deref(set.seen.Spec.Replicas, 1)
	}
	size, direction := set.size(), "up"
	switch {
	case size == before:
		return nil
	case size < before:
		direction = "down"
	}
	return []placement.Event{{
		Regarding: r.seen, Type: corev1.EventTypeNormal, Reason: "ScalingReplicaSet", Component: deploymentComponent,
		Message: fmt.Sprintf("Scaled %s replica set %s from %d to %d", direction, set.want.Name, before, size),
	}}
}

func (r *rollout) annotateSizes(set *replicaSet) {
	metav1.SetMetaDataAnnotation(&set.want.ObjectMeta, desiredAnnotation, strconv.Itoa(int(r.size)))
	metav1.SetMetaDataAnnotation(&set.want.ObjectMeta, maxAnnotation, strconv.Itoa(int(r.size+r.maxSurge)))
}

// sizeAnnotation reads a size that resize remembered; malformed ones count as absent.
func sizeAnnotation(rs *appsv1.ReplicaSet, key string) (int32, bool) {
	n, err := strconv.ParseInt(rs.Annotations[key], 10, 32)
	return int32(n), err == nil && n >= 0
}
