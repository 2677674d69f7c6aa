package repair

import (
	"slices"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

const evictionComponent = "taint-eviction-controller"

// Evictions is what PlanEvictions decides. Its plan's changes may belong to several namespaces,
// and each stands for itself: they need not commit together.
type Evictions struct {
	placement.Plan
	Brakes []Brake
}

// PlanEvictions deletes the view's pods that must leave: from nodes with NoExecute taints when
// their tolerations run out, from deleted nodes at once, and finished ones beyond the limit. Pods
// on lost and unready nodes that may stay are marked not ready. losses is what the same leader's earlier plans have noted, and takes in
// what this one sees.
func PlanEvictions(v *placement.View, losses *Losses, o Options, now time.Time) Evictions {
	e := evictor{view: v, losses: losses, options: o, now: now}
	zones := zonesOf(v)
	e.Brakes = brakes(zones, o)
	losses.note(v, zones, e.Brakes, o, now)
	for _, n := range v.Troubled() {
		e.visit(n)
	}
	for _, name := range v.Vanished() {
		n, _ := v.Node(name)
		for _, pod := range n.Pods() {
			e.delete(pod.Object, true, "DeletionByPodGC", "PodGC: node no longer exists")
		}
	}
	e.collect()
	return e.Evictions
}

type evictor struct {
	Evictions
	view    *placement.View
	losses  *Losses
	options Options
	now     time.Time
}

// visit deals with the pods of one node.
func (e *evictor) visit(n *placement.Node) {
	taints := noExecute(n.Object)
	if len(taints) == 0 && n.Ready() == corev1.ConditionTrue {
		return
	}
	lost := n.Lost()
	if !lost && len(taints) == 0 && n.Ready() != corev1.ConditionFalse {
		return // a new node that has not reported yet
	}
	braked := lost && slices.ContainsFunc(e.Brakes, func(b Brake) bool { return b.Zone == n.Zone() })
	for _, pod := range n.Pods() {
		if e.full() {
			return
		}
		at, leaves := e.leavesAt(n, pod.Object, taints, lost)
		switch {
		case leaves && !braked && !at.After(e.now):
			// Nobody is there to answer a graceful deletion of a pod on a lost node.
			if lost || pod.Object.DeletionTimestamp == nil {
				e.delete(pod.Object, lost, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
			}
			continue
		case leaves && !braked:
			e.RecheckAt(at)
		}
		if n.Ready() != corev1.ConditionTrue {
			e.markNotReady(pod.Object)
		}
	}
}

// full tells whether the plan has its fill; the rest follows at once.
func (e *evictor) full() bool {
	if len(e.Changes) < e.options.MaxChanges {
		return false
	}
	e.RecheckAt(e.now)
	return true
}

func noExecute(node *corev1.Node) []corev1.Taint {
	var taints []corev1.Taint
	for _, t := range node.Spec.Taints {
		if t.Effect == corev1.TaintEffectNoExecute {
			taints = append(taints, t)
		}
	}
	return taints
}

// leavesAt is when a pod must leave its node, if ever.
func (e *evictor) leavesAt(n *placement.Node, pod *corev1.Pod, taints []corev1.Taint, lost bool) (time.Time, bool) {
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return time.Time{}, false // its node owns it
	}
	if !lost {
		return toleratedUntil(pod, taints)
	}
	noted := e.losses.nodes[n.Name]
	at, leaves := toleratedUntil(pod, seenSince(taints, noted.since))
	if placement.HasTaint(n.Object, corev1.TaintNodeOutOfService, corev1.TaintEffectNoExecute) {
		// An administrator has sworn that the node is off.
		return at, leaves
	}
	if pod.DeletionTimestamp != nil {
		// Somebody has deleted it already, tolerations no longer count.
		at, leaves = later(pod.DeletionTimestamp.Time, noted.since), true
	}
	if e.hasIdentity(pod) {
		at = later(at, noted.seen.Add(e.options.Fencing))
	}
	return noted.turn(at), leaves
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// toleratedUntil is when the pod's tolerations of the taints run out; false if never. A taint
// that has no date yet is not acted upon before PlanNodes has dated it, unless it is not
// tolerated at all.
func toleratedUntil(pod *corev1.Pod, taints []corev1.Taint) (time.Time, bool) {
	var until time.Time
	leaves := false
	for i := range taints {
		taint := &taints[i]
		added := ptr.Deref(taint.TimeAdded, metav1.Time{}).Time
		tolerated := false
		var seconds *int64 // the shortest; nil is for ever
		for j := range pod.Spec.Tolerations {
			t := &pod.Spec.Tolerations[j]
			if !t.ToleratesTaint(logr.Discard(), taint, false) {
				continue
			}
			tolerated = true
			if t.TolerationSeconds != nil && (seconds == nil || *t.TolerationSeconds < *seconds) {
				seconds = t.TolerationSeconds
			}
		}
		var at time.Time
		switch {
		case !tolerated:
			at = added
		case seconds == nil, added.IsZero():
			continue
		default:
			at = added.Add(time.Duration(min(max(*seconds, 0), 1<<31)) * time.Second)
		}
		if !leaves || at.Before(until) {
			until, leaves = at, true
		}
	}
	return until, leaves
}

// hasIdentity tells whether two copies of the pod at once could do harm.
func (e *evictor) hasIdentity(pod *corev1.Pod) bool {
	if ref := metav1.GetControllerOfNoCopy(pod); ref != nil && ref.Kind == placement.KindStatefulSet {
		return true
	}
	for i := range pod.Spec.Volumes {
		source := pod.Spec.Volumes[i].PersistentVolumeClaim
		if source == nil {
			continue
		}
		claim, ok := e.view.Claims.Get(pod.Namespace, source.ClaimName)
		if !ok || slices.ContainsFunc(claim.Spec.AccessModes, func(m corev1.PersistentVolumeAccessMode) bool {
			return m == corev1.ReadWriteOnce || m == corev1.ReadWriteOncePod
		}) {
			return true
		}
	}
	return false
}

// delete removes a pod, for a reason that its condition gives; force does not wait for its node.
func (e *evictor) delete(pod *corev1.Pod, force bool, reason, message string) {
	if e.full() {
		return
	}
	change := placement.Change{
		Verb: placement.Delete, Object: pod, UID: pod.UID, Disruption: placement.Disrupted(reason, message, e.now),
		Events: []placement.Event{{
			Regarding: pod, Type: corev1.EventTypeNormal, Reason: "TaintManagerEviction", Component: evictionComponent,
			Message: "Marking for deletion Pod " + pod.Namespace + "/" + pod.Name,
		}},
	}
	if force {
		change.GracePeriodSeconds = ptr.To[int64](0)
		e.giveUp(pod)
	}
	e.Add(change)
}

// giveUp says of a Job's pod that is given up with its node that it has failed, since its node cannot say so: the Job's finalizer keeps the pod
// until it was counted, and its Disruption tells the Job's failure policy that it did not fail by itself.
func (e *evictor) giveUp(pod *corev1.Pod) {
	if ref := metav1.GetControllerOfNoCopy(pod); ref == nil || ref.Kind != placement.KindJob || placement.Finished(pod) {
		return
	}
	want := pod.DeepCopy()
	want.Status.Phase = corev1.PodFailed
	e.Add(placement.Updating(placement.UpdateStatus, pod, want))
}

// markNotReady makes a pod's Ready condition say what its node can no longer say.
func (e *evictor) markNotReady(pod *corev1.Pod) {
	if !placement.Ready(pod) || e.full() {
		return
	}
	want := pod.DeepCopy()
	c := placement.PodCondition(want, corev1.PodReady)
	c.Status, c.LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(e.now)
	c.Reason, c.Message = "NodeNotReady", "The pod's node is not ready."
	e.Add(placement.Updating(placement.UpdateStatus, pod, want))
}

// collect removes the oldest finished pods beyond the limit, and pods that were deleted before
// they ever had a node.
func (e *evictor) collect() {
	var finished []*corev1.Pod
	for _, pod := range e.view.Ended() {
		if !placement.Finished(pod.Object) {
			e.remove(pod.Object)
		} else {
			finished = append(finished, pod.Object)
		}
	}
	excess := len(finished) - e.options.MaxTerminated
	if excess <= 0 {
		return
	}
	slices.SortStableFunc(finished, func(a, b *corev1.Pod) int {
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
	for _, pod := range finished[:excess] {
		e.remove(pod)
	}
}

func (e *evictor) remove(pod *corev1.Pod) {
	if !e.full() {
		e.Add(placement.Change{Verb: placement.Delete, Object: pod, UID: pod.UID, GracePeriodSeconds: ptr.To[int64](0)})
	}
}
