package workload

import (
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"shoal/placement"
)

// daemonTolerations are those of the set's pods: the template's, and the ones by which they stay on nodes
// that others must leave.
func daemonTolerations(spec *corev1.PodSpec) []corev1.Toleration {
	tolerations := slices.Clone(spec.Tolerations)
	add := func(key string, effect corev1.TaintEffect) {
		t := corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: effect}
		for i := range tolerations {
			if tolerations[i].MatchToleration(&t) {
				tolerations[i] = t // without an end
				return
			}
		}
		tolerations = append(tolerations, t)
	}
	add(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute)
	add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute)
	add(corev1.TaintNodeDiskPressure, corev1.TaintEffectNoSchedule)
	add(corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule)
	add(corev1.TaintNodePIDPressure, corev1.TaintEffectNoSchedule)
	add(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)
	if spec.HostNetwork {
		add(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)
	}
	return tolerations
}

// pinnedTo makes a pod's required node affinity name one node; that it fits there is decided already.
func pinnedTo(node string, affinity *corev1.Affinity) *corev1.Affinity {
	if affinity == nil {
		affinity = &corev1.Affinity{}
	}
	if affinity.NodeAffinity == nil {
		affinity.NodeAffinity = &corev1.NodeAffinity{}
	}
	affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchFields: []corev1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
	}}}
	return affinity
}

// rollOver replaces pods of older templates, as far as maxUnavailable and maxSurge allow. It returns the
// nodes that get a second pod.
func (d *daemonSet) rollOver() []string {
	surge, unavailable := d.scaled(d.rolling().MaxSurge, d.desired), d.scaled(d.rolling().MaxUnavailable, d.desired)
	if surge == 0 && unavailable == 0 {
		unavailable = 1 // a rollout that may do nothing would never end
	}
	if surge == 0 {
		d.replace(unavailable)
		return nil
	}
	return d.surge(surge)
}

// pair finds the pods of the present and of an older template on a node; false if there are two of one.
func (d *daemonSet) pair(n *daemonNode) (newer, older *corev1.Pod, ok bool) {
	for _, pod := range n.pods {
		switch {
		case pod.DeletionTimestamp != nil:
		case d.updated(pod) && newer == nil:
			newer = pod
		case !d.updated(pod) && older == nil:
			older = pod
		default:
			return nil, nil, false
		}
	}
	return newer, older, true
}

// replace deletes older pods: those that are not available, and of the others as many as the budget has room for.
func (d *daemonSet) replace(budget int) {
	var candidates []*corev1.Pod
	for i := range d.nodes {
		newer, older, ok := d.pair(&d.nodes[i])
		switch {
		case !ok, (newer == nil) == (older == nil):
			budget-- // about to be created, or cleaned up
		case newer != nil:
			if !d.available(newer) {
				budget--
			}
		case !d.available(older):
			d.delete(older)
			budget--
		default:
			candidates = append(candidates, older)
		}
	}
	for _, pod := range candidates[:min(max(budget, 0), len(candidates))] {
		d.delete(pod)
	}
}

// surge starts newer pods beside older ones, as many as the budget has room for, and deletes older ones whose
// successor is available. On nodes that the set has left, pods go only as those on others become available.
func (d *daemonSet) surge(budget int) []string {
	var nodes, candidates []string
	var leaving []*corev1.Pod
	available := 0
	for i := range d.nodes {
		n := &d.nodes[i]
		newer, older, ok := d.pair(n)
		if !ok {
			budget--
			continue
		}
		if older != nil && d.available(older) || older == nil && newer != nil && d.available(newer) {
			available++
		}
		switch {
		case older == nil:
		case newer != nil && d.available(newer):
			d.delete(older)
		case newer != nil:
			budget--
		case !n.shouldRun && d.available(older):
			leaving = append(leaving, older)
		case !n.shouldRun:
			d.delete(older)
		case !d.available(older):
			nodes = append(nodes, n.name)
		default:
			candidates = append(candidates, n.name)
		}
	}
	for _, pod := range leaving[:min(max(available-d.desired, 0), len(leaving))] {
		d.delete(pod)
	}
	return append(nodes, candidates[:min(max(budget, 0), len(candidates))]...)
}

// writeStatus works out the status after the plan.
func (d *daemonSet) writeStatus() {
	want := d.seen.DeepCopy()
	want.Status = appsv1.DaemonSetStatus{
		DesiredNumberScheduled: int32(d.desired), ObservedGeneration: d.seen.Generation,
		CollisionCount: d.seen.Status.CollisionCount,
		Conditions: withFailure(d.seen.Status.Conditions, d.failure, appsv1.DaemonSetCondition{
			Type: replicaFailure, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(d.now), Reason: failedCreate, Message: d.failure,
		}, func(c appsv1.DaemonSetCondition) bool { return c.Type == replicaFailure }),
	}
	if d.collisions > 0 {
		want.Status.CollisionCount = ptr.To(d.collisions)
	}
	for i := range d.nodes {
		d.count(&want.Status, &d.nodes[i])
	}
	want.Status.NumberUnavailable = want.Status.DesiredNumberScheduled - want.Status.NumberAvailable
	if !apiequality.Semantic.DeepEqual(want.Status, d.seen.Status) {
		d.plan.Add(placement.Updating(placement.UpdateStatus, d.seen, want))
	}
}

func (d *daemonSet) count(s *appsv1.DaemonSetStatus, n *daemonNode) {
	there := slices.DeleteFunc(slices.Clone(n.pods), func(pod *corev1.Pod) bool {
		return d.deleted[pod] && (pod.Spec.NodeName == "" || placement.Finished(pod)) // gone at once
	})
	switch {
	case !n.shouldRun:
		if len(there) > 0 {
			s.NumberMisscheduled++
		}
	case len(there) > 0:
		s.CurrentNumberScheduled++
		if placement.Ready(there[0]) {
			s.NumberReady++
			if d.available(there[0]) {
				s.NumberAvailable++
			}
		}
		if d.updated(there[0]) {
			s.UpdatedNumberScheduled++
		}
	case d.created[n.name]:
		s.CurrentNumberScheduled++
		s.UpdatedNumberScheduled++
	}
}
